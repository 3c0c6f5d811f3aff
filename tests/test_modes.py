"""Every way in which DVC runs an experiment ends in one complete MLflow run: embedded store and team server alike."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.mlflow_contents import assert_whole, dump
from helpers.repo import Repo, plant, started
from helpers.servers import mlflow_server, postgres

QUEUED = {"narrow": "z_dim=2", "wide": "z_dim=8", "tanh": "activation=tanh"}


def wait_for_queue(repo: Repo, names: set[str], seconds: float = 600) -> None:
    """Until the queue's experiments are there, and its workers at rest; they end when they find nothing for a while."""
    end = time.monotonic() + seconds
    while True:
        there = set(repo.run("dvc", "exp", "list", "--name-only").split())
        status = repo.run("dvc", "queue", "status")
        if names <= there and "Worker status: 0 active" in status:
            break
        assert "Failed" not in status and time.monotonic() < end, status
        time.sleep(1)
    repo.run("dvc", "queue", "stop")


@pytest.fixture(scope="module", params=["embedded store", "server on PostgreSQL"])
def repo(request, tmp_path_factory, small_mnist) -> Iterator[Repo]:
    """After three queued experiments on two workers, begun on an empty store, and one of every other kind."""
    root = tmp_path_factory.mktemp("modes")
    if request.param == "embedded store":
        yield run_every_mode(plant(root, small_mnist))
        return
    with postgres() as database, mlflow_server(tmp_path_factory.mktemp("server"), database) as (address, _):
        yield run_every_mode(plant(root, small_mnist, {"MLFLOW_TRACKING_URI": address}))


def run_every_mode(repo: Repo) -> Repo:
    for name, change in QUEUED.items():
        repo.run("dvc", "exp", "run", "--queue", "-n", name, "-S", change)
    # Its workers hold on to what they were given as stdout.
    repo.run("bash", "-c", "dvc queue start -j 2 > .dvc/tmp/workers 2>&1")
    wait_for_queue(repo, set(QUEUED))
    repo.run("dvc", "exp", "run", "--temp", "-n", "temp", "-S", "seed=1")
    again = repo.run("dvc", "exp", "run", "--temp", "-n", "again", "-S", QUEUED["narrow"])
    assert "train" not in started(again) and "log" in started(again), "DVC has it in its run-cache"
    repo.run("dvc", "exp", "run", "-n", "here", "-S", "seed=2")
    shutil.rmtree(repo.root / ".dvc" / "tmp" / "exps")
    return repo


def embedded_only(repo: Repo) -> None:
    """What makes no difference to the kind of store is shown on one."""
    if "MLFLOW_TRACKING_URI" in repo.env:
        pytest.skip("shown on the embedded store")


def test_one_complete_run_for_each(repo):
    runs = repo.runs()
    assert set(runs) == {*QUEUED, "temp", "here"}
    for name, run in runs.items():
        assert_whole(repo, run, repo.experiment(name))
        assert run.data.tags["dvc.baseline"] == repo.run("git", "rev-parse", "HEAD").strip()
        assert run.data.tags["dvc.restore"] == f"dvc exp apply {name}"
    assert len({run.data.tags["fingerprint"] for run in runs.values()}) == 5


def test_what_came_out_of_the_run_cache_is_linked_to_the_run_that_computed_it(repo):
    assert repo.runs()["narrow"].data.tags["dvc.exp_name"] == "narrow, again"
    assert "dvc exp apply again" in repo.runs()["narrow"].data.tags["mlflow.note.content"]


def test_logging_everything_again_changes_nothing(repo):
    before = dump(repo.store())
    said = repo.run("python", "-m", "pipeline.stages.log", "--all")
    assert said.count("has it already") == 7, said  # six experiments and the workspace; HEAD has not been executed
    assert dump(repo.store()) == before


def test_a_forced_re_execution_is_a_run_of_its_own_with_the_same_fingerprint_and_model(repo):
    embedded_only(repo)
    first = repo.runs()["here"]
    params = (repo.root / "params.yaml").read_text()
    repo.run("dvc", "repro", "-f")
    name = "z4-h32x1-relu-lr0.001-e3-s2"
    second = repo.runs()[name]
    for tag in ("fingerprint", "model.sha256", "results.sha256"):
        assert second.data.tags[tag] == first.data.tags[tag]
    assert params == (repo.root / "params.yaml").read_text()
    repo.run("dvc", "repro", "-f", "-s", "log")
    assert set(repo.runs()) == {*QUEUED, "temp", "here", name}, "to log again is no execution"
    repo.store().delete_run(second.info.run_id)


def test_applied_and_committed_it_is_still_the_same_run(repo):
    embedded_only(repo)
    before = set(repo.runs())
    repo.run("git", "checkout", "-q", ".")
    repo.run("dvc", "exp", "apply", "wide")
    assert "train" not in started(repo.run("dvc", "repro"))
    repo.commit()
    repo.run("python", "-m", "pipeline.stages.log", "--all")
    assert set(repo.runs()) == before


def test_a_store_that_is_lost_is_built_anew(repo):
    """From the files that DVC keeps, by one command; only the times of day are gone."""
    embedded_only(repo)
    (repo.root / "mlflow.db").unlink()
    shutil.rmtree(repo.root / "mlartifacts")
    repo.run("python", "-m", "pipeline.stages.log", "--all")
    runs = repo.runs()
    assert set(runs) == {*QUEUED, "temp", "here"}
    for name, run in runs.items():
        assert_whole(repo, run, repo.experiment(name))
    assert runs["narrow"].data.tags["dvc.exp_name"] == "narrow, again"
    assert json.loads(repo.run("dvc", "exp", "show", "--json"))
    assert not list(Path(repo.root).glob("*.new"))
