"""Execute a run again from its recorded commit and git.diff, and compare all files of results.

The pipeline runs in a temporary folder, without DVC's cache and run-cache. The verdict becomes the
run's tag `reproduced`. Promised are identical bytes on the same kind of machine. test/neg_elbo is
within 0.3 nats on another CPU or GPU, or with other versions of the libraries.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.commands.file_diff import IDENTICAL, file_diff, provenance_diff, read_numbers
from pipeline.errors import UserError
from pipeline.paths import METRICS, MODEL, OWN
from pipeline.runtime.dvc import child, environment
from pipeline.runtime.files import home
from pipeline.runtime.git import clone
from pipeline.tracking import client, run_note, upload

TOLERANCE = 0.3  # nats of test/neg_elbo, if only these differ:
MACHINE = {"device", "versions", "cpu"}

Run = Any  # MLflow's; only tracking/ imports MLflow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    text = "id or name of an MLflow run, or a DVC experiment"
    parser.add_argument("run", metavar="RUN", help=text)


def main(arguments: argparse.Namespace) -> None:
    """Reproduce the run, print what differs, tag the run. Exits with 1 if a promise is broken."""
    store = client.existing_store(home())
    if store is None:
        raise UserError(arguments.run, "MLflow has no runs yet; run `dvc repro`")
    run = find_run(store.runs(), arguments.run)
    if not upload.is_whole(store, run):
        raise UserError(arguments.run, "has lost artifacts; run `python -m pipeline doctor`")
    commit = run.data.tags["mlflow.source.git.commit"]
    with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        recorded, again = Path(folder, "recorded"), Path(folder, "again")
        diff = upload.download(store, run, recorded)
        if upload.DIFF in run.data.tags["dvc.restore"] and not diff:
            raise UserError(arguments.run, f"has lost its artifact {upload.DIFF}")
        about = f"run {run.info.run_id}, commit {commit}, diff of {len(diff)} bytes"
        print(f"reproduce: {about}", flush=True)
        clone(home(), commit, diff, again)
        execute(again)
        found = compare(recorded, again)
        verdict = verdict_of(run, recorded, again, found)
    for name, difference in found.items():
        if difference != IDENTICAL:
            print(f"reproduce: {name} {difference}")
    store.tag(run, {"reproduced": f"{datetime.now(UTC):%Y-%m-%d} {verdict}"})
    print(f"reproduce: {verdict} ({len(found)} files compared); the run is tagged `reproduced`")
    if verdict.startswith("differs"):
        sys.exit(1)


def find_run(runs: list[Run], word: str) -> Run:
    """The one run with this id, name, or DVC experiment."""
    # The name of a run stays when DVC uses it for another experiment, so it is the last to decide.
    found = [run for run in runs if word in (run.info.run_id, *client.experiments_of(run))]
    found = found or [run for run in runs if word == run.info.run_name]
    if len(found) != 1:
        ids = ", ".join(run.info.run_id for run in found)
        raise UserError(word, f"names {len(found)} MLflow runs instead of one ({ids})")
    (run,) = found
    if run.info.status != "FINISHED" or not run.data.tags.get("mlflow.source.git.commit"):
        raise UserError(word, f"has no record of its code ({run.info.status})")
    return run


def execute(folder: Path) -> None:
    """Execute all stages but `log` in `folder`."""
    raw = home() / "data" / "raw"  # a cache for all experiments: `download` verifies each file
    raw.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    if (home() / OWN).is_dir():
        shutil.copytree(home() / OWN, folder / OWN, dirs_exist_ok=True)
    (folder / "data" / "raw").symlink_to(raw)
    env = environment()
    for name in [name for name in env if name.startswith(("DVC_", "MLFLOW_"))]:
        del env[name]
    command = child("dvc", "repro", "evaluate")
    if subprocess.run(command, cwd=folder, env=env, check=False).returncode:
        raise UserError("reproduce", "the pipeline failed, see above; the run is unchanged")


def compare(recorded: Path, again: Path) -> dict[str, str]:
    """`identical` or the difference, for the model and every report of either."""
    reports = {
        path.relative_to(folder).as_posix()
        for folder in (recorded, again)
        for path in folder.glob("reports/**/[!.]*.*")
    }
    names = [MODEL.as_posix(), *sorted(reports)]
    return {name: file_diff(recorded / name, again / name) for name in names}


def verdict_of(run: Run, recorded: Path, again: Path, found: Mapping[str, str]) -> str:
    """The verdict: identical, within the tolerance on another machine, or differs."""
    if set(found.values()) == {IDENTICAL}:
        return IDENTICAL
    gaps = (read_numbers(recorded / METRICS) - read_numbers(again / METRICS)).abs()
    gap = gaps["test/neg_elbo"].item()
    changed = {name.split(".")[0] for name in provenance_diff(recorded / MODEL, again / MODEL)}
    if run.data.tags.get("cpu", run_note.cpu()) != run_note.cpu():
        changed.add("cpu")
    if changed and changed <= MACHINE and gap <= TOLERANCE:
        return f"within {TOLERANCE} nats ({gap:.2g}), as promised for another machine"
    return f"differs, test/neg_elbo by {gap:.2g} nats"
