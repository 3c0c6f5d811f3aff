"""Kills of a running pipeline, and the commands of docs/troubleshooting.md that recover it.

Everything is real: DVC in each of its modes, SIGKILL, the training, the MLflow store.
"""

import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from conftest import subset
from helpers.repo import Repo, plant

LOG = ".dvc/tmp/output.log"
# About half a second per epoch, three times what makes a checkpoint due.
LONG = {"num_epochs": 12, "sample_every": 5, "h_dim": 64, "batch_size": 1}
CHANGE = ("-n", "x", "-S", "seed=1")
COMMANDS = {
    "workspace": ("dvc", "repro"),
    "experiment": ("dvc", "exp", "run", *CHANGE),
    "temp": ("dvc", "exp", "run", "--temp", *CHANGE),
    "queue": ("dvc", "queue", "start"),
}
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
    commands: list[str]  # that recovered it
    same_lock: bool  # the dvc.lock is that of an execution without a kill
    one_run: bool  # MLflow has one finished run, and each step of it once


class Campaign:
    """A repository with the dataset, copied for every kill, and the expected dvc.lock files."""

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
        self.locks = {"workspace": lock_of(reference, "workspace")}
        reference.run("git", "checkout", "-q", ".")
        reference.run(*COMMANDS["temp"])
        self.locks |= dict.fromkeys(("experiment", "temp", "queue"), lock_of(reference, "temp"))

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
            repo.run("dvc", "exp", "run", "--queue", *CHANGE)
        with (repo.root / LOG).open("a") as log:
            process = subprocess.Popen(
                COMMANDS[mode], cwd=repo.root, env=repo.environment(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        time.sleep(moment)
        victims = kill(processes(repo, TARGETS[target]))
        while processes(repo, r"-m pipeline\.stages|dvc (repro|exp run|exp queue)"):
            time.sleep(0.1)
        process.wait(timeout=60)
        commands = recover(repo, mode)
        logs = [repo.root / LOG, *repo.root.glob(".dvc/tmp/exps/run/*/*.out")]
        text = "".join(path.read_text(errors="replace") for path in logs)
        resumed = max(map(int, re.findall(r"resuming after epoch (\d+)", text)), default=0)
        return Outcome(
            mode, target, round(moment, 1), victims, resumed, commands,
            same_lock=lock_of(repo, mode) == self.locks[mode], one_run=has_one_run(repo),
        )  # fmt: skip


def recover(repo: Repo, mode: str) -> list[str]:
    """Run what docs/troubleshooting.md recommends until the results exist; return the commands."""
    commands: list[str] = []

    def run(command: str) -> str:
        commands.append(command)
        output = repo.run("bash", "-c", command, ok=None)
        with (repo.root / LOG).open("a") as log:
            log.write(output)
        return output

    for _ in range(3):
        if is_finished(repo, mode):
            return commands
        if not repo.run("git", "branch", "--show-current"):
            run("git switch master")
        if repo.run("git", "stash", "list"):
            run("git stash pop --index")
        if mode == "queue":
            queue_again(repo, run)
        elif "Unable to read RWLock-file" in run(" ".join(COMMANDS[mode])):
            run("rm .dvc/tmp/rwlock")
    raise AssertionError(f"{mode}: {commands}\n{(repo.root / LOG).read_text()}")


def queue_again(repo: Repo, run: Callable[[str], str]) -> None:
    status = repo.run("dvc", "queue", "status")
    if re.search(r"\bx\b.*Running", status):
        run("dvc queue kill x")
    if not re.search(r"\bx\b.*Queued", status):
        run(" ".join(("dvc exp run --queue", *CHANGE)))
    repo.run_queue()


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
    runs = client.search_runs([client.get_experiment_by_name("mnist-vae").experiment_id])
    if [run.info.status for run in runs] != ["FINISHED"]:
        return False
    steps = [point.step for point in client.get_metric_history(runs[0].info.run_id, "train/kl")]
    return sorted(steps) == list(range(1, LONG["num_epochs"] + 1))
