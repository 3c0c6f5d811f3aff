"""How long a grid takes in DVC's queue, with one worker and with several at a time.

`python benchmarks/sweep.py [ROUNDS [JOBS,…]]`, in a clone that has data/raw. Four experiments (z_dim=2,5,10,20, with
EPOCHS epochs on all of MNIST and a short evaluation) are queued in a copy of the clone in which data and judge are
there, and timed from `dvc queue start` until the last of them is an experiment of DVC's. The numbers of workers take
turns, so that a machine that drifts does so for each. `2!` is two workers that share nothing: every training takes
every core. Prints medians, and JSON on the last line.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch  # before conftest, which asks for one thread

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from conftest import set_params  # noqa: E402
from measure import hardware  # noqa: E402
from helpers.repo import Repo  # noqa: E402

from pipeline.commands.checks.processes import inside  # noqa: E402

GRID = "z_dim=2,5,10,20"
EPOCHS, SAMPLES = 4, 20
LIMIT = 1800.0  # seconds for a grid
SELFISH = "\n\ndef share_of_cores(root: Path, most: int) -> int:\n    return most\n"


def prepared(folder: Path) -> Repo:
    """The project as it stands here, with data and judge in DVC's cache, and nothing trained."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if name != "dvc.lock" and not name.startswith("reports/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    set_params(folder, {"num_epochs": EPOCHS, "sample_every": EPOCHS, "eval_samples": SAMPLES, "device": "cpu"})
    repo = Repo(folder, ROOT / "data" / "raw")
    repo.run("git", "init", "-q")
    repo.commit()
    repo.run("dvc", "repro", "judge")
    repo.commit()
    return repo


def finished(repo: Repo) -> int:
    """How many experiments there are; what DVC itself keeps there has other names. Fails where one has failed."""
    refs = repo.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    assert "refs/exps/celery/failed" not in refs, repo.run("dvc", "queue", "status")
    return sum(len(ref.split("/")[2]) == 2 for ref in refs)


def seconds(origin: Repo, folder: Path, jobs: str) -> float:
    """The time that the grid takes with so many workers."""
    shutil.copytree(origin.root, folder)
    repo = Repo(folder, origin.mirror)
    if jobs.endswith("!"):
        with (folder / "pipeline" / "sharing.py").open("a", encoding="utf-8") as code:
            code.write(SELFISH)
        repo.run("dvc", "repro", "judge")
        repo.commit()
    repo.run("dvc", "exp", "run", "--queue", "-S", GRID)
    start = time.perf_counter()
    repo.run("bash", "-c", f"dvc queue start -j {jobs.rstrip('!')} > .dvc/tmp/workers 2>&1")
    while finished(repo) < len(GRID.split(",")):
        time.sleep(0.5)
        assert time.perf_counter() - start < LIMIT, repo.run("dvc", "queue", "status")
    took = time.perf_counter() - start
    repo.run("dvc", "queue", "stop")
    while inside(folder):
        time.sleep(0.5)
    shutil.rmtree(folder)
    return took


def main() -> None:
    """Take turns, print a line a number of workers."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    arms = sys.argv[2].split(",") if len(sys.argv) > 2 else ["1", "2", "3", "4"]
    os.environ.pop("OMP_NUM_THREADS", None)  # that of the tests
    found: dict[str, list[float]] = {jobs: [] for jobs in arms}
    with tempfile.TemporaryDirectory() as scratch:
        origin = prepared(Path(scratch, "origin"))
        for turn in range(rounds):
            for jobs in arms:
                found[jobs].append(seconds(origin, Path(scratch, "clone"), jobs))
                print(f"round {turn + 1}: {jobs} at a time: {found[jobs][-1]:.1f} s", flush=True)
    alone = statistics.median(found[arms[0]])
    for jobs, times in found.items():
        took = statistics.median(times)
        print(
            f"{jobs:>3} at a time {took:6.1f} s, {alone / took:.2f} times the throughput of {arms[0]}  (n = {rounds})"
        )
    print(json.dumps({
        "hardware": hardware(torch.device("cpu")), "grid": GRID, "epochs": EPOCHS, "eval_samples": SAMPLES,
        "seconds": found,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
