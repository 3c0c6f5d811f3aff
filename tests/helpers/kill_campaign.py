"""One fault: a pipeline that is killed at some moment, and what a person then types to get its results after all.

Everything is real: DVC in each of its modes, SIGKILL, the training, the embedded MLflow store.
"""

import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from conftest import subset
from helpers.repo import Repo, plant

# Half a second an epoch on one core, three times what makes a checkpoint due.
LONG = {"num_epochs": 12, "sample_every": 5, "h_dim": 64, "batch_size": 1}
IMAGES = (1500, 200)
CHANGE = ("-n", "x", "-S", "seed=1")
MODES = ("workspace", "experiment", "temp", "queue")
COMMANDS = {
    "workspace": ("dvc", "repro"),
    "experiment": ("dvc", "exp", "run", *CHANGE),
    "temp": ("dvc", "exp", "run", "--temp", *CHANGE),
    "queue": ("dvc", "queue", "start"),
}
# What is killed, by what stands in its command line; a queue's dvc is its worker, its executor runs the experiment.
TARGETS = {
    "training": "-m pipeline.stages.train",
    "dvc": {"workspace": "dvc repro", "experiment": "dvc exp run", "temp": "dvc exp run", "queue": "queue-worker"},
    "executor": "exec-run",
    "group": "",
}
COMBINATIONS = [
    (mode, target) for mode in MODES for target in TARGETS if target != "executor" or mode == "queue"
]  # fmt: skip


@dataclass
class Outcome:
    """What happened in one trial."""

    mode: str
    target: str
    moment: float  # seconds after the start: of the training, of the executor, or else of the command
    stage: str  # that was at work when it was killed, "" for none
    orphan: float  # seconds until no stage was left without its DVC
    written: int  # epochs in the history at that moment
    resumed: int  # the epoch after which the training went on, 0 where it began anew, -1 where it was not executed
    commands: list[str]  # that were typed before the pipeline was done
    same_lock: bool
    one_run: bool

    @property
    def lost(self) -> int:
        """Epochs that were in the history and were computed once more."""
        return max(0, self.written - self.resumed) if self.resumed >= 0 else 0


class Campaign:
    """A repository with data and without results, copied for every trial, and the results that all must have."""

    def __init__(self, folder: Path, mnist: Path) -> None:
        self.folder = folder
        for name in ("origin", "mnist"):
            (folder / name).mkdir(parents=True)
        subset(mnist, folder / "mnist", *IMAGES)
        self.origin = plant(folder / "origin", folder / "mnist", {"OMP_NUM_THREADS": "1"}, **LONG)
        self.origin.run("dvc", "repro", "download")
        self.origin.commit()
        reference = self.copy("reference")
        start = time.monotonic()
        reference.run("dvc", "repro")
        self.takes = time.monotonic() - start
        self.locks = {"workspace": (reference.root / "dvc.lock").read_text()}
        reference.run("git", "checkout", "-q", ".")
        reference.run("dvc", "exp", "run", "--temp", *CHANGE)
        lock = reference.run("git", "show", f"{reference.experiment('x')}:dvc.lock")
        self.locks |= dict.fromkeys(MODES[1:], lock)
        shutil.rmtree(reference.root)

    def copy(self, name: str) -> Repo:
        shutil.copytree(self.origin.root, self.folder / name, symlinks=True)
        return Repo(self.folder / name, self.origin.mirror, self.origin.env)

    def trial(self, number: int, mode: str, target: str, moment: float) -> Outcome:
        repo = self.copy(f"trial-{number}")
        try:
            return self._trial(repo, mode, target, moment)
        finally:
            for process in inside(repo.root):
                with suppress(psutil.Error):
                    process.kill()
            shutil.rmtree(repo.root, ignore_errors=True)

    def _trial(self, repo: Repo, mode: str, target: str, moment: float) -> Outcome:
        if mode == "queue":
            repo.run("dvc", "exp", "run", "--queue", *CHANGE)
        process = begin(repo, COMMANDS[mode])
        if target in ("training", "executor"):  # it must be there to be killed
            wait_until(lambda: found(repo, mode, target) or process.poll() is not None)
        time.sleep(moment)
        stage, written, victims = stage_of(repo), epochs(repo), found(repo, mode, target)
        for victim in victims:
            with suppress(psutil.Error):
                victim.kill()
        killed = time.monotonic()
        wait_until(lambda: not orphans(repo))
        orphan = time.monotonic() - killed
        if target == "training" or not victims:  # DVC goes on, and ends by itself
            wait_until(lambda: not inside(repo.root, "dvc"))
        # Where it was killed its number is free only when that has been noticed, as a shell would.
        process.wait(timeout=60)
        commands, said = recover(repo, mode)
        lock = self.locks[mode]
        got = (repo.root / "dvc.lock").read_text() if mode == "workspace" else ""
        if mode != "workspace":
            got = repo.run("git", "show", f"{repo.experiment('x')}:dvc.lock")
        resumed = [int(epoch) for epoch in re.findall(r"goes on after epoch (\d+) of", said)]
        executed = "train: wrote" in said
        return Outcome(
            mode, target if victims else "nothing", round(moment, 2), stage, round(orphan, 2), written,
            (resumed[-1] if resumed else 0) if executed else -1, commands, got == lock, one_run(repo),
        )  # fmt: skip


