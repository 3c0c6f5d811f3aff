"""Every mode of DVC ends in one complete MLflow run (on a server: test_sweep_workers.py)."""

import shutil

import pytest
from helpers.mlflow_contents import assert_whole, dump
from helpers.repo import Repo, started

pytestmark = pytest.mark.slow

QUEUED = {"grid": "learning_rate=1e-5,1e-2", "invalid": "z_dim=0"}
EXPERIMENTS = {"grid-1", "grid-2", "temp", "here"}  # with runs of their own
REPRO = "z4-h32x1-relu-lr0.001-e3-s0"


@pytest.fixture(scope="module")
def repo(repro_repo, tmp_path_factory) -> Repo:
    """After experiments of every mode; the first two write to the empty store at once."""
    repo = repro_repo.copy(tmp_path_factory.mktemp("modes"))
    for name, change in QUEUED.items():
        repo.run("dvc", "exp", "run", "--queue", "-n", name, "-S", change)
    status = repo.run_queue(jobs=2)
    assert status.count("Success") == 2 and status.count("Failed") == 1, status
    assert "params.yaml: z_dim: " in repo.run("dvc", "queue", "logs", "invalid")
    repo.run("dvc", "exp", "run", "--temp", "-n", "temp", "-S", "seed=1")
    again = repo.run("dvc", "exp", "run", "--temp", "-n", "again", "-S", "learning_rate=1e-5")
    assert started(again) == ["log"], "DVC's run-cache has the rest"
    repo.run("dvc", "exp", "run", "-n", "here", "-S", "seed=2")
    return repo


def test_each_experiment_has_one_complete_run(repo):
    runs = repo.runs()
    assert set(runs) == EXPERIMENTS
    for name, run in runs.items():
        assert_whole(repo, run, repo.experiment(name))
        assert run.data.tags["dvc.baseline"] == repo.run("git", "rev-parse", "HEAD").strip()
        assert run.data.tags["dvc.restore"].endswith(" && git apply git.diff && dvc repro")
    rates = [runs[name].data.params["learning_rate"] for name in ("grid-1", "grid-2")]
    assert rates == ["1e-05", "0.01"]
    assert len({run.data.tags["fingerprint"] for run in runs.values()}) == len(EXPERIMENTS)


def test_an_experiment_from_the_run_cache_is_linked_to_the_run_that_computed_it(repo):
    assert repo.runs()["grid-1"].data.tags["dvc.exp_name"] == "grid-1, again"


def test_logging_everything_again_changes_nothing(repo):
    repo.pipeline("log-all")  # HEAD has no run yet
    before = dump(repo.store())
    repo.pipeline("log-all")
    assert dump(repo.store()) == before and set(repo.runs()) == EXPERIMENTS | {REPRO}


def test_a_forced_execution_has_a_run_of_its_own_with_equal_results(repo):
    first = repo.runs()["here"]
    repo.run("dvc", "repro", "-f")
    second = repo.runs()["z4-h32x1-relu-lr0.001-e3-s2"]
    for tag in ("fingerprint", "model.sha256", "results.sha256"):
        assert second.data.tags[tag] == first.data.tags[tag]
    before = set(repo.runs())
    repo.run("dvc", "repro", "-f", "-s", "log")
    assert set(repo.runs()) == before, "logging is no execution"
    repo.store().delete_run(second.info.run_id)


def test_an_experiment_that_is_applied_and_committed_keeps_its_run(repo):
    before = set(repo.runs())
    repo.run("git", "checkout", "-q", ".")
    repo.run("dvc", "exp", "apply", "grid-2")
    assert "train" not in started(repo.run("dvc", "repro"))
    repo.commit()
    repo.pipeline("log-all")
    assert set(repo.runs()) == before


def test_a_lost_store_is_rebuilt_from_dvc(repo):
    (repo.root / "mlflow.db").unlink()
    shutil.rmtree(repo.root / "mlartifacts")
    repo.pipeline("log-all")
    runs = repo.runs()
    assert set(runs) >= EXPERIMENTS
    for name in EXPERIMENTS:
        assert_whole(repo, runs[name], repo.experiment(name))
    assert runs["grid-1"].data.tags["dvc.exp_name"] == "grid-1, again"
