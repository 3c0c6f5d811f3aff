"""The doctor in repositories in which the problems really exist, and the commands that it names."""

import argparse
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import use_folder
from filelock import FileLock
from helpers.repo import Repo, started
from mlflow.entities import Run

from pipeline.commands import doctor as command
from pipeline.commands.checks.problem import when_idle
from pipeline.params import parse_yaml
from pipeline.runtime import pending_run
from pipeline.runtime.pending_run import PendingRun

REPRO = "z4-h32x1-relu-lr0.001-e3-s0"
HEALTHY = "doctor: no problems\n"


@pytest.fixture(scope="module")
def repo(repro_repo, tmp_path_factory) -> Repo:
    """After `dvc repro`, committed. Each test leaves it healthy."""
    repo = repro_repo.copy(tmp_path_factory.mktemp("doctor") / "repo")
    repo.run("dvc", "repro")
    repo.commit()
    return repo


@pytest.fixture
def doctor(repo, monkeypatch, capsys) -> Callable[..., list[str]]:
    """Runs the command in process; returns its problems."""
    use_folder(monkeypatch, repo.root)

    def run(*options: str) -> list[str]:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        status = 0
        try:
            command.main(parser.parse_args(options))
        except SystemExit as end:
            status = end.code
        *lines, last = capsys.readouterr().out.splitlines()
        assert status == (last != HEALTHY.strip())
        return lines

    return run


def follow(repo: Repo, line: str) -> None:
    """Type the command of a problem."""
    repo.run("bash", "-c", line.rpartition(": ")[2])


def test_a_healthy_repository_and_a_fresh_clone_have_no_problems(repo, doctor, tmp_path):
    assert doctor() == doctor("--fix") == doctor("--verify") == []
    repo.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Repo(tmp_path / "clone", repo.mirror)
    assert clone.pipeline("doctor") == HEALTHY
    assert not (clone.root / "mlflow.db").exists()


@pytest.fixture
def lost(repo) -> Iterator[None]:
    """An experiment with the results of HEAD and without a run."""
    commit = repo.run("git", "rev-parse", "HEAD").strip()
    ref = f"refs/exps/{commit[:2]}/{commit[2:]}/lost"
    repo.run("git", "update-ref", ref, commit)
    yield
    repo.run("git", "update-ref", "-d", ref)


def test_an_experiment_without_a_run_is_logged(repo, lost, doctor):
    (line,) = doctor()
    assert line.startswith("doctor: experiment lost has no MLflow run: ")
    assert doctor("--verify") == [line]
    follow(repo, line)
    assert doctor() == []
    repo.store().delete_tag(repo.runs()[REPRO].info.run_id, "dvc.exp_name")


@pytest.fixture
def incomplete(repo) -> Iterator[Callable[..., None]]:
    """Changes the run of HEAD until the test ends, as if `log` had been killed, or had not run."""
    client, run = repo.store(), repo.runs()[REPRO]
    results = run.data.tags["results.sha256"]

    def change(status: str = "FINISHED", digest: str = results) -> Run:
        client.set_terminated(run.info.run_id, status)
        client.set_tag(run.info.run_id, "results.sha256", digest)
        return run

    yield change
    change()


def test_the_results_of_head_and_the_workspace_need_a_complete_run(repo, doctor, incomplete):
    for change in ({"status": "KILLED"}, {"digest": "0" * 64}):
        incomplete(**change)
        (line,) = doctor()
        assert line == "doctor: HEAD has no MLflow run: python -m pipeline log-all"
    params = repo.root / "params.yaml"
    text = params.read_text()
    repo.set(eval_samples=30)  # the workspace is not executed
    assert doctor() == [line]
    params.write_text("<<<<<<< HEAD\n")
    (_, workspace) = doctor()
    params.write_text(text)
    assert workspace.startswith("doctor: workspace: ")
    incomplete()
    assert doctor() == []


def test_results_without_any_store_are_reported_where_they_were_executed(repo, doctor, tmp_path):
    """A clone with DVC's cache in which nothing was executed has no problem."""
    clone = Repo(tmp_path / "clone", repo.mirror)
    repo.run("git", "clone", "-q", ".", str(clone.root))
    shutil.copytree(repo.root / ".dvc/cache", clone.root / ".dvc/cache")
    clone.run("dvc", "checkout", "-q")
    assert clone.pipeline("doctor") == HEALTHY
    (repo.root / "mlflow.db").rename(tmp_path / "mlflow.db")
    lines = doctor()
    (tmp_path / "mlflow.db").rename(repo.root / "mlflow.db")
    assert lines == ["doctor: HEAD has no MLflow run: python -m pipeline log-all"]


