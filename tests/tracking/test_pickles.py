"""A pickle that executes something, in the place of every file that the project reads: it is never executed."""

import io
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SUMS

from pipeline import doctor, download, evaluate, judge, log, train
from pipeline.errors import InputError
from pipeline.runtime.fingerprint import fingerprint, ingredients
from pipeline.runtime.pending_run import Claim, checkpoint_path
from pipeline.params import load_params
from pipeline.tracking.server import StoreError
from pipeline.runtime.device import device_name, prepare_device

CALLED: list[str] = []


def listen(event: str, arguments: tuple) -> None:
    """Python tells of every mkdir, and of every name that a pickle asks for."""
    if event in ("os.mkdir", "pickle.find_class") and "bombed" in str(arguments):
        CALLED.append(event)
    if event == "pickle.find_class" and arguments[:2] == (os.name, "mkdir"):
        CALLED.append(event)


sys.addaudithook(listen)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bombed",)


def torch_file() -> bytes:
    content = io.BytesIO()
    torch.save({"weights": Bomb()}, content)
    return content.getvalue()


BOMBS = {
    "pickle": pickle.dumps(Bomb()),
    "text pickle": pickle.dumps(Bomb(), protocol=0),
    "torch.save": torch_file(),
    "YAML tag": b"!!python/object/apply:os.mkdir [bombed]\n",
}


def training_identity() -> str:
    device = prepare_device("cpu", "")
    return fingerprint(ingredients("train", load_params().model_dump(), device_name(device)))


@pytest.fixture
def finished(workplace, monkeypatch) -> Path:
    """After the stages, with a claim and a checkpoint left over."""
    monkeypatch.setenv("DVC_STAGE", "train")
    train.main()
    judge.main()
    evaluate.main()
    CALLED.clear()
    return workplace


FILES: dict[str, tuple[Callable[[], Path], Callable[[], object]]] = {
    "params.yaml": (lambda: Path("params.yaml"), train.main),
    "train-images": (lambda: Path("data/raw/train-images-idx3-ubyte"), train.main),
    "test images": (lambda: Path("data/raw/t10k-images-idx3-ubyte"), evaluate.main),
    "the model, to evaluate": (lambda: Path("data/model/vae.safetensors"), evaluate.main),
    "test labels": (lambda: Path("data/raw/t10k-labels-idx1-ubyte"), evaluate.main),
    "training labels": (lambda: Path("data/raw/train-labels-idx1-ubyte"), judge.main),
    "the judge": (lambda: Path("data/judge/judge.safetensors"), evaluate.main),
    "the model, to log": (lambda: Path("data/model/vae.safetensors"), log.stage),
    "history.csv": (lambda: Path("reports/history.csv"), log.stage),
    "metrics.json": (lambda: Path("reports/metrics.json"), log.stage),
    "judge.json": (lambda: Path("reports/judge.json"), log.stage),
    "per_image.parquet": (lambda: Path("reports/per_image.parquet"), log.stage),
    "generated.png": (lambda: Path("reports/generated.png"), log.stage),
    "mnist.sha256": (lambda: Path("pipeline/data/mnist.sha256"), log.stage),
    "a claim": (lambda: Claim.path(Path(), "", training_identity()), log.stage),
    "a checkpoint": (lambda: checkpoint_path(Path(), training_identity()), train.main),
    "mlflow.db": (lambda: Path("mlflow.db"), log.stage),
    "a lock of DVC's": (lambda: Path(".dvc/tmp/rwlock"), doctor.main),
}


def test_the_ear_hears(tmp_path, monkeypatch):
    """That a pickle which is loaded does what it is feared for, and is noticed."""
    monkeypatch.chdir(tmp_path)
    CALLED.clear()
    pickle.loads(BOMBS["pickle"])
    assert CALLED and Path("bombed").is_dir()


@pytest.mark.parametrize("name", FILES)
def test_it_is_never_executed(finished, name, capsys):
    """Whether the file is refused, ignored or overwritten: each verb says a line at most, and none unpickles."""
    where, verb = FILES[name]
    path = where()
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else None
    for bomb in BOMBS.values():
        path.write_bytes(bomb)
        try:
            verb()
        except InputError as error:
            assert "\n" not in str(error)
            assert path.read_bytes() == bomb, "what is refused is left as it is"
        except (StoreError, SystemExit):
            pass
        assert CALLED == [] and not Path("bombed").exists()
    assert "Traceback" not in capsys.readouterr().err
    if before is not None:
        path.write_bytes(before)


def test_nor_in_what_a_mirror_sends(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    monkeypatch.chdir(tmp_path)
    names = download.read_sums(SUMS)
    for bomb in BOMBS.values():
        for name in names:
            (tmp_path / "mirror" / name).write_bytes(bomb)
        here = download.sources(str(tmp_path / "mirror"))[0]
        with pytest.raises(InputError):
            download.fetch(names, tmp_path / "raw", [here])
        assert CALLED == [] and not list((tmp_path / "raw").iterdir())
