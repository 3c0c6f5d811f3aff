"""The `log` stage against a real MLflow store, read back through its client."""

import csv
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, set_params
from helpers.mlflow_contents import FIGURES, TABLES, artifacts, dump, expected_points, points
from filelock import FileLock
from mlflow import MlflowClient
from PIL import Image
from helpers.servers import certificate, free_port, mlflow_server

from pipeline import evaluate, judge, log, train
from pipeline.tracking.run_note import restore
from pipeline.errors import InputError
from pipeline.tracking.results import read_execution
from pipeline.runtime.pending_run import Claim
from pipeline.params import load_params
from pipeline.runtime.git import Source
from pipeline.tracking.client import experiments_of


@pytest.fixture
def finished(workplace):
    train.main()
    judge.main()
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
    for path in ("reports/metrics.json", "reports/generated.png"):
        assert (artifacts / path).read_bytes() == Path(path).read_bytes()
    (model,) = client.search_logged_models([run.info.experiment_id])
    folder = finished / "elsewhere" / "mlartifacts" / "models" / model.model_id / "artifacts" / "artifacts"
    assert (folder / "vae.safetensors").read_bytes() == Path("data/model/vae.safetensors").read_bytes()
    shown = sorted(path.name.split("+timestamp")[0] for path in (artifacts / "images").glob("*.png"))
    steps = [("samples", 0), ("samples", 2), ("samples", 3), ("test", 0)]
    keys = [f"{of}~{key}+step+{step}" for of, step in steps for key in ("generated", "reconstructed")]
    assert shown == sorted([*keys, *(f"figures~{name}+step+0" for name in FIGURES)])


def test_without_an_experiment_the_name_says_the_configuration(finished, capsys):
    log.main()
    _, (run,) = runs(finished)
    assert run.info.run_name == "z4-h32x1-relu-lr0.001-e3-s0" and "dvc.exp_name" not in run.data.tags
    assert f"log: MLflow run z4-h32x1-relu-lr0.001-e3-s0 ({run.info.run_id})" in capsys.readouterr().out


def test_no_path_or_host_of_this_machine_stands_in_a_tag(finished):
    log.main()
    _, (run,) = runs(finished)
    tags = " ".join(run.data.tags.values())
    assert str(Path.home()) not in tags and str(finished) not in tags and socket.gethostname() not in tags


@pytest.mark.parametrize("uri", [
    "http://somebody:s3cr3t@127.0.0.1:{port}", "http://somebody:s3cr3t@127.0.0.1:port", "postgresql://a:s3cr3t@127.0.0.1:{port}/b",
    "postgresql://a:s3cr3t@127.0.0.1:s3cr3t/b", "sqlite:///missing-s3cr3t/folder.db", "nothing://s3cr3t", "s3cr3t://a:s3cr3t@b",
])  # fmt: skip
def test_a_store_that_cannot_be_used_is_one_line_without_an_address_and_costs_no_result(
    finished, monkeypatch, capsys, uri
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=free_port()))
    start = time.monotonic()
    log.main()
    assert time.monotonic() - start < 60
    told = capsys.readouterr()
    assert told.out == "" and "s3cr3t" not in told.err
    first, second = told.err.splitlines()
    assert first.startswith("log: NOT in MLflow: ") and second.endswith("python -m pipeline.stages.log --all")
    assert Path("data/logged").exists(), "DVC would discard the experiment"


def test_relative_sqlite_lies_under_the_root_and_the_experiment_has_the_name_that_is_asked_for(finished, monkeypatch):
    root = finished / "root"
    root.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///team.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "my team's")
    log.main()
    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'team.db'}")
    experiment = client.get_experiment_by_name("my team's")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.artifact_uri.startswith((root / "mlartifacts").as_uri())
    assert not Path("team.db").exists() and not (root / "mlflow.db").exists()


def test_a_password_in_the_address_of_a_server_that_works_is_written_nowhere(finished, monkeypatch, capfd):
    with mlflow_server(finished) as (address, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("http://", "http://somebody:s3cr3t@"))
        log.main()
    assert "log: MLflow run" in capfd.readouterr().out
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert any("served" in path.parts for path in files)
    assert not [path for path in files if b"s3cr3t" in path.read_bytes()]


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_server_that_asks_for_a_certificate_gets_the_run(finished, monkeypatch, capsys):
    """Its own is signed by nobody whom this machine trusts, and it talks to nobody who shows none."""
    pem = certificate(finished / "server.pem")
    with mlflow_server(finished, pem=pem) as (address, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        log.main()
        first, _ = capsys.readouterr().err.splitlines()
        assert first.startswith("log: NOT in MLflow: TLS with the server ") and "127.0.0.1" not in first
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(pem))
        log.main()
        first, _ = capsys.readouterr().err.splitlines()
        assert first.startswith("log: NOT in MLflow: ") and "MLFLOW_TRACKING_CLIENT_CERT_PATH" in first
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(pem))
        log.main()
        assert "log: MLflow run z4-" in capsys.readouterr().out
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        log.main()
        assert "has it already" in capsys.readouterr().out


