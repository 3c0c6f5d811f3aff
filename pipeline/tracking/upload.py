"""What a run holds: the files of an execution, written into MLflow so that it can be done again.

Points carry timestamps, pictures and artifacts carry names that are functions of what they show: writing them a
second time, after a kill or beside another writer, replaces them and doubles nothing.
"""

import json
import logging
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
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
    RunTag,
)
from mlflow.models import Model, ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.multimedia import compress_image_size
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from PIL import Image

from pipeline.tracking.results import (
    FIGURES,
    GENERATED,
    MODEL,
    RECONSTRUCTED,
    REPORTS,
    SAMPLES,
    Execution,
    Picture,
    Record,
    Split,
)
from pipeline.tracking.client import Store, told

BATCH = 1000  # metrics that MLflow takes in one call
SYSTEM_INTERVAL = 10.0  # seconds between two system metrics: a training that is shorter has none
CODE = Path(__file__).parents[1]
REQUIRED = ("mlflow", "numpy", "safetensors", "torch")
SERVED = ("__init__.py", "errors.py", "model")
DIFF = "git.diff"
FORMS = (".png", "+compressed.webp")  # the two files of a picture, as they end


class Follower:
    """A run that is told of a training as it goes on: nothing that it holds is sent again."""

    def __init__(self, store: Store, run: Run) -> None:
        self.store, self.run = store, run
        self.points = _held(store.client, run, run.data.metrics)
        self.pictures: set[Picture] = set()
        # Where the store goes away, that is told once, and not of each kind of thing that it misses.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
        self.monitor = SystemMetricsMonitor(
            run.info.run_id, sampling_interval=SYSTEM_INTERVAL, resume_logging=True, tracking_uri=store.uri
        )
        self.monitor.start()

    @told()
    def follow(self, seen: Sequence[tuple[int, Record]], pictures: Sequence[Picture]) -> None:
        """Send what is new, the points in one call: each record with the time (ms) at which it was seen first.

        After a StoreError it may be called with the same again: what did arrive is not doubled.
        """
        points = _points([record for _, record in seen], [at for at, _ in seen])
        _send(self.store.client, self.run, [point for point in points if (point.key, point.step) not in self.points])
        if new := [picture for picture in pictures if picture not in self.pictures]:
            _send_pictures(self.store.client, self.run, new)
            self.pictures |= set(new)


@told()
def is_whole(store: Store, run: Run) -> bool:
    """Whether a run has been completed, and its artifacts are still where the store says, by their names.

    A figure of which both files are gone is not missed: no run says which figures it had.
    """
    client, run_id = store.client, run.info.run_id
    model = _model_of(store, run)
    if run.info.status != "FINISHED" or model is None:
        return False
    files = {f"reports/{path.name}" for path in REPORTS}
    if run.data.tags.get("git.dirty") == "true":
        files.add(DIFF)
    model_files = {"MLmodel", "served_model.py", "code", f"artifacts/{MODEL.name}"}
    held = {entry.path for folder in (None, "reports") for entry in client.list_artifacts(run_id, folder)}
    pictures = {entry.path for entry in client.list_artifacts(run_id, "images")}
    kept = {
        entry.path
        for folder in (None, "artifacts")
        for entry in client.list_logged_model_artifacts(model.model_id, folder)
    }
    return files <= held and model_files <= kept and _are_whole(pictures, run)


def _are_whole(pictures: set[str], run: Run) -> bool:
    """Whether all that is shown has both of its files, and `test` and every epoch that has samples are shown."""
    every, last = (int(run.data.params[key]) for key in ("sample_every", "num_epochs"))
    steps = [("test", 0), *(("samples", step) for step in {0, last, *range(0, last, every)})]
    due = {f"images/{of}~{path.stem}+step+{step}" for of, step in steps for path in (GENERATED, RECONSTRUCTED)}
    full, small = ({name.removesuffix(form) for name in pictures if name.endswith(form)} for form in FORMS)
    shown, whole = ({stem.split("+timestamp+")[0] for stem in stems} for stems in (full | small, full & small))
    return due | shown <= whole


@told()
def send_params(store: Store, run: Run, params: Mapping[str, object]) -> None:
    """Add parameters; those that are there may be there with the same value only."""
    store.client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in params.items()])


@told()
def fill(store: Store, run: Run, execution: Execution, tags: Mapping[str, str], diff: bytes) -> None:
    """Make `run` hold all of `execution`: what is missing is added, what is there is left or replaced by the same."""
    client, run_id = store.client, run.info.run_id
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    send_params(store, run, execution.params.model_dump())
    held = _held(client, run, {key for record in execution.history for key in record})
    # Where the training was not followed nobody knows its times: any will do, as long as they are always the same.
    points = _points(execution.history, [run.info.start_time + int(record["epoch"]) for record in execution.history])
    _send(client, run, [point for point in points if (point.key, point.step) not in held])
    client.log_inputs(run_id, [_dataset(split, execution.params.dataset) for split in execution.splits])
    _send_pictures(client, run, execution.pictures)
    for path in execution.reports:
        client.log_artifact(run_id, str(path), "reports")
    if diff:
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch, DIFF).write_bytes(diff)
            client.log_artifact(run_id, str(Path(scratch, DIFF)))
    model = _send_model(store, run, execution)
    at = run.info.start_time + len(execution.history)
    test = next(split for split in execution.splits if split.context == "test")
    _send(client, run, [
        Metric(key, value, at, 0, model.model_id, execution.params.dataset, _digest(test))
        for key, value in execution.metrics.items()
        if not key.endswith("_se")  # a chart each in the UI, beside that of the mean; they are in reports/metrics.json
    ])  # fmt: skip


