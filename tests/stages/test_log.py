"""The stage `log`: one complete run, whatever happened before, and no harm if MLflow fails."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import EARLY, ROOT, error_about, set_params
from filelock import FileLock
from helpers import mlflow_contents as contents
from helpers.failing_servers import KINDS
from helpers.repo import litter
from helpers.servers import free_port, mlflow_server
from mlflow import MlflowClient

from pipeline import paths
from pipeline.commands import reproduce
from pipeline.params import load_params
from pipeline.runtime import git
from pipeline.runtime.files import sha256_file
from pipeline.runtime.pending_run import pending_runs
from pipeline.runtime.tensor_file import read_header, read_tensors, write_tensors
from pipeline.stages import evaluate, log, train
from pipeline.tracking import log_run, results, run_note, upload
from pipeline.tracking.client import experiments_of
from pipeline.tracking.results import read_results
from pipeline.tracking.stream import Stream

pytestmark = pytest.mark.usefixtures("loggable")
COMMAND = (sys.executable, "-m", "pipeline.stages.log")


def head() -> str:
    return git.head(Path()).commit


def points_of_files() -> dict[str, list[tuple[int, float]]]:
    return contents.expected_points(paths.HISTORY.read_text(), paths.EVALUATION.read_text())


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
    assert "python -m pipeline log-all" in line and paths.LOGGED.exists()
    return line


def test_run_has_the_contents_of_the_files(loggable, monkeypatch, capsys):
    root = loggable / "data/root"
    shutil.copytree(".dvc", root / ".dvc")
    shutil.copy("mlflow.db", root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    log.main()
    client, run = contents.only_run(root)
    assert run.info.status == "FINISHED" and run.info.run_name == "z4-h32x1-relu-lr0.001-e3-s0"
    assert pending_runs() == [], "no longer pending"
    assert run.data.params == {k: str(v) for k, v in load_params().model_dump().items()}
    expected = points_of_files()
    assert contents.points(client, run) == expected and len(expected["val/kl"]) == 3
    assert run.data.tags["model.sha256"] == sha256_file(paths.MODEL)
    assert run.data.tags["mlflow.source.git.commit"] == head()
    assert run.data.tags["dvc.restore"] == f"git checkout {head()[:10]} && dvc repro"
    about = {
        "version.torch": version("torch"), "mlflow.source.name": "dvc repro",
        "mlflow.user": os.environ.get("USER", "unknown"), "cpu": run_note.cpu(),
    }  # fmt: skip
    assert {name: run.data.tags.get(name) for name in about} == about
    (model,) = contents.models_of(client, run)
    assert model.params == run.data.params
    assert model.tags["model.sha256"] == run.data.tags["model.sha256"]
    files = contents.files_of(client, run)
    written = {str(path): path.read_bytes() for path in Path("reports").rglob("*.*")}
    assert {name: files[name] for name in files if not name.startswith("images/")} == written
    assert len(list((root / "mlartifacts").glob("*"))) == 2, "of the run and of its model"
    output = capsys.readouterr().out
    assert f"/#/experiments/1/runs/{run.info.run_id}?workflowType=machine_learning" in output
    tags = client.get_experiment("1").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_run_of_a_training_that_stopped_early_has_its_epochs_and_rates(loggable):
    set_params(loggable, EARLY)
    for stage in (train, evaluate, log):
        stage.main()
    client, run = contents.only_run(loggable)
    expected = points_of_files()
    assert contents.points(client, run) == expected
    assert 1 < len(expected["lr"]) < EARLY["num_epochs"]


def test_pictures_sort_behind_curves_and_tables_of_runs_name_no_machine(loggable):
    log.main()
    client, run = contents.only_run(loggable)
    pictures = {
        name.split("+step")[0] for name in contents.files_of(client, run) if "+step" in name
    }
    assert len(pictures) == 4 and min(pictures) > "images/val/"
    text = json.dumps(run.data.tags)
    for private in (str(Path.home()), str(loggable), socket.gethostname()):
        assert private not in text


def test_experiment_gives_name_baseline_restore_command_and_diff(loggable, monkeypatch):
    in_experiment(monkeypatch, "tidy; vole")
    set_params(loggable, {"sample_every": 5})
    log.main()
    client, run = contents.only_run(loggable)
    assert run.info.run_name == run.data.tags["dvc.exp_name"] == "tidy; vole"
    assert run.data.tags["dvc.baseline"] == head() and run.data.tags["git.dirty"] == "true"
    command = f"git checkout {head()[:10]} && git apply git.diff && dvc repro"
    assert run.data.tags["dvc.restore"] == command
    note = run.data.tags["mlflow.note.content"]
    assert "\n-sample_every: 2" in note and "\n+sample_every: 5" in note and "z_dim" not in note
    assert command in note and f"`{head()[:10]}` (see `git.diff`): params.yaml." in note
    assert run.data.tags["mlflow.source.name"] == "dvc exp run"
    assert b"+sample_every: 5" in contents.files_of(client, run)["git.diff"]


def test_logging_again_changes_nothing_and_a_lost_artifact_store_is_refilled(loggable, capsys):
    log.main()
    client = contents.client_of(loggable)
    before = contents.dump(client)
    log.main()
    assert "is complete" in capsys.readouterr().out and contents.dump(client) == before
    for lost in ("mlartifacts", "mlartifacts/models"):
        shutil.rmtree(lost)
        log.main()
        assert contents.dump(client) == before
        assert list(Path("mlartifacts/models").glob("*/artifacts/MLmodel"))


def test_restored_results_are_linked_to_the_run_that_computed_them(loggable, monkeypatch):
    log.main()
    for name in ("lr=0.1,z=2", "lr=0.1,z=2", "third"):
        in_experiment(monkeypatch, name)
        log.main()
    _, run = contents.only_run(loggable)
    assert experiments_of(run) == ["lr=0.1,z=2", "third"]
    assert reproduce.find_run([run], "lr=0.1,z=2") == run


def test_an_interrupted_run_that_another_experiment_completes_is_of_both(loggable, monkeypatch):
    forget_execution()
    in_experiment(monkeypatch, "first")
    train.main()
    evaluate.main()
    with monkeypatch.context() as patch:
        patch.setattr(upload, "points_of", None)
        log.main()
    in_experiment(monkeypatch, "again")
    log.main()
    _, run = contents.only_run(loggable)
    assert run.info.status == "FINISHED" and run.info.run_name == "first"
    assert experiments_of(run) == ["first", "again"]
    in_experiment(monkeypatch, "first")
    log.main()
    _, run = contents.only_run(loggable)
    assert experiments_of(run) == ["first", "again"] and pending_runs() == []


def test_results_that_were_not_computed_here_name_no_cpu(loggable):
    forget_execution()
    log.main()
    assert "cpu" not in contents.only_run(loggable)[1].data.tags


@pytest.mark.parametrize("later", [False, True])
def test_the_code_of_a_run_is_that_with_which_its_training_began(loggable, later):
    """Unless DVC has been started again since, and has restored the results."""
    train.main()
    Path("new.py").touch()
    record = pending_runs()[0]
    record.process += later
    record.save()
    log.main()
    _, run = contents.only_run(loggable)
    assert ("new.py" in run.data.tags["mlflow.note.content"]) is later


def test_a_process_waits_for_another_one_that_logs_the_same_results(loggable):
    forget_execution()
    lock = Path(".dvc/tmp/runs") / f"{read_results().results_sha256[:16]}.lock"
    with ThreadPoolExecutor(1) as pool, FileLock(lock):
        logging = pool.submit(log.main)
        with pytest.raises(TimeoutError):
            logging.result(timeout=5)
        assert contents.runs_of(contents.client_of(loggable)) == []
    assert contents.points(*contents.only_run(loggable)) == points_of_files()


def test_other_results_of_the_same_training_are_another_run(loggable):
    log.main()
    changed = paths.EVALUATION.read_text().replace('"mse": 0.', '"mse": 1.')
    paths.EVALUATION.write_text(changed)
    log.main()
    runs = contents.runs_of(contents.client_of(loggable))
    assert len({run.data.metrics["test/mse"] for run in runs}) == len(runs) == 2
    assert len({run.data.tags["fingerprint"] for run in runs}) == 1


def test_a_name_that_is_used_again_restores_the_files_of_each_run(loggable, monkeypatch):
    """`dvc exp apply NAME` would restore the newer one for both."""
    in_experiment(monkeypatch, "narrow")
    set_params(loggable, {"sample_every": 5})
    log.main()
    paths.EVALUATION.write_text(paths.EVALUATION.read_text().replace('"mse": 0.', '"mse": 1.'))
    log.main()
    older, newer = contents.runs_of(contents.client_of(loggable))
    command = f"git checkout {head()[:10]} && git apply git.diff && dvc repro"
    for run in (older, newer):
        assert run.data.tags["dvc.restore"] == command
        assert run.data.tags["mlflow.note.content"].startswith(
            f"Restore these files:\n\n    {command}\n"
        )
    with error_about("narrow"):
        reproduce.find_run([older, newer], "narrow")
    newer.data.tags["dvc.exp_name"] = ""
    assert reproduce.find_run([older, newer], "narrow") == older, "though both runs are called so"


def test_files_that_no_command_restores_are_named(loggable):
    Path("new.py").touch()
    log.main()
    _, run = contents.only_run(loggable)
    assert "Not in git, so not restored: new.py." in run.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("broken_at", ["add_pictures", "_add_model", "points_of"])
def test_upload_that_was_interrupted_is_completed_in_the_same_run(
    loggable, monkeypatch, capsys, broken_at
):
    """Interrupted at each of its parts, with and without the record of the training."""

    def interrupt(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(upload, broken_at, interrupt)
        log.main()
        assert "No space left on device" in warning(capsys)
    client, begun = contents.only_run(loggable)
    assert begun.info.status == "RUNNING"
    if broken_at == "_add_model":
        forget_execution()
    log.main()
    _, run = contents.only_run(loggable)
    assert run.info.run_id == begun.info.run_id and run.info.status == "FINISHED"
    assert contents.points(client, run) == points_of_files()
    assert len(contents.models_of(client, run)) == len(run.outputs.model_outputs) == 1
    assert "dvc.exp_name" not in run.data.tags
    contents.files_of(client, run)  # asserts that no picture is there twice


def test_code_that_git_cannot_describe_costs_one_line_and_no_false_record(
    loggable, monkeypatch, capsys
):
    (record,) = pending_runs()
    record.source = None
    record.save()
    for name, value in {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "PATH": ""}.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with error_about("git"):
                Stream(record)
            log.main()
            assert "(git: " in warning(capsys)
    assert contents.runs_of(contents.client_of(loggable)) == []
    log.main()
    _, run = contents.only_run(loggable)
    assert run.data.tags["mlflow.source.git.commit"] == head()


def test_the_note_names_files_whose_names_git_quotes():
    quoted = [f'"{side}/\\303\\251/params.yaml"' for side in "ab"]
    diff = f"diff --git a/b c b/b c\ndiff --git {' '.join(quoted)}\n-z_dim: 20\n+z_dim: 2\n"
    note = run_note.note(git.Source("", "0" * 40, diff))
    assert "\\303\\251/params.yaml, b c." in note and "+z_dim: 2\n```" in note


def test_foreign_files_are_neither_results_nor_code(loggable, monkeypatch):
    expected = read_results().results_sha256
    shutil.copytree(ROOT / "pipeline", "data/code/pipeline")
    shutil.copy(ROOT / "dvc.yaml", "data/code")
    monkeypatch.setattr(results, "CODE", loggable / "data/code")
    package = "data/code/pipeline"
    for folder in (paths.SAMPLES, paths.FIGURES, package, f"{package}/model", ".dvc/tmp/runs"):
        litter(loggable / folder)
    log.main()
    _, run = contents.only_run(loggable)
    assert run.info.status == "FINISHED" and run.data.tags["results.sha256"] == expected
    stored = {path.name for path in (loggable / "mlartifacts").rglob("*")}
    assert {"network.py", "MLmodel"} <= stored
    assert not stored & {path.name for path in (loggable / ".dvc/tmp/runs").iterdir()} - {"folder"}


def test_the_store_may_be_links_to_another_disk(loggable, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    (disk / "mlartifacts").mkdir()
    Path("mlflow.db").unlink()
    for name in ("mlflow.db", "mlartifacts"):
        Path(name).symlink_to(disk / name)
    log.main()
    _, run = contents.only_run(loggable)
    assert run.info.status == "FINISHED"
    assert Path("mlflow.db").is_symlink() and (disk / "mlflow.db").is_file()


@pytest.mark.parametrize("name", ["z_dim", "eval_samples"])
def test_parameters_that_differ_from_the_results_are_refused(loggable, name):
    set_params(loggable, {name: 5})
    with error_about(f"params.yaml: {name}"):
        log.main()


def test_metrics_of_another_model_are_refused(loggable):
    header = read_header(paths.MODEL)
    write_tensors(paths.MODEL, read_tensors(paths.MODEL), header | {"trained": "again"})
    with error_about(paths.PER_IMAGE):
        log.main()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_failing_server_costs_one_line_and_less_than_a_minute(loggable, kind):
    with KINDS[kind]() as address:
        env = os.environ | {"MLFLOW_TRACKING_URI": address}
        start = time.monotonic()
        done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, check=True)
        assert time.monotonic() - start < 60, "15 s on an idle machine"
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and paths.LOGGED.exists()


@pytest.mark.parametrize("uri", [
    "http://somebody:s3cr3t@127.0.0.1:{port}", "http://somebody:s3c/r3t@127.0.0.1:{port}",
    "postgresql://a:s3cr3t@127.0.0.1:{port}/b", "sqlite:////proc/s3cr3t.db", "nothing://s3cr3t",
])  # fmt: skip
def test_unusable_store_is_one_line_without_a_password(loggable, monkeypatch, capsys, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=free_port()))
    log.main()
    line = warning(capsys)
    assert not any(secret in line for secret in ("s3cr3t", "s3c", "r3t"))


def test_relative_path_is_under_the_root_and_the_experiment_name_is_free(loggable, monkeypatch):
    root = loggable / "root"
    root.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "my team's")
    log.main()
    (run,) = contents.runs_of(MlflowClient(f"sqlite:///{root}/other.db"), "my team's")
    assert run.info.artifact_uri.startswith((root / "mlartifacts").as_uri())


def test_run_that_a_training_is_writing_is_left_alone(loggable, monkeypatch, capsys):
    monkeypatch.setattr(log_run, "WAIT", 0.1)
    (record,) = pending_runs()
    with FileLock(record.lock):
        log.main()
    assert "a training writes to the run" in warning(capsys)
    assert contents.runs_of(contents.client_of(loggable)) == []


@pytest.mark.slow
def test_a_password_in_the_address_of_a_server_is_written_nowhere(loggable, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # a busy machine is no failure
    with mlflow_server(loggable) as (address, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("://", "://somebody:s3cr3t@"))
        log.main()
        assert f"{address}/#/experiments/1/runs/" in capsys.readouterr().out
    files = [path for path in loggable.rglob("*") if path.is_file()]
    assert not [path for path in files if b"s3cr3t" in path.read_bytes()]
