"""A training that is interrupted, wherever and however, ends in the bytes of one that was not."""

import hashlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, set_params
from helpers.repo import hears_ctrl_c
from test_train import outputs

from pipeline import train
from pipeline.training.checkpoint import Checkpoint, State
from pipeline.errors import InputError
from pipeline.runtime.pending_run import checkpoint_path

MINE, OTHERS = "a" * 64, "b" * 64
STATE = State(3, "e", {"model.w": torch.arange(6.0).view(2, 3)}, {"reports/history.csv": b"epoch\n1\n", "x/empty": b""})


def kept(root: Path = Path()) -> list[Path]:
    return sorted((root / ".dvc/tmp/checkpoints").glob("*.checkpoint"))


def start(*arguments: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *(arguments or ["-m", "pipeline.stages.train"])], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        preexec_fn=hears_ctrl_c,
    )  # fmt: skip


def wait_for_epochs(process: subprocess.Popen, epochs: int) -> None:
    history, end = Path("reports/history.csv"), time.monotonic() + 300
    while not history.exists() or history.read_text().count("\n") <= epochs:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


@pytest.fixture
def long(workplace) -> Path:
    """A training of some seconds."""
    set_params(workplace, {"num_epochs": 40, "sample_every": 7, "h_dim": 512})
    return workplace


@pytest.fixture
def reference(long) -> dict[str, str]:
    """What it ends in when nothing happens; its files are taken away again."""
    train.main()
    found = outputs()
    for folder in ("data/model", "reports", ".dvc"):
        shutil.rmtree(folder)
    return found


def test_a_state_comes_back_as_it_was(tmp_path):
    with Checkpoint(tmp_path, MINE) as checkpoint:
        assert checkpoint.load(10) is None
        checkpoint.save(STATE)
        found = checkpoint.load(10)
        assert (found.epoch, found.execution, found.files) == (STATE.epoch, STATE.execution, STATE.files)
        assert found.tensors.keys() == STATE.tensors.keys()
        assert torch.equal(found.tensors["model.w"], STATE.tensors["model.w"])
        assert [path.name for path in kept(tmp_path)[0].parent.iterdir() if path.suffix == ".new"] == []
        checkpoint.remove()
        assert checkpoint.load(10) is None


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bombed",)


DAMAGES = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "one bit of its hash": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "longer": lambda content: content + b"\0",
    "random": lambda content: os.urandom(1000),
    "a pickle": lambda content: pickle.dumps(Bomb()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_ignored_with_one_line(tmp_path, damage, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoint(tmp_path, MINE) as checkpoint:
        checkpoint.save(STATE)
        checkpoint.path.write_bytes(damage(checkpoint.path.read_bytes()))
        assert checkpoint.load(10) is None
        assert capsys.readouterr().err.count("\n") == 1
        checkpoint.save(STATE)
        assert checkpoint.load(10).epoch == STATE.epoch, "and replaced by the next one"
    assert not Path("bombed").exists()


@pytest.mark.parametrize("name", ["/etc/x", "../x", "reports/../../x"])
def test_one_that_would_write_elsewhere_is_ignored(tmp_path, name, capsys):
    with Checkpoint(tmp_path, MINE) as checkpoint:
        checkpoint.save(State(1, "e", {}, {name: b"x"}))
        assert checkpoint.load(10) is None
    assert "torn or another training's" in capsys.readouterr().err


def test_another_trainings_is_ignored_with_one_line(tmp_path, capsys):
    with Checkpoint(tmp_path, OTHERS) as other:
        other.save(STATE)
        other.path.rename(checkpoint_path(tmp_path, MINE))
    with Checkpoint(tmp_path, MINE) as checkpoint:
        assert checkpoint.load(10) is None
    assert re.fullmatch(r"train: the checkpoint \w+\.checkpoint is torn or another.*\n", capsys.readouterr().err)


def test_it_belongs_to_one_process_at_a_time(tmp_path, capsys):
    with Checkpoint(tmp_path, MINE) as first:
        first.save(STATE)
        with Checkpoint(tmp_path, MINE) as second:
            assert "another process is training the same" in capsys.readouterr().err
            second.save(State(9, "", {}, {}))
            assert second.load(10) is None
            second.remove()
        assert first.load(10).epoch == STATE.epoch


def test_one_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path, capsys):
    with Checkpoint(tmp_path, MINE) as checkpoint:
        checkpoint.path.with_suffix(".new").mkdir()
        (checkpoint.path.with_suffix(".new") / "x").touch()
        for _ in range(2):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Path, "unlink", lambda *_, **__: None)
                checkpoint.save(STATE)
    assert capsys.readouterr().err.count("no checkpoint can be kept") == 1


