"""A pipeline that is killed at random moments: does it end in the bytes of one that was not?

`python benchmarks/faults.py [COUNT [SEED]]` in a clone after `dvc repro`: COUNT (20) kills of the
training, of DVC, or of everything, in each of DVC's modes. JSON on the last line.
"""

import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> None:
    """Run the campaign, one line per kill."""
    from helpers.kill_campaign import Campaign  # noqa: PLC0415 (needs the path above)

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder, "campaign"), ROOT / "data" / "raw" / "MNIST" / "raw")
        for outcome in campaign.trials(count, seed):
            outcomes.append(asdict(outcome))
            print(outcome, flush=True)
    figures = {
        "seed": seed,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "trials": len(outcomes),
        "same dvc.lock": sum(outcome["same_lock"] for outcome in outcomes),
        "one MLflow run": sum(outcome["one_run"] for outcome in outcomes),
        "resumed": sum(outcome["resumed"] > 0 for outcome in outcomes),
        "outcomes": outcomes,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
