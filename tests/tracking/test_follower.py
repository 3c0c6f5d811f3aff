"""A training that is followed: the run grows with it, and no server, however broken, holds it up or loses a point."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from helpers.mlflow_contents import assert_whole, dump, points
from helpers.failing_servers import KINDS
from mlflow import MlflowClient
from helpers.repo import Repo, hears_ctrl_c, plant, started
from helpers.servers import kill_group, mlflow_server

from pipeline.errors import InputError
from pipeline.runtime.fingerprint import fingerprint, ingredients
from pipeline.runtime.pending_run import mirrored
from pipeline.params import load_params

# Some ten seconds of training on one core: MLflow, which takes two to import, comes along while it lasts.
LONG = {"num_epochs": 60, "sample_every": 20, "h_dim": 1024, "h_layers": 2, "val_size": 100}
NAME = "z4-h1024x2-relu-lr0.001-e60-s0"
ALONE = "import contextlib, pipeline.stages.train as t; t.mirrored = lambda *_: contextlib.nullcontext(''); t.main()"


@pytest.fixture(scope="module")
def origin(tmp_path_factory, small_mnist) -> Repo:
    """A repository with data, in which the long training is to be made."""
    repo = plant(tmp_path_factory.mktemp("live"), small_mnist, {"OMP_NUM_THREADS": "1"}, **LONG)
    repo.run("dvc", "repro", "download")
    repo.commit()
    return repo


@pytest.fixture
def repo(origin, tmp_path) -> Repo:
    """A copy of it, without a store."""
    shutil.copytree(origin.root, tmp_path / "repo")
    return Repo(tmp_path / "repo", origin.mirror, origin.env)


def begin(repo: Repo, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=repo.root,
        env=repo.environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=hears_ctrl_c,
    )


@contextmanager
def paused(process: subprocess.Popen, repo: Repo) -> Iterator[None]:
    """Hold the training after a few epochs: however loaded the machine, what follows it has time to come."""
    history, end = repo.root / "reports" / "history.csv", time.monotonic() + 120
    while not history.exists() or history.read_text().count("\n") < 4:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    (training,) = [each for each in family if each.cmdline()[1:] == ["-m", "pipeline.stages.train"]]
    training.suspend()
    yield
    training.resume()


def run_with(client: MlflowClient, epochs: int, seconds: float = 120):
    """The only run of the store, as soon as it has that many epochs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        experiment = client.get_experiment_by_name("mnist-vae")
        for run in client.search_runs([experiment.experiment_id]) if experiment else []:
            if len(points(client, run).get("train/kl", [])) >= epochs:
                return run
        time.sleep(0.2)
    raise AssertionError(f"no run with {epochs} epochs within {seconds} s")


def test_a_training_is_seen_while_it_runs_and_completed_without_doubling(repo):
    with mlflow_server(repo.root / ".dvc" / "tmp") as (address, _):
        repo.env["MLFLOW_TRACKING_URI"] = address
        process = begin(repo, "dvc", "repro", "train")
        with paused(process, repo):
            run = run_with(repo.store(), epochs=2)
        assert run.info.status == "RUNNING" and run.info.run_name == NAME
        assert run.data.params["z_dim"] == "4" and run.data.tags["git.dirty"] == "false"
        assert {"fingerprint", "device", "version.torch", "mlflow.source.git.commit"} <= set(run.data.tags)
        said, _ = process.communicate()
        assert process.returncode == 0 and f"train: MLflow follows the training as run {NAME}" in said
        repo.run("dvc", "repro")
        repo.commit()
        (run,) = repo.runs().values()
        assert_whole(repo, run, "HEAD")
        times = {point.timestamp for point in repo.store().get_metric_history(run.info.run_id, "train/kl")}
        assert len(times) > 3, "the times at which the epochs were seen"


