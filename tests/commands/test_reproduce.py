"""A run done again from what it says of itself: by its id, its name, its experiment, however DVC made it."""

import json
import re
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.mlflow_contents import FIGURES
from helpers.repo import Repo, plant, started
from safetensors import safe_open
from safetensors.numpy import load_file, save

from pipeline import reproduce as verb
from pipeline.tracking.run_note import cpu
from pipeline.commands.file_diff import difference, results

REPORTS = {
    "csv": ("bound", "classes", "history", "kl_per_dimension"), "json": ("judge", "metrics"),
    "parquet": ("per_image",), "png": ("generated", "reconstructed"),
}  # fmt: skip
SHORT = "z4-h32x1-relu-lr0.001-e3-s0"


@pytest.fixture(scope="module")
def repo(tmp_path_factory, small_mnist) -> Repo:
    """Three runs from three modes; the one of the workspace with code that is not committed.

    That is saved with Windows' line ends and in Latin-1; and DVC's cache is one that the project shares.
    """
    repo = plant(tmp_path_factory.mktemp("reproduce"), small_mnist)
    repo.run("dvc", "config", "cache.dir", str(tmp_path_factory.mktemp("shared") / "cache"))
    repo.commit()
    repo.run("dvc", "repro")
    repo.commit()
    repo.run("dvc", "exp", "run", "--temp", "-n", "temp", "-S", "z_dim=2")
    fit = repo.root / "pipeline/training/fit.py"
    edited = fit.read_bytes().replace(b"VAL_BATCH = 1000", b"VAL_BATCH = 999").replace(b"\n", b"\r\n")
    fit.write_bytes(b"# coding: latin-1, since Andr\xe9 wrote this\r\n" + edited)
    repo.run("dvc", "exp", "run", "-n", "edited", "-S", "seed=1")
    repo.run("git", "checkout", "-q", ".")
    return repo


def reproduce(repo: Repo, word: str, ok: bool = True) -> str:
    return repo.run("python", "-m", "pipeline.commands.reproduce", word, ok=ok)


def tag(repo: Repo, name: str) -> str:
    return repo.runs()[name].data.tags.get("reproduced", "")


def table(said: str) -> dict[str, str]:
    return dict(
        re.split(r"  +", line.strip(), maxsplit=1)
        for line in said.splitlines()
        if line.startswith("  ") and "  " in line.strip()
    )


