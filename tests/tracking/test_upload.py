"""What a run holds, against what it should hold: artifacts that were deleted from the disk."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.mlflow_contents import dump

from pipeline import evaluate, judge, log, train
from pipeline.tracking.upload import is_whole
from pipeline.tracking.client import Store, existing_store


@pytest.fixture
def store(workplace) -> Store:
    """With one run, of code that is not committed."""
    identity = ("-c", "user.name=x", "-c", "user.email=x@y.z")
    Path(".gitignore").write_text((ROOT / ".gitignore").read_text() + "/.dvc/\n")
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], check=True)
    with Path("params.yaml").open("a") as file:
        file.write("# changed\n")
    for verb in (train, judge, evaluate, log):
        verb.main()
    store = existing_store(workplace)
    assert store is not None
    return store


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_whichever_artifact_is_deleted_the_run_is_not_whole_until_it_is_logged_again(store, tmp_path):
    """The file of a report, of a picture, the diff, the model; and all but one of each."""
    (run,) = store.runs()
    before = dump(store.client)
    assert is_whole(store, run)
    held = tmp_path / "mlartifacts" / run.info.run_id / "artifacts"
    (model,) = tmp_path.glob("mlartifacts/models/*/artifacts")
    assert {name.split("/")[0] for name in files(held)} == {"reports", "images", "git.diff"}
    named = [*(held / name for name in files(held)), model / "MLmodel", model / "artifacts/vae.safetensors"]
    for path in named:
        path.rename(tmp_path / "aside")
        assert not is_whole(store, run), path
        (tmp_path / "aside").rename(path)
    for path in (held / "images", model / "code"):
        shutil.move(path, tmp_path / "aside")
        assert not is_whole(store, run), path
        shutil.move(tmp_path / "aside", path)
    assert is_whole(store, run)
    whole = files(model)
    for path in {*named, *(model / name for name in whole)} - {held / "reports/history.csv", model / "MLmodel"}:
        path.unlink()
    assert not is_whole(store, run)
    log.main()
    assert is_whole(store, run) and dump(store.client) == before and files(model) == whole


def test_all_pictures_of_an_epoch_are_missed(store, tmp_path):
    """Both files of each: of none is there a half that tells."""
    (run,) = store.runs()
    for path in list(tmp_path.glob("mlartifacts/*/artifacts/images/samples~*+step+2+*")):
        path.unlink()
    assert not is_whole(store, run)
