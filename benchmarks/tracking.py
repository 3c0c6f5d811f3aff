"""What a training pays for its checkpoints and for being followed: the same short training without either, with
checkpoints, with a mirror, and with servers that fail.

`python benchmarks/tracking.py [ROUNDS]`, in a clone that has data/raw. The variants take turns, so that a machine that
drifts does so for each of them. Prints medians, and JSON on the last line.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import set_params  # noqa: E402
from helpers.failing_servers import KINDS  # noqa: E402

EPOCHS = 6
ALONE = "import contextlib, pipeline.stages.train as t; t.mirrored = lambda *_: contextlib.nullcontext(''); "
BARE = ALONE + "t.Checkpoint.save = lambda *_: None; t.main()"
FOLLOWED = "import pipeline.stages.train as t; t.main()"


def seconds(folder: Path, code: str, store: str | None) -> float:
    """The time that `python -m pipeline.stages.train` takes, from start to end."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    env |= {"PYTHONPATH": str(ROOT)} | ({"MLFLOW_TRACKING_URI": store} if store else {})
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Take turns, print a line a variant."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    variants = {"neither": (BARE, nullcontext), "checkpoints": (f"{ALONE}t.main()", nullcontext)}
    variants |= {"sqlite": (FOLLOWED, nullcontext)}
    variants |= {f"a server that {kind}": (FOLLOWED, server) for kind, server in KINDS.items()}
    found: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "data" / "raw", Path(folder, "data", "raw"))
        set_params(Path(folder), {"num_epochs": EPOCHS, "sample_every": 2}, source=ROOT / "params.yaml")
        for _ in range(rounds):
            for name, (code, server) in variants.items():
                with server() as store:
                    found[name].append(seconds(Path(folder), code, store))
    alone = found["neither"]
    for name, times in found.items():
        added = statistics.median(time - base for time, base in zip(times, alone, strict=True))
        print(f"{name:28} {statistics.median(times):6.1f} s  {added:+5.1f} s  (n = {rounds})")
    print(json.dumps({"epochs": EPOCHS, "cores": os.cpu_count(), "machine": platform.machine(), "seconds": found}))


if __name__ == "__main__":
    main()
