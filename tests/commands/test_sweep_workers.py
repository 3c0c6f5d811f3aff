"""Sweeps by real workers: processes, clones, remotes, a server, kills and failures."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.repo import Repo
from helpers.servers import mlflow_server, postgres

pytestmark = pytest.mark.slow

GRID = "z_dim=2,4"  # 4 is that of HEAD


class Team:
    """A bare git repository, a folder of DVC and a store, shared by clones with own caches."""

    def __init__(self, folder: Path, origin: Repo, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.env = {"OPTUNA_STORAGE": f"sqlite:///{folder / 'sweeps.db'}", **(env or {})}
        self.first = self.configured(origin.copy(folder / "first"))
        self.first.run("git", "init", "-q", "--bare", str(folder / "bare.git"))
        self.first.run("git", "remote", "add", "origin", str(folder / "bare.git"))
        self.first.run("dvc", "remote", "add", "-q", "-d", "store", str(folder / "store"))
        self.first.commit()
        self.first.run("dvc", "push", "-q")
        self.first.run("git", "push", "-q", "-u", "origin", "HEAD")

    def configured(self, repo: Repo) -> Repo:
        repo.env |= self.env
        return repo

    def clone(self, name: str) -> Repo:
        self.first.run("git", "clone", "-q", str(self.folder / "bare.git"), str(self.folder / name))
        return self.configured(Repo(self.folder / name, self.first.mirror))

    def published(self) -> set[str]:
        """The names of experiments that the git remote has."""
        listed = self.first.run("git", "ls-remote", "origin", "refs/exps/*").split()[1::2]
        return {name.rpartition("/")[2] for name in listed}


@pytest.fixture
def team(repro_repo, tmp_path) -> Team:
    return Team(tmp_path, repro_repo)


def sweep(repo: Repo, *words: str, ok: bool | None = True) -> str:
    return repo.pipeline("sweep", *words, ok=ok)


def start(repo: Repo, *words: str) -> subprocess.Popen:
    command = ["python", "-m", "pipeline", "sweep", "work", *(words or ("grid",))]
    return subprocess.Popen(
        command, cwd=repo.root, env=repo.environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def trees(repo: Repo) -> dict[str, list[str]]:
    """Every file of each experiment with its hash; dvc.lock has those of the model and others."""
    refs = repo.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    listed = {
        ref: repo.run("git", "ls-tree", "-r", ref).splitlines() for ref in refs if "/grid-" in ref
    }
    # The configuration has the address of the remote.
    return {
        ref.rpartition("/")[2]: [line for line in lines if not line.endswith(".dvc/config")]
        for ref, lines in listed.items()
    }


@pytest.fixture(scope="module")
def serial(repro_repo, tmp_path_factory) -> dict[str, list[str]]:
    """The trees of the grid, run one experiment at a time by DVC."""
    folder = tmp_path_factory.mktemp("serial")
    repo = Team(folder, repro_repo).first
    for number, z_dim in enumerate((2, 4)):
        repo.run("dvc", "exp", "run", "--temp", "-n", f"grid-{number:04}", "-S", f"z_dim={z_dim}")
    return trees(repo)


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    with postgres() as database, mlflow_server(tmp_path, database) as (address, _):
        yield address


def test_two_clones_give_the_bytes_of_one_serial_grid(repro_repo, tmp_path, serial, server):
    (tmp_path / "team").mkdir()
    team = Team(tmp_path / "team", repro_repo, {"MLFLOW_TRACKING_URI": server})
    sweep(team.first, "new", "grid", GRID)
    workers = [start(team.first), start(team.clone("second"))]
    outputs = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert team.published() == set(serial)
    other = team.clone("other")
    assert "2 of 2 finished experiments are here" in sweep(other, "fetch", "grid")
    assert trees(other) == serial
    other.pipeline("log-all")  # those for which a busy server had taken too long
    runs = team.first.runs()
    assert set(runs) == set(serial) and {run.info.status for run in runs.values()} == {"FINISHED"}
    for name in serial:
        other.run("dvc", "exp", "apply", name)
        assert (other.root / "data/vae.safetensors").is_file()


def test_a_killed_worker_costs_no_trial_and_none_is_double(team, serial):
    repo = team.first
    sweep(repo, "new", "grid", GRID, "--grace", "4")
    worker = start(repo)
    wait_until(repo, "grid-0000", "Running stage 'train'")
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()
    worker = start(repo, "grid", "--jobs", "2")
    wait_until(repo, "grid-0001", "Ran experiment")
    worker.kill()  # its jobs, their DVC and their stages have its output, and end with it
    worker.communicate(timeout=20)
    output = sweep(repo, "work", "grid")
    assert re.search(r"sweep: (\d) of \1 trials are done, best \d+\.\d\d\n", output), output
    assert "grid is complete, 0 trials failed" in output
    assert trees(repo) == serial and team.published() == set(serial)
    assert set(repo.runs()) == set(serial)


def wait_until(repo: Repo, trial: str, moment: str) -> None:
    """Wait for a line in what the trial prints. After "Ran experiment" comes the push."""
    log = repo.root / f".dvc/tmp/sweeps/{trial}.log"
    end = time.monotonic() + 120
    while not (log.exists() and moment in log.read_text(errors="replace")):
        assert time.monotonic() < end, log.read_text() if log.exists() else "no output"
        time.sleep(0.02)


def test_a_ray_cluster_completes_a_grid_although_a_node_is_lost(team, serial):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    repo = team.first
    sweep(repo, "new", "grid", GRID, "--grace", "4")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        worker = start(repo, "grid", "--ray", cluster.address, "--jobs", "2")
        end = time.monotonic() + 240
        while not team.published():
            assert time.monotonic() < end and worker.poll() is None
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)
        output = worker.communicate()[0]
    finally:
        cluster.shutdown()
    assert worker.returncode == 0 and "grid is complete, 0 trials failed" in output, output
    assert team.published() == set(serial)
    sweep(repo, "fetch", "grid")
    assert trees(repo) == serial


def test_failures_of_what_is_around_are_one_line_and_cost_nothing(team):
    repo = team.first
    sweep(repo, "new", "grid", "z_dim=2")
    moved = team.folder / "moved"
    (team.folder / "bare.git").rename(moved)
    output = sweep(repo, "work", "grid", ok=False)
    assert output.strip().startswith("git: ") and len(output.strip().splitlines()) == 1
    moved.rename(team.folder / "bare.git")
    store = team.folder / "store"
    store.rename(moved)
    store.write_text("a file where a folder was")
    output = sweep(repo, "work", "grid", ok=False)
    assert "dvc push: " in output and "Traceback" not in output
    assert not team.published()  # a name would promise files
    store.unlink()
    moved.rename(store)
    sweep(repo, "work", "grid")
    assert team.published() == {"grid-0000"}


def test_an_experiment_of_an_earlier_sweep_is_not_taken_for_another(team):
    repo = team.first
    baseline = repo.run("git", "rev-parse", "HEAD").strip()
    repo.set(z_dim=7)
    repo.commit()
    repo.run("git", "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/grid-0000", "HEAD")
    repo.run("git", "reset", "-q", "--hard", baseline)
    sweep(repo, "new", "grid", "z_dim=2,3")
    output = sweep(repo, "work", "grid", ok=False)
    assert output.startswith("grid-0000: exists, with other parameters")
    assert not team.published()


def test_divergence_is_a_result_and_another_failure_of_a_stage_is_tried_again(team):
    words = ("learning_rate=1", "h_layers=8", "precision=tf32,float32")
    sweep(team.first, "new", "grid", *words)
    output = sweep(team.first, "work", "grid", "--jobs", "2", ok=False)
    assert "grid-0000: params.yaml: precision: tf32 needs a CUDA device" in output
    assert "1 trials are left" in output
    shown = sweep(team.first, "show", "grid")
    assert "failed: grid-0001: params.yaml: learning_rate: the loss in epoch" in shown
    assert "grid-0000: params.yaml: precision: tf32 needs a CUDA device" in shown