@told()
def download(store: Store, run: Run, folder: Path) -> bytes:
    """Lay the results that a run holds into `folder`, under the paths that stages give them; its diff."""
    client, run_id = store.client, run.info.run_id
    model = _model_of(store, run)
    for path in ((folder / MODEL).parent, folder / SAMPLES, folder / FIGURES):
        path.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "model").mkdir()
        names = {entry.path for entry in client.list_artifacts(run_id)}
        for name in names & {"reports", "images", DIFF}:
            client.download_artifacts(run_id, name, scratch)
        for path in Path(scratch, "reports").glob("*"):
            shutil.copy(path, folder / "reports" / path.name)
        for path in Path(scratch, "images").glob("samples~*.png"):
            kind, step = path.name.removeprefix("samples~").split("+")[:3:2]
            shutil.copy(path, folder / SAMPLES / f"{kind}-epoch-{int(step):04d}.png")
        for path in Path(scratch, "images").glob("figures~*.png"):
            name = path.name.removeprefix("figures~").split("+")[0]
            shutil.copy(path, folder / FIGURES / f"{name}.png")
        if model is not None:
            kept = mlflow.artifacts.download_artifacts(
                f"models:/{model.model_id}", dst_path=f"{scratch}/model", tracking_uri=store.uri
            )
            shutil.copy(Path(kept, "artifacts", MODEL.name), folder / MODEL)
        diff = Path(scratch, DIFF)
        return diff.read_bytes() if diff.exists() else b""


def _held(client: MlflowClient, run: Run, keys: Iterable[str]) -> set[tuple[str, int]]:
    """The (key, step) of every point that a run has."""
    there = [key for key in keys if key in run.data.metrics]
    return {(point.key, point.step) for key in there for point in client.get_metric_history(run.info.run_id, key)}


def _points(records: Sequence[Record], times: Sequence[int]) -> list[Metric]:
    return [
        Metric(key, value, at, int(record["epoch"]))
        for record, at in zip(records, times, strict=True)
        for key, value in record.items()
        if key != "epoch"
    ]


def _send(client: MlflowClient, run: Run, points: Sequence[Metric]) -> None:
    for start in range(0, len(points), BATCH):
        client.log_batch(run.info.run_id, metrics=points[start : start + BATCH])


def _send_pictures(client: MlflowClient, run: Run, pictures: Sequence[Picture]) -> None:
    """What `MlflowClient.log_image` sends for each picture, under names that stay the same when it is sent again.

    log_image draws a new name every time, and a kill between its two files leaves one that cannot be told from whole.
    """
    with tempfile.TemporaryDirectory() as folder:
        for key, step, path in pictures:
            content = path.read_bytes()
            name = uuid.uuid5(uuid.NAMESPACE_OID, content.hex())
            stem = f"{key.replace('/', '~')}+step+{step}+timestamp+{run.info.start_time + step}+{name}"
            full, small = (Path(folder, stem + form) for form in FORMS)
            full.write_bytes(content)
            with Image.open(path) as image:
                compress_image_size(image).save(small)
        client.log_artifacts(run.info.run_id, folder, "images")
    client.set_tag(run.info.run_id, "mlflow.loggedImages", True)


def _digest(split: Split) -> str:
    return split.sha256[:32]  # MLflow takes 36 characters


def _dataset(split: Split, name: str) -> DatasetInput:
    """A split as an input of the run: its digest, how many images it has, and what it was used for."""
    spec = [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, 784]}}]
    dataset = Dataset(
        name=name,
        digest=_digest(split),
        source_type="local",
        source=json.dumps({"uri": "data/raw"}),
        schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps(spec)}}),
        profile=json.dumps({"num_rows": split.num_images, "sha256": split.sha256}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", split.context)])


def _model_of(store: Store, run: Run) -> LoggedModel | None:
    """The finished model of a run, or else one that has been begun."""
    found = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return min(
        found, key=lambda model: (model.status != LoggedModelStatus.READY, model.creation_timestamp), default=None
    )


def _send_model(store: Store, run: Run, execution: Execution) -> LoggedModel:
    """The model as a LoggedModel from code: the safetensors file, served.py and the core, and no pickle."""
    client, run_id = store.client, run.info.run_id
    model = _model_of(store, run)
    if model is None:
        params = {key: str(value) for key, value in execution.params.model_dump().items()}
        tags = {"fingerprint": execution.fingerprint, "model.sha256": execution.model_sha256}
        model = client.create_logged_model(store.experiment_id, "vae", run_id, tags, params, model_type="VAE")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "pipeline")
        for name in SERVED:
            _copy(CODE / name, package / name)
        mlflow.pyfunc.save_model(
            Path(folder, "model"),
            mlflow_model=Model(artifact_path="vae", run_id=run_id, model_uuid=model.model_id, model_id=model.model_id),
            python_model=str(CODE / "tracking" / "served_model.py"),
            artifacts={"vae": str(execution.model)},
            code_paths=[str(package)],
            signature=ModelSignature(
                # z or x, by the task; what comes out has the task's shape
                inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
                params=ParamSchema([ParamSpec("task", "string", "generate")]),
            ),
            input_example=np.zeros((2, execution.params.z_dim), np.float32),
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIRED],
        )
        # MLflow writes down where the code lay on this machine; it looks for the name alone.
        saved = Model.load(Path(folder, "model"))
        saved.flavors["python_function"]["model_code_path"] = "served_model.py"
        saved.save(Path(folder, "model", "MLmodel"))
        client.log_model_artifacts(model.model_id, str(Path(folder, "model")))
    if model.status != LoggedModelStatus.READY:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = client.get_run(run_id).outputs
    if not outputs or model.model_id not in [output.model_id for output in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, len(execution.history))])
    return model


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(path, to)
