"""Real MNIST, a small subset of it, and working directories in which stages can run."""

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# One thread per test process: spinning threads of several trainings slow each other down.
os.environ["OMP_NUM_THREADS"] = "1"
# Stages would compile the project's modules at every start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# With CI set, pytest prints whole diffs; for two different binary files that takes hours.
os.environ.pop("CI", None)

import pytest
from filelock import FileLock

from pipeline.data.catalog import DATASETS
from pipeline.data.datasets import Split, load_split, save_dataset
from pipeline.data.sources import fetch
from pipeline.errors import UserError
from pipeline.paths import DATASET
from pipeline.tracking import SETTINGS

ROOT = Path(__file__).parents[1]
# On the CPU wherever the tests run: they compare bytes.
SMALL = {
    "dataset": "mnist", "val_size": 100, "z_dim": 4, "h_dim": 32, "h_layers": 1,
    "activation": "relu", "num_epochs": 3, "batch_size": 128, "learning_rate": "1e-3",
    "precision": "float32", "seed": 0, "device": "cpu", "sample_every": 2, "eval_samples": 20,
    "eval_proposal_scale": 1.4,
}  # fmt: skip
# Every option of the optimizer; the training stops before its last epoch.
EARLY = {
    "learning_rate": 0.1, "lr_schedule": "cosine", "weight_decay": 0.1, "num_epochs": 40,
    "patience": 2,
}  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        "--surroundings", action="store_true", help="all rows of tests/test_surroundings.py"
    )


@pytest.fixture(scope="session")
def mnist(request) -> Path:
    """A folder with the four original files, downloaded once into pytest's cache."""
    folder = Path(request.config.cache.mkdir("mnist"))
    fetch(DATASETS["mnist"], folder)
    return folder


@pytest.fixture(scope="session")
def small_mnist(mnist, tmp_path_factory) -> Path:
    """A folder with the first 600 training and 200 test images, as IDX files."""
    return subset(mnist, tmp_path_factory.mktemp("small"), train=600, test=200)


@pytest.fixture(scope="session")
def small_dataset(small_mnist, tmp_path_factory) -> Path:
    """The same images as the dataset file that `download` writes."""
    path = tmp_path_factory.mktemp("dataset") / DATASET.name
    splits = {split: read_idx_split(small_mnist, split) for split in ("train", "test")}
    save_dataset(path, "mnist", splits)
    return path


@pytest.fixture(scope="session")
def small_train(small_dataset) -> Split:
    return load_split(small_dataset, "train")


@pytest.fixture(scope="session")
def small_test(small_dataset) -> Split:
    return load_split(small_dataset, "test")


@pytest.fixture
def set_threads():
    """Sets PyTorch's number of threads, which is restored after the test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def workplace(tmp_path, small_dataset, monkeypatch) -> Path:
    """The working directory of a stage: the small dataset, and params.yaml with SMALL."""
    furnish(tmp_path, small_dataset)
    use_folder(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished_workspace(small_dataset, tmp_path_factory) -> Path:
    """A git repository in which train, train_classifier and evaluate ran on SMALL. Copy it."""
    from pipeline.stages import evaluate, train, train_classifier

    folder = tmp_path_factory.mktemp("finished")
    furnish(folder, small_dataset)
    with pytest.MonkeyPatch.context() as patch:
        use_folder(patch, folder)
        for stage in (train, train_classifier, evaluate):
            stage.main()
    ignored = ("/.dvc/", "/data/", "/mlflow.db", "/mlartifacts/")
    (folder / ".gitignore").write_text("\n".join(ignored), encoding="utf-8")
    for command in ("init -q", "add -A", "-c user.name=x -c user.email=x@y.z commit -qm x"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    return folder


@pytest.fixture
def finished(finished_workspace, tmp_path, monkeypatch) -> Path:
    """A copy of `finished_workspace`, the working directory of the test."""
    shutil.copytree(finished_workspace, tmp_path, dirs_exist_ok=True)
    use_folder(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory) -> Path:
    """An sqlite store without experiments. MLflow takes seconds to create one: copy it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def loggable(finished, mlflow_tables) -> Path:
    """`finished` with an empty MLflow store."""
    shutil.copy(mlflow_tables, finished)
    return finished


@pytest.fixture(scope="session")
def repro_repo(small_mnist, tmp_path_factory):
    """A Repo in which `dvc repro evaluate` ran, committed. All test processes share it: copy it.

    It has no MLflow run: in a copy, `dvc repro` executes the stage `log`.
    """
    from helpers.repo import Repo, plant

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    root, done = shared / "repro_repo", shared / "repro_repo.done"
    with FileLock(shared / "repro_repo.lock"):
        if not done.exists():
            root.mkdir()
            repo = plant(root, small_mnist)
            done.write_text(repo.run("dvc", "repro", "evaluate"), encoding="utf-8")
            repo.commit()
    return Repo(root, small_mnist)


def use_folder(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make `folder` the working directory, with no settings of DVC, and ours of MLflow.

    They include the time-outs, without which a test with a silent server takes minutes.
    """
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["stage"])
    # Few tests are about the MLflow run of a stage that fails.
    patch.setattr("pipeline.runtime.pending_run.PATIENCE_IF_FAILED", 0.01)
    for name in list(os.environ):
        if name.startswith(("DVC_", "MLFLOW_")):
            patch.delenv(name)
    for name, value in SETTINGS.items():
        patch.setenv(name, value)
    # Outside of tests, stages and the processes that they start run in the folder of their code.
    patch.setenv("PYTHONPATH", str(ROOT))


@contextmanager
def error_about(subject: object) -> Iterator[None]:
    """The block raises a UserError about `subject`."""
    with pytest.raises(UserError) as error:
        yield
    assert error.value.subject == str(subject)


def committed(path: str) -> str:
    """The text of a file in HEAD: an experiment may have changed params.yaml and reports/."""
    command = ["git", "show", f"HEAD:./{path}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout


def furnish(folder: Path, small_dataset: Path, **changes: object) -> None:
    """Put into `folder` what stages after `download` read: dataset, params.yaml and dvc.yaml."""
    (folder / DATASET).parent.mkdir(parents=True)
    shutil.copy(small_dataset, folder / DATASET)
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, SMALL | changes)


def set_params(folder: Path, changes: dict[str, object]) -> None:
    """Change lines of `folder`/params.yaml as an editor would; everything else stays."""
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    for key, value in changes.items():
        text, count = re.subn(rf"^{key}: *[^ #\n]+", f"{key}: {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    path.write_text(text, encoding="utf-8")


def subset(mnist: Path, folder: Path, train: int, test: int) -> Path:
    """Write the first images of each split with their labels, as IDX files."""
    for name in DATASETS["mnist"].files:
        count = train if name.startswith("train") else test
        header, size = (16, 784) if "images" in name else (8, 1)
        raw = (mnist / name).read_bytes()[: header + count * size]
        (folder / name).write_bytes(raw[:4] + struct.pack(">I", count) + raw[8:])
    return folder


def read_idx_split(folder: Path, split: str):
    """(images [N, 28, 28], labels [N]) of IDX files, independent of the pipeline's reader."""
    import torch

    prefix = {"train": "train", "test": "t10k"}[split]
    images = (folder / f"{prefix}-images-idx3-ubyte").read_bytes()[16:]
    labels = (folder / f"{prefix}-labels-idx1-ubyte").read_bytes()[8:]
    return (
        torch.frombuffer(bytearray(images), dtype=torch.uint8).view(-1, 28, 28),
        torch.frombuffer(bytearray(labels), dtype=torch.uint8),
    )