def test_checkpoints_keep_within_their_share(tmp_path):
    with Checkpoint(tmp_path, MINE) as checkpoint:
        assert checkpoint.due()
        begun = time.monotonic()
        checkpoint.save(STATE)
        took = time.monotonic() - begun
        assert not checkpoint.due()
        time.sleep(60 * took)
        assert checkpoint.due()


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGKILL, (3, 12, 25)), (signal.SIGTERM, (9,)), (signal.SIGINT, (9,))],
    ids=["killed three times", "terminated", "Ctrl-C"],
)
def test_a_training_that_is_ended_goes_on_to_the_same_bytes(long, reference, number, after):
    seen = 0
    for epochs in after:
        process = start()
        wait_for_epochs(process, epochs)
        process.send_signal(number)
        said, _ = process.communicate()
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], said
        assert "Traceback" not in said and len(kept()) == 1
        if match := re.search(r"goes on after epoch (\d+) of 40, where it was interrupted", said):
            assert int(match[1]) >= seen
            seen = int(match[1])
        shutil.rmtree("reports")  # as DVC does before it runs the stage again
    said, _ = start().communicate()
    assert "goes on after epoch" in said
    assert outputs() == reference and not kept()


def test_a_torn_checkpoint_costs_the_time_and_not_the_bytes(long, reference):
    process = start()
    wait_for_epochs(process, 5)
    process.kill()
    process.communicate()
    (path,) = kept()
    path.write_bytes(path.read_bytes()[:-100])
    said, _ = start().communicate()
    assert "is torn or another training's: it is ignored" in said and "goes on" not in said
    assert outputs() == reference and not kept()


def test_another_configuration_does_not_go_on_from_it(long):
    process = start()
    wait_for_epochs(process, 5)
    process.kill()
    process.communicate()
    set_params(long, {"seed": 1})
    said, _ = start().communicate()
    assert "goes on" not in said and len(kept()) == 1


def test_executed_again_it_is_executed_in_full(long, capsys):
    for _ in range(2):
        train.main()
        assert "goes on" not in capsys.readouterr().err


@pytest.mark.parametrize("recorded", ["", ".dvc/cache", "shared"])
def test_one_that_is_at_its_end_is_gone_on_from_until_dvc_has_recorded_it(
    long, reference, recorded, monkeypatch, capsys
):
    """DVC takes a second to hash and record what the training wrote, and may be killed in it."""
    for command in (["init", "-q", "-f", "--no-scm"], ["cache", "dir", recorded or ".dvc/cache"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    monkeypatch.setenv("DVC_STAGE", "train")
    train.main()
    assert len(kept()) == 1 and outputs() == reference
    if recorded:
        entry = Path(recorded, "runs/ab/cd/ef")
        entry.parent.mkdir(parents=True)
        entry.write_text(f"md5: {hashlib.md5(Path('reports/history.csv').read_bytes()).hexdigest()}\n")
    shutil.rmtree("reports")
    Path("data/model/vae.safetensors").unlink()
    train.main()
    assert ("goes on after epoch 40 of 40" in capsys.readouterr().err) is not bool(recorded)
    assert outputs() == reference


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_stage_dies_with_the_dvc_that_started_it(long):
    """Also when that happens in the first moments, while Python is still starting."""
    parent = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-m', 'pipeline.stages.train']);"
    for delay in (0.05, 0.3, 1.0, 4.0):
        process = start("-c", f"{parent} print(p.pid, flush=True); time.sleep(60)", DVC_STAGE="train")
        child = int(process.stdout.readline())
        time.sleep(delay)
        process.kill()
        process.wait()
        end = time.monotonic() + 10
        while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < end, f"the stage lives on after {delay} s"
            time.sleep(0.02)
        process.stdout.close()


@pytest.mark.parametrize("target", ["reports", "reports/history.csv"])
def test_what_cannot_be_written_is_one_line(workplace, target):
    """Something else lies where the training wants to write."""
    if target == "reports":
        Path(target).write_text("a file")
    else:
        Path(target).mkdir(parents=True)
    with pytest.raises(InputError, match=r"^reports\S*: cannot be written \("):
        train.main()
