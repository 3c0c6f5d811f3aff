"""`python -m pipeline.commands.reproduce RUN`: do a run again from what it says of itself, and compare what comes out.

RUN is an MLflow run's id or name, or a DVC experiment. Code and parameters are rebuilt from the commit and the diff
that the run recorded, in a clone that is deleted afterwards; nothing is taken from DVC's cache or its run-cache.
"""

import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.tracking.run_note import cpu
from pipeline.commands.file_diff import IDENTICAL, difference, metric, results, sha256
from pipeline.errors import InputError, run
from pipeline.tracking.results import MODEL, read_provenance
from pipeline.tracking.upload import download
from pipeline.runtime.git import clone
from pipeline.runtime.files import home
from pipeline.tracking.server import StoreError
from pipeline.tracking.client import Store, existing_store, experiments_of

TOLERANCE = 0.3  # nats of test/neg_elbo, on another kind of CPU or GPU than the run's
USAGE = "usage: python -m pipeline.commands.reproduce RUN (an MLflow run's id or name, or a DVC experiment)"

Run = Any  # MLflow's: only its doors import it


def main() -> None:
    """Reproduce the run that is named, say what is identical, and tag the run with it."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise InputError(USAGE)
    root = home()
    try:
        store = existing_store(root)
        if store is None:
            raise InputError("reproduce: there is no run yet; `dvc repro` makes one")
        found = find(store, sys.argv[1])
        with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
            recorded, again = Path(folder, "recorded"), Path(folder, "again")
            diff = download(store, found, recorded)
            commit = found.data.tags["mlflow.source.git.commit"]
            with_diff = " and git.diff" if diff else ""
            print(
                f"reproduce: {found.info.run_name} ({found.info.run_id}) from commit {commit[:10]}{with_diff}",
                flush=True,
            )
            clone(root, commit, diff, again)
            execute(root, again)
            findings = compare(found, recorded, again)
            verdict = judge(found, recorded, again, findings)
        store.tag(found, {"reproduced": f"{datetime.now(UTC):%Y-%m-%d} {verdict}"})
    except StoreError as error:
        raise InputError(f"reproduce: MLflow's store cannot be used: {error}") from error
    width = max(map(len, findings))
    for name, said in findings.items():
        print(f"  {name:{width}}  {said}")
    print(f"reproduce: {verdict}; the run is tagged `reproduced`")
    if verdict.startswith("differs"):
        sys.exit(1)


def find(store: Store, word: str) -> Run:
    """The one run that `word` names. Raises InputError where it names none, several, or one that is not finished."""
    runs = store.runs()
    found = [entry for entry in runs if entry.info.run_id == word]
    found = found or [entry for entry in runs if entry.info.run_name == word]
    found = found or [entry for entry in runs if word in experiments_of(entry)]
    if not found:
        raise InputError(
            f"reproduce: {word}: MLflow has no such run (`python -m pipeline.stages.log --all` logs what DVC has)"
        )
    if len(found) > 1:
        ids = ", ".join(entry.info.run_id for entry in found)
        raise InputError(f"reproduce: {word}: is the name of {len(found)} runs, name one by its id: {ids}")
    (entry,) = found
    if entry.info.status != "FINISHED" or "model.sha256" not in entry.data.tags:
        raise InputError(f"reproduce: {word}: is not complete, it is {entry.info.status}")
    if not entry.data.tags.get("mlflow.source.git.commit"):
        raise InputError(f"reproduce: {word}: was made outside of git: its code is not on record")
    return entry


def execute(root: Path, folder: Path) -> None:
    """Run the pipeline in `folder` as far as results go, its tracking store there too. Raises InputError."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    if (root / "data/raw").is_dir():
        env.setdefault("MNIST_MIRROR", str(root / "data/raw"))  # every file is checked against its sha256
    command = [sys.executable, "-m", "dvc", "repro", "evaluate"]
    if subprocess.run(command, cwd=folder, env=env, check=False).returncode != 0:
        raise InputError("reproduce: the pipeline failed, see above; the run is left as it is")


def compare(entry: Run, recorded: Path, again: Path) -> dict[str, str]:
    """What was compared, and how it differs: every file that the run kept, and the hashes that it was tagged with."""
    findings = {}
    for name in sorted({*results(recorded), *results(again)}):
        findings[name.as_posix()] = difference(recorded / name, again / name)
    pictures = [name for name in findings if name.startswith("reports/samples/")]
    if pictures and all(findings[name] == IDENTICAL for name in pictures):
        findings = {name: said for name, said in findings.items() if name not in pictures}
        findings[f"reports/samples/ ({len(pictures)})"] = IDENTICAL
    made = {"model.sha256": sha256(again / MODEL), "fingerprint": read_provenance(again / MODEL)["fingerprint"]}
    for tag, value in made.items():
        said = entry.data.tags[tag]
        findings[f"tag {tag}"] = IDENTICAL if value == said else f"differs: {said[:12]}… became {str(value)[:12]}…"
    return findings


def judge(entry: Run, recorded: Path, again: Path, findings: dict[str, str]) -> str:
    """`identical`; within the tolerance of another device; or what differs. The last is no success."""
    differing = [name for name, said in findings.items() if said != IDENTICAL]
    if not differing:
        return IDENTICAL
    one, other = read_provenance(recorded / MODEL), read_provenance(again / MODEL)
    same_inputs = all(one[key] == other[key] for key in ("params", "data", "code"))
    untouched = sha256(recorded / MODEL) == entry.data.tags["model.sha256"]
    gap = abs(metric(recorded, "test/neg_elbo") - metric(again, "test/neg_elbo"))
    if same_inputs and untouched and gap <= TOLERANCE and (elsewhere := _elsewhere(entry, one, other)):
        return f"within {TOLERANCE} nats ({gap:.2g}), which is what is promised on {elsewhere}"
    return f"differs: {', '.join(differing)}"


def _elsewhere(entry: Run, one: Any, other: Any) -> str:
    """What makes equal bytes more than was promised; "" where they were."""
    if one["device"] != other["device"]:
        return f"another device ({one['device']} became {other['device']})"
    if one["device"] == "cpu" and entry.data.tags.get("cpu", cpu()) != cpu():
        return "another CPU"
    if one["versions"] != other["versions"]:
        changed = [name for name in one["versions"] if one["versions"][name] != other["versions"].get(name)]
        return f"other versions ({', '.join(changed)})"
    return ""


if __name__ == "__main__":
    run(main)
