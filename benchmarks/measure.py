"""What the benchmarks share: taking turns, medians, the hardware, and a copy of the project."""

import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipeline.data.datasets import Split
from pipeline.model.network import Architecture
from pipeline.model.vae import VAE, new_vae
from pipeline.params import load_params

ROOT = Path(__file__).parents[1]
RAW = ROOT / "data" / "raw"  # where torchvision finds MNIST
PARAMS = load_params(ROOT / "params.yaml")
LIBRARIES = ("dvc", "mlflow", "numpy", "torch")
OUTPUTS = ("data/dataset.safetensors", "data/classifier.safetensors", "reports/classifier.json")


def turns(arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round. The arms take turns: a slower machine affects all."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], base: str) -> dict[str, list[float]]:
    """Seconds of the arm `base` over those of each other arm, round by round."""
    return {
        name: [theirs / own for theirs, own in zip(seconds[base], times, strict=True)]
        for name, times in seconds.items()
        if name != base
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    median = statistics.median(values)
    return {"median": median, "q1": quartiles[0], "q3": quartiles[2], "n": len(values)}


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, cores, versions, and the GPU if `device` is one; no name of a machine."""
    gpu = None if device.type == "cpu" else device.type.upper()
    if device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
    # macOS does not report which cores a process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: version(name) for name in LIBRARIES if find_spec(name)}
    return {
        "cpu": _cpu(),
        "cores": cores,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def copy_project(folder: Path, **params: object) -> None:
    """A git repository with the working tree and these parameters, in which nothing is trained.

    Dataset and classifier are there, as outputs that DVC has cached.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    names = [name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()]
    sources = [name for name in names if not name.startswith(("dvc.lock", "reports/"))]
    for name in [*sources, *OUTPUTS]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    set_params(folder, **params)
    execute(folder, "git", "init", "-q")
    execute(folder, "dvc", "commit", "-q", "-f", "download", "train_classifier")
    execute(folder, "git", "add", "-A")
    execute(folder, "git", "commit", "-qm", "the working tree")


def set_params(folder: Path, **params: object) -> None:
    """Change lines of params.yaml; the comments are lost."""
    path = folder / "params.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [
        f"{key}: {params[key]}" if (key := line.partition(":")[0]) in params else line
        for line in lines
    ]
    path.write_text("\n".join(changed) + "\n", encoding="utf-8")


def execute(folder: Path, *command: str) -> float:
    """Run a command as a user would in this folder; the seconds that it takes."""
    prefixes = ("DVC_", "MLFLOW_", "OMP_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": "benchmark", f"GIT_{role}_EMAIL": "benchmark@localhost"}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def rounds_from(arguments: Sequence[str], default: int) -> int:
    """The first argument of a benchmark."""
    return int(arguments[1]) if len(arguments) > 1 else default


def default_model(split: Split, seed: int = PARAMS.seed) -> VAE:
    """The default model for the images of a split, on their device."""
    architecture = Architecture(
        network=PARAMS.network,
        likelihood=PARAMS.likelihood,
        image_shape=split.image_shape,
        z_dim=PARAMS.z_dim,
        h_dim=PARAMS.h_dim,
        h_layers=PARAMS.h_layers,
        activation=PARAMS.activation,
    )
    return new_vae(architecture, seed).to(split.images.device)
