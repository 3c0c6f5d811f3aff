"""One execution, one complete MLflow run: for the stage `log` and the command `log-all`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

from filelock import FileLock, Timeout
from mlflow.entities import Run

from pipeline.errors import UserError
from pipeline.params import parse_yaml
from pipeline.runtime.files import home
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.git import Source, artifact, text_at
from pipeline.runtime.pending_run import PendingRun, find_pending
from pipeline.tracking.client import Store, StoreError
from pipeline.tracking.results import Results
from pipeline.tracking.run_note import cpu, note, same_results, short_name, tags_of
from pipeline.tracking.upload import fill, has_artifacts

WAIT = 10.0  # seconds for the follower of a training that has just ended


def log_run(store: Store, results: Results, source: Source, made: int | None = None) -> str:
    """Complete or create the run of `results`; return what was done, in words.

    An execution that was computed here has a pending-run record, and a run of its own. Without a
    record the results come from a cache or a commit, and belong to the run that has them.
    made: when the results were made, if not now (ms).
    """
    record = find_pending(source.experiment, results.model_sha256)
    with _locked(results, record):
        run = _existing(store, results, record)
        if run is None or not _is_complete(store, run, results):
            run = _complete(store, run, results, source, record, made)
            message = f"MLflow run {run.info.run_name}: {store.url(run)}"
        elif source.experiment and store.link(
            run, source.experiment, same_results(source.experiment)
        ):
            message = f"{source.experiment} has the results of MLflow run {run.info.run_name}"
        else:
            message = f"MLflow run {run.info.run_name} is already complete"
        if record:
            record.remove()
    return message


@contextmanager
def _locked(results: Results, record: PendingRun | None) -> Iterator[None]:
    """Exclude processes that log the same results, and the follower of this execution."""
    folder = home() / ".dvc" / "tmp" / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    follower = FileLock(record.lock, timeout=WAIT) if record else nullcontext()
    try:
        with FileLock(folder / f"{results.results_sha256[:16]}.lock"), follower:
            yield
    except Timeout as error:
        raise StoreError("the run is in use by a training; try again when it has ended") from error


def _existing(store: Store, results: Results, record: PendingRun | None) -> Run | None:
    if record is None:
        return store.find(results.results_sha256)
    run = store.begun(record.execution)
    # The training may have been evaluated in another way since: then the run is left as it is.
    if run and run.data.tags.get("results.sha256", results.results_sha256) != results.results_sha256:
        return store.find(results.results_sha256)
    return run


def _is_complete(store: Store, run: Run, results: Results) -> bool:
    tagged = run.data.tags.get("results.sha256") == results.results_sha256
    return tagged and run.info.status == "FINISHED" and has_artifacts(store, run)


def _complete(
    store: Store,
    run: Run | None,
    results: Results,
    source: Source,
    record: PendingRun | None,
    made: int | None,
) -> Run:
    if record:
        source = record.git_source() or source
    tags = _tags(results, source, record)
    run = run or store.create(source.experiment or short_name(results.params), tags, made)
    fill(store, run, results, tags, artifact(source))
    # The status is set last: FINISHED means complete. A run that lost its artifacts keeps its end.
    ended = run.info.end_time if run.info.status == "FINISHED" else made
    store.close(run.info.run_id, "FINISHED", ended)
    return run


def _tags(results: Results, source: Source, record: PendingRun | None) -> dict[str, str]:
    provenance = {key: results.provenance[key] for key in results.provenance if key != "splits"}
    identity = (
        record.fingerprint if record else fingerprint(provenance, results.params.model_dump())
    )
    description = note(results.params, results.metrics, source, _params_at(source.baseline))
    tags = tags_of(identity, provenance, source) | {
        "results.sha256": results.results_sha256,
        "model.sha256": results.model_sha256,
        "classifier.sha256": results.classifier_sha256,
        "mlflow.note.content": description,
    }
    if record:
        tags |= {"execution": record.execution, "cpu": cpu()}
    return tags


def _params_at(commit: str) -> Mapping[str, object] | None:
    """params.yaml in a commit; None if there is none that can be read."""
    try:
        return parse_yaml(text_at(commit, "params.yaml", home()), "params.yaml")
    except UserError:
        return None
