"""What a run contains: the results of an execution, written so that writing again doubles nothing.

Points and pictures that a run has are not sent again; other artifacts replace themselves.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
)
from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from PIL import Image

from pipeline.paths import MODEL
from pipeline.tracking.client import Store, store_errors
from pipeline.tracking.results import REPORTS, Picture, Results, Split

BATCH = 1000  # the most metrics that MLflow accepts in one call
CODE = Path(__file__).parents[1]
REQUIRED = ("mlflow", "numpy", "safetensors", "torch")
SERVED = ("__init__.py", "errors.py", "model", "runtime")  # what the model imports
DIFF = "git.diff"


@store_errors()
def fill(
    store: Store, run: Run, results: Results, tags: Mapping[str, str], diff: bytes = b""
) -> None:
    """Add to `run` everything of `results` that it lacks. diff: the code against the baseline."""
    client, run_id = store.client, run.info.run_id
    store.tag(run, tags)
    add_params(store, run, results.params.model_dump())
    # If the training was not followed its times are unknown: any will do that are always the same.
    times = {epoch: run.info.start_time + epoch for epoch in results.history["epoch"]}
    add_points(store, run, history_points(results.history, times), points_of(store, run))
    client.log_inputs(run_id, [_input(split, results) for split in results.splits])
    add_pictures(store, run, results.pictures)
    with tempfile.TemporaryDirectory() as scratch:
        for path in results.reports:
            _copy(results.folder / path, Path(scratch, path))
        if diff:
            Path(scratch, DIFF).write_bytes(diff)
        client.log_artifacts(run_id, scratch)
    model = _add_model(store, run, results)
    add_points(store, run, _test_points(run, results, model), points_of(store, run))


@store_errors()
def add_params(store: Store, run: Run, params: Mapping[str, object]) -> None:
    """Add parameters; a parameter that the run has must have the same value."""
    pairs = [Param(key, str(value)) for key, value in params.items()]
    store.client.log_batch(run.info.run_id, params=pairs)


@store_errors()
def points_of(store: Store, run: Run) -> set[tuple[str, int]]:
    """The (metric, step) of every point that a run has, system metrics aside."""
    client, run_id = store.client, run.info.run_id
    metrics = client.get_run(run_id).data.metrics
    keys = [key for key in metrics if not key.startswith("system/")]
    return {
        (point.key, point.step) for key in keys for point in client.get_metric_history(run_id, key)
    }


@store_errors()
def add_points(
    store: Store, run: Run, points: Sequence[Metric], there: set[tuple[str, int]]
) -> None:
    """Add the points that are not `there`."""
    new = [point for point in points if (point.key, point.step) not in there]
    for start in range(0, len(new), BATCH):
        store.client.log_batch(run.info.run_id, metrics=new[start : start + BATCH])


def history_points(history: pd.DataFrame, times: Mapping[int, int]) -> list[Metric]:
    """The points of each epoch with its time in milliseconds; NaN (no validation) is left out."""
    table = history.melt("epoch", var_name="key").dropna().sort_values("epoch", kind="stable")
    rows = zip(table["key"], table["value"], table["epoch"], strict=True)
    return [Metric(key, float(value), times[step], int(step)) for key, value, step in rows]


@store_errors()
def add_pictures(store: Store, run: Run, pictures: Sequence[Picture]) -> None:
    """Add pictures to the run's image grid."""
    client, run_id = store.client, run.info.run_id
    names = [Path(entry.path).name for entry in client.list_artifacts(run_id, "images")]
    # log_image writes KEY+step+N+timestamp+... and then the same compressed.
    there = {name.split("+timestamp+")[0] for name in names if name.endswith("compressed.webp")}
    for key, step, path in pictures:
        if f"{key.replace('/', '~')}+step+{step}" in there:
            continue
        with Image.open(path) as image:
            time = run.info.start_time + step
            client.log_image(run_id, image, key=key, step=step, timestamp=time, synchronous=True)


@store_errors()
def record_system_metrics(store: Store, run: Run) -> None:
    """Have MLflow record the load of this machine until this process ends, every 10 seconds."""
    mlflow.set_tracking_uri(store.uri)
    if mlflow.active_run() is None:
        mlflow.start_run(run.info.run_id, log_system_metrics=True)


