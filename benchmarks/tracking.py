"""What checkpoints and the follower cost a training: `python -m benchmarks.tracking [ROUNDS]`.

The same short training without either, with checkpoints, with MLflow's sqlite store, and with
servers that fail, in turns. Needs `make repro`. JSON on the last line.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.measure import ROOT, copy_project, hardware, rounds_from

sys.path.append(str(ROOT / "tests"))

SHORT = {"device": "cpu", "num_epochs": 6, "sample_every": 2}
FOLLOWED = "import pipeline.stages.train as train\n{patches}train.main()"
ALONE = """
from contextlib import nullcontext
from types import SimpleNamespace
pending_run = SimpleNamespace(finish=lambda sha256: None)
train.follow_training = lambda *_: nullcontext(pending_run)
"""
NO_CHECKPOINT = "train.CheckpointFile.save = lambda *_: None\n"


def seconds(folder: Path, patches: str, store: str | None) -> float:
    """The time of the stage `train`, from start to end."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC", "MLF"))}
    if store:
        env["MLFLOW_TRACKING_URI"] = store
    command = [sys.executable, "-c", FOLLOWED.format(patches=patches)]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Take turns and print one line per variant."""
    from helpers.failing_servers import KINDS  # noqa: PLC0415 (tests/ is on the path now)

    rounds = rounds_from(sys.argv, 3)
    variants = {
        "neither": (ALONE + NO_CHECKPOINT, nullcontext),
        "checkpoints": (ALONE, nullcontext),
        "sqlite": ("", nullcontext),
        **{f"a server that {kind}": ("", server) for kind, server in KINDS.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "project")
        copy_project(folder, **SHORT)
        for _ in range(rounds):
            for name, (patches, server) in variants.items():
                with server() as store:
                    times[name].append(seconds(folder, patches, store))
    for name, elapsed in times.items():
        pairs = zip(elapsed, times["neither"], strict=True)
        added = statistics.median(own - alone for own, alone in pairs)
        print(f"{name:28} {statistics.median(elapsed):6.1f} s  {added:+5.1f} s")
    print(json.dumps({"hardware": hardware(torch.device("cpu")), **SHORT, "seconds": times}))


if __name__ == "__main__":
    main()
