"""What a run contains: the results of an execution, written so that writing again doubles nothing.

Points and pictures that a run has are not sent again; other artifacts replace themselves.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow import entities
from mlflow.entities import LoggedModel, LoggedModelStatus, Metric, Run
from mlflow.models import ModelSignature
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.utils.uri import append_to_uri_path
from PIL import Image

from pipeline.paths import DATASET, EVALUATION, MODEL
from pipeline.runtime.files import modules
from pipeline.tracking.address import store_errors
from pipeline.tracking.client import Store, optional
from pipeline.tracking.results import Picture, Results

BATCH = 1000  # the most metrics that MLflow accepts in one call
REQUIRED = ("mlflow", "numpy", "safetensors", "torch")
NOT_SERVED = ("commands", "evaluation", "figures", "stages", "tracking", "training")
DIFF = "git.diff"
PLAIN_MODEL = "model"  # folder among the artifacts of a run, if the store has no logged models
Point = tuple[str, int]  # metric, step


def fill(store: Store, run: Run, results: Results, diff: bytes) -> list[str]:
    """Add to `run` everything of `results` that it lacks; return the parts that the store refuses.

    diff: the code against the baseline.
    """
    client, run_id, start = store.client, run.info.run_id, run.info.start_time
    left_out: list[str] = []
    values = uploaded(results.metrics)
    metrics = [Metric(key, value, start, 0) for key, value in values.items()]
    # If the training was not followed its times are unknown: any will do that is always the same.
    points = [*history_points(results.history, start), *metrics]
    add_points(store, run, points, points_of(store, run))
    with optional("datasets", left_out):
        splits = results.splits.items()
        client.log_inputs(run_id, [_input(results.params.dataset, *split) for split in splits])
    with optional("artifacts", left_out):
        add_pictures(store, run, results.pictures)
        for path in results.reports:
            client.log_artifact(run_id, str(results.folder / path), path.parent.as_posix())
        if diff:
            with tempfile.TemporaryDirectory() as scratch:
                Path(scratch, DIFF).write_bytes(diff)
                client.log_artifacts(run_id, scratch)
        if model_id := _add_model(store, run, results, left_out):
            # The same points once more, now as those of the model; MLflow stores a point once.
            of_model = [Metric(key, values[key], start, 0, model_id) for key in values]
            add_points(store, run, of_model, set())
    return left_out


def uploaded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without standard errors, which would get charts of their own in the UI."""
    return {key: value for key, value in metrics.items() if not key.endswith("_se")}


def points_of(store: Store, run: Run) -> set[Point]:
    """Every point that a run has, apart from system metrics."""
    client, run_id = store.client, run.info.run_id
    keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith("system/")]
    histories = [client.get_metric_history(run_id, key) for key in keys]
    return {(point.key, point.step) for history in histories for point in history}


def add_points(store: Store, run: Run, points: Sequence[Metric], there: set[Point]) -> None:
    """Add the points that are not `there`."""
    new = [point for point in points if (point.key, point.step) not in there]
    for start in range(0, len(new), BATCH):
        store.client.log_batch(run.info.run_id, metrics=new[start : start + BATCH])


def history_points(history: pd.DataFrame, time: int) -> list[Metric]:
    """The points of each epoch at a time in milliseconds; NaN (no validation) is left out."""
    table = history.melt("epoch", var_name="key").dropna()
    rows = zip(table["key"], table["value"], table["epoch"], strict=True)
    return [Metric(key, float(value), time, int(step)) for key, value, step in rows]


def add_pictures(store: Store, run: Run, pictures: Sequence[Picture]) -> None:
    """Add pictures to the run's image grid."""
    client, run_id = store.client, run.info.run_id
    entries = _files(store, run.info.artifact_uri).list_artifacts("images")
    names = [Path(entry.path).name for entry in entries]
    # log_image writes KEY+step+N+timestamp+... and then the same compressed.
    there = {name.split("+timestamp+")[0] for name in names if name.endswith("compressed.webp")}
    for key, step, path in pictures:
        if f"{key.replace('/', '~')}+step+{step}" not in there:
            with Image.open(path) as image:
                client.log_image(run_id, image, key=key, step=step, synchronous=True)