@store_errors()
def has_artifacts(store: Store, run: Run) -> bool:
    """Whether the artifact store has the run's reports and its model; it may have been lost."""
    reports = {entry.path for entry in store.client.list_artifacts(run.info.run_id, "reports")}
    model = _model_of(store, run)
    if model is None or not reports >= {path.as_posix() for path in REPORTS}:
        return False
    files = store.client.list_logged_model_artifacts(model.model_id)
    return "MLmodel" in {entry.path for entry in files}


@store_errors()
def download(store: Store, run: Run, folder: Path) -> bytes:
    """Write the results of a run into `folder`, under the paths of the stages; return its diff."""
    client, run_id = store.client, run.info.run_id
    folder.mkdir(parents=True, exist_ok=True)
    names = {entry.path for entry in client.list_artifacts(run_id)}
    for name in names & {"reports", DIFF}:
        client.download_artifacts(run_id, name, str(folder))
    model = _model_of(store, run)
    if model is not None:
        with tempfile.TemporaryDirectory() as scratch:
            uri = f"models:/{model.model_id}"
            mlflow.artifacts.download_artifacts(uri, dst_path=scratch, tracking_uri=store.uri)
            _copy(Path(scratch, "artifacts", MODEL.name), folder / MODEL)
    diff = folder / DIFF
    return diff.read_bytes() if diff.exists() else b""


def _digest(split: Split) -> str:
    return split.sha256[:32]  # MLflow accepts 36 characters


def _input(split: Split, results: Results) -> DatasetInput:
    dataset = Dataset(
        name=results.params.dataset,
        digest=_digest(split),
        source_type="local",
        source=json.dumps({"uri": "data/dataset.safetensors"}),
        profile=json.dumps({"num_rows": split.num_images, "sha256": split.sha256}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", split.name)])


def _test_points(run: Run, results: Results, model: LoggedModel) -> list[Metric]:
    """The test metrics; standard errors would be a chart each in the UI."""
    time = run.info.start_time + len(results.history)
    digest = _digest(results.splits[-1])
    names = [name for name in results.metrics if not name.endswith("_se")]
    return [
        Metric(name, results.metrics[name], time, 0, model.model_id, results.params.dataset, digest)
        for name in names
    ]


def _model_of(store: Store, run: Run) -> LoggedModel | None:
    query = f"source_run_id = '{run.info.run_id}'"
    models = store.client.search_logged_models([store.experiment_id], query)
    return models[0] if models else None


def _add_model(store: Store, run: Run, results: Results) -> LoggedModel:
    """The model from code: the safetensors file, served_model.py and its imports; no pickle."""
    client, run_id = store.client, run.info.run_id
    model = _model_of(store, run)
    if model is None:
        params = {key: str(value) for key, value in results.params.model_dump().items()}
        tags = {"model.sha256": results.model_sha256}
        model = client.create_logged_model(
            store.experiment_id, "vae", run_id, tags, params, model_type="VAE"
        )
    with tempfile.TemporaryDirectory() as scratch:
        _save_model(results, Path(scratch), Path(scratch, "saved"))
        client.log_model_artifacts(model.model_id, str(Path(scratch, "saved")))
    if model.status != LoggedModelStatus.READY:
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = client.get_run(run_id).outputs
    if not outputs or not outputs.model_outputs:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, len(results.history))])
    return model


def _save_model(results: Results, scratch: Path, to: Path) -> None:
    for name in SERVED:
        _copy(CODE / name, scratch / "pipeline" / name)
    # A copy, because MLflow writes down the path that it was given.
    code = scratch / "served_model.py"
    _copy(CODE / "tracking" / "served_model.py", code)
    mlflow.pyfunc.save_model(
        to,
        python_model=str(code),
        artifacts={"vae": str(results.folder / MODEL)},
        code_paths=[str(scratch / "pipeline")],
        signature=ModelSignature(
            # z or x, by the task; the output has the task's shape
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
            params=ParamSchema([ParamSpec("task", "string", "generate")]),
        ),
        input_example=np.zeros((2, results.params.z_dim), np.float32),
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIRED],
    )


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(path, to)
