"""The whole pipeline as a person runs it: DVC and MLflow for real, in a repository of its own, on a small subset."""

import json
import os
import re
import shutil

import pytest
from conftest import ROOT
from helpers.repo import Repo, plant, started
from ruamel.yaml import YAML

STAGES = ["download", "train", "judge", "evaluate", "log"]
AFTERWARDS = ["train", "evaluate", "log"]  # of an experiment: it shares the data and the judge
REPORTS = [
    "bound.csv", "classes.csv", "figures", "generated.png", "history.csv", "judge.json", "kl_per_dimension.csv",
    "metrics.json", "per_image.parquet", "reconstructed.png", "samples",
]  # fmt: skip


@pytest.fixture(scope="module")
def origin(tmp_path_factory, small_mnist) -> Repo:
    """The project after `dvc repro`, committed."""
    repo = plant(tmp_path_factory.mktemp("origin"), small_mnist)
    assert started(repo.run("dvc", "repro")) == STAGES
    repo.commit()
    return repo


@pytest.fixture
def repo(origin, tmp_path) -> Repo:
    """A copy of `origin` to change, its DVC cache and MLflow store left behind: a fresh clone after `dvc repro`."""
    origin.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    return Repo(tmp_path / "clone", origin.mirror)


def test_repro_leaves_everything_up_to_date(origin):
    assert "Data and pipelines are up to date" in origin.run("dvc", "status")
    assert started(origin.run("dvc", "repro")) == []
    assert origin.run("git", "status", "--porcelain") == ""
    assert sorted(path.name for path in (origin.root / "reports").iterdir()) == REPORTS


def test_experiments_become_runs_beside_the_one_of_repro(origin):
    """In the workspace, and in a folder of its own that is gone afterwards."""
    baseline = origin.metrics()
    assert started(origin.run("dvc", "exp", "run", "-n", "narrow", "-S", "z_dim=2")) == AFTERWARDS
    narrow = origin.metrics()
    assert narrow["kl"] != baseline["kl"]
    assert started(origin.run("dvc", "exp", "run", "--temp", "-n", "slow", "-S", "learning_rate=1e-5")) == AFTERWARDS

    runs = origin.runs()
    assert (
        runs["z4-h32x1-relu-lr0.001-e3-s0"].data.params["z_dim"] == "4" and runs["narrow"].data.params["z_dim"] == "2"
    )
    assert runs["z4-h32x1-relu-lr0.001-e3-s0"].data.tags["git.dirty"] == "false"
    assert runs["slow"].data.params["learning_rate"] == "1e-05"
    for name, metrics in (("z4-h32x1-relu-lr0.001-e3-s0", baseline), ("narrow", narrow)):
        means = {f"test/{key}": value for key, value in metrics.items() if not key.endswith("_se")}
        assert means.items() <= runs[name].data.metrics.items()
    for run in (runs["z4-h32x1-relu-lr0.001-e3-s0"], runs["narrow"], runs["slow"]):
        assert run.info.status == "FINISHED"
        # under the root of the repository, whatever folder the experiment ran in
        artifacts = origin.root / "mlartifacts" / run.info.run_id / "artifacts"
        assert run.info.artifact_uri == artifacts.as_uri()
        planes = run.data.params["z_dim"] == "2"
        assert len(list((artifacts / "images").glob("*.png"))) == 8 + 5 + planes
    shown = json.loads(origin.run("dvc", "exp", "show", "--json"))
    assert "narrow" in json.dumps(shown) and "slow" in json.dumps(shown)

    # Back on the baseline nothing is trained again, and nothing new is logged.
    origin.run("git", "checkout", "-q", ".")
    assert started(origin.run("dvc", "repro")) == []
    assert origin.metrics() == baseline and set(origin.runs()) == set(runs)


def test_a_fresh_clone_gets_its_model_and_its_run(repo):
    """dvc.lock is committed and its results come out the same: the clone still has to be logged."""
    assert started(repo.run("dvc", "repro")) == STAGES, "the model, the judge and the numbers of each image"
    assert repo.run("git", "status", "--porcelain") == "", "the clone's bytes differ from the committed ones"
    assert set(repo.runs()) == {"z4-h32x1-relu-lr0.001-e3-s0"}
    assert started(repo.run("dvc", "repro")) == []


def test_a_bad_parameter_costs_no_result(origin):
    """DVC clears a stage's outputs before it runs it; with the line mended they come back without training."""
    files = {path: path.read_bytes() for path in origin.root.rglob("*") if path.is_relative_to(origin.root / "reports")
             and path.is_file()}  # fmt: skip
    model = (origin.root / "data/model/vae.safetensors").read_bytes()
    for change in ({"z_dim": 0}, {"learning_rate": ".nan"}, {"device": "cuda:99"}):
        origin.set(**change)
        output = origin.run("dvc", "repro", ok=False)
        (key,) = change
        assert f"\nparams.yaml: {key}: " in output and "Traceback" not in output and "exited with 2" in output
        origin.run("git", "checkout", "-q", "params.yaml")
        assert started(origin.run("dvc", "repro")) == []
        assert {path: path.read_bytes() for path in files} == files
        assert (origin.root / "data/model/vae.safetensors").read_bytes() == model


def test_an_unknown_key_is_found_although_no_stage_reads_it(origin):
    path = origin.root / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "beta: 4\n", encoding="utf-8")
    try:
        assert "params.yaml: beta: is not a known key" in origin.run("dvc", "repro", ok=False)
    finally:
        origin.run("git", "checkout", "-q", "params.yaml")


def test_what_dvc_shows_a_person(origin, tmp_path):
    """Metrics and parameters are compared by name, curves and pictures are in the plots."""
    origin.run("dvc", "exp", "run", "--temp", "-n", "wide", "-S", "z_dim=8")
    assert re.search(r"test\.neg_elbo +[\d.]+ +[\d.]+ +-?[\d.]+", origin.run("dvc", "metrics", "diff", "HEAD", "wide"))
    assert re.search(r"z_dim +4 +8", origin.run("dvc", "params", "diff", "HEAD", "wide"))
    origin.run("dvc", "plots", "diff", "HEAD", "wide", "-o", str(tmp_path))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for title in ("−ELBO", "reconstruction", "KL", "validation −ELBO", "KL per latent dimension, the largest first"):
        assert json.dumps(title) in page or f'"{title}"' in page
    for picture in ("generated.png", "reconstructed.png", "generated-epoch-0002.png", "traversals.png"):
        assert "HEAD_reports_" in page and picture in page


def test_every_stage_is_listed_with_its_description(origin):
    listed = origin.run("dvc", "stage", "list").splitlines()
    described = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert [line.split(maxsplit=1) for line in listed] == [[name, described[name]["desc"]] for name in STAGES]


def test_executed_again_it_gives_the_same_lock_with_one_thread_as_with_two(origin, tmp_path):
    """REPEATS times (2, or 5 for the long form), with one thread and with two in turn."""
    shutil.copytree(origin.root, tmp_path / "again", symlinks=True)
    repo = Repo(tmp_path / "again", origin.mirror)
    repo.run("git", "checkout", "-q", ".")
    repo.run("dvc", "repro")
    lock = (repo.root / "dvc.lock").read_bytes()
    for number in range(int(os.environ.get("REPEATS", "2"))):
        repo.env["OMP_NUM_THREADS"] = str(1 + number % 2)
        said = repo.run("dvc", "repro", "-f", "evaluate")
        assert started(said) == STAGES[:4] and "goes on" not in said
        assert (repo.root / "dvc.lock").read_bytes() == lock
