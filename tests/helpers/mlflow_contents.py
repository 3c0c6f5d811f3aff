"""What an MLflow store contains, read back through MLflow's client and compared with the files."""

import io
import json
import re
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from helpers.repo import Repo
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run

from pipeline.params import parse_yaml

RANDOM = re.compile(r"timestamp\+\d+\+[0-9a-f-]{36}")  # in the name of a logged image


def client_of(root: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


def runs_of(client: MlflowClient, name: str = "mnist-vae") -> list[Run]:
    experiment = client.get_experiment_by_name(name)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def points(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    """Every point of a run, also one that is there twice; system metrics aside."""
    found = {}
    for key in run.data.metrics:
        if not key.startswith("system/"):
            history = client.get_metric_history(run.info.run_id, key)
            found[key] = sorted((point.step, point.value) for point in history)
    return found


def expected_points(history: str, evaluation: str) -> dict[str, list[tuple[int, float]]]:
    """The points that history.csv and evaluation.json have; standard errors are not logged."""
    table = pd.read_csv(io.StringIO(history), dtype=str).astype(float).set_index("epoch")
    columns = table.dropna(axis="columns").items()
    metrics = json.loads(evaluation)["test"].items()
    test = {f"test/{name}": [(0, value)] for name, value in metrics if not name.endswith("_se")}
    return {key: list(column.items()) for key, column in columns} | test


def files_of(client: MlflowClient, run: Run) -> dict[str, bytes]:
    """The artifacts of a run; what MLflow draws at random in names is left out."""
    root = Path(download_artifacts(run_id=run.info.run_id, tracking_uri=client.tracking_uri))
    files = [path for path in root.rglob("*") if path.is_file()]
    found = [(RANDOM.sub("", str(path.relative_to(root))), path.read_bytes()) for path in files]
    assert len(dict(found)) == len(found), "an artifact is there twice"
    return dict(found)


def only_run(root: Path) -> tuple[MlflowClient, Run]:
    """The store in a folder, and its only run."""
    (run,) = runs_of(client := client_of(root))
    return client, run


def models_of(client: MlflowClient, run: Run) -> list:
    query = f"source_run_id = '{run.info.run_id}'"
    return list(client.search_logged_models([run.info.experiment_id], query))


def assert_whole(repo: Repo, run: Run, revision: str) -> None:
    """The run has what the files of that revision contain, once, and a model that generates."""
    listed = repo.run("git", "ls-tree", "-r", "--name-only", revision, "reports/").split()
    reports = {name for name in listed if not name.endswith(".gitignore")}
    texts = {
        name: repo.run("git", "show", f"{revision}:{name}")
        for name in reports | {"params.yaml"}
        if name.endswith((".csv", ".json", ".yaml"))
    }
    client = repo.store()
    files = files_of(client, run)
    assert run.info.status == "FINISHED"
    assert_values(client, run, texts)
    assert_reports(files, reports, texts)
    assert_pictures(files, reports)
    assert_model(client, run)
    if run.info.artifact_uri.startswith("file:"):
        assert run.info.artifact_uri.startswith((repo.root / "mlartifacts").as_uri())


def assert_values(client: MlflowClient, run: Run, texts: dict[str, str]) -> None:
    """Metrics, parameters and the classifier are those of the files; every split is an input."""
    expected = expected_points(texts["reports/history.csv"], texts["reports/evaluation.json"])
    assert points(client, run) == expected
    params = parse_yaml(texts["params.yaml"], "params.yaml")
    assert run.data.params == {key: str(value) for key, value in params.items()}
    classifier = json.loads(texts["reports/classifier.json"])["classifier"]
    assert run.data.tags["classifier.sha256"] == classifier["sha256"]
    inputs = run.inputs.dataset_inputs
    rows = {each.tags[0].value: json.loads(each.dataset.profile)["num_rows"] for each in inputs}
    assert rows == {"training": 500, "validation": 100, "test": 200}


def assert_reports(files: dict[str, bytes], reports: set[str], texts: dict[str, str]) -> None:
    """All committed reports, and the values per image, which only DVC keeps."""
    logged = {name for name in files if name.startswith("reports/")}
    assert logged == reports | {"reports/per_image.parquet"}
    for name in reports & texts.keys():
        assert files[name].decode() == texts[name]


def assert_pictures(files: dict[str, bytes], reports: set[str]) -> None:
    """The images that MLflow shows, each as it is and compressed."""
    samples = [re.fullmatch(r"reports/samples/(.+)-epoch-0*(\d+)\.png", name) for name in reports]
    shown = {f"view~training-{match[1]}+step+{match[2]}" for match in samples if match}
    shown |= {"view~generated+step+0", "view~reconstructed+step+0"}
    forms = {f"images/{name}+{form}" for name in shown for form in (".png", "+compressed.webp")}
    assert {name for name in files if name.startswith("images/")} == forms


def assert_model(client: MlflowClient, run: Run) -> None:
    """The run has one model with the test metrics, and it generates images."""
    (model,) = models_of(client, run)
    assert model.status == "READY"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert {metric.key for metric in model.metrics} >= {"test/neg_elbo"}
    mlflow.set_tracking_uri(client.tracking_uri)
    vae = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    images = vae.predict(np.zeros((16, int(run.data.params["z_dim"])), np.float32))
    assert images.shape == (16, 784) and 0 <= images.min() < images.max() <= 1


def dump(client: MlflowClient) -> list[object]:
    """Everything in a store: equal as long as it has the same contents."""
    found = []
    for run in runs_of(client):
        models = [
            (model.model_id, str(model.status), model.params, sorted(map(str, model.metrics)))
            for model in models_of(client, run)
        ]
        found.append((run.to_dictionary(), points(client, run), files_of(client, run), models))
    return found
