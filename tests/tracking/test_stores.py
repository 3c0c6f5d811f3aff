"""Stores in folders with any name, of other people, and of other versions of MLflow."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
from alembic import command
from conftest import ROOT, use_folder
from helpers import mlflow_contents as contents
from helpers.failing_servers import refusing_paths
from helpers.servers import free_port, mlflow_server
from mlflow.entities import Metric
from mlflow.store.db import utils as mlflow_db

from pipeline import paths
from pipeline.commands.doctor import check_store
from pipeline.runtime.files import home
from pipeline.runtime.pending_run import pending_runs
from pipeline.stages import log
from pipeline.tracking.client import Store, existing_store, open_store
from pipeline.tracking.upload import add_points, download, is_whole, points_of

STRANGE = ("café", "cafe\u0301 d", "100% (x)", 'it\'s "q" $HOME;&+@[z]*', "-é q?#%41中")
LONG = "é" * 120


@pytest.fixture
def place(finished_workspace, mlflow_tables, monkeypatch):
    """Copies the finished workspace to a folder, which becomes the working directory."""

    def copy(root: Path) -> Path:
        shutil.copytree(finished_workspace, root)
        shutil.copy(mlflow_tables, root)
        use_folder(monkeypatch, root)
        return root

    return copy


def problems() -> list[str]:
    return [f"{problem.message}: {problem.command}" for problem in check_store(home())]


def logged(capsys) -> str:
    """What `log` prints; everything then agrees that the run is complete."""
    log.main()
    line = capsys.readouterr().out
    log.main()
    assert capsys.readouterr().out.endswith(" is complete\n")
    run = existing_store(home()).runs()[-1]
    assert run.info.status == "FINISHED" and is_whole(existing_store(home()), run)
    assert problems() == []
    download(existing_store(home()), run, home() / "again")
    assert (home() / "again" / paths.MODEL).read_bytes() == paths.MODEL.read_bytes()
    assert (home() / "again" / paths.EVALUATION).exists()
    return line


def refused(capsys) -> str:
    """The line of a store that cannot be used; the stage succeeds, and the doctor says the same."""
    log.main()
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert output.out == "" and line.startswith("log: not in MLflow (MLflow: ")
    (problem,) = problems()
    assert problem.split(": ")[1] in line
    return problem


def follow(problem: str) -> None:
    """Type the command of a problem."""
    env = f"export PATH='{Path(sys.executable).parent}':$PATH; "
    subprocess.run(["bash", "-c", env + problem.rpartition(": ")[2]], check=True)


@pytest.mark.parametrize("name", [*STRANGE, LONG])
def test_every_folder_name_is_a_name(place, tmp_path, capsys, name):
    root = place(tmp_path / name / "repo")
    logged(capsys)
    assert len(list(tmp_path.iterdir())) == 1 and list(root.parent.iterdir()) == [root]
    (run,) = (store := existing_store(root)).runs()
    (model,) = contents.models_of(store.client, run)
    mlflow.set_tracking_uri(store.uri)
    vae = mlflow.pyfunc.load_model(f"models:/{model.model_id}", dst_path=str(tmp_path))
    assert vae.predict(np.zeros((2, 4), np.float32)).shape == (2, 784)


@pytest.mark.slow
def test_clones_that_share_a_database_may_create_it_at_the_same_time(tmp_path):
    code = "import sys, pathlib; from pipeline.tracking.client import open_store; "
    code += "open_store(pathlib.Path(sys.argv[1]))"
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/runs.db"}
    processes = []
    for name in ("one", "two", "three"):
        (tmp_path / name / ".dvc/tmp").mkdir(parents=True)
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env))
    assert [process.wait() for process in processes] == [0, 0, 0]


@pytest.mark.slow
def test_a_pipeline_runs_in_a_folder_with_any_name(repro_repo, tmp_path):
    """Its training is followed, and its run can be reproduced."""
    top = tmp_path / "José's 50% #1?"
    repo = repro_repo.copy(top / "repo")
    repo.run("dvc", "repro", "-f")
    repo.commit()
    repo.pipeline("log-all")
    assert repo.pipeline("doctor") == "doctor: no problems\n"
    name = "z4-h32x1-relu-lr0.001-e3-s0"
    assert "reproduce: identical (" in repo.pipeline("reproduce", name)
    assert list(tmp_path.iterdir()) == [top] and list(top.iterdir()) == [repo.root]


def test_the_path_of_a_database_may_have_any_name(place, tmp_path, monkeypatch, capsys):
    """Absolute with quoted characters, or relative to the repository as it is."""
    place(tmp_path / "repo")
    folder = tmp_path / "josé 50%"
    folder.mkdir()
    for path in (f"{folder}/a%3Fb#.db".replace("%/", "%25/"), "../josé 50%/runs.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        logged(capsys)
    assert {path.name for path in folder.iterdir()} == {"a?b#.db", "runs.db", "mlartifacts"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("uri", [
    "file:runs", "/runs", "127.0.0.1:5000", "uc:x", "postgres://u:s3cr3t@h/d", "sqlite://",
    "sqlite:///:memory:", "sqlite:///a%20b/x.db", "sqlite:///q?x.db",
])  # fmt: skip
def test_what_is_no_store_is_reported_with_what_is_supported(loggable, monkeypatch, capsys, uri):
    before = set(loggable.rglob("*"))
    (loggable / "a%20b").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    line = refused(capsys)
    assert "MLFLOW_TRACKING_URI" in line and "http(s)://" in line and "s3cr3t" not in line
    assert {path.name for path in {*loggable.rglob("*")} - before} <= {
        "a%20b",
        "mlflow.lock",
        "logged",
    }


def test_a_moved_or_copied_clone_writes_nothing_into_the_old_place(
    place, tmp_path, monkeypatch, capsys
):
    old = place(tmp_path / "old")
    log.main()
    capsys.readouterr()
    copied, moved = tmp_path / "copied", tmp_path / "moved"
    shutil.copytree(old, copied)
    before = sorted(old.rglob("*"))
    for root in (copied, moved):
        if root == moved:
            old.rename(moved)
        use_folder(monkeypatch, root)
        line = refused(capsys)
        assert "moved or copied: mv mlflow.db mlflow.db.$(date +%s) && " in line
        assert not old.exists() if root == moved else sorted(old.rglob("*")) == before


def test_two_clones_on_one_database_do_not_depend_on_each_other(
    place, tmp_path, monkeypatch, capsys
):
    (tmp_path / "shared").mkdir()
    for name in ("one", "two"):
        root = place(tmp_path / name)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///../shared/runs.db")
        if name == "two":
            changed = paths.EVALUATION.read_text().replace('"mse": 0.', '"mse": 1.')
            paths.EVALUATION.write_text(changed)
        log.main()
    shutil.rmtree(tmp_path / "one")
    capsys.readouterr()
    store = existing_store(root)
    assert [is_whole(store, run) for run in store.runs()] == [True, True] and problems() == []
    # The experiment of another clone, as on a database server.
    other = (tmp_path / "three" / "mlartifacts").as_uri()
    store.client.create_experiment("of-three", other)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of-three")
    assert "another MLFLOW_EXPERIMENT_NAME" in refused(capsys)
    assert not (tmp_path / "three").exists()
    (tmp_path / "three" / ".dvc").mkdir(parents=True)
    (tmp_path / "three" / "mlartifacts").mkdir()
    assert "another MLFLOW_EXPERIMENT_NAME" in refused(capsys)
    (tmp_path / "three" / ".dvc").rmdir()
    logged(capsys)


def test_a_database_of_an_older_mlflow_is_upgraded_by_the_command_that_is_named(loggable, capsys):
    Path("mlflow.db").unlink()
    engine = mlflow_db.create_sqlalchemy_engine("sqlite:///mlflow.db")
    mlflow_db.InitialBase.metadata.create_all(engine)
    config = mlflow_db._get_alembic_config("sqlite:///mlflow.db")
    command.upgrade(config, "3500859a5d39")
    before = Path("mlflow.db").read_bytes()
    problem = refused(capsys)
    assert "older MLflow: when no experiment is running: mlflow db upgrade " in problem
    assert Path("mlflow.db").read_bytes() == before
    follow(problem)
    logged(capsys)


def test_databases_of_others_are_left_as_they_are(loggable, capsys):
    for change, words in [
        ("update alembic_version set version_num = 'ffffffffffff'", "pip install -U mlflow"),
        (None, "another program"),
    ]:
        if change is None:
            Path("mlflow.db").unlink()
        with closing(sqlite3.connect("mlflow.db")) as database:
            database.execute(change or "create table albums (id)")
            database.commit()
        before = Path("mlflow.db").read_bytes()
        assert words in refused(capsys) and Path("mlflow.db").read_bytes() == before


def test_a_deleted_experiment_is_restored_by_the_command_that_is_named(loggable, capsys):
    logged(capsys)
    contents.client_of(loggable).delete_experiment("1")
    problem = refused(capsys)
    assert "is deleted: " in problem
    follow(problem)
    log.main()
    assert "is complete" in capsys.readouterr().out


def test_of_several_runs_with_a_tag_the_oldest_finished_one_is_found(loggable):
    store = open_store(loggable)
    for start, status in ((4, "FINISHED"), (3, "FINISHED"), (1, "RUNNING"), (2, "KILLED")):
        run = store.client.create_run(store.experiment_id, start, {"execution": "x"})
        store.client.update_run(run.info.run_id, status)
    assert store.find("execution", "x").info.start_time == 3


def test_a_store_has_more_runs_than_mlflow_returns_at_once(loggable):
    store = open_store(loggable)
    store.client.create_run(store.experiment_id)
    columns = "experiment_id, lifecycle_stage, status, start_time, user_id, artifact_uri"
    numbers = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000)"
    with closing(sqlite3.connect("mlflow.db")) as database:
        new = f"{numbers} insert into runs (run_uuid, {columns}) select i, {columns} from n, runs"
        database.execute(new)
        database.commit()
    assert len(store.runs()) == 1001


@pytest.mark.parametrize(("uri", "page", "kept"), [
    ("https://me:s3cr3t@host/mlflow/", "https://host/mlflow/#/", False),
    ("sqlite:////x.db", "http://127.0.0.1:5000/#/", True),
])  # fmt: skip
def test_the_link_is_to_the_server_and_its_files_are_its_own(uri, page, kept):
    info = SimpleNamespace(run_id="r", experiment_id="1", artifact_uri="file:///gone")
    store, run = Store(None, "1", uri), SimpleNamespace(info=info)
    link = f"{page}experiments/1/runs/r?workflowType=machine_learning"
    assert (store.url(run), store.keeps(run)) == (link, kept)


def test_the_tables_of_a_new_database_are_created_once_and_completely(loggable):
    """By several processes at once, and after one that was killed."""
    Path("mlflow.db").unlink()
    Path("mlflow.db.killed.new").write_bytes(b"torn" * 1000)
    barrier = Barrier(3)

    def open_it(_):
        barrier.wait()
        return open_store(loggable).experiment_id

    with ThreadPoolExecutor(3) as pool:
        assert len({*pool.map(open_it, range(3))}) == 1
    assert problems() == [] and [*Path().glob("*.new")] == [Path("mlflow.db.killed.new")]


def test_an_unreachable_server_is_no_reason_to_move_the_database(loggable, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert refused(capsys).endswith(
        ": start the server or unset MLFLOW_TRACKING_URI, then python -m pipeline log-all"
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as (address, _):
        yield address


@pytest.mark.slow
def test_a_run_has_more_points_than_a_server_takes_at_once(loggable, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "long")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    store = open_store(loggable)
    run = store.client.create_run(store.experiment_id)
    add_points(store, run, [Metric("train/kl", 1.0, 0, step) for step in range(1001)], set())
    assert points_of(store, run) == {("train/kl", step) for step in range(1001)}


@pytest.mark.slow
@pytest.mark.parametrize(("path", "status", "body", "left_out"), [
    ("mlflow/logged-models", 404, "<!doctype html><title>404 Not Found</title>", "logged models"),
    ("mlflow/logged-models", 404, '{"detail": "Not Found"}', "logged models"),
    ("mlflow/logged-models", 501, '{"error_code": "NOT_IMPLEMENTED"}', "logged models"),
    ("mlflow/runs/log-inputs", 404, "", "datasets"),
])  # fmt: skip
def test_what_a_server_lacks_is_left_out(
    loggable, server, monkeypatch, capsys, path, status, body, left_out
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # a busy machine is no failure
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{path.replace('/', ' ')} {status} {len(body)}")
    with refusing_paths(server, {path: (status, body)}) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        line = logged(capsys)
        assert f"{address}/#/experiments/" in line and f"refuses: {left_out})" in line
        (run,) = (store := existing_store(loggable)).runs()
        expected = contents.expected_points(paths.HISTORY.read_text(), paths.EVALUATION.read_text())
        assert contents.points(store.client, run) == expected


@pytest.mark.slow
def test_what_a_busy_server_does_not_do_is_done_later(loggable, server, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "busy")
    busy = {"mlflow/logged-models": (503, '{"message": "Service Unavailable"}')}
    with refusing_paths(server, busy) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        log.main()
        assert "log: not in MLflow" in capsys.readouterr().err
        assert existing_store(loggable).runs()[0].info.status == "RUNNING"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    # In a process of its own: MLflow remembers an address.
    subprocess.run((sys.executable, "-m", "pipeline.stages.log"), check=True)
    assert " is complete" in logged(capsys)


@pytest.mark.slow
def test_refused_artifacts_are_left_out_until_they_are_accepted(
    loggable, server, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "no permission")
    with refusing_paths(server, {"mlflow-artifacts": (403, "Forbidden")}) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for _ in range(2):
            log.main()
            assert "refuses: artifacts)" in capsys.readouterr().out
        (run,) = existing_store(loggable).runs()
        assert run.info.status == "FINISHED" and "test/nll" in run.data.metrics
        assert problems() == [] and pending_runs() == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    logged(capsys)
