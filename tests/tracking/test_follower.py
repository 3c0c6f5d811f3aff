"""A training is streamed while it runs, and no failing server delays it or loses a point."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import error_about
from filelock import FileLock
from helpers.failing_servers import KINDS
from helpers.kill_campaign import TARGETS, processes
from helpers.mlflow_contents import assert_whole, client_of, dump, only_run, points, runs_of
from helpers.servers import kill_group, mlflow_server
from mlflow import MlflowClient

from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.paths import CLASSIFIER, DATASET, HISTORY, MODEL, SAMPLES
from pipeline.runtime.files import checkpoint_path, is_locked, sha256_file
from pipeline.runtime.fingerprint import fingerprint, provenance
from pipeline.runtime.pending_run import PATIENCE, follow_training, pending_runs
from pipeline.stages import evaluate, log, train_classifier
from pipeline.tracking.client import experiments_of

PATIENCE_IF_FAILED = "pipeline.runtime.pending_run.PATIENCE_IF_FAILED"


def until(found: Callable[[], object], seconds: float = 120):
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


def followed():
    params = load_params().model_dump()
    origin = provenance(params, "cpu")
    return follow_training(fingerprint(origin, params), origin)


def test_epochs_are_streamed_and_log_completes_the_run_without_doubling(loggable):
    """Also if the training is interrupted and resumed. A line that is being written is not read."""
    lines = HISTORY.read_text().splitlines(keepends=True)
    pending_runs()[0].remove()
    client = client_of(loggable)
    with pytest.raises(KeyboardInterrupt), followed() as record:
        HISTORY.write_text("".join(lines[:2]) + "2,")
        run = run_with(client, epochs=1)
        assert run.info.status == "RUNNING"
        assert run.data.params["z_dim"] == "4" and run.data.tags["execution"] == record.execution
        assert is_locked(record.lock), "`log` waits"
        raise KeyboardInterrupt
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    with followed() as resumed:
        HISTORY.write_text("".join(lines))
        assert resumed.execution == record.execution
        run_with(client, epochs=3)
        until(lambda: client.list_artifacts(run.info.run_id, "images"), seconds=60)
        resumed.finish(sha256_file(MODEL))
    assert client.get_run(run.info.run_id).info.status == "RUNNING", "until it is evaluated"
    log.main()
    _, complete = only_run(loggable)
    assert complete.info.run_id == run.info.run_id and complete.info.status == "FINISHED"
    assert [step for step, _ in points(client, complete)["train/kl"]] == [1, 2, 3]
    assert len(list(SAMPLES.glob("*.png"))) == 6
    names = [entry.path for entry in client.list_artifacts(run.info.run_id, "images")]
    assert len(names) == 2 * (6 + 2)


def test_a_training_that_is_killed_has_a_killed_run(loggable):
    """SIGKILL closes the stdin of the follower, and SIGTERM raises SystemExit."""
    (record,) = pending_runs()
    command = [sys.executable, "-m", "pipeline.tracking.follower", str(record.path)]
    follower = subprocess.Popen(command, stdin=subprocess.PIPE)
    run_with(client_of(loggable), epochs=3)
    follower.communicate()
    assert only_run(loggable)[1].info.status == "KILLED"
    with pytest.raises(SystemExit), followed():
        until(lambda: only_run(loggable)[1].info.status == "RUNNING")
        sys.exit(143)
    assert only_run(loggable)[1].info.status == "KILLED"


def test_the_follower_gives_way_and_the_run_has_system_metrics(loggable, monkeypatch):
    """Ctrl-C in a terminal is for the group of the training."""
    for name in ("SAMPLING_INTERVAL", "SAMPLES_BEFORE_LOGGING"):
        monkeypatch.setenv(f"MLFLOW_SYSTEM_METRICS_{name}", "1")
    client = client_of(loggable)
    with followed():
        (follower,) = psutil.Process().children()
        run = run_with(client, epochs=3)
        assert follower.nice() > os.nice(0) and os.getpgid(follower.pid) == follower.pid
        key = "system/cpu_utilization_percentage"
        until(lambda: key in client.get_run(run.info.run_id).data.metrics, seconds=60)


def test_only_an_interrupted_training_is_continued_under_another_name(loggable, monkeypatch):
    """Neither one that has ended, nor one that another process runs now."""
    (ended,) = pending_runs()
    monkeypatch.setenv("DVC_EXP_NAME", "first")
    with followed() as first:
        pass
    assert first.execution != ended.execution
    monkeypatch.setenv("DVC_EXP_NAME", "again")
    with (
        FileLock(checkpoint_path(first.fingerprint).with_suffix(".lock")),
        followed() as beside,
    ):
        pass
    assert beside.execution != first.execution
    beside.remove()
    with followed() as again:
        pass
    assert again.execution == first.execution


@pytest.mark.parametrize("epochs", [0, 1])
def test_failed_training_is_a_failed_run_that_a_repeated_one_continues(
    workplace, mlflow_tables, monkeypatch, epochs
):
    monkeypatch.setattr(PATIENCE_IF_FAILED, 60)
    subprocess.run(["git", "init", "-q"], check=True)
    shutil.copy(mlflow_tables, workplace)
    HISTORY.parent.mkdir()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), followed():
            HISTORY.write_text("epoch,train/kl,val/kl\n" + "1,2.5,nan\n" * epochs)
            raise ZeroDivisionError
        _, run = only_run(workplace)
        assert run.info.status == "FAILED" and len(run.data.metrics) == epochs
    assert len(pending_runs()) == 1


SLOW = [pytest.param(stage, marks=pytest.mark.slow) for stage in (train_classifier, log)]


@pytest.mark.parametrize("stage", [evaluate, *SLOW])
def test_a_stage_that_fails_has_a_failed_run(loggable, monkeypatch, stage):
    monkeypatch.setattr(PATIENCE_IF_FAILED, 60)
    for path in (CLASSIFIER, DATASET):  # which all of them read, or what is made from them
        path.unlink()
    HISTORY.rename("history.csv")
    with pytest.raises(UserError):
        stage.main()
    client, run = only_run(loggable)
    assert run.info.status == "FAILED" and len(pending_runs()) == 1
    if stage is log:
        Path("history.csv").rename(HISTORY)
        log.main()
        assert client.get_run(run.info.run_id).info.status == "FINISHED" and pending_runs() == []


# A stage as a process of its own, with the time that importing MLflow takes on a busy machine.
PROCESS = """if True:
    import signal
    from pipeline.errors import run
    from pipeline.runtime import pending_run
    from pipeline.stages import {stage}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pending_run.PATIENCE_IF_FAILED = 60
    run({stage}.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["evaluate", "log"])