@pytest.mark.parametrize("name", [SHORT, "temp", "edited"])
def test_a_run_of_any_mode_is_reproduced(repo, name):
    """Whatever is in the workspace by now."""
    repo.set(z_dim=7)
    (repo.root / "pipeline/model/objective.py").write_text("raise SystemExit('not this code')\n")
    try:
        # The command itself needs no core.
        said = reproduce(repo, repo.runs()[name].info.run_id if name == "temp" else name)
    finally:
        repo.run("git", "checkout", "-q", ".")
    assert said.rstrip().endswith("reproduce: identical; the run is tagged `reproduced`"), said
    found = table(said)
    assert set(found.values()) == {"identical"}
    assert set(started(said)) == {"download", "train", "judge", "evaluate"}, "and not restored"
    reports = {f"reports/{name}.{form}" for form, names in REPORTS.items() for name in names}
    figures = {f"reports/figures/{name}.png" for name in (*FIGURES, *(["manifold"] if name == "temp" else []))}
    assert set(found) == reports | figures | {
        "reports/samples/ (6)", "data/model/vae.safetensors", "tag model.sha256", "tag fingerprint",
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\d identical", tag(repo, name))
    assert repo.run("git", "status", "--porcelain") == "" and set(repo.runs()) == {SHORT, "temp", "edited"}


def test_a_run_whose_code_was_tampered_with_is_told(repo):
    """Somebody has exchanged the code on record for another."""
    run, client = repo.runs()["edited"], repo.store()
    (diff,) = Path(repo.root, "mlartifacts", run.info.run_id, "artifacts").glob("git.diff")
    before = diff.read_bytes()
    diff.write_bytes(before.replace(b"+VAL_BATCH = 999", b"+VAL_BATCH = 50"))
    try:
        said = reproduce(repo, "edited", ok=False)
    finally:
        diff.write_bytes(before)
    assert "made with other pipeline/training/fit.py" in table(said)["data/model/vae.safetensors"]
    assert table(said)["tag fingerprint"].startswith("differs: ")
    assert "differs: data/model/vae.safetensors" in said.splitlines()[-1] and " differs: " in tag(repo, "edited")
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_records_that_were_altered_are_told_with_the_size_of_the_difference(repo):
    """A tag, and a report among the artifacts."""
    run, client = repo.runs()["temp"], repo.store()
    true = run.data.tags["model.sha256"]
    client.set_tag(run.info.run_id, "model.sha256", "0" * 64)
    path = Path(repo.root, "mlartifacts", run.info.run_id, "artifacts/reports/metrics.json")
    before = path.read_text()
    metrics = json.loads(before)
    metrics["test"]["kl"] += 1.5
    path.write_text(json.dumps(metrics))
    try:
        said = reproduce(repo, "temp", ok=False)
    finally:
        client.set_tag(run.info.run_id, "model.sha256", true)
        path.write_text(before)
    assert table(said)["tag model.sha256"] == f"differs: 000000000000… became {true[:12]}…"
    assert table(said)["data/model/vae.safetensors"] == "identical"
    assert table(said)["reports/metrics.json"].startswith("differs by 1.5 at most, in test/kl (1 of ")
    assert said.splitlines()[-1].startswith("reproduce: differs: reports/metrics.json, tag model.sha256; ")


@pytest.mark.parametrize(
    ("tag", "gap", "verdict"),
    [
        ({"cpu": "another one"}, 0.1, "within 0.3 nats (0.1), which is what is promised on another CPU"),
        ({"cpu": "another one"}, 0.4, "differs: data/model/vae.safetensors, reports/metrics.json, tag model.sha256"),
        ({}, 0.1, "differs: data/model/vae.safetensors, reports/metrics.json, tag model.sha256"),
    ],
    ids=["another CPU", "too far", "the same CPU"],
)
def test_elsewhere_the_promise_is_a_tolerance(repo, tmp_path, tag, gap, verdict):
    """Weights that another kind of CPU has rounded otherwise, and what that does to the metrics."""
    repo.run("git", "checkout", "-q", ".")
    repo.run("dvc", "repro")
    run = repo.runs()[SHORT]
    assert run.data.tags["cpu"] == cpu()
    run.data.tags.update(tag)
    for folder in ("recorded", "again"):
        for name in results(repo.root):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo.root / name, tmp_path / folder / name)
    model, report = tmp_path / "again" / verb.MODEL, tmp_path / "again/reports/metrics.json"
    with safe_open(model, framework="numpy") as file:
        header = file.metadata()
    model.write_bytes(save({name: tensor * 1.001 for name, tensor in load_file(model).items()}, header))
    metrics = json.loads(report.read_text())
    metrics["test"]["neg_elbo"] += gap
    report.write_text(json.dumps(metrics))
    findings = verb.compare(run, tmp_path / "recorded", tmp_path / "again")
    assert findings["data/model/vae.safetensors"].startswith("differs by ")
    assert verb.judge(run, tmp_path / "recorded", tmp_path / "again", findings) == verdict


def test_what_cannot_be_reproduced_is_one_line(repo, tmp_path):
    for word, expected in {
        "nobody": "reproduce: nobody: MLflow has no such run (`python -m pipeline.stages.log --all` logs what DVC has)\n",
        "--help": "usage: python -m pipeline.commands.reproduce RUN (an MLflow run's id or name, or a DVC experiment)\n",
    }.items():
        assert reproduce(repo, word, ok=False) == expected
    repo.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Repo(tmp_path / "clone", repo.mirror)
    assert reproduce(clone, "temp", ok=False) == "reproduce: there is no run yet; `dvc repro` makes one\n"
    client, run = repo.store(), repo.runs()["temp"]
    client.set_tag(run.info.run_id, "mlflow.source.git.commit", "f" * 40)
    assert reproduce(repo, "temp", ok=False).splitlines()[-1].startswith("commit ffffffffff is not in this repository")


def test_tables_that_differ_are_told_with_the_place(tmp_path):
    """Columns by their names, rows by what their first column says."""
    for name, nll, bound in (("one", 2.0, 95.5), ("other", 2.5, 95.75)):
        pyarrow.parquet.write_table(pyarrow.table({"kl": [1.0, 1.0], "nll": [2.0, nll]}), tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.csv").write_text(f"k,widened\n10,97.5\n500,{bound}\n")
    said = difference(tmp_path / "one.parquet", tmp_path / "other.parquet")
    assert said == "differs by 0.5 at most, in nll (1 of 2 columns differ)"
    said = difference(tmp_path / "one.csv", tmp_path / "other.csv")
    assert said == "differs by 0.25 at most, in widened at k 500 (1 of 4 values differ)"
