"""The whole pipeline as a user runs it: git, DVC and MLflow, on a small subset of MNIST."""

import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from helpers.mlflow_contents import assert_whole
from helpers.repo import Repo, litter, started

from pipeline.tracking.results import read_results

STAGES = ["download", "train", "train_classifier", "evaluate", "log"]
OF_AN_EXPERIMENT = ["train", "evaluate", "log"]  # it shares the dataset and the classifier
REPRO = "z4-h32x1-relu-lr0.001-e3-s0"
REPORTS = {
    "bound.csv", "classes.csv", "classifier.json", "evaluation.json", "figures", "generated.png",
    "history.csv", "kl_per_dimension.csv", "metrics.json", "per_image.parquet",
    "reconstructed.png", "samples",
}  # fmt: skip


@pytest.fixture(scope="module")
def repo(repro_repo, tmp_path_factory) -> Repo:
    """A copy, in which `dvc repro` has also made the MLflow run; committed."""
    repo = repro_repo.copy(tmp_path_factory.mktemp("pipeline"))
    assert started(repo.run("dvc", "repro")) == ["log"]
    repo.commit()
    return repo


def test_repro_executes_each_stage_once_and_leaves_nothing_to_commit(repro_repo, repo):
    output = (repro_repo.root.parent / "repro_repo.done").read_text(encoding="utf-8")
    assert started(output) == STAGES[:-1]
    assert "Data and pipelines are up to date" in repo.run("dvc", "status")
    assert started(repo.run("dvc", "repro")) == []
    assert {path.name for path in (repo.root / "reports").iterdir()} - {".gitignore"} == REPORTS


def test_an_experiment_becomes_a_run_beside_that_of_repro(repo):
    baseline = repo.metrics()
    output = repo.run("dvc", "exp", "run", "-n", "narrow", "-S", "z_dim=2")
    assert started(output) == OF_AN_EXPERIMENT and repo.metrics() != baseline
    runs = repo.runs()
    assert set(runs) == {REPRO, "narrow"} and runs[REPRO].data.tags["git.dirty"] == "false"
    assert_whole(repo, runs[REPRO], "HEAD")
    assert_whole(repo, runs["narrow"], repo.experiment("narrow"))

    metrics = repo.run("dvc", "metrics", "diff", "HEAD", "narrow")
    assert re.search(r"test\.neg_elbo( +-?[\d.]+){3}", metrics)
    assert re.search(r"z_dim +4 +2", repo.run("dvc", "params", "diff", "HEAD", "narrow"))
    repo.run("git", "checkout", "-q", ".")
    assert started(repo.run("dvc", "repro")) == [] and repo.metrics() == baseline
    assert set(repo.runs()) == set(runs)


def test_a_likelihood_is_measured_beside_the_bound_of_the_evaluation(repo):
    """Both are upper bounds; that of annealed importance sampling is the tighter one here."""
    output = repo.pipeline("likelihood", "HEAD", "--images", "30")
    assert "30 test images" in output
    assert float(re.search(r"([-\d.]+) \+/- [\d.]+ above it", output)[1]) > 0
    for number in ("1", "100000"):
        error = repo.pipeline("likelihood", "HEAD", "--images", number, ok=False)
        assert error.startswith("--images: must be")


def test_an_invalid_parameter_costs_no_result(repo):
    """DVC deletes the outputs of a stage before it runs it; they are restored without training."""
    before = repo.state()
    repo.set(z_dim=0)
    output = repo.run("dvc", "repro", ok=False)
    assert "\nparams.yaml: z_dim: " in output and "Traceback" not in output
    repo.run("git", "checkout", "-q", "params.yaml")
    assert started(repo.run("dvc", "repro")) == [] and repo.state() == before


@pytest.mark.slow
def test_a_run_is_logged_once_git_works_again(repro_repo, tmp_path):
    repo = repro_repo.copy(tmp_path / "repo")
    head = repo.root / ".git/HEAD"
    branch = head.read_text()
    head.write_text("torn")
    output = repo.run("python", "-m", "pipeline.stages.log")
    assert "git: fatal: not a git repository" in output
    head.write_text(branch)
    repo.pipeline("log-all")
    assert [run.info.status for run in repo.runs().values()] == ["FINISHED"]


@pytest.mark.slow
def test_plots_compare_curves_and_pictures(repo, tmp_path):
    repo.run("dvc", "exp", "run", "--temp", "-n", "wide", "-S", "z_dim=8")
    repo.run("dvc", "plots", "diff", "HEAD", "wide", "-o", str(tmp_path))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    titles = ("−ELBO", "validation −ELBO", "KL per latent dimension, largest first")
    pictures = ("generated.png", "reconstructed.png", "generated-epoch-0002.png", "traversals.png")
    for content in (*titles, *pictures):
        assert content in page or content.encode("unicode_escape").decode() in page, content


@pytest.mark.slow
def test_a_fresh_clone_gets_the_same_bytes_its_model_and_its_run(repo, tmp_path):
    repo.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Repo(tmp_path / "clone", repo.mirror)
    assert started(clone.run("dvc", "repro")) == STAGES
    assert clone.run("git", "status", "--porcelain") == "" and clone.state() == repo.state()
    assert set(clone.runs()) == {REPRO}
    assert started(clone.run("dvc", "repro")) == []


