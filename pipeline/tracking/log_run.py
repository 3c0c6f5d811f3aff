"""One execution, one complete MLflow run: for the stage `log` and the command `log-all`."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from filelock import FileLock, Timeout
from mlflow.entities import Run

from pipeline.runtime.files import home
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.git import Source, artifact
from pipeline.runtime.pending_run import PendingRun, dvc_process, find_ended, find_pending
from pipeline.tracking import run_note, upload
from pipeline.tracking.address import StoreError, store_errors
from pipeline.tracking.client import Store, experiments_of
from pipeline.tracking.results import Results

WAIT = 10.0  # seconds for the follower of a training that has just ended


@store_errors()
def log_run(store: Store, results: Results, source: Source, made: int | None = None) -> str:
    """Complete or create the run of `results`; return what was done, in words.

    An execution that was computed here has a pending-run record, and a run of its own: also one
    that failed, and was repeated under another name. Without a record the results come from a cache
    or a commit, and belong to the run that has them.
    made: when the results were made, if not now (ms).
    """
    record = _record_of(store, results, source.experiment)
    # Otherwise the record is of an earlier training with the same model.
    if record and record.source and record.process == dvc_process():
        source = Source(**record.source)
    with _locked(results, record):
        run = _find(store, results, record)
        if run and _is_complete(run):
            whole = upload.is_whole(store, run)  # otherwise it has lost its artifacts
            left_out = [] if whole else upload.fill(store, run, results, artifact(source))
            message = _link(store, run, source.experiment)
        else:
            run = _describe(store, run, results, source, record, made=made)
            left_out = upload.fill(store, run, results, artifact(source))
            store.close(run.info.run_id, "FINISHED", made)  # set last: FINISHED means complete
            message = f"MLflow run {run.info.run_name}: {store.url(run)}"
        if left_out:
            message += f" (without what the store refuses: {', '.join(left_out)})"
        if record:
            record.remove()
    return message


def _record_of(store: Store, results: Results, experiment: str) -> PendingRun | None:
    record = find_pending(experiment=experiment, model_sha256=results.model_sha256)
    if record or _is_complete(store.find("results.sha256", results.results_sha256)):
        return record
    return find_ended(results.model_sha256)


@contextmanager
def _locked(results: Results, record: PendingRun | None) -> Iterator[None]:
    """Exclude processes that log the same results, and the follower of this execution."""
    lock = home() / ".dvc" / "tmp" / "runs" / f"{results.results_sha256[:16]}.lock"
    follower = FileLock(record.lock, timeout=WAIT) if record else nullcontext()
    try:
        with FileLock(lock), follower:
            yield
    except Timeout as error:
        raise StoreError("a training writes to the run; try again when it has ended") from error


def _is_complete(run: Run | None) -> bool:
    return run is not None and run.info.status == "FINISHED" and "results.sha256" in run.data.tags


def _find(store: Store, results: Results, record: PendingRun | None) -> Run | None:
    if record:
        run = store.find("execution", record.execution)
        # A run that has other results is of an earlier evaluation, and stays as it is.
        if not run or run.data.tags.get("results.sha256") in (None, results.results_sha256):
            return run
    return store.find("results.sha256", results.results_sha256)


def _describe(
    store: Store, run: Run | None, results: Results, source: Source, record: PendingRun | None, *,
    made: int | None,
) -> Run:  # fmt: skip
    """Give the run, or a new one, the name, the tags and the parameters of the results."""
    tags = _tags(results, source, record)
    if run and not record and experiments_of(run):  # the first of them computed it
        tags["dvc.exp_name"] = _names(run, source.experiment)
    name = run_note.name_of(source, results.params)
    run = run or store.client.create_run(store.experiment_id, made, tags, name)
    if record and record.experiment != source.experiment:
        store.client.update_run(run.info.run_id, name=name)
        for key in {"dvc.exp_name", "dvc.baseline"} & run.data.tags.keys() - tags.keys():
            store.client.delete_tag(run.info.run_id, key)
        run = store.client.get_run(run.info.run_id)
    store.tag(run, tags, results.params.model_dump())
    return run


def _link(store: Store, run: Run, experiment: str) -> str:
    """Add a DVC experiment to the run that has its results already."""
    if not experiment or experiment in experiments_of(run):
        return f"MLflow run {run.info.run_name} is complete"
    store.tag(run, {"dvc.exp_name": _names(run, experiment)})
    return f"{experiment} has the results of MLflow run {run.info.run_name}"


def _names(run: Run, experiment: str) -> str:
    return ", ".join(dict.fromkeys([*experiments_of(run), *filter(None, [experiment])]))


def _tags(results: Results, source: Source, record: PendingRun | None) -> dict[str, str]:
    tags = {
        "results.sha256": results.results_sha256,
        "model.sha256": results.model_sha256,
        "classifier.sha256": results.classifier_sha256,
        "mlflow.note.content": run_note.note(source),
    }
    if record:
        key = record.fingerprint
        tags |= {"execution": record.execution, "cpu": run_note.cpu()}
    else:
        origin = {name: results.provenance[name] for name in results.provenance if name != "splits"}
        key = fingerprint(origin, results.params.model_dump(), results.code)
    return run_note.tags_of(key, results.provenance, source) | tags