def test_a_stage_that_is_interrupted_has_a_killed_run(loggable, stage, number):
    """By Ctrl-C or SIGTERM. The same command continues the run."""
    params = Path("params.yaml")
    content = params.read_bytes()
    params.unlink()
    os.mkfifo(params)
    process = subprocess.Popen([sys.executable, "-c", PROCESS.format(stage=stage)])
    with params.open("wb"):  # as soon as the stage reads it, and waits
        params.unlink()
        params.write_bytes(content)
        process.send_signal(number)
        assert process.wait(timeout=120) == 128 + number
    client, run = only_run(loggable)
    assert run.info.status == "KILLED" and len(pending_runs()) == 1
    log.main()
    assert client.get_run(run.info.run_id).info.status == "FINISHED" and pending_runs() == []


def ended_process() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


@pytest.mark.slow
def test_a_failed_run_is_continued_under_another_name(loggable, monkeypatch):
    """DVC invents one for each `dvc exp run` and restores the training from its run-cache."""
    monkeypatch.setattr(PATIENCE_IF_FAILED, 60)
    (record,) = pending_runs()
    record.experiment = "first"
    classifier = CLASSIFIER.read_bytes()
    CLASSIFIER.unlink()
    for name in ("first", "second"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        record.save()
        with error_about(CLASSIFIER):
            evaluate.main()
        client, failed = only_run(loggable)
        assert failed.info.status == "FAILED"
        record.process = ended_process()
        client.update_run(failed.info.run_id, status="RUNNING")
    CLASSIFIER.write_bytes(classifier)
    monkeypatch.setenv("DVC_EXP_NAME", "third")
    evaluate.main()
    log.main()
    _, run = only_run(loggable)
    assert run.info.run_id == failed.info.run_id and run.info.status == "FINISHED"
    assert run.info.run_name == "third" and experiments_of(run) == ["third"]
    assert pending_runs() == []


def test_complete_results_are_not_those_of_a_failed_run(loggable, monkeypatch):
    """Another training of the same model, which failed later."""
    (record,) = pending_runs()
    log.main()
    record.experiment, record.process = "failed", ended_process()
    record.save()
    monkeypatch.setenv("DVC_EXP_NAME", "again")
    log.main()
    assert experiments_of(only_run(loggable)[1]) == ["again"] and len(pending_runs()) == 1


def test_a_failed_run_is_failed_although_its_pictures_cannot_be_sent(loggable, monkeypatch):
    monkeypatch.setattr(PATIENCE_IF_FAILED, 60)
    CLASSIFIER.unlink()
    HISTORY.unlink()
    shutil.rmtree("mlartifacts", ignore_errors=True)
    Path("mlartifacts").write_text("not a folder")
    with pytest.raises(UserError):
        evaluate.main()
    assert only_run(loggable)[1].info.status == "FAILED"


@pytest.mark.parametrize(("name", "model"), [("other", None), ("", "0" * 64)])
def test_a_stage_that_fails_leaves_the_runs_of_others_alone(loggable, monkeypatch, name, model):
    """Of another experiment, or of another training of this one."""
    monkeypatch.setattr(PATIENCE_IF_FAILED, 60)
    monkeypatch.setenv("DVC_EXP_NAME", name)
    if model:
        pending_runs()[0].finish(model)
    CLASSIFIER.unlink()
    with pytest.raises(UserError):
        evaluate.main()
    assert runs_of(client_of(loggable)) == []


def test_an_unreachable_server_hides_no_error(loggable, monkeypatch, capfd):
    CLASSIFIER.unlink()
    with KINDS["hangs"]() as address, error_about(CLASSIFIER):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setattr(PATIENCE_IF_FAILED, 1)
        evaluate.main()
    assert "MLflow" not in capfd.readouterr().err


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


@pytest.mark.slow
def test_server_that_dies_during_a_training_loses_no_point(repro_repo, tmp_path):
    repo = repro_repo.copy(tmp_path / "repo")
    repo.set(num_epochs=300, sample_every=100, h_dim=512)
    repo.commit()
    repo.env["OMP_NUM_THREADS"] = "1"
    with mlflow_server(repo.root / ".dvc" / "tmp") as (address, server):
        repo.env["MLFLOW_TRACKING_URI"] = address
        process = subprocess.Popen(
            ["dvc", "repro"], cwd=repo.root, env=repo.environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        (training,) = until(lambda: processes(repo, TARGETS["training"]))
        history = repo.root / HISTORY
        until(lambda: history.exists() and history.read_text().count("\n") > 3)
        training.suspend()  # the follower has all the time it needs
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
