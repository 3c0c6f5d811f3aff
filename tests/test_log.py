"""The `log` stage against a real MLflow store, read back through its client."""

import csv
import hashlib
import socket
import time
from pathlib import Path

import pytest
from conftest import set_params
from mlflow import MlflowClient

from pipeline import evaluate, log, train
from pipeline.params import load_params


@pytest.fixture
def finished(workplace):
    train.main()
    evaluate.main()
    return workplace


def runs(root: Path):
    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mnist-vae")
    return client, client.search_runs([experiment.experiment_id])


def test_a_run_holds_what_the_files_say(finished, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(finished / "elsewhere"))
    (finished / "elsewhere").mkdir()
    monkeypatch.setenv("DVC_EXP_NAME", "tidy-vole")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    log.main()
    client, (run,) = runs(finished / "elsewhere")

    assert run.info.status == "FINISHED" and run.info.run_name == "tidy-vole"
    assert run.data.params == {key: str(value) for key, value in load_params().model_dump().items()}
    assert run.data.tags["dvc.exp_name"] == "tidy-vole" and run.data.tags["mlflow.source.git.commit"] == "0" * 40
    assert run.data.tags["dvc.restore"] == "dvc exp apply tidy-vole" and run.data.tags["dvc.baseline"] == "0" * 40
    assert run.data.tags["model.sha256"] == hashlib.sha256(Path("data/model/vae.safetensors").read_bytes()).hexdigest()
    with Path("reports/history.csv").open(encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    for name in [name for name in history[0] if name != "epoch"]:
        points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        assert sorted(points) == [(int(row["epoch"]), float(row[name])) for row in history]
    assert {"test/neg_elbo", "test/recon", "test/kl", "test/mse", "test/num_images"} <= set(run.data.metrics)

    # On disk, under the root that DVC names, byte for byte.
    artifacts = finished / "elsewhere" / "mlartifacts" / run.info.run_id / "artifacts"
    for path in ("data/model/vae.safetensors", "reports/metrics.json", "reports/generated.png"):
        copy = artifacts / ("model" if "model" in path else "reports") / Path(path).name
        assert copy.read_bytes() == Path(path).read_bytes()
    shown = sorted(path.name.split("+timestamp")[0] for path in (artifacts / "images").glob("*.png"))
    steps = [("samples", 0), ("samples", 2), ("samples", 3), ("test", 0)]
    assert shown == sorted(f"{of}~{key}+step+{step}" for of, step in steps for key in ("generated", "reconstructed"))


def test_without_an_experiment_the_name_says_the_configuration(finished, capsys):
    log.main()
    _, (run,) = runs(finished)
    assert run.info.run_name == "z4-h32x1-relu-e3-s0" and "dvc.exp_name" not in run.data.tags
    assert f"log: MLflow run z4-h32x1-relu-e3-s0 ({run.info.run_id})" in capsys.readouterr().out


def test_no_path_or_host_of_this_machine_stands_in_a_tag(finished):
    log.main()
    _, (run,) = runs(finished)
    tags = " ".join(run.data.tags.values())
    assert str(Path.home()) not in tags and str(finished) not in tags and socket.gethostname() not in tags


def test_a_server_that_is_away_costs_seconds_and_no_result_and_no_password_is_told(finished, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:s3cr3t@127.0.0.1:{port}")
    start = time.monotonic()
    log.main()
    assert time.monotonic() - start < 30
    told = capsys.readouterr()
    assert told.out == "" and "s3cr3t" not in told.err
    first, second = told.err.splitlines()
    assert first.startswith("log: NOT in MLflow: ") and second.endswith("dvc repro -f -s log")
    assert Path("data/logged").exists(), "DVC would discard the experiment"


def test_a_run_that_could_not_be_filled_is_marked_failed(finished, capsys):
    """A picture that is none: found while the run is being written."""
    Path("reports/samples/generated-epoch-0002.png").write_bytes(b"no picture")
    log.main()
    assert "log: NOT in MLflow: cannot identify image file" in capsys.readouterr().err
    _, (run,) = runs(finished)
    assert run.info.status == "FAILED"


def test_without_validation_there_are_no_validation_points(workplace):
    set_params(workplace, {"val_size": 0})
    train.main()
    evaluate.main()
    log.main()
    _, (run,) = runs(workplace)
    assert {name.split("/")[0] for name in run.data.metrics} == {"train", "test"}
