"""A training is streamed while it runs, and no failing server delays it or loses a point."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from helpers.failing_servers import KINDS
from helpers.mlflow_contents import assert_whole, client_of, dump, points, runs_of
from helpers.repo import Repo, hears_ctrl_c
from helpers.servers import kill_group, mlflow_server
from mlflow import MlflowClient

from pipeline.params import load_params
from pipeline.paths import HISTORY, MODEL, SAMPLES
from pipeline.runtime.files import sha256_file
from pipeline.runtime.fingerprint import fingerprint, provenance
from pipeline.runtime.pending_run import PATIENCE, follow_training, load_pending, pending_runs
from pipeline.stages import log

T = TypeVar("T")
LONG = {"num_epochs": 300, "sample_every": 100, "h_dim": 512}


def until(found: Callable[[], T], seconds: float = 120) -> T:
    """Wait until `found` returns something true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def run_with(client: MlflowClient, epochs: int):
    """The only run of the store, as soon as it has that many epochs."""

    def run():
        runs = runs_of(client)
        enough = runs and len(points(client, runs[0]).get("train/kl", [])) >= epochs
        return runs[0] if enough else None

    return until(run)


def followed(execution: str | None = None):
    params = load_params().model_dump()
    origin = provenance(params, "cpu")
    return follow_training(fingerprint(origin, params), origin, execution)


def test_epochs_are_streamed_and_log_completes_the_run_without_doubling(finished, mlflow_tables):
    """Also if the training is interrupted and resumed. A line that is being written is not read."""
    lines = HISTORY.read_text().splitlines(keepends=True)
    (finished / "mlflow.db").write_bytes(mlflow_tables.read_bytes())
    for record in pending_runs():
        record.remove()
    client = client_of(finished)
    with pytest.raises(KeyboardInterrupt), followed() as record:
        HISTORY.write_text("".join(lines[:2]) + "2,")
        run = run_with(client, epochs=1)
        assert run.info.status == "RUNNING"
        assert run.data.params["z_dim"] == "4" and run.data.tags["execution"] == record.execution
        raise KeyboardInterrupt
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    with followed() as resumed:
        HISTORY.write_text("".join(lines))
        assert resumed.execution == record.execution
        run_with(client, epochs=3)
        resumed.finish(sha256_file(MODEL))
    assert client.get_run(run.info.run_id).info.status == "RUNNING", "until it is evaluated"
    for command in (["init", "-q"], ["add", "reports"], ["commit", "-qm", "x"]):
        identity = ["git", "-c", "user.name=x", "-c", "user.email=x@y.z"]
        subprocess.run([*identity, *command], check=True)
    log.main()
    (complete,) = runs_of(client)
    assert complete.info.run_id == run.info.run_id and complete.info.status == "FINISHED"
    assert [step for step, _ in points(client, complete)["train/kl"]] == [1, 2, 3]
    assert len(list(SAMPLES.glob("*.png"))) == 6
    names = [entry.path for entry in client.list_artifacts(run.info.run_id, "images")]
    assert len(names) == 2 * (6 + 2)


def test_failed_training_is_a_failed_run_without_a_record(workplace, mlflow_tables):
    (workplace / "mlflow.db").write_bytes(mlflow_tables.read_bytes())
    HISTORY.parent.mkdir()
    with pytest.raises(ZeroDivisionError), followed():
        HISTORY.write_text("epoch,train/kl,val/kl\n1,2.5,nan\n")
        run_with(client_of(workplace), epochs=1)
        raise ZeroDivisionError
    (run,) = runs_of(client_of(workplace))
    assert run.info.status == "FAILED" and run.data.metrics == {"train/kl": 2.5}
    assert pending_runs() == []


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=[] if kind == "hangs" else pytest.mark.slow) for kind in KINDS
])  # fmt: skip
def test_failing_server_costs_the_training_two_seconds_and_one_line(
    workplace, monkeypatch, capfd, kind
):
    HISTORY.parent.mkdir()
    lines: list[str] = []

    def warned() -> bool:
        lines.extend(capfd.readouterr().err.splitlines())
        return bool(lines)

    with KINDS[kind]() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with followed():
            HISTORY.write_text("epoch,train/kl\n1,2.5\n")
            until(warned)
            HISTORY.write_text("epoch,train/kl\n1,2.5\n2,2.5\n")
            time.sleep(2)
            end = time.monotonic()
        assert time.monotonic() - end < PATIENCE + 0.5
    warned()
    (line,) = lines
    assert line.startswith("train: MLflow: ") and "training continues" in line


def test_records_are_found_by_their_values_and_unreadable_ones_are_ignored(workplace):
    HISTORY.parent.mkdir()
    with followed() as record:
        record.finish("a" * 64)
    assert pending_runs() == [record] and load_pending(record.path) == record
    record.path.with_name("torn.json").write_text("{")
    assert pending_runs() == [record]


@pytest.fixture
def repo(repro_repo, tmp_path) -> Repo:
    """A copy in which the long training is to be executed."""
    copy = repro_repo.copy(tmp_path / "repo")
    copy.set(**LONG)
    copy.env["OMP_NUM_THREADS"] = "1"
    copy.commit()
    return copy


def begin(repo: Repo, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=repo.root, env=repo.environment(), text=True, preexec_fn=hears_ctrl_c,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def suspended(process: subprocess.Popen) -> psutil.Process:
    """The training, stopped: however loaded the machine, the follower has time."""
    root = psutil.Process(process.pid)
    family = lambda: [root, *root.children(recursive=True)]  # noqa: E731
    is_training = lambda each: each.cmdline()[1:] == ["-m", "pipeline.stages.train"]  # noqa: E731
    training = until(lambda: next(filter(is_training, family()), None))
    until(lambda: history_lines(Path(training.cwd())) > 3)
    training.suspend()
    return training


def history_lines(root: Path) -> int:
    path = root / HISTORY
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_server_that_dies_during_a_training_loses_no_point(repo):
    with mlflow_server(repo.root / ".dvc" / "tmp") as (address, server):
        repo.env["MLFLOW_TRACKING_URI"] = address
        process = begin(repo, "dvc", "repro")
        training = suspended(process)
        run_with(repo.store(), epochs=2)
        kill_group(server)
        training.resume()
        output, _ = process.communicate()
    assert process.returncode == 0 and "Traceback" not in output
    assert output.count("training continues") == output.count("log: not in MLflow") == 1
    repo.commit()
    del repo.env["MLFLOW_TRACKING_URI"]
    dumps = []
    for _ in range(2):
        repo.pipeline("log-all")
        (run,) = repo.runs().values()
        assert_whole(repo, run, "HEAD")
        dumps.append(dump(repo.store()))
    assert dumps[0] == dumps[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_training_leaves_no_process_and_resumes_in_its_run(repo, number):
    (repo.root / HISTORY).unlink()  # DVC would do it
    process = begin(repo, sys.executable, "-m", "pipeline.stages.train")
    training = suspended(process)
    run = run_with(until(lambda: (repo.root / "mlflow.db").exists() and repo.store()), epochs=2)
    training.resume()
    process.send_signal(number)
    process.communicate()  # the follower writes to the same pipe: it has ended, too
    status = repo.store().get_run(run.info.run_id).info.status
    assert status == "KILLED" or os.getloadavg()[0] > 4, "a busy machine may take longer than 2 s"
    repo.run("dvc", "repro")
    repo.commit()
    (again,) = repo.runs().values()
    assert again.info.run_id == run.info.run_id
    assert_whole(repo, again, "HEAD")
