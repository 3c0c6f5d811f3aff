"""Kills of a running pipeline, and the commands of docs/troubleshooting.md that recover it.

Everything is real: DVC in each of its modes, SIGKILL, the training, the MLflow store.
"""

import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from conftest import subset
from helpers.mlflow_contents import points, runs_of
from helpers.repo import Repo, plant

LOG = ".dvc/tmp/output.log"
# About half a second per epoch, three times what makes a checkpoint due.
LONG = {"num_epochs": 12, "sample_every": 5, "h_dim": 64, "batch_size": 1}
COMMANDS = {
    "workspace": ("dvc", "repro"),
    "experiment": ("dvc", "exp", "run", "-n", "x"),
    "temp": ("dvc", "exp", "run", "--temp", "-n", "x"),
    "queue": ("dvc", "queue", "start"),
}
QUEUE = ("dvc", "exp", "run", "--queue", "-n", "x")
# What is killed, by its command line.
TARGETS = {
    "training": r"-m pipeline\.stages\.train$",
    "dvc": r"dvc (repro|exp run|exp queue-worker)",
    "everything": "",
}


@dataclass(frozen=True)
class Outcome:
    """What one kill cost."""

    mode: str
    target: str
    moment: float  # seconds after the start of the command
    victims: int  # processes killed, 0 if the pipeline had ended before
    resumed: int  # the epoch after which the training resumed, 0 if it did not
    same_lock: bool  # the dvc.lock is that of an execution without a kill
    one_run: bool  # MLflow has one finished run, and each step of it once


class Campaign:
    """A repository with the dataset, copied for every kill, and the expected dvc.lock."""

    def __init__(self, folder: Path, mnist: Path) -> None:
        self.folder = folder
        for name in ("origin", "mnist"):
            (folder / name).mkdir(parents=True)
        subset(mnist, folder / "mnist", train=1500, test=200)
        environment = {"OMP_NUM_THREADS": "1"}
        self.origin = plant(folder / "origin", folder / "mnist", environment, **LONG)
        self.origin.run("dvc", "repro", "train_classifier")
        self.origin.commit()
        reference = self.origin.copy(folder / "reference")
        start = time.monotonic()
        reference.run("dvc", "repro")
        self.seconds = time.monotonic() - start
        self.lock = lock_of(reference, "workspace")

    def trials(self, count: int, seed: int) -> Iterator[Outcome]:
        """`count` kills at random moments, over all modes and targets in turn."""
        dice = random.Random(seed)
        order = [(mode, target) for mode in COMMANDS for target in TARGETS]
        dice.shuffle(order)
        for number in range(count):
            mode, target = order[number % len(order)]
            repo = self.origin.copy(self.folder / f"trial-{number}")
            try:
                yield self.trial(repo, mode, target, dice.uniform(0.05, 0.8) * self.seconds)
            finally:
                kill(processes(repo, ""))
                shutil.rmtree(repo.root, ignore_errors=True)

    def trial(self, repo: Repo, mode: str, target: str, moment: float) -> Outcome:
        if mode == "queue":
            repo.run(*QUEUE)
        with (repo.root / LOG).open("a") as log:
            process = subprocess.Popen(
                COMMANDS[mode], cwd=repo.root, env=repo.environment(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        time.sleep(moment)
        victims = kill(processes(repo, TARGETS[target]))
        while processes(repo, r"-m pipeline\.stages|dvc (repro|exp (run|exec-run|queue))"):
            time.sleep(0.1)
        process.wait(timeout=60)
        recover(repo, mode)
        logs = [repo.root / LOG, *repo.root.glob(".dvc/tmp/exps/run/*/*.out")]
        text = "".join(path.read_text(errors="replace") for path in logs)
        resumed = max(map(int, re.findall(r"resuming after epoch (\d+)", text)), default=0)
        return Outcome(
            mode, target, round(moment, 1), victims, resumed,
            same_lock=lock_of(repo, mode) == self.lock, one_run=has_one_run(repo),
        )  # fmt: skip


def recover(repo: Repo, mode: str) -> None:
    """Do what docs/troubleshooting.md recommends, until the results exist."""
    for _ in range(3):
        if is_finished(repo, mode):
            return
        repo.run("git", "switch", "master", ok=None)
        repo.run("git", "stash", "pop", "--index", ok=None)
        (repo.root / ".dvc/tmp/rwlock").unlink(missing_ok=True)
        if mode == "queue":
            for _ in range(2):  # the first time it interrupts a process, if there is one
                repo.run("dvc", "queue", "kill", "x", ok=None)
            repo.run(*QUEUE, ok=None)
            repo.run_queue()
            continue
        with (repo.root / LOG).open("a") as log:
            log.write(repo.run(*COMMANDS[mode], ok=None))
    raise AssertionError(f"{mode}: {(repo.root / LOG).read_text()}")


def processes(repo: Repo, pattern: str) -> list[psutil.Process]:
    """The processes that work in the repository and whose command line matches."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"], ad_value=""):
        inside = Path(process.info["cwd"]).is_relative_to(repo.root)
        if inside and re.search(pattern, " ".join(process.info["cmdline"])):
            found.append(process)
    return found


def kill(victims: list[psutil.Process]) -> int:
    """SIGKILL; the number of processes."""
    for process in victims:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(victims, timeout=10)
    return len(victims)


def is_finished(repo: Repo, mode: str) -> bool:
    if mode == "workspace":
        return "up to date" in repo.run("dvc", "status", ok=None)
    return re.search(r"/x$", repo.run("git", "for-each-ref", "refs/exps"), re.MULTILINE) is not None


def lock_of(repo: Repo, mode: str) -> str:
    if mode == "workspace":
        return (repo.root / "dvc.lock").read_text()
    return repo.run("git", "show", f"{repo.experiment('x')}:dvc.lock")


def has_one_run(repo: Repo) -> bool:
    client = repo.store()
    runs = runs_of(client)
    if [run.info.status for run in runs] != ["FINISHED"]:
        return False
    steps = [step for step, _ in points(client, runs[0])["train/kl"]]
    return steps == list(range(1, LONG["num_epochs"] + 1))