@pytest.mark.parametrize("kind", [*KINDS, "dies after epoch 2"])
def test_a_server_that_fails_costs_the_training_nothing_but_one_line(repo, kind):
    """And afterwards a healthy store gets every point: `python -m pipeline.stages.log --all`."""
    if kind in ("refuses", "answers 500"):
        repo.set(num_epochs=25)  # that takes no time to find out
    start = time.perf_counter()
    repo.run("python", "-c", ALONE)
    alone = time.perf_counter() - start
    scratch = repo.root / ".dvc" / "tmp"
    with ExitStack() as stack:
        real = stack.enter_context(mlflow_server(scratch)) if kind not in KINDS else None
        repo.env["MLFLOW_TRACKING_URI"] = real[0] if real else stack.enter_context(KINDS[kind]())
        start = time.perf_counter()
        (repo.root / "reports" / "history.csv").unlink()
        process, held = begin(repo, "dvc", "repro", "train"), 0.0
        if real:
            with paused(process, repo):
                held = time.perf_counter()
                run_with(repo.store(), epochs=2)
                kill_group(real[1])
                held = time.perf_counter() - held
        said, _ = process.communicate()
        added = time.perf_counter() - start - held - alone
        assert process.returncode == 0, said
        assert said.count("MLflow is away, the training goes on without it") == 1, said
        print(f"a server that {kind}: training alone {alone:.1f} s, followed and through DVC {added:+.1f} s")

        said = repo.run("dvc", "repro")
        assert "train" not in started(said) and "Traceback" not in said
        assert said.count("log: NOT in MLflow: ") == 1 and "python -m pipeline.stages.log --all" in said
        repo.commit()
    del repo.env["MLFLOW_TRACKING_URI"]
    dumps = []
    for _ in range(3 if real else 1):
        repo.run("python", "-m", "pipeline.stages.log", "--all")
        (run,) = repo.runs().values()
        assert_whole(repo, run, "HEAD")
        dumps.append(dump(repo.store()))
    assert all(each == dumps[0] for each in dumps)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_training_that_is_killed_leaves_no_process_and_no_open_run_and_goes_on_in_it(repo, number):
    repo.set(num_epochs=25)
    with mlflow_server(repo.root / ".dvc" / "tmp") as (address, _):
        repo.env["MLFLOW_TRACKING_URI"] = address
        process = begin(repo, sys.executable, "-m", "pipeline.stages.train")
        with paused(process, repo):
            run = run_with(repo.store(), epochs=2)
        process.send_signal(number)
        process.communicate()  # the mirror writes to the same pipe: this ends when it has ended
        # On a machine that is busy the mirror's second and a half may be too short for it.
        if repo.store().get_run(run.info.run_id).info.status != "KILLED":
            repo.run("python", "-m", "pipeline.commands.doctor", "--fix")
        assert repo.store().get_run(run.info.run_id).info.status == "KILLED"
        repo.run("dvc", "repro")
        repo.commit()
        (again,) = repo.runs().values()
        assert again.info.run_id == run.info.run_id
        assert_whole(repo, again, "HEAD")


def test_a_training_that_fails_is_a_failed_run_and_nothing_is_owed_to_it(workplace):
    provenance = ingredients("train", load_params().model_dump(), "cpu")
    Path("reports/samples").mkdir(parents=True)
    with pytest.raises(InputError), mirrored(fingerprint(provenance), provenance):
        Path("reports/history.csv").write_text("epoch,train/kl\n1,2.5\n2,")  # the second is still being written
        while not Path("mlflow.db").exists():
            time.sleep(0.1)
        client = MlflowClient(tracking_uri=f"sqlite:///{workplace}/mlflow.db")
        run = run_with(client, epochs=1)
        raise InputError("the loss is not finite")
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FAILED" and points(client, run) == {"train/kl": [(1, 2.5)]}
    assert not list(Path(".dvc/tmp/runs").glob("*.json"))


def test_kills_while_everything_is_logged_end_in_the_same_store(origin, tmp_path):
    """At KILLS random moments, the making of an empty store among them."""
    shutil.copytree(origin.root, tmp_path / "repo")
    repo = Repo(tmp_path / "repo", origin.mirror, origin.env)
    repo.set(num_epochs=3, sample_every=2, h_dim=32)
    repo.run("dvc", "repro")
    repo.commit()
    for name, change in {"narrow": "z_dim=2", "wide": "z_dim=8", "again": "z_dim=2"}.items():
        repo.run("dvc", "exp", "run", "--temp", "-n", name, "-S", change)

    def forget() -> None:
        (repo.root / "mlflow.db").unlink(missing_ok=True)
        shutil.rmtree(repo.root / "mlartifacts", ignore_errors=True)

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.stages.log", "--all"], cwd=repo.root, env=repo.environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    forget()
    begun = time.monotonic()
    assert start().wait() == 0
    took = time.monotonic() - begun
    reference = dump(repo.store())
    assert len(reference) == 3

    seed, wanted = int(os.environ.get("KILL_SEED", "0")), int(os.environ.get("KILLS", "6"))
    print(f"KILL_SEED={seed} KILLS={wanted}, one pass takes {took:.1f} s")
    moments, kills = random.Random(seed), 0
    forget()
    while kills < wanted:
        process = start()
        try:
            process.wait(moments.uniform(0.3, took))
            forget()  # it was through before
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert start().wait() == 0
    assert dump(repo.store()) == reference
    assert not [path.name for path in repo.root.iterdir() if path.name.endswith(".new")]
    assert json.loads(repo.run("dvc", "exp", "show", "--json"))
    assert Path(repo.root, "mlartifacts").is_dir()