def begin(repo: Repo, command: tuple[str, ...]) -> subprocess.Popen:
    log = (repo.root / ".dvc" / "tmp" / "said").open("ab")
    return subprocess.Popen(
        command, cwd=repo.root, env=repo.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip


def inside(root: Path, *parts: str) -> list[psutil.Process]:
    """The processes at work in the repository with all of these in their command; no zombies."""
    result = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if Path(process.cwd()).is_relative_to(root) and all(part in command for part in parts):
                result.append(process)
    return result


def found(repo: Repo, mode: str, target: str) -> list[psutil.Process]:
    """The processes that are to be killed, as far as they are there by now."""
    part = TARGETS[target]
    return inside(repo.root, part[mode] if isinstance(part, dict) else part)


def stage_of(repo: Repo) -> str:
    for process in inside(repo.root, "-m pipeline."):
        with suppress(psutil.Error):
            if match := re.search(r"-m pipeline\.(download|train|judge|evaluate|log)\b", " ".join(process.cmdline())):
                return match[1]
    return ""


def orphans(repo: Repo) -> list[psutil.Process]:
    """Stages, and mirrors, without a DVC above them."""
    result = []
    for process in inside(repo.root, "-m pipeline."):
        with suppress(psutil.Error):
            if not any("dvc" in " ".join(parent.cmdline()[:3]) for parent in process.parents()):
                result.append(process)
    return result


def epochs(repo: Repo) -> int:
    """Whole lines in the history that is being written, wherever that is."""
    histories = [repo.root / "reports/history.csv", *repo.root.glob(".dvc/tmp/exps/**/tmp*/reports/history.csv")]
    counts = [path.read_text().count("\n") - 1 for path in histories if path.exists()]
    return max(counts, default=0)


def recover(repo: Repo, mode: str) -> tuple[list[str], str]:
    """Type the command again, and where that does not help what the doctor says; what was typed, and what was said."""
    typed: list[str] = []
    said = ""

    def type_in(*command: str) -> bool:
        nonlocal said
        typed.append(" ".join(command))
        done = subprocess.run(
            command, cwd=repo.root, env=repo.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, timeout=300,
        )  # fmt: skip
        said += done.stdout
        return done.returncode == 0

    if finished(repo, mode):
        return typed, said
    for _ in range(4):
        if mode == "queue":
            queued(repo, type_in)
        else:
            type_in(*COMMANDS[mode])
        if finished(repo, mode):
            return typed, said + outputs_of_queue(repo)
        type_in("python", "-m", "pipeline.commands.doctor", "--fix")
        for line in subprocess.run(
            ["python", "-m", "pipeline.commands.doctor"], cwd=repo.root, env=repo.environment(), capture_output=True, text=True,
            check=False,
        ).stdout.splitlines():  # fmt: skip
            if "note:" not in line and re.search(r": (dvc|rm|git|kill) ", line):
                type_in("bash", "-c", line.rpartition(": ")[2])
    raise AssertionError("\n".join([*typed, said]))


def queued(repo: Repo, type_in: Callable[..., bool]) -> None:
    """Queue it again, unless it still is, and have the queue do it."""
    status = repo.run("dvc", "queue", "status")
    if not re.search(r"\bx\b.*(Queued|Running)", status):
        type_in("dvc", "exp", "run", "--queue", *CHANGE)
    repo.run("bash", "-c", "dvc queue start > /dev/null 2>&1")
    end = time.monotonic() + 200
    while time.monotonic() < end and not finished(repo, "queue"):
        if (
            re.search(r"\bx\b.*Running", status := repo.run("dvc", "queue", "status")) is None
            and "Queued" not in status
        ):
            break
        if not inside(repo.root, "dvc", "queue-worker"):
            break
        time.sleep(0.5)


def finished(repo: Repo, mode: str) -> bool:
    """Whether the results are there, and logged."""
    if mode == "workspace":
        status = subprocess.run(
            ["dvc", "status", "-q"], cwd=repo.root, env=repo.environment(), check=False, capture_output=True
        )
        return status.returncode == 0
    refs = repo.run("git", "for-each-ref", "refs/exps")
    return refs.rstrip().endswith("/x") or any(line.endswith("/x") for line in refs.splitlines())


def outputs_of_queue(repo: Repo) -> str:
    """What the last experiment of the queue has said."""
    found = sorted(repo.root.glob(".dvc/tmp/exps/run/*/*.out"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1].read_text(errors="replace") if found else ""


def one_run(repo: Repo) -> bool:
    """Whether MLflow has one run, finished, with each step once."""
    client = repo.store()
    runs = client.search_runs([client.get_experiment_by_name("mnist-vae").experiment_id])
    if len(runs) != 1 or runs[0].info.status != "FINISHED":
        return False
    steps = [point.step for point in client.get_metric_history(runs[0].info.run_id, "train/kl")]
    return sorted(steps) == list(range(1, LONG["num_epochs"] + 1))


def wait_until(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def run(campaign: Campaign, count: int, seed: int) -> Iterator[Outcome]:
    """`count` trials, each combination of mode and target in turn, at random moments of the time the pipeline takes."""
    dice = random.Random(seed)
    order = [COMBINATIONS[index % len(COMBINATIONS)] for index in range(count)]
    dice.shuffle(order)
    for number, (mode, target) in enumerate(order):
        # While there is something to lose, mostly: the training is about half of the time.
        yield campaign.trial(number, mode, target, dice.uniform(0, 0.7 * campaign.takes))


def table(outcomes: list[Outcome]) -> dict[str, object]:
    """The figures of a campaign."""
    killed = [outcome for outcome in outcomes if outcome.target != "nothing"]
    training = [outcome for outcome in killed if outcome.stage == "train"]
    return {
        "trials": len(outcomes),
        "kills": len(killed),
        "in the training": len(training),
        "same dvc.lock": sum(outcome.same_lock for outcome in outcomes),
        "one MLflow run, no step doubled": sum(outcome.one_run for outcome in outcomes),
        "resumed": sum(outcome.resumed > 0 for outcome in killed),
        "epochs lost, at most": max((outcome.lost for outcome in killed), default=0),
        "seconds until no orphan, at most": max((outcome.orphan for outcome in outcomes), default=0),
        "needed the doctor": sum(any("doctor" in command for command in outcome.commands) for outcome in outcomes),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