@pytest.mark.parametrize("uri", [None, "sqlite:///team.db"])
def test_an_experiment_that_was_deleted_in_mlflow_is_told_with_the_command_that_restores_it(
    finished, monkeypatch, capsys, uri
):
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    log.main()
    client = MlflowClient(tracking_uri=f"sqlite:///{finished}/{'team' if uri else 'mlflow'}.db")
    before = dump(client)
    client.delete_experiment(client.get_experiment_by_name("mnist-vae").experiment_id)
    capsys.readouterr()
    log.main()
    first, _ = capsys.readouterr().err.splitlines()
    with pytest.raises(InputError) as told:
        log.log_all(finished)
    assert str(told.value) == first and first.startswith("log: NOT in MLflow: the experiment mnist-vae was deleted")

    command = first.rpartition(": ")[2]
    assert command.removeprefix("MLFLOW_TRACKING_URI=sqlite:///mlflow.db ") == (
        "mlflow experiments restore --experiment-id 1"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", command], env={**os.environ, "PATH": path}, check=True, capture_output=True)
    log.main()
    assert "has it already" in capsys.readouterr().out and dump(client) == before


def test_logging_again_changes_nothing_and_what_is_missing_is_added(finished, capsys):
    log.main()
    client, _ = runs(finished)
    before = dump(client)
    log.main()
    assert "has it already" in capsys.readouterr().out and dump(client) == before
    for path in (finished / "mlartifacts").iterdir():
        shutil.rmtree(path)
    log.main()
    assert dump(client) == before


def test_other_results_of_the_same_training_are_another_run(finished):
    """As after a change of evaluate.py: the first run says what it said."""
    log.main()
    metrics = Path("reports/metrics.json")
    metrics.write_text(metrics.read_text().replace('"mse": 0.', '"mse": 1.'))
    log.main()
    _, found = runs(finished)
    assert len({run.data.tags["fingerprint"] for run in found}) == 1
    assert len({run.data.metrics["test/mse"] for run in found}) == 2


def test_a_picture_has_the_name_that_log_image_gives_it(finished):
    """The UI finds pictures by their names, which differ in what MLflow draws at random and by the clock."""
    log.main()
    client, (run,) = runs(finished)
    with Image.open("reports/samples/generated-epoch-0002.png") as image:
        client.log_image(run.info.run_id, image, key="samples/generated", step=2)
    names = [name for name in artifacts(client, run) if name.startswith("images/samples~generated+step+2+")]
    forms = {re.sub(r"timestamp\+\d+\+[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "…", name) for name in names}
    assert len(names) == 4 and len(forms) == 2


def test_four_at_once_on_an_empty_store_make_one_run_of_the_same_results(finished):
    """Nobody crashes in the making of the tables, and nobody who finds no run makes a second one."""
    shutil.rmtree(".dvc")  # without the claim: as if the results came out of the run-cache
    names = {"first", "second", "third", "fourth"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.stages.log"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "DVC_EXP_NAME": name, "DVC_EXP_BASELINE_REV": "0" * 40},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in names
    ]  # fmt: skip
    for process in processes:
        said, _ = process.communicate()
        assert process.returncode == 0 and "NOT in MLflow" not in said, said
    client, (run,) = runs(finished)
    assert set(experiments_of(run)) == names
    assert points(client, run) == expected_points(*(Path(f"reports/{name}").read_text() for name in TABLES))


def test_a_run_that_a_training_is_writing_is_left_alone(finished, monkeypatch, capsys):
    monkeypatch.setattr(log, "WAIT", 0.1)
    claim = Claim.path(finished, "", read_execution().fingerprint)
    with FileLock(claim.with_suffix(".lock")):
        log.main()
    assert "log: NOT in MLflow: it is being trained once more just now" in capsys.readouterr().err
    assert runs(finished)[1] == []


def test_params_that_the_model_was_not_trained_with_are_refused(finished):
    set_params(finished, {"z_dim": 5})
    with pytest.raises(InputError, match=r"was trained with z_dim: 4, params.yaml has another"):
        log.main()


def test_without_validation_there_are_no_validation_points(workplace):
    set_params(workplace, {"val_size": 0})
    train.main()
    judge.main()
    evaluate.main()
    log.main()
    _, (run,) = runs(workplace)
    assert {name.split("/")[0] for name in run.data.metrics} == {"train", "test"}


def test_a_name_from_outside_is_quoted_in_the_command_that_restores():
    assert restore(Source("a;id", "0" * 40, "")) == "dvc exp apply 'a;id'"
