"""Which device a run uses, and how it is made to give the same bits twice."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from pipeline.errors import InputError

Choose = Callable[[Mapping[str, torch.device]], torch.device]


def first(gpus: Mapping[str, torch.device]) -> torch.device:
    """The one that CUDA names first."""
    return next(iter(gpus.values()))


def prepare_device(name: str, said_in: str, choose: Choose = first) -> torch.device:
    """The device called `name`: cpu, mps, cuda, cuda:N, or auto (cuda, else mps, else cpu).

    On CUDA only deterministic kernels are allowed from here on, and `choose` says which of the GPUs, by their UUIDs, if
    several would give the same bits.
    Raises InputError, which begins with `said_in` (the file the name comes from), where there is no such device.
    """
    device = torch.device(_best() if name == "auto" else name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(
                f"{said_in}: device: {name} is not on this machine, which has {count or 'no'} CUDA device"
                f"{'' if count == 1 else 's'} (`device: auto` takes the best there is)"
            )
        # cuBLAS reads this when it starts; with another workspace its sums may change their order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
        gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
        same = alike([gpu.name for gpu in gpus], device.index)
        device = choose({str(gpus[index].uuid): torch.device("cuda", index) for index in same})
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"{said_in}: device: mps is not on this machine (`device: auto` takes the best there is)")
    return device


def alike(models: Sequence[str], named: int | None) -> list[int]:
    """Which GPUs of a machine a run may take: the one that is named, else all of the first one's model."""
    return [index for index, model in enumerate(models) if (model == models[0] if named is None else index == named)]


def device_name(device: torch.device) -> str:
    """The device in the words that tell which bits to expect from it: two GPU models may round differently."""
    if device.type == "cuda":
        return f"cuda {torch.version.cuda} ({torch.cuda.get_device_name(device)})"
    return device.type


def set_threads(count: int) -> None:
    """Give PyTorch's work on the CPU so many threads, and that of the libraries under NumPy and scikit-learn."""
    torch.set_num_threads(count)
    threadpool_limits(count)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32; of a CPU it is known on Linux alone."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    with suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
    return True


@contextmanager
def one_thread() -> Iterator[None]:
    """Give PyTorch's work on the CPU one thread, and so the same bits on machines with more cores or fewer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
