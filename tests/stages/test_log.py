"""The stage `log`: one complete run, whatever happened before, and no harm if MLflow fails."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, set_params
from filelock import FileLock
from helpers.failing_servers import KINDS
from helpers.mlflow_contents import (
    client_of,
    dump,
    expected_points,
    files_of,
    models_of,
    points,
    runs_of,
)
from helpers.servers import certificate, free_port, mlflow_server

from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.paths import EVALUATION, HISTORY, LOGGED, MODEL
from pipeline.runtime.files import checkpoint_path, sha256_file
from pipeline.runtime.pending_run import pending_runs
from pipeline.stages import log
from pipeline.tracking import log_run as module
from pipeline.tracking.client import existing_store, experiments_of

GIT = ("git", "-c", "user.name=x", "-c", "user.email=x@y.z")


@pytest.fixture
def in_git(finished: Path, mlflow_tables: Path) -> Path:
    """The finished workspace in a git repository, with the record of its training."""
    shutil.copy(mlflow_tables, finished)
    Path(".gitignore").write_text("/.dvc/\n/data/\n/mlflow.db\n/mlartifacts/\n/root/\n*.pem\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*GIT, *command], check=True)
    return finished


def head() -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def in_experiment(monkeypatch, name: str) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", name)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", head())


def forget_execution() -> None:
    """As if DVC had restored the results from its run-cache."""
    for record in pending_runs():
        record.remove()


def warning(capsys) -> str:
    """The only line that a failure prints; the stage succeeds, because DVC would discard it."""
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert output.out == "" and line.startswith("log: not in MLflow (")
    assert "python -m pipeline log-all" in line and LOGGED.exists()
    return line


def test_run_has_the_contents_of_the_files(in_git, monkeypatch, capsys):
    root = in_git / "root"
    shutil.copytree(".dvc", root / ".dvc")
    shutil.copy("mlflow.db", root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    log.main()
    client = client_of(root)
    (run,) = runs_of(client)
    assert run.info.status == "FINISHED" and run.info.run_name == "z4-h32x1-relu-lr0.001-e3-s0"
    assert run.data.params == {k: str(v) for k, v in load_params().model_dump().items()}
    expected = expected_points(HISTORY.read_text(), EVALUATION.read_text())
    assert points(client, run) == expected and len(expected["val/kl"]) == 3
    assert run.data.tags["model.sha256"] == sha256_file(MODEL)
    assert run.data.tags["mlflow.source.git.commit"] == head()
    assert run.data.tags["dvc.restore"] == f"git checkout {head()[:10]} && dvc repro"
    files = files_of(client, run)
    written = {str(path): path.read_bytes() for path in Path("reports").rglob("*.*")}
    assert {name: files[name] for name in files if not name.startswith("images/")} == written
    assert len(list((root / "mlartifacts").glob("*"))) == 2, "of the run and of its model"
    output = capsys.readouterr().out
    assert f"/#/experiments/1/runs/{run.info.run_id}?workflowType=machine_learning" in output
    tags = client.get_experiment("1").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_pictures_sort_behind_curves_and_tables_of_runs_name_no_machine(in_git):
    log.main()
    client = client_of(in_git)
    (run,) = runs_of(client)
    pictures = {name.split("+step")[0] for name in files_of(client, run) if "+step" in name}
    assert len(pictures) == 4 and min(pictures) > "images/val/"
    text = json.dumps(run.data.tags)
    for private in (str(Path.home()), str(in_git), socket.gethostname()):
        assert private not in text


def test_experiment_gives_name_baseline_restore_command_and_diff(in_git, monkeypatch):
    in_experiment(monkeypatch, "tidy; vole")
    set_params(in_git, {"sample_every": 5})
    log.main()
    client = client_of(in_git)
    (run,) = runs_of(client)
    assert run.info.run_name == run.data.tags["dvc.exp_name"] == "tidy; vole"
    assert run.data.tags["dvc.baseline"] == head() and run.data.tags["git.dirty"] == "true"
    assert run.data.tags["dvc.restore"] == "dvc exp apply 'tidy; vole'"
    note = run.data.tags["mlflow.note.content"]
    assert "| `sample_every` | 5 | 2 |" in note and "`z_dim`" not in note
    assert "dvc exp apply 'tidy; vole'" in note
    assert b"+sample_every: 5" in files_of(client, run)["git.diff"]


def test_logging_again_changes_nothing_and_a_lost_artifact_store_is_refilled(in_git, capsys):
    log.main()
    client = client_of(in_git)
    before = dump(client)
    log.main()
    assert "is complete" in capsys.readouterr().out and dump(client) == before
    shutil.rmtree("mlartifacts")
    log.main()
    assert dump(client) == before


def test_log_removes_the_checkpoint_of_the_recorded_training_and_its_record(in_git):
    (record,) = pending_runs()
    checkpoint = checkpoint_path(record.fingerprint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.touch()
    log.main()
    assert not checkpoint.exists() and pending_runs() == []


def test_restored_results_are_linked_to_the_run_that_computed_them(in_git, monkeypatch):
    log.main()
    for name in ("again", "again", "third"):
        in_experiment(monkeypatch, name)
        log.main()
    (run,) = runs_of(client_of(in_git))
    assert experiments_of(run) == ["again", "third"]
    assert run.data.tags["mlflow.note.content"].count("dvc exp apply again") == 1


def test_other_results_of_the_same_training_are_another_run(in_git):
    log.main()
    changed = EVALUATION.read_text().replace('"mse": 0.', '"mse": 1.')
    EVALUATION.write_text(changed)
    log.main()
    runs = runs_of(client_of(in_git))
    assert len({run.data.metrics["test/mse"] for run in runs}) == len(runs) == 2
    assert len({run.data.tags["fingerprint"] for run in runs}) == 1


@pytest.mark.parametrize("broken_at", ["add_pictures", "_add_model", "points_of"])
def test_upload_that_was_interrupted_is_completed_in_the_same_run(
    in_git, monkeypatch, capsys, broken_at
):
    """Interrupted at each of its parts, with and without the record of the training."""
    from pipeline.tracking import upload

    def interrupt(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(upload, broken_at, interrupt)
        log.main()
        assert "No space left on device" in warning(capsys)
    client = client_of(in_git)
    (begun,) = runs_of(client)
    assert begun.info.status == "RUNNING"
    if broken_at == "_add_model":
        forget_execution()
    log.main()
    (run,) = runs_of(client)
    assert run.info.run_id == begun.info.run_id and run.info.status == "FINISHED"
    assert points(client, run) == expected_points(HISTORY.read_text(), EVALUATION.read_text())
    assert len(models_of(client, run)) == len(run.outputs.model_outputs) == 1
    files_of(client, run)  # asserts that no picture is there twice


def test_run_without_validation_has_no_validation_points(in_git):
    history = pd.read_csv(HISTORY)
    history[[name for name in history if name.startswith("val/")]] = math.nan
    history.to_csv(HISTORY, index=False, na_rep="nan")
    log.main()
    (run,) = runs_of(client_of(in_git))
    assert {name.split("/")[0] for name in run.data.metrics} == {"train", "test"}


def test_parameters_that_differ_from_the_model_are_refused(in_git):
    set_params(in_git, {"z_dim": 5})
    with pytest.raises(UserError) as error:
        log.main()
    assert error.value.subject == "params.yaml: z_dim"


@pytest.mark.parametrize("path", [HISTORY, EVALUATION, MODEL])
def test_missing_or_invalid_file_is_a_user_error(in_git, path):
    path.write_text("{]")
    with pytest.raises(UserError):
        log.main()
    path.unlink()
    with pytest.raises(UserError):
        log.main()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_failing_server_costs_one_line_and_at_most_15_seconds(in_git, kind):
    with KINDS[kind]() as address:
        env = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": address}
        start = time.monotonic()
        command = [sys.executable, "-m", "pipeline.stages.log"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert time.monotonic() - start < 15
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and LOGGED.exists()


@pytest.mark.parametrize("uri", [
    "http://somebody:s3cr3t@127.0.0.1:{port}", "http://somebody:s3c/r3t@127.0.0.1:{port}",
    "postgresql://a:s3cr3t@127.0.0.1:{port}/b", "sqlite:////proc/s3cr3t.db", "nothing://s3cr3t",
])  # fmt: skip
def test_unusable_store_is_one_line_without_a_password(in_git, monkeypatch, capsys, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=free_port()))
    log.main()
    line = warning(capsys)
    assert not any(secret in line for secret in ("s3cr3t", "s3c", "r3t"))


def test_relative_sqlite_path_is_under_the_root_and_the_experiment_name_is_free(
    in_git, monkeypatch
):
    root = in_git / "root"
    root.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "my team's")
    log.main()
    assert (root / "mlflow.db").exists()
    (run,) = runs_of(client_of(root), "my team's")
    assert run.info.artifact_uri.startswith((root / "mlartifacts").as_uri())
    assert runs_of(client_of(in_git), "my team's") == []


def test_experiment_that_was_deleted_in_mlflow_is_reported(in_git, capsys):
    log.main()
    client_of(in_git).delete_experiment("1")
    capsys.readouterr()
    log.main()
    assert "deleted" in warning(capsys)


def test_run_that_a_training_is_writing_is_left_alone(in_git, monkeypatch, capsys):
    monkeypatch.setattr(module, "WAIT", 0.1)
    (record,) = pending_runs()
    with FileLock(record.lock):
        log.main()
    assert "a training writes to the run" in warning(capsys)
    assert existing_store(in_git).runs() == []


@pytest.mark.slow
def test_four_processes_on_an_empty_store_create_one_run_of_the_same_results(in_git):
    forget_execution()
    Path("mlflow.db").unlink()
    names = {"first", "second", "third", "fourth"}
    env = os.environ | {"PYTHONPATH": str(ROOT), "DVC_EXP_BASELINE_REV": head()}
    command = [sys.executable, "-m", "pipeline.stages.log"]
    processes = [subprocess.Popen(command, env=env | {"DVC_EXP_NAME": name}) for name in names]
    assert [process.wait() for process in processes] == [0] * 4
    client = client_of(in_git)
    (run,) = runs_of(client)
    assert set(experiments_of(run)) == names
    assert points(client, run) == expected_points(HISTORY.read_text(), EVALUATION.read_text())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_server_with_tls_and_client_certificates_gets_the_run(in_git, monkeypatch, capsys):
    """With MLflow's own variables; a password in the address is written nowhere."""
    pem = certificate(in_git / "server.pem")
    with mlflow_server(in_git, pem=pem) as (address, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("://", "://somebody:s3cr3t@"))
        log.main()
        assert "certificate verify failed" in warning(capsys)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(pem))
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(pem))
        log.main()
        output = capsys.readouterr().out
        assert f"{address}/#/experiments/1/runs/" in output
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        log.main()
        assert "is complete" in capsys.readouterr().out
    files = [path for path in in_git.rglob("*") if path.is_file()]
    assert not [path for path in files if b"s3cr3t" in path.read_bytes()]
