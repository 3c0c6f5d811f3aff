"""A pipeline that is killed at random moments, over and over: does it end in the bytes of one that was not?

`python benchmarks/faults.py [COUNT [SEED]]`, in a clone that has data/raw: COUNT trials (120) over {training, dvc,
group, queue executor} × {`dvc repro`, `dvc exp run`, `--temp`, queue}, half a minute each. JSON on the last line.
"""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.kill_campaign import Campaign, run, table  # noqa: E402


def main() -> None:
    """Run the campaign, a line a trial."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder, "campaign"), ROOT / "data" / "raw")
        for outcome in run(campaign, count, seed):
            outcomes.append(outcome)
            print(outcome, flush=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps({"seed": seed, **machine, **table(outcomes)}))


if __name__ == "__main__":
    main()
