"""The logged model as somebody else has it: in a process that knows nothing of the project, and from a server."""

import io
import json
import os
import pickle
import pickletools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import requests
import torch
from conftest import furnish
from mlflow import MlflowClient
from mlflow.models import Model
from helpers.servers import free_port, kill_group, wait_for

from pipeline import evaluate, judge, log, train
from pipeline.model.vae import VAE, load_model

Z_DIM = 4
Z = np.random.default_rng(0).standard_normal((16, Z_DIM), np.float32)
X = np.random.default_rng(1).random((16, 784), np.float32)
BAD = {
    "z: must be [n, 4] to generate (got [16, 784])": (X, "generate"),
    "z: must be finite": (np.full_like(Z, np.nan), "generate"),
    "x: must be [n, 784] to encode (got [16, 4])": (Z, "encode"),
    "x: must be [n, 784] to reconstruct (got [16, 4])": (Z, "reconstruct"),
    "x: must be in [0, 1]: divide bytes by 255": (255 * X, "encode"),
    "task: must be one of generate, encode, reconstruct (got 'dream')": (Z, "dream"),
}
# What a person who was given no more than a model's id does with it.
STRANGER = """
import importlib.util, pickle, sys
assert importlib.util.find_spec("pipeline") is None, "the project is here"

import mlflow

vae = mlflow.pyfunc.load_model(sys.argv[1])

def ask(given, task):
    try:
        return vae.predict(given, params={"task": task})
    except mlflow.MlflowException as error:
        return str(error)

asked = pickle.load(sys.stdin.buffer)
answers = [vae.predict(asked[0][0]), vae.predict(vae.input_example), *(ask(*question) for question in asked)]
sys.stdout.buffer.write(pickle.dumps((sys.modules["pipeline"].__file__, answers)))
"""


class Logged(NamedTuple):
    """A model in a store, the environment in which it is found, and the same model from its file."""

    model_id: str
    folder: Path
    environment: dict[str, str]
    vae: VAE


@pytest.fixture(scope="module")
def logged(tmp_path_factory, small_mnist) -> Logged:
    root = tmp_path_factory.mktemp("logged")
    furnish(root, small_mnist, z_dim=Z_DIM)
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "PYTHON"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name in os.environ.keys() - keep.keys():
            patch.delenv(name)
        train.main()
        judge.main()
        evaluate.main()
        log.stage()
    store = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=store)
    (model,) = client.search_logged_models([client.get_experiment_by_name("mnist-vae").experiment_id])
    environment = keep | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONDONTWRITEBYTECODE": "1",  # MLflow runs it where it lies
    }
    folder = root / "mlartifacts" / "models" / model.model_id / "artifacts"
    return Logged(model.model_id, folder, environment, load_model(root / "data" / "model" / "vae.safetensors")[0])


@pytest.fixture(scope="module")
def answers(logged, tmp_path_factory) -> list:
    """What a stranger is told: for Z without a task, for the input example, for each task, and for what is BAD."""
    done = subprocess.run(
        [sys.executable, "-IB", "-c", STRANGER, f"models:/{logged.model_id}"],
        input=pickle.dumps([(Z, "generate"), (X, "encode"), (X, "reconstruct"), *BAD.values()]),
        capture_output=True, cwd=tmp_path_factory.mktemp("stranger"), env=logged.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    code, answers = pickle.loads(done.stdout)
    assert Path(code).is_relative_to(logged.folder), "it brings its own code"
    return answers


@pytest.fixture(scope="module")
def server(logged, tmp_path_factory) -> Iterator[str]:
    """`mlflow models serve`, and its address."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    with (folder / "server.log").open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local",
                "-m", f"models:/{logged.model_id}", "--host", "127.0.0.1", "--port", str(port),
            ],
            cwd=folder, env=logged.environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        kill_group(process)


@torch.inference_mode()
def expected(vae: VAE) -> dict[str, np.ndarray]:
    mu, log_var = vae.encode(torch.from_numpy(X))
    images, again = vae.decode(torch.from_numpy(Z)).sigmoid(), vae.decode(mu).sigmoid()
    return {"images": images.numpy(), "mu": mu.numpy(), "log_var": log_var.numpy(), "again": again.numpy()}


def close(got: np.ndarray, wanted: np.ndarray) -> bool:
    return got.shape == wanted.shape and np.allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_elsewhere_it_does_what_the_model_file_does(logged, answers):
    default, _, images, encoded, again = answers[:5]
    wanted = expected(logged.vae)
    assert images.shape == (16, 784) and images.min() >= 0 and images.max() <= 1
    assert close(images, wanted["images"]) and np.array_equal(default, images)
    assert encoded.keys() == {"mu", "log_var"}
    assert close(encoded["mu"], wanted["mu"]) and close(encoded["log_var"], wanted["log_var"])
    assert close(again, wanted["again"])


def test_what_is_wrong_with_an_input_is_said_in_one_line(answers):
    assert answers[5:] == list(BAD)


def test_it_has_a_signature_and_an_example_that_works(logged, answers):
    signature = Model.load(logged.folder).signature
    assert [(tensor.type, tensor.shape) for tensor in signature.inputs.inputs] == [(np.dtype("float32"), (-1, -1))]
    assert [(param.name, param.default) for param in signature.params.params] == [("task", "generate")]
    assert answers[1].shape == (2, 784)


def is_pickle(content: bytes) -> bool:
    try:
        pickletools.dis(content, io.StringIO())
    except Exception:
        return content.startswith(b"PK")  # a zip, as torch.save makes it
    return True


def test_nothing_in_it_is_a_pickle(logged):
    assert all(is_pickle(pickle.dumps(X, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1))
    torch.save(X, saved := io.BytesIO())
    assert is_pickle(saved.getvalue())
    files = [path for path in logged.folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {"", ".json", ".py", ".safetensors", ".txt", ".yaml"}
    assert [path.name for path in files if is_pickle(path.read_bytes())] == []


def test_a_server_answers(logged, server):
    wanted = expected(logged.vae)

    def post(given: np.ndarray, **params: str) -> requests.Response:
        return requests.post(server, json={"inputs": given.tolist(), "params": params}, timeout=60)

    assert close(np.array(post(Z).json()["predictions"]), wanted["images"])
    encoded = post(X, task="encode").json()["predictions"]
    assert close(np.array(encoded["mu"]), wanted["mu"]) and close(np.array(encoded["log_var"]), wanted["log_var"])
    refused = requests.post(server, json={"inputs": [[0.0] * 5]}, timeout=60)
    assert refused.status_code == 400
    assert json.loads(refused.text)["message"].endswith("z: must be [n, 4] to generate (got [1, 5])")
