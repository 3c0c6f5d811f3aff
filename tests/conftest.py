"""Real MNIST, whole and as a small subset of the same files with sums of its own."""

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

# Two trainings with two spinning threads each stand in one another's way, the more the busier the machine is.
os.environ["OMP_NUM_THREADS"] = "1"
# Where CI is set pytest shows whole differences, and for two different files of a megabyte looks for them for hours.
os.environ.pop("CI", None)

import pytest

from pipeline.download import fetch, read_sums
from pipeline.mirrors import sources
from pipeline.vae.mnist import load_images

ROOT = Path(__file__).parents[1]
SUMS = ROOT / "pipeline" / "mnist.sha256"
# On the CPU wherever the tests run: they compare bytes.
SMALL = {
    "dataset": "mnist", "val_size": 100, "z_dim": 4, "h_dim": 32, "h_layers": 1, "activation": "relu", "num_epochs": 3,
    "batch_size": 128, "learning_rate": "1e-3", "precision": "float32", "seed": 0, "device": "cpu",
    "sample_every": 2, "eval_samples": 20, "eval_proposal_scale": 1.4,
}  # fmt: skip


def committed(path: str) -> str:
    """The text of a file as it was committed: an experiment in the workspace changes params.yaml and reports/."""
    shown = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, check=False)
    return shown.stdout.decode() if shown.returncode == 0 else (ROOT / path).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def mnist(request) -> Path:
    """The four real files: taken from data/raw where the pipeline has run, else fetched once into pytest's cache."""
    folder = Path(request.config.cache.mkdir("mnist"))
    local = sources(str(ROOT / "data" / "raw"))[0]
    fetch(read_sums(SUMS), folder, [local, *sources(os.environ.get("MNIST_MIRROR", ""))])
    return folder


def subset(mnist: Path, folder: Path, train: int, test: int) -> Path:
    """The first images of each split with their labels, as IDX files, and `mnist.sha256` beside them."""
    lines = []
    for name in read_sums(SUMS):
        count = train if name.startswith("train") else test
        raw = (mnist / name).read_bytes()
        header = 4 + 4 * raw[3]
        item = 784 if "images" in name else 1
        content = raw[:4] + struct.pack(">I", count) + raw[8 : header + count * item]
        (folder / name).write_bytes(content)
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    (folder / "mnist.sha256").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def small_mnist(mnist, tmp_path_factory) -> Path:
    """The first 600 training and 200 test images."""
    return subset(mnist, tmp_path_factory.mktemp("small"), 600, 200)


@pytest.fixture(scope="session")
def small_images(small_mnist):
    return load_images(small_mnist, "train")


@pytest.fixture
def workplace(tmp_path, small_mnist, monkeypatch) -> Path:
    """A working directory as DVC hands it to a stage: data/raw and a params.yaml for a training of seconds."""
    furnish(tmp_path, small_mnist)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage"])  # without arguments, as DVC starts it
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    return tmp_path


def furnish(folder: Path, small_mnist: Path, **changes: object) -> None:
    """Put into `folder` what the stages read there: data/raw, its sums and a params.yaml."""
    shutil.copytree(small_mnist, folder / "data" / "raw")
    (folder / "pipeline").mkdir()
    shutil.copy(small_mnist / "mnist.sha256", folder / "pipeline")
    set_params(folder, SMALL | changes, source=ROOT / "params.yaml")


def set_params(folder: Path, changes: dict[str, object], source: Path | None = None) -> None:
    """Change lines of `folder`/params.yaml as an editor would, comments and all else kept."""
    text = (source or folder / "params.yaml").read_text(encoding="utf-8")
    for key, value in changes.items():
        text, count = re.subn(rf"^{key}: *[^ #]+", f"{key}: {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    (folder / "params.yaml").write_text(text, encoding="utf-8")