@store_errors()
def is_whole(store: Store, run: Run) -> bool:
    """Whether the artifact store, which may be lost, has the run's reports and its model."""
    files = []
    with optional("artifacts", []):
        files += _files(store, run.info.artifact_uri).list_artifacts(EVALUATION.parent.as_posix())
        files += _model_files(store, run).list_artifacts()
    return {Path(entry.path).name for entry in files} >= {EVALUATION.name, "MLmodel"}


@store_errors()
def download(store: Store, run: Run, folder: Path) -> bytes:
    """Write the results of a run into `folder`, under the paths of the stages; return its diff."""
    (folder / MODEL.parent).mkdir(parents=True, exist_ok=True)
    files = _files(store, run.info.artifact_uri)
    for entry in files.list_artifacts():
        if entry.path in ("reports", DIFF):
            files.download_artifacts(entry.path, str(folder))
    model = _model_files(store, run).download_artifacts(f"artifacts/{MODEL.name}", str(folder))
    shutil.move(model, folder / MODEL)
    diff = folder / DIFF
    return diff.read_bytes() if diff.exists() else b""


def _input(dataset: str, name: str, split: Mapping[str, Any]) -> entities.DatasetInput:
    images = entities.Dataset(
        name=dataset,
        digest=split["sha256"][:32],  # MLflow accepts 36 characters
        source_type="local",
        source=json.dumps({"uri": DATASET.as_posix()}),
        profile=json.dumps({"num_rows": split["num_images"], "sha256": split["sha256"]}),
    )
    return entities.DatasetInput(images, [entities.InputTag("mlflow.data.context", name)])


def _files(store: Store, location: str) -> ArtifactRepository:
    """The files at a location. MLflow's client would search the logged models of all runs too."""
    return get_artifact_repository(location, store.uri)


def _model_files(store: Store, run: Run) -> ArtifactRepository:
    locations = [model.artifact_location for model in _models_of(store, run)]
    return _files(store, *locations or [append_to_uri_path(run.info.artifact_uri, PLAIN_MODEL)])


def _models_of(store: Store, run: Run) -> list[LoggedModel]:
    """The logged models of a run: one; none if it has not begun, or the store has none."""
    query = f"source_run_id = '{run.info.run_id}'"
    found: list[LoggedModel] = []
    with optional("logged models", []):
        found += store.client.search_logged_models([store.experiment_id], query)
    return found


def _add_model(store: Store, run: Run, results: Results, left_out: list[str]) -> str | None:
    """Log the model, or complete the one that was begun; return its id.

    None if the store has no logged models: it is then among the artifacts of the run.
    """
    client, run_id = store.client, run.info.run_id
    models = _models_of(store, run)
    params = {key: str(value) for key, value in results.params.model_dump().items()}
    tags = {"model.sha256": results.model_sha256}
    about = (store.experiment_id, "vae", run_id, tags, params, "VAE")
    with optional("logged models", left_out):
        models = models or [client.create_logged_model(*about)]
    with tempfile.TemporaryDirectory() as scratch:
        saved = str(_save_model(results, Path(scratch)))
        if not models:
            client.log_artifacts(run_id, saved, PLAIN_MODEL)
            return None
        model = models[0]
        client.log_model_artifacts(model.model_id, saved)
    if model.status != LoggedModelStatus.READY:
        output = entities.LoggedModelOutput(model.model_id, len(results.history))
        client.log_outputs(run_id, [output])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _save_model(results: Results, scratch: Path) -> Path:
    """Save the model from code: the safetensors file, served_model.py, its imports; no pickle."""
    package = results.code / "pipeline"
    for file in modules(package):
        name = file.relative_to(results.code)
        if name.parts[1] not in NOT_SERVED:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, scratch / name)
    # Copied, because MLflow writes down the path that it is given.
    shutil.copy(package / "tracking" / "served_model.py", scratch)
    mlflow.pyfunc.save_model(
        scratch / "model",
        python_model=str(scratch / "served_model.py"),
        artifacts={"vae": str(results.folder / MODEL)},
        code_paths=[str(scratch / "pipeline")],
        signature=ModelSignature(
            # z or x, by the task; the output has the task's shape
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
            params=ParamSchema(
                [ParamSpec("task", "string", "generate"), ParamSpec("label", "long", -1)]
            ),
        ),
        input_example=np.zeros((2, results.params.z_dim), np.float32),
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIRED],
    )
    return scratch / "model"