@pytest.mark.slow
def test_an_edited_comment_costs_a_dvc_commit(repro_repo, tmp_path):
    """It changes no byte of an output, not even if all is executed again on two threads."""
    repo = repro_repo.copy(tmp_path / "repo")
    before = repo.state()
    objective = repo.root / "pipeline/model/objective.py"
    objective.write_text(objective.read_text(encoding="utf-8") + "# a comment\n", encoding="utf-8")
    assert "pipeline/model" in repo.run("dvc", "status")
    start = time.monotonic()
    repo.run("dvc", "commit", "-f", "train", "evaluate")
    assert time.monotonic() - start < 10
    assert started(repo.run("dvc", "repro", "evaluate")) == []
    repo.env["OMP_NUM_THREADS"] = "2"
    assert started(repo.run("dvc", "repro", "-f", "evaluate")) == STAGES[:-1]
    after = repo.state()
    outputs = [
        re.findall(r"outs:.*?(?=deps:|$)", state.pop("dvc.lock").decode(), re.DOTALL)
        for state in (before, after)
    ]
    assert outputs[0] == outputs[1] and after == before


@pytest.mark.slow
def test_a_stage_run_by_hand_writes_nothing_into_the_cache_that_is_linked(repro_repo, tmp_path):
    repo = repro_repo.copy(tmp_path / "repo")
    repo.run("dvc", "config", "--local", "cache.type", "symlink")
    repo.run("dvc", "checkout", "--relink")
    model = repo.root / "data/vae.safetensors"
    assert model.is_symlink()
    repo.set(z_dim=5)
    for stage in STAGES:
        repo.run("python", "-m", f"pipeline.stages.{stage}")
    assert repo.metrics() != repro_repo.metrics()
    assert ".dvc/cache" not in repo.pipeline("doctor", "--verify", ok=False)
    repo.run("git", "checkout", "-q", ".")
    repo.run("dvc", "checkout", "--force")
    assert repo.state() == repro_repo.state()


@pytest.mark.slow
def test_what_lies_about_changes_nothing(repro_repo, tmp_path):
    repo = repro_repo.copy(tmp_path / "repo")
    expected = read_results(repo.root).results_sha256
    folders = "data data/raw/MNIST/raw reports reports/figures reports/samples pipeline/model"
    for folder in [*folders.split(), "pipeline/tracking", ".dvc/tmp/runs", "mlartifacts", "."]:
        litter(repo.root / folder)
    assert started(repo.run("dvc", "repro")) == ["log"]
    repo.pipeline("log-all")
    assert repo.runs()[REPRO].data.tags["results.sha256"] == expected
    assert repo.pipeline("doctor") == "doctor: no problems\n"
    assert "Best by" in repo.pipeline("compare")


@pytest.mark.slow
def test_the_project_may_be_a_subfolder_of_a_repository(repro_repo, tmp_path):
    """As after `dvc init --subdir`."""
    repo = repro_repo.copy(tmp_path / "mono/project")
    (repo.root / ".git").rename(tmp_path / "mono/.git")
    (tmp_path / "mono/other").touch()
    repo.commit()
    repo.run("dvc", "repro")
    with (repo.root / "pipeline/model/objective.py").open("a") as file:
        file.write("# edited\n")
    repo.run("dvc", "exp", "run", "--temp", "-n", "temp", "-S", "z_dim=2")
    repo.run("dvc", "exp", "run", "-n", "here", "-S", "z_dim=3")
    repo.run("git", "checkout", "-q", ".")
    assert "\n+z_dim: 2 " in repo.runs()["temp"].data.tags["mlflow.note.content"]
    assert repo.runs()["here"].data.params["z_dim"] == "3"
    shutil.rmtree(repo.root / "mlartifacts")
    repo.pipeline("log-all")
    assert repo.pipeline("doctor") == "doctor: no problems\n"
    assert re.search(r"z_dim=2 .*\n", repo.pipeline("compare"))
    assert "reproduce: identical (" in repo.pipeline("reproduce", "temp")


SHELL = {  # what a person's shell may export
    "PATH": "/usr/bin:/bin", "LC_ALL": "C", "TERM": "dumb", "COLUMNS": "0", "TZ": "Nowhere",
    "TMPDIR": "/nonexistent", "OMP_NUM_THREADS": "0", "MPLBACKEND": "Qt4Agg",
    "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONHASHSEED": "1",
    "PYTHONSAFEPATH": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "true", "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_RUN_ID": "0" * 32, "MLFLOW_EXPERIMENT_ID": "77", "MLFLOW_ACTIVE_MODEL_ID": "m-0",
}  # fmt: skip


@pytest.mark.slow
def test_neither_an_activated_environment_nor_a_variable_matters(repro_repo, tmp_path):
    repo = repro_repo.copy(tmp_path / "a folder" / "repo")
    (repo.root / ".venv").symlink_to(sys.prefix)
    (tmp_path / "pipeline").mkdir()
    mirror = os.path.relpath(repo.mirror, repo.root)
    repo.env |= SHELL | {"PYTHONPATH": str(tmp_path), "MNIST_MIRROR": mirror}
    shutil.rmtree(repo.root / "data/raw")
    output = repo.run(".venv/bin/dvc", "repro", "-f", "evaluate")
    assert started(output) == STAGES[:-1] and output.isascii() and "Traceback" not in output
    assert repo.state() == repro_repo.state()
    assert started(repo.run(".venv/bin/dvc", "repro")) == ["log"]
    assert_whole(repo, repo.runs()[REPRO], "HEAD")


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs another Python")
def test_an_interpreter_without_the_packages_is_one_line_and_costs_no_result(repro_repo, tmp_path):
    repo = repro_repo.copy(tmp_path / "repo")
    (tmp_path / "python").symlink_to("/usr/bin/python3")
    repo.env["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    dvc = f"{sys.prefix}/bin/dvc"
    repo.set(z_dim=5)
    output = repo.run(dvc, "repro", ok=False)
    assert "has no package safetensors: run `make setup`" in output and "Traceback" not in output
    repo.run("git", "checkout", "-q", ".")
    assert started(repo.run(dvc, "repro", "evaluate")) == [] and repo.state() == repro_repo.state()