@pytest.mark.parametrize(("status", "missing"), [("KILLED", ""), ("FINISHED", "test/nll")])
def test_an_incomplete_run_is_not_that_of_an_experiment(repo, lost, doctor, status, missing):
    client, run = repo.store(), repo.runs()[REPRO]
    tags = {"dvc.exp_name": "lost"}
    run_id = client.create_run(run.info.experiment_id, tags=tags).info.run_id
    for name in run.data.metrics.keys() - {missing}:
        client.log_metric(run_id, name, run.data.metrics[name])
    client.set_terminated(run_id, status)
    lines = doctor()
    client.delete_run(run_id)
    assert "doctor: experiment lost has no MLflow run: python -m pipeline log-all" in lines


@pytest.fixture
def left(repo) -> Iterator[Callable[..., Run]]:
    """Leaves a run RUNNING, and its record as the process `process` on this host has made it."""
    client, run = repo.store(), repo.runs()[REPRO]
    tags = {"execution": "0" * 32}
    run_id = client.create_run(run.info.experiment_id, run_name="left", tags=tags).info.run_id
    here = pending_run._host()

    def leave(process: int, host: str = here) -> Run:
        PendingRun("left", "f" * 64, {}, "0" * 32, host=host, process=process).save()
        return client.get_run(run_id)

    yield leave
    client.delete_run(run_id)
    (repo.root / f".dvc/tmp/runs/{'0' * 32}.json").unlink(missing_ok=True)


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_a_run_is_left_alone_unless_its_experiment_has_certainly_ended(left, ended, doctor):
    """It is between two stages; on another host, whose locks are not seen; recorded by an older
    version of the project; in a stage; followed."""
    for place in ((os.getpid(),), (ended, "another"), (ended, "")):
        left(*place)
        (line,) = doctor("--fix")
        assert line.endswith("if it runs nowhere, run the experiment again")
    left(ended)
    with FileLock(".dvc/tmp/computing/cores/000.lock"):
        assert doctor("--fix") == []
    with FileLock(f".dvc/tmp/runs/{'0' * 32}.lock"):
        assert "fixed" not in doctor("--fix")[0]
    assert left(ended).info.status == "RUNNING"


def test_a_run_whose_experiment_was_killed_is_ended(left, ended, doctor):
    left(ended)
    assert doctor()[0].startswith("doctor: run left is RUNNING")
    assert doctor("--fix")[0].startswith("doctor: fixed: run left is RUNNING")
    assert left(ended).info.status == "KILLED" and doctor() == []


def test_a_training_that_was_never_logged_is_reported_unless_it_goes_on(repo, ended, doctor):
    """Neither that of a model which a run has, nor one whose run has ended, needs another run."""
    record = PendingRun("tidy", "f" * 64, {}, "1" * 32, model_sha256="m", host=pending_run._host())
    known = repo.runs()[REPRO].data.tags["model.sha256"]
    for process, model in ((os.getpid(), "m"), (ended, ""), (ended, known)):
        record.process, record.model_sha256 = process, model
        record.save()
        assert doctor() == []
    record.finish("m")
    (line,) = doctor()
    assert line.startswith("doctor: the training of tidy has no MLflow run: run it again, or ")
    follow(repo, line)
    assert doctor() == []


def test_a_run_without_a_record_is_found_in_the_store_of_this_clone_only(left, doctor, monkeypatch):
    run = left(os.getpid())
    pending_run.pending_runs()[0].remove()
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        assert doctor() == []
    (line,) = doctor("--fix")
    assert line.startswith("doctor: run left is RUNNING") and ": if it runs nowhere: " in line
    subprocess.run(["bash", "-c", line.rpartition(": ")[2]], check=True)
    assert doctor() == [] and left(os.getpid()).info.lifecycle_stage == "deleted", run


def test_a_result_that_was_never_recorded_is_not_corrupt(repo, doctor):
    metrics = repo.root / "reports/metrics.json"
    text = metrics.read_text()
    metrics.write_text(text + "\n")
    for status in (False, True):  # after it, DVC has the new hash
        if status:
            repo.run("dvc", "status")
        (line,) = doctor("--verify")
        assert "reports/metrics.json is not as in dvc.lock" in line
        assert line.endswith(": dvc commit -f") and "corrupt" not in line
    follow(repo, line)
    lines = doctor("--verify")
    repo.run("git", "checkout", "-q", ".")
    assert lines == ["doctor: workspace has no MLflow run: python -m pipeline log-all"]


