"""`reproduce` on real runs, and its verdicts."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import error_about
from helpers.repo import Repo, litter, started

from pipeline.commands import reproduce
from pipeline.commands.file_diff import file_diff
from pipeline.commands.reproduce import compare, find_run, verdict_of
from pipeline.paths import METRICS, MODEL
from pipeline.runtime.tensor_file import read_header, read_tensors, write_tensors
from pipeline.stages import log

REPRO = "z4-h32x1-relu-lr0.001-e3-s0"


@pytest.fixture(scope="module")
def repo(repro_repo, tmp_path_factory) -> Repo:
    """A run of `dvc repro`, and one of a temporary experiment with code that is not committed."""
    repo = repro_repo.copy(tmp_path_factory.mktemp("reproduce"))
    repo.run("dvc", "repro")
    repo.commit()
    network = repo.root / "pipeline/model/network.py"
    code = network.read_bytes().replace(b"\n", b"\r\n")
    network.write_bytes(b"# coding: latin-1 (Andr\xe9)\r\n" + code)
    repo.run("dvc", "exp", "run", "--temp", "-n", "edited", "-S", "z_dim=2")
    repo.run("git", "checkout", "-q", ".")
    litter(repo.root / "data/raw/MNIST/raw")
    return repo


@pytest.mark.slow
@pytest.mark.parametrize("name", [REPRO, "edited"])
def test_a_run_is_reproduced_whatever_is_in_the_workspace(repo, name):
    """And also if the environment of this Python is not activated."""
    repo.set(z_dim=7)
    (repo.root / "pipeline/model/objective.py").write_text("raise SystemExit('not this code')\n")
    command = ("env", "PATH=/usr/bin:/bin", sys.executable, "-m", "pipeline", "reproduce", name)
    output = repo.run(*command, ok=None)
    repo.run("git", "checkout", "-q", ".")
    assert "reproduce: identical (" in output, output
    assert started(output) == ["download", "train", "train_classifier", "evaluate"]
    tag = repo.runs()[name].data.tags["reproduced"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d identical", tag)
    assert set(repo.runs()) == {REPRO, "edited"}


@pytest.mark.slow
def test_a_run_whose_diff_is_lost_is_not_executed_without_it(repo):
    run = repo.runs()["edited"]
    file = repo.root / "mlartifacts" / run.info.run_id / "artifacts/git.diff"
    diff = file.read_bytes()
    file.unlink()
    output = repo.pipeline("reproduce", "edited", ok=False)
    file.write_bytes(diff)
    assert "edited: has lost its artifact git.diff" in output


@pytest.mark.slow
def test_altered_records_are_reported_with_the_size_of_the_difference(repo):
    """A report, and the code on record."""
    run = repo.runs()["edited"]
    folder = repo.root / "mlartifacts" / run.info.run_id / "artifacts"
    metrics = json.loads((folder / "reports/metrics.json").read_text())
    metrics["test"]["kl"] += 100
    (folder / "reports/metrics.json").write_text(json.dumps(metrics))
    diff = (folder / "git.diff").read_bytes()
    (folder / "git.diff").write_bytes(diff.replace(b"+z_dim: 2", b"+z_dim: 3"))
    output = repo.pipeline("reproduce", "edited", ok=False)
    assert re.search(r"^reproduce: data/vae\.safetensors differs.*z_dim", output, re.MULTILINE)
    assert re.search(r"reports/metrics\.json differs by at most .* in test/kl \(", output)
    assert " differs" in repo.runs()["edited"].data.tags["reproduced"]


@pytest.mark.parametrize(
    ("cpu", "changes", "gap", "verdict"),
    [
        ("another one", {}, 0.1, "within 0.3 nats (0.1)"),
        ("another one", {}, 0.4, "differs"),
        (None, {}, 0.1, "differs"),
        (None, {"device": "cuda 13 (A)"}, 0.1, "within"),
        (None, {"versions": {"torch": "0"}}, 0.1, "within"),
        ("another one", {"params": {"z_dim": 5}}, 0.1, "differs"),
    ],
    ids=["another CPU", "too far", "the same CPU", "device", "versions", "parameters"],
)
def test_on_another_machine_the_promise_is_a_tolerance(
    finished_workspace, tmp_path, cpu, changes, gap, verdict
):
    recorded, again = tmp_path / "recorded", tmp_path / "again"
    for folder in (recorded, again):
        shutil.copytree(finished_workspace, folder)
    run = SimpleNamespace(data=SimpleNamespace(tags={"cpu": cpu} if cpu else {}))
    assert verdict_of(run, recorded, again, compare(recorded, again)) == "identical"

    header = read_header(again / MODEL)
    weights = {name: tensor * 1.001 for name, tensor in read_tensors(again / MODEL).items()}
    write_tensors(again / MODEL, weights, {"provenance": header["provenance"] | changes})
    metrics = json.loads((again / METRICS).read_text())
    metrics["test"]["neg_elbo"] += gap
    (again / METRICS).write_text(json.dumps(metrics))
    (again / "reports/figures/traversals.png").unlink()
    shutil.copy(again / "reports/generated.png", again / "reports/figures/traversals.png")
    (again / "reports/figures/kl_per_dimension.png").unlink()
    found = compare(recorded, again)
    assert found["reports/figures/traversals.png"].startswith("differs")
    assert found["reports/figures/kl_per_dimension.png"] == "differs: not written again"
    assert found[MODEL.as_posix()].startswith("differs by at most ")
    assert verdict_of(run, recorded, again, found).startswith(verdict)


def test_differences_of_tables_are_reported_with_their_size_and_place(tmp_path):
    for name, nll, bound in (("one", 2.0, 95.5), ("other", 2.5, 95.75)):
        pd.DataFrame({"kl": [1.0, 1.0], "nll": [2.0, nll]}).to_parquet(tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.csv").write_text(f"k,val,widened\n10,,97.5\n500,,{bound}\n")
    (tmp_path / "torn.csv").write_text("")
    found = file_diff(tmp_path / "one.parquet", tmp_path / "other.parquet")
    assert found == "differs by at most 0.5, in nll (1 of 4 values differ)"
    found = file_diff(tmp_path / "one.csv", tmp_path / "other.csv")
    assert found == "differs by at most 0.25, in widened (1 of 6 values differ)"
    (tmp_path / "filled.csv").write_text("k,val,widened\n10,1,97.5\n500,,95.5\n")
    found = file_diff(tmp_path / "one.csv", tmp_path / "filled.csv")
    assert found == "differs by at most inf, in val (1 of 6 values differ)"
    (tmp_path / "longer.csv").write_text("k,val,widened\n10,,97.5\n500,,95.5\n600,,95\n")
    found = file_diff(tmp_path / "one.csv", tmp_path / "longer.csv")
    assert found == "differs: other names or shapes"
    for name in ("torn.csv", "missing.csv"):
        assert file_diff(tmp_path / "one.csv", tmp_path / name).startswith("differs")


def test_a_run_that_has_lost_its_artifacts_is_not_executed(loggable):
    log.main()
    shutil.rmtree("mlartifacts")
    with error_about(REPRO):
        reproduce.main(SimpleNamespace(run=REPRO))


@pytest.mark.parametrize("word", ["nobody", "twice", "running", "outside of git"])
def test_a_run_that_cannot_be_reproduced_is_a_user_error(word):
    def run(name: str, status: str = "FINISHED", commit: str = "f" * 40) -> SimpleNamespace:
        info = SimpleNamespace(run_id=f"id of {name}", run_name=name, status=status)
        tags = {"mlflow.source.git.commit": commit, "dvc.exp_name": f"first-{name}, second-{name}"}
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=tags))

    runs = [run("a"), run("twice"), run("twice"), run("running", status="RUNNING")]
    runs.append(run("outside of git", commit=""))
    with error_about(word):
        find_run(runs, word)
    assert find_run(runs, "id of a") == find_run(runs, "second-a") == run("a")
