"""The stage `train` against its loop: `python -m benchmarks.stage [ROUNDS]` after `make repro`.

What imports, pictures, history, checkpoints and the follower add to `fit`. Both run in processes of
their own and take turns, with the parameters of params.yaml on the CPU. JSON on the last line.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import (
    copy_project,
    execute,
    hardware,
    ratios,
    rounds_from,
    set_params,
    spread,
)

LOOP = """
import time
from pipeline.data.datasets import hold_out, load_split
from pipeline.params import load_params
from pipeline.paths import DATASET
from pipeline.stages.train import build_model
from pipeline.training.fit import fit
from pipeline.training.optimizer import Optimizer

params = load_params()
split = load_split(DATASET, "train")
optimizer = Optimizer(build_model(params, split), params.learning_rate, params.precision)
epochs = range(1, params.num_epochs + 1)
splits = hold_out(split, params.val_size)
start = time.perf_counter()
for _ in fit(optimizer, *splits, epochs, batch_size=params.batch_size, seed=params.seed):
    pass
print(time.perf_counter() - start)
"""


def loop(folder: Path) -> float:
    """Seconds of `fit` alone."""
    command = [sys.executable, "-c", LOOP]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Take turns and print the medians."""
    seconds: dict[str, list[float]] = {"stage": [], "loop": []}
    command = (sys.executable, "-m", "pipeline.stages.train")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "project")
        copy_project(folder, device="cpu")
        for seed in range(1, rounds_from(sys.argv, 1) + 1):
            set_params(folder, seed=seed)
            seconds["loop"].append(loop(folder))
            seconds["stage"].append(execute(folder, *command))
    longer = spread(ratios(seconds, "stage")["loop"])
    print(f"the stage takes {longer['median']:.2f} times as long as its loop")
    record = {"hardware": hardware(torch.device("cpu")), "seconds": seconds}
    print(json.dumps(record | {"times_as_long_as_its_loop": longer}))


if __name__ == "__main__":
    main()
