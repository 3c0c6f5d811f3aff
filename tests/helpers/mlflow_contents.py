"""What a store holds, read back through MLflow's client and held against the files."""

import csv
import hashlib
import io
import json
import math
import re
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from helpers.repo import Repo

TABLES = ("history.csv", "metrics.json")
FIGURES = ("bound", "interpolations", "kl_per_dimension", "posterior_means", "traversals")


def points(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    """Every point of a run but the system's, doubled ones included."""
    keys = [key for key in run.data.metrics if not key.startswith("system/")]
    found = {key: client.get_metric_history(run.info.run_id, key) for key in keys}
    return {key: sorted((point.step, point.value) for point in history) for key, history in found.items()}


def expected_points(history: str, metrics: str) -> dict[str, list[tuple[int, float]]]:
    """The points that history.csv and metrics.json hold; standard errors stay in the file."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in csv.DictReader(io.StringIO(history)):
        for key, value in row.items():
            if key != "epoch" and not math.isnan(float(value)):
                found.setdefault(key, []).append((int(row["epoch"]), float(value)))
    test = json.loads(metrics)["test"]
    return found | {f"test/{name}": [(0, float(value))] for name, value in test.items() if not name.endswith("_se")}


def artifacts(client: MlflowClient, run: Run, path: str | None = None) -> list[str]:
    """The paths of a run's artifacts, folders opened."""
    found = client.list_artifacts(run.info.run_id, path)
    return [name for item in found for name in (artifacts(client, run, item.path) if item.is_dir else [item.path])]


def models(client: MlflowClient, run: Run) -> list:
    return client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")


def assert_whole(repo: Repo, run: Run, revision: str) -> None:
    """The run holds what the files of that revision say: all of it, once, and a model that loads and generates."""
    client = repo.store()
    at = lambda path: repo.run("git", "show", f"{revision}:{path}")  # noqa: E731
    assert run.info.status == "FINISHED"
    assert points(client, run) == expected_points(*(at(f"reports/{name}") for name in TABLES))
    assert run.data.tags["judge.sha256"] == json.loads(at("reports/judge.json"))["judge"]["sha256"]
    params = dict(re.findall(r"^(\w+): *([^ #\n]+)", at("params.yaml"), flags=re.MULTILINE))
    assert run.data.params == {key: str(float(v)) if key == "learning_rate" else v for key, v in params.items()}
    assert {tag.tags[0].value: json.loads(tag.dataset.profile)["num_rows"] for tag in run.inputs.dataset_inputs} == {
        "training": 500, "validation": 100, "test": 200,
    }  # fmt: skip

    named = artifacts(client, run)
    pictures = [re.match(r"images/(.+)\+step\+(\d+)\+.*?(\+compressed\.webp|\.png)$", name) for name in named]
    shown = sorted((match[1].replace("~", "/"), int(match[2]), match[3]) for match in pictures if match)
    files = repo.run("git", "ls-tree", "-r", "--name-only", revision, "reports/samples/").split()
    steps = [re.fullmatch(r"reports/samples/(.+)-epoch-0*(\d+)\.png", name) for name in files]
    keys = [(f"samples/{match[1]}", int(match[2])) for match in steps]
    keys += [("test/generated", 0), ("test/reconstructed", 0), *((f"figures/{name}", 0) for name in FIGURES)]
    keys += [("figures/manifold", 0)] if params["z_dim"] == "2" else []
    assert shown == sorted((*key, form) for key in keys for form in (".png", "+compressed.webp"))
    assert "reports/per_image.parquet" in named
    for name in (*TABLES, "judge.json", "bound.csv", "classes.csv", "kl_per_dimension.csv"):
        content = Path(
            download_artifacts(run_id=run.info.run_id, artifact_path=f"reports/{name}", tracking_uri=uri(client))
        )
        assert content.read_text() == at(f"reports/{name}")
    if run.info.artifact_uri.startswith("file:"):
        assert run.info.artifact_uri.startswith((repo.root / "mlartifacts").as_uri())

    (model,) = models(client, run)
    assert model.status == "READY" and [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert {metric.key for metric in model.metrics} >= {"test/neg_elbo"}
    mlflow.set_tracking_uri(uri(client))
    images = mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(
        np.zeros((16, int(params["z_dim"])), np.float32)
    )
    assert images.shape == (16, 784) and 0 <= images.min() < images.max() <= 1


def uri(client: MlflowClient) -> str:
    return client.tracking_uri


def dump(client: MlflowClient) -> list[object]:
    """All that a store says, without the names and times that it draws itself: equal for equal stores."""
    experiment = client.get_experiment_by_name("mnist-vae")
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        root = Path(download_artifacts(run_id=run.info.run_id, artifact_path="", tracking_uri=uri(client)))
        files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
        found.append({
            "name": run.info.run_name, "status": run.info.status, "tags": run.data.tags, "params": run.data.params,
            "time": (run.info.start_time, run.info.end_time),
            "points": points(client, run),
            "inputs": sorted((item.dataset.digest, item.tags[0].value) for item in run.inputs.dataset_inputs),
            "artifacts": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
            "models": [
                (model.name, str(model.status), model.params, sorted((m.key, m.value) for m in model.metrics or []))
                for model in models(client, run)
            ],
            "outputs": len(run.outputs.model_outputs if run.outputs else []),
        })  # fmt: skip
    return sorted(found, key=lambda run: (run["name"], json.dumps(run["tags"], sort_keys=True)))
