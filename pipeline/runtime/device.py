"""The device of a run, made to give the same bits each time, and its number of CPU threads."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from pipeline.errors import UserError
from pipeline.runtime.cores import reserve_gpu


def prepare_device(name: str) -> torch.device:
    """The device called `name`: cpu, mps, cuda, cuda:N, or auto (cuda, else mps, else cpu).

    On CUDA it waits for a GPU that no other experiment uses, and allows only deterministic
    operations from here on. Raises UserError if the machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    counts = {"cuda": gpus, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    best = next(kind for kind, count in counts.items() if count)
    device = torch.device(best if name == "auto" else name)
    if (device.index or 0) >= counts[device.type]:
        message = f"this machine has no device {name}; use `device: auto` for the best it has"
        raise UserError("params.yaml: device", message)
    return _prepare_gpu(device.index, gpus) if device.type == "cuda" else device


def device_name(device: torch.device) -> str:
    """The device, as precisely as its bits depend on it: two GPU models may round differently."""
    if device.type == "cuda":
        return f"cuda {torch.version.cuda} ({torch.cuda.get_device_name(device)})"
    return device.type


def set_threads(count: int) -> None:
    """Limit the CPU threads of PyTorch, and of the libraries below NumPy and scikit-learn."""
    if count != torch.get_num_threads():
        torch.set_num_threads(count)
        threadpool_limits(count)


@contextmanager
def limited_threads(most: int) -> Iterator[None]:
    """Run PyTorch's CPU operations on at most so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


# For the same bits on any number of cores.
one_thread = functools.partial(limited_threads, 1)


def _prepare_gpu(index: int | None, count: int) -> torch.device:
    # cuBLAS reads it when it starts; another workspace may change the order of its sums.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # an environment variable may switch TF32 on
    # The same flag as use_deterministic_algorithms(True), which imports the compiler for more than
    # a second.
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    gpus = [torch.cuda.get_device_properties(i) for i in range(count)]
    # Another GPU of the same model gives the same bits.
    alike = [i for i, gpu in enumerate(gpus) if gpu.name == gpus[0].name]
    allowed = alike if index is None else [index]
    reserved = allowed[reserve_gpu([str(gpus[i].uuid) for i in allowed])]
    device = torch.device("cuda", reserved)
    torch.cuda.set_device(device)
    return device
