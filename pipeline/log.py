"""Stage `log`: mirror what the other stages wrote to one MLflow run."""

import csv
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

from pipeline.errors import run
from pipeline.params import Params, load_params
from pipeline.tracking import Execution, Picture, StoreError, log_execution

MODEL = Path("data/model/vae.safetensors")
HISTORY = Path("reports/history.csv")
METRICS = Path("reports/metrics.json")
SAMPLES = Path("reports/samples")
LOGGED = Path("data/logged")
GENERATED = Path("reports/generated.png")
RECONSTRUCTED = Path("reports/reconstructed.png")


def main() -> None:
    """Read what the stages wrote and make an MLflow run of it."""
    params = load_params()
    execution = Execution(
        name=os.environ.get("DVC_EXP_NAME") or short_name(params),
        params=params.model_dump(),
        tags=identity(),
        history=read_history(HISTORY),
        metrics=flat(json.loads(METRICS.read_text(encoding="utf-8"))),
        pictures=[*final_pictures(), *sample_pictures(SAMPLES)],
        files=[(MODEL, "model"), *((path, "reports") for path in (HISTORY, METRICS, GENERATED, RECONSTRUCTED))],
    )
    try:
        run_id = log_execution(execution, root=Path(os.environ.get("DVC_ROOT", ".")).resolve())
        print(f"log: MLflow run {execution.name} ({run_id})")
        print("log: `make ui` shows it; `dvc exp run -S z_dim=2` makes another to compare with it")
    except StoreError as error:
        # The results are in the files. To fail here would make DVC throw a finished experiment away.
        print(f"log: NOT in MLflow: {error}", file=sys.stderr)
        print("log: nothing is lost; when the store is back: dvc repro -f -s log", file=sys.stderr)
    # Always the same bytes: a run's id would be another experiment's as soon as that one was restored or applied.
    LOGGED.write_text("Here `log` has run.\n", encoding="utf-8")


def short_name(params: Params) -> str:
    """A run's name where no DVC experiment gives it one."""
    return f"z{params.z_dim}-h{params.h_dim}x{params.h_layers}-{params.activation}-e{params.num_epochs}-s{params.seed}"


def identity() -> dict[str, str]:
    """Where this execution stands in git and DVC, and what came out, as MLflow tags."""
    experiment = os.environ.get("DVC_EXP_NAME")
    # HEAD of an experiment's own checkout is a commit that nobody else has; its baseline is in the repository.
    baseline = os.environ.get("DVC_EXP_BASELINE_REV") or git("rev-parse", "--verify", "-q", "HEAD")
    tags = {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "dvc exp run" if experiment else "dvc repro",
        "mlflow.source.git.commit": baseline,
        "model.sha256": hashlib.sha256(MODEL.read_bytes()).hexdigest(),
    }
    if experiment:  # its parameters are a change to the baseline, and DVC keeps them under its name
        return tags | {
            "dvc.exp_name": experiment,
            "dvc.baseline": baseline,
            "dvc.restore": f"dvc exp apply {experiment}",
        }
    # what the stages read, not what they write
    return tags | {"git.dirty": str(bool(git("status", "--porcelain", "--", ":!dvc.lock", ":!reports"))).lower()}


def git(*arguments: str) -> str:
    """What git says, or nothing outside a repository."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def read_history(path: Path) -> list[dict[str, float]]:
    """One record an epoch, each float equal to the one that was written; NaN (no validation split) is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [{name: value for name, value in row.items() if not math.isnan(value)} for row in rows]


def flat(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """{"test": {"kl": 25.0}} → {"test/kl": 25.0}."""
    return {f"{split}/{name}": value for split, values in metrics.items() for name, value in values.items()}


def final_pictures() -> list[Picture]:
    """What `evaluate` drew, at step 0: where the UI's slider stands when a run is opened."""
    return [Picture("test/generated", 0, GENERATED), Picture("test/reconstructed", 0, RECONSTRUCTED)]


def sample_pictures(folder: Path) -> list[Picture]:
    """`NAME-epoch-0010.png` → the picture of samples/NAME at step 10, in the order of epochs."""
    found = [(re.fullmatch(r"(.+)-epoch-(\d+)\.png", path.name), path) for path in folder.iterdir()]
    pictures = [Picture(f"samples/{match[1]}", int(match[2]), path) for match, path in found if match]
    return sorted(pictures, key=lambda picture: (picture.step, picture.key))


if __name__ == "__main__":
    run(main)
