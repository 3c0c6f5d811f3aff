"""`log-all` records what dvc.lock says was executed, or nothing, and counts truly."""

import argparse
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import error_about, use_folder
from helpers.mlflow_contents import client_of, models_of, runs_of
from helpers.repo import Repo
from helpers.servers import free_port

from pipeline.commands import log_all
from pipeline.runtime import git

PARAMS, CODE, REPORT = "params.yaml", "pipeline/evaluation/bounds.py", "reports/metrics.json"


@pytest.fixture(scope="module")
def logged(repro_repo, mlflow_tables, tmp_path_factory) -> Repo:
    """A repository whose HEAD was executed, with an empty MLflow store."""
    repo = repro_repo.copy(tmp_path_factory.mktemp("log-all") / "repo")
    shutil.copy(mlflow_tables, repo.root)
    return repo


@pytest.fixture
def repo(logged) -> Repo:
    """`logged`; what the test does to HEAD and the workspace is undone."""
    head = logged.run("git", "rev-parse", "HEAD").strip()
    yield logged
    logged.run("git", "reset", "-q", "--hard", head)
    logged.run("dvc", "checkout", "-q")
    logged.run("git", "clean", "-fdxq", "data/own")
    for ref in logged.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split():
        logged.run("git", "update-ref", "-d", ref)


@pytest.fixture
def log(repo, monkeypatch, capsys) -> Callable[[], dict[str, str]]:
    """Runs the command in process; returns its lines by what they are about."""
    use_folder(monkeypatch, repo.root)

    def run() -> dict[str, str]:
        try:
            log_all.main(argparse.Namespace())
        finally:
            output = capsys.readouterr().out
            lines = [line.split(": ", 2) for line in output.splitlines()]
        return {line[1]: line[2] for line in lines[:-1]} | {"end": lines[-1][1]}

    return run


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("path", "old", "new", "named"),
    [
        (PARAMS, "eval_samples: 20", "eval_samples: 30", "params.yaml: eval_samples: "),
        (PARAMS, "learning_rate: 1e-3", "learning_rate: 2e-3", "params.yaml: learning_rate: "),
        (CODE, "import", "import sys\nimport", "pipeline/evaluation: "),
        (REPORT, '"kl": ', '"kl": 1', "reports/metrics.json: "),
        ("dvc.yaml", "stages.evaluate", "stages.evaluate -v", "dvc.yaml: evaluate: "),
    ],
)
def test_what_is_committed_before_it_is_executed_is_not_recorded(repo, log, path, old, new, named):
    edit(repo.root / path, old, new)
    assert log()["end"].startswith("1 of 2 are complete in MLflow")
    repo.commit()
    lines = log()
    for name in ("HEAD", "workspace"):
        assert lines[name].startswith(named) and lines[name].endswith("`dvc repro`")
    assert lines["end"].startswith("0 of 2 are complete in MLflow")
    (run,) = runs_of(client_of(repo.root))
    assert run.data.params["eval_samples"] == "20"


def test_a_lock_that_is_merged_from_two_executions_is_not_recorded(repo, log):
    """The dataset need not be here, but the stages must agree which one it is."""
    shutil.move(repo.root / "data/dataset.safetensors", repo.root / "elsewhere")
    assert "MLflow run" in log()["workspace"]
    text = (repo.root / "dvc.lock").read_text()
    start = text.index("data/dataset.safetensors", text.index("  evaluate:"))
    digest = text[start:].split("md5: ", 1)[1][:32]
    (repo.root / "dvc.lock").write_text(text[:start] + text[start:].replace(digest, "f" * 32, 1))
    repo.commit()
    assert log()["HEAD"].startswith("data/dataset.safetensors: not what dvc.lock records")


def test_a_comment_that_is_recorded_by_dvc_commit_is_no_difference(repo, log):
    edit(repo.root / CODE, "import", "# a comment\nimport")
    repo.run("dvc", "commit", "-f", "-q", "evaluate")
    repo.commit()
    assert log()["end"].startswith("2 of 2 are complete in MLflow")
    assert len(runs_of(client_of(repo.root))) == 1


def test_the_fingerprint_of_a_run_is_that_of_the_code_of_its_commit(repo, log, monkeypatch):
    fingerprints = []
    for name in ("before", "after"):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
        log()
        (run,) = runs_of(client_of(repo.root), name)
        fingerprints.append(run.data.tags["fingerprint"])
        edit(repo.root / "pipeline/model/vae.py", "def mean", "# a comment\n    def mean")
    assert fingerprints[0] == fingerprints[1]


