"""The device of a run, made to give the same bits each time, and its number of CPU threads."""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.errors import UserError, is_out_of_memory
from pipeline.runtime.cores import reserve_gpu

DRIVER = Path("/dev/nvidiactl")  # exists where the system has an NVIDIA GPU
KEY = "params.yaml: device"
# Memory of a GPU for each experiment that runs on it: several times what the default one needs.
BYTES_PER_JOB = 16 * 10**9


def prepare_device(name: str) -> torch.device:
    """The device called `name`: cpu, mps, cuda, cuda:N, or auto (cuda, else cpu).

    On CUDA it waits for a GPU that is free for another experiment, and allows only deterministic
    operations from here on. Raises UserError if the machine has no such device, or one that this
    PyTorch cannot use.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old: the error below has it
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus and name.startswith(("auto", "cuda")):
        _check_driver()
    counts = {"cuda": gpus, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    # Never mps: nobody has measured yet that it is faster than the CPU for models of this size.
    best = "cuda" if gpus else "cpu"
    device = torch.device(best if name == "auto" else name)
    if (device.index or 0) >= counts[device.type]:
        message = (
            f"PyTorch finds no device {name} on this machine; `device: auto` is the best it has"
        )
        raise UserError(KEY, message)
    return _prepare_gpu(device.index, gpus) if device.type == "cuda" else device


def device_name(device: torch.device) -> str:
    """The device, as precisely as its bits depend on it: two GPU models may round differently."""
    if device.type != "cuda":
        return device.type
    parts = [f"cuda {torch.version.cuda}"] if torch.version.cuda else [f"rocm {torch.version.hip}"]
    for package in ("nvidia-cublas", "nvidia-cublas-cu12"):
        with suppress(PackageNotFoundError):  # PyTorch may have been built with its own
            parts.append(f"cublas {version(package)}")
    return f"{' '.join(parts)} ({torch.cuda.get_device_name(device)})"


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """The same values in memory from which CUDA can copy while the CPU goes on."""
    return values.pin_memory() if device.type == "cuda" else values


def send(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device; from memory that is `pinned` without waiting for it."""
    return values.to(device, non_blocking=values.is_pinned())


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Inside the block, float32 products on CUDA round their factors if that is "tf32"."""
    _set_products("tf32" if precision == "tf32" else "ieee")
    try:
        yield
    finally:
        _set_products("ieee")


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


def _check_driver() -> None:
    """Raise UserError in PyTorch's words if there is an NVIDIA driver that it cannot use."""
    if torch.version.cuda is None or not DRIVER.exists():
        return
    try:
        torch.cuda.init()
    except RuntimeError as error:
        if "No CUDA GPUs" not in str(error):  # else they are hidden
            raise _unusable("the GPU", error) from error


def _unusable(gpu: str, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0].strip().rstrip(".")
    return UserError(KEY, f"PyTorch cannot use {gpu}: {reason}. Without it: `device: cpu`")


def _prepare_gpu(index: int | None, count: int) -> torch.device:
    # cuBLAS reads it when it starts; another workspace may change the order of its sums.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    _set_products("ieee")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    # The same flag as use_deterministic_algorithms(True), which imports the compiler for more than
    # a second.
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        gpus = [torch.cuda.get_device_properties(i) for i in range(count)]
    except RuntimeError as error:
        raise _unusable("the GPU", error) from error
    # Another GPU of the same model gives the same bits.
    alike = [i for i, gpu in enumerate(gpus) if gpu.name == gpus[0].name]
    allowed = alike if index is None else [index]
    jobs = jobs_per_gpu(min(gpus[i].total_memory for i in allowed))
    reserved = allowed[reserve_gpu([str(gpus[i].uuid) for i in allowed], jobs)]
    device = torch.device("cuda", reserved)
    try:
        torch.cuda.set_device(device)
        # Whether a training fits must not depend on what runs beside it. The rest is for libraries.
        torch.cuda.set_per_process_memory_fraction(0.9 / jobs)
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:  # no code for a GPU of this age, say
        if is_out_of_memory(error):
            raise
        raise _unusable(gpus[reserved].name, error) from error
    return device


def jobs_per_gpu(memory: int) -> int:
    """How many experiments share a GPU with so many bytes: GPU_JOBS, or what its memory allows."""
    jobs = os.environ.get("GPU_JOBS") or str(max(1, memory // BYTES_PER_JOB))
    if not jobs.isdecimal() or int(jobs) == 0:
        raise UserError("GPU_JOBS", f"must be a whole number from 1 (got {jobs!r})")
    return int(jobs)


def _set_products(precision: str) -> None:
    # Both: PyTorch uses TF32 in convolutions unless told otherwise, and an environment variable of
    # NVIDIA's containers does so in matrix products.
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
