"""What the benchmarks share: turns, medians, and what they were measured on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("dvc", "mlflow", "numpy", "torch")


def turns(arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each of `arms` took in each round; they take turns, so that a machine that drifts does for all."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            found[name].append(time.perf_counter() - start)
    return found


def ratios(seconds: Mapping[str, Sequence[float]], to: str) -> dict[str, list[float]]:
    """How many times as long as each of the others the arm `to` took, round by round."""
    return {
        name: [base / own for base, own in zip(seconds[to], times, strict=True)]
        for name, times in seconds.items()
        if name != to
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the range of the middle half."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "q1": quartiles[0], "q3": quartiles[2], "n": len(values)}


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, cores, versions, and the GPU if `device`, which was measured, is one; no name of a machine."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "MPS" if device.type == "mps" else None
    # macOS does not say which cores a process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(), "cores": cores, "gpu": gpu, "threads": torch.get_num_threads(),
        "system": platform.system(), "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:  # a bare GPU machine has no DVC and no MLflow
        return None


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            named = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        named = []
    return named[0] if named else platform.machine()