def test_a_run_of_a_commit_has_its_time_and_of_two_experiments_the_older_one_comes_first(
    repo, log, monkeypatch
):
    """Whatever lies in data/own now."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "times")
    made = git.head(repo.root).made
    (repo.root / "data/own/image.png").write_bytes(b"later")
    for name, time in (("a", made // 1000 + 9), ("b", made // 1000 + 5)):
        words = ("commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "x")
        later = repo.run("env", f"GIT_COMMITTER_DATE=@{time} +0000", "git", *words).strip()
        last = repo.run("git", "rev-parse", "HEAD").strip()
        repo.run("git", "update-ref", f"refs/exps/{last[:2]}/{last[2:]}/{name}", later)
    assert log()["end"].startswith("4 of 4")
    runs = runs_of(client_of(repo.root), "times")
    (run,) = (run for run in runs if "dvc.exp_name" in run.data.tags)
    assert run.info.run_name == "b" and run.data.tags["dvc.exp_name"] == "b, a"
    assert run.info.start_time == run.info.end_time == made + 5000


def test_a_model_is_uploaded_with_the_code_of_its_commit(repo, log, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "code")
    edit(repo.root / "pipeline/model/vae.py", "def mean", "# of the commit\n    def mean")
    repo.run("dvc", "commit", "-f", "-q", "train", "evaluate")
    repo.commit()
    edit(repo.root / "pipeline/model/vae.py", "# of the commit", "# of the workspace")
    assert log()["HEAD"].startswith("MLflow run")
    (run,) = runs_of(client := client_of(repo.root), "code")
    (model,) = models_of(client, run)
    code = Path(model.artifact_location.removeprefix("file://"), "code/pipeline/model/vae.py")
    assert "# of the commit\n" in code.read_text()


def test_what_could_not_be_logged_is_a_failure(repo, log):
    (repo.root / "dvc.yaml").write_text("[")
    repo.commit()
    with error_about("log-all"):
        log()


def test_parameters_that_dvc_records_without_an_execution_are_not_those_of_the_results(repo, log):
    """As `dvc commit -f` and `dvc exp save` do."""
    repo.set(eval_proposal_scale=1.5)
    repo.run("dvc", "commit", "-f", "-q", "evaluate")
    assert log()["workspace"].startswith("params.yaml: eval_proposal_scale: the results have 1.4")


def test_results_that_are_not_here_are_no_failure(repo, tmp_path):
    repo.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Repo(tmp_path / "clone", repo.mirror)
    lines = clone.pipeline("log-all").splitlines()
    assert "log-all: HEAD: data/vae.safetensors: not on this machine" in lines[0]
    assert "log-all: workspace: data/vae.safetensors: cannot be read" in lines[1]
    assert lines[-1].startswith("log-all: 0 of 2 are complete in MLflow")
    for each in (clone, repo):
        each.run("dvc", "remote", "add", "--local", "-d", "away", str(tmp_path / "remote"))
    repo.run("dvc", "push", "-q")
    assert "1 of 2 are complete in MLflow" in clone.pipeline("log-all")


@pytest.mark.slow
def test_a_name_that_is_used_again_leaves_each_run_its_files(repo, log):
    """On the same baseline while the store was away, and on another baseline."""
    execute = ("dvc", "exp", "run", "-n", "narrow", "-S")
    repo.run(*execute, "eval_samples=30")
    repo.run("git", "checkout", "-q", ".")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(repo.env, "MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        repo.run(*execute, "eval_samples=40", "-f")
    assert "experiment narrow has no MLflow run" in repo.pipeline("doctor", ok=False)
    repo.run("git", "checkout", "-q", ".")
    repo.run("git", "commit", "--allow-empty", "-qm", "another baseline")
    repo.run(*execute, "eval_samples=50")
    log()
    runs = {run.data.params["eval_samples"]: run for run in runs_of(client_of(repo.root))}
    assert set(runs) == {"20", "30", "40", "50"}
    for samples in ("30", "40", "50"):
        run = runs[samples]
        repo.run("git", "checkout", "-q", ".")
        diff = repo.root / "mlartifacts" / run.info.run_id / "artifacts/git.diff"
        command = run.data.tags["dvc.restore"].replace("git.diff", shlex.quote(str(diff)))
        repo.run("bash", "-ec", command)
        assert f"eval_samples: {samples} " in (repo.root / PARAMS).read_text()
        assert repo.metrics()["nll"] == run.data.metrics["test/nll"]