def test_no_command_takes_a_file_away_from_an_experiment(repo, left, ended, doctor):
    database, model = repo.root / "mlflow.db", repo.root / "data/vae.safetensors"
    left(os.getpid())
    for path, options in ((database, ()), (model, ("--verify",))):
        content = path.read_bytes()
        path.write_bytes(b"something else" * 100)
        *_, line = doctor(*options)
        path.write_bytes(content)
        assert re.search("when no experiment is running: (mv mlflow|dvc commit)", line)
    left(ended)
    assert when_idle("x") == "x"
    with FileLock(".dvc/tmp/computing/cores/000.lock"):
        assert when_idle("x") == "when no experiment is running: x"


def test_a_run_without_its_artifacts_is_completed(repo, doctor):
    shutil.rmtree(repo.root / "mlartifacts" / repo.runs()[REPRO].info.run_id)
    (line,) = doctor()
    assert line.startswith(f"doctor: run {REPRO} has lost artifacts: ")
    follow(repo, line)
    assert doctor() == []


@pytest.mark.slow
def test_a_corrupt_file_is_found_although_dvc_trusts_it(repo, doctor):
    model = repo.root / "data/vae.safetensors"
    content = model.read_bytes()
    in_cache = [*(repo.root / ".dvc/cache/files/md5").glob("*/*")]
    (cached,) = (path for path in in_cache if path.read_bytes() == content)
    for path in (cached, model):
        flip_bit(path)
        assert "up to date" in repo.run("dvc", "status")
        (line,) = doctor("--verify")
        assert path.relative_to(repo.root).as_posix() in line
        follow(repo, line)
        assert model.read_bytes() == content and doctor("--verify") == []
    assert model.with_suffix(".safetensors.orig").read_bytes() != content


@pytest.fixture(scope="module")
def copy(repo, tmp_path_factory) -> Repo:
    """With an experiment."""
    copy = repo.copy(tmp_path_factory.mktemp("copy") / "repo")
    copy.run("dvc", "exp", "run", "--temp", "-n", "wide", "-S", "z_dim=8")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("remote", [False, True])
def test_a_corrupt_file_of_an_experiment_is_restored_in_its_commit(copy, tmp_path, remote):
    """`dvc repro` in the workspace would restore nothing and report that all is up to date."""
    commit = copy.experiment("wide")
    if remote:
        copy.run("dvc", "remote", "add", "--local", "-d", "away", str(tmp_path / "remote"))
        move = "dvc checkout -q && dvc push -q && git checkout -q - && dvc checkout -q"
        copy.run("bash", "-c", f"git checkout -q {commit} && {move}")
    before = copy.state()
    lock = parse_yaml(copy.run("git", "show", f"{commit}:dvc.lock"), "dvc.lock")["stages"]
    (md5,) = (out["md5"] for out in lock["train"]["outs"] if out["path"] == "data/vae.safetensors")
    cached = copy.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    content = cached.read_bytes()
    flip_bit(cached)
    assert "up to date" in copy.run("dvc", "status")
    lines = copy.pipeline("doctor", "--verify", ok=False).splitlines()
    (line,) = (line for line in lines if "corrupt" in line)
    output = copy.run("bash", "-c", line.rpartition(": ")[2])
    assert started(output) == ([] if remote else ["train"])
    assert cached.read_bytes() == content and copy.state() == before
    assert "corrupt" not in copy.pipeline("doctor", "--verify", ok=None)


def flip_bit(path: Path) -> None:
    """As a disk does it: time, size, mode and inode stay."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.slow
def test_a_moved_repository_and_a_damaged_store_are_rebuilt(repo, tmp_path):
    moved = Repo(tmp_path / "moved", repo.mirror)
    repo.root.rename(moved.root)
    try:
        line = moved.pipeline("doctor", ok=False).splitlines()[0]
        assert "was moved or copied: mv mlflow.db mlflow.db.$(date +%s) && " in line
        for arguments in (["log-all"], ["reproduce", REPRO]):
            assert line.partition("MLflow: ")[2] in moved.pipeline(*arguments, ok=False)
        assert not repo.root.exists()
        follow(moved, line)
        assert moved.pipeline("doctor") == HEALTHY
        with closing(sqlite3.connect(moved.root / "mlflow.db")) as database:
            database.execute("begin exclusive")  # it is in use, and therefore not to be moved
            line = moved.pipeline("doctor", ok=False).splitlines()[0]
            assert "database is locked: close the program that uses it" in line
        (moved.root / "mlflow.db").write_bytes(b"no database" * 100)
        follow(moved, moved.pipeline("doctor", ok=False).splitlines()[0])
        assert moved.pipeline("doctor") == HEALTHY
    finally:
        moved.root.rename(repo.root)
