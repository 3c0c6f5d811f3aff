"""Which device a run uses, and how it is made to give the same bits twice."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import InputError


def prepare_device(name: str, said_in: str) -> torch.device:
    """The device called `name`: cpu, mps, cuda, cuda:N, or auto (cuda, else mps, else cpu).

    On CUDA only deterministic kernels are allowed from here on.
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
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"{said_in}: device: mps is not on this machine (`device: auto` takes the best there is)")
    return device


def device_name(device: torch.device) -> str:
    """The device in the words that tell which bits to expect from it: two GPU models may round differently."""
    if device.type == "cuda":
        return f"cuda {torch.version.cuda} ({torch.cuda.get_device_name(device)})"
    return device.type


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
