"""The whole `train` stage against its bare loop: what imports, pictures, history, checkpoints and the mirror add.

`python benchmarks/stage.py [ROUNDS [EPOCHS]]`, in a checkout that has data/raw, data/judge and reports/judge.json. In a
clone of it, with a seed of its own in every round and after a short training that is not counted and makes MLflow's
store: `fit` alone, timed in a process that does nothing else, and `python -m pipeline.stages.train` from its start to its end,
in turns. EPOCHS are those of params.yaml unless they are given. Prints medians, and JSON on the last line.
"""

import json
import os
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
from measure import hardware, ratios, spread  # noqa: E402
from overhead import clone, execute  # noqa: E402

from pipeline.params import load_params  # noqa: E402

LOOP = """
import time
import torch
from pipeline.params import load_params
from pipeline.stages.train import RAW, new_model
from pipeline.training.fit import fit, new_optimizer
from pipeline.training.accelerated.gradient import most_threads
from pipeline.data.mnist import hold_out, load_images
params = load_params()
train, val = hold_out(load_images(RAW, "train"), params.val_size)
model = new_model(params)
torch.set_num_threads(min(torch.get_num_threads(), most_threads(model)))
optimizer = new_optimizer(model, params.learning_rate, params.precision)
start = time.perf_counter()
for _ in fit(
    model, optimizer, train, val, num_epochs=params.num_epochs, batch_size=params.batch_size, seed=params.seed
):
    pass
print(time.perf_counter() - start)
"""


def loop(folder: Path) -> float:
    """Seconds of `fit` alone."""
    said = subprocess.run([sys.executable, "-c", LOOP], cwd=folder, capture_output=True, text=True, check=True)
    return float(said.stdout)


def main() -> None:
    """Take turns, print medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    epochs = int(sys.argv[2]) if len(sys.argv) > 2 else load_params(ROOT / "params.yaml").num_epochs
    os.environ.pop("OMP_NUM_THREADS", None)  # that of the tests
    seconds: dict[str, list[float]] = {"stage": [], "loop": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "clone")
        folder.mkdir()
        clone(folder)
        set_params(folder, {"device": "cpu", "num_epochs": 12, "seed": 1000})
        execute(folder, sys.executable, "-m", "pipeline.stages.train")
        for turn in range(rounds):
            set_params(folder, {"num_epochs": epochs, "seed": 1001 + turn})
            seconds["loop"].append(loop(folder))
            start = time.perf_counter()
            execute(folder, sys.executable, "-m", "pipeline.stages.train")
            seconds["stage"].append(time.perf_counter() - start)
            print("round {}: the loop {:.1f} s, the stage {:.1f} s".format(
                turn + 1, seconds["loop"][-1], seconds["stage"][-1]
            ), flush=True)  # fmt: skip
    longer = spread(ratios(seconds, "stage")["loop"])
    print(
        f"{epochs} epochs: the stage takes {longer['median']:.2f} times as long as its loop, "
        f"{statistics.median(seconds['stage']) - statistics.median(seconds['loop']):.1f} s more (n = {rounds})"
    )
    print(json.dumps({
        "hardware": hardware(torch.device("cpu")), "epochs": epochs, "seconds": seconds,
        "times_as_long_as_its_loop": longer,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
