"""The logged model where it is used: in a process without this project, and from a server."""

import os
import pickle
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import use_folder
from helpers.mlflow_contents import models_of, only_run
from helpers.models import small_vae
from mlflow.exceptions import MlflowException

from pipeline.model.network import Batch
from pipeline.model.vae import VAE, load_vae
from pipeline.paths import MODEL
from pipeline.stages import log
from pipeline.tracking.served_model import ServedVAE

Z = np.random.default_rng(0).standard_normal((16, 4), np.float32)
X = np.random.default_rng(1).random((16, 784), np.float32)
INVALID = {
    "z: must be [n, 4] to generate (got [16, 784])": (X, "generate"),
    "z: must be finite": (np.full_like(Z, np.nan), "generate"),
    "x: must be [n, 784] to encode (got [16, 4])": (Z, "encode"),
    "x: must be in [0, 1]: divide bytes by 255": (255 * X, "reconstruct"),
    "task: must be one of generate, encode, reconstruct (got 'dream')": (Z, "dream"),
}
# What a person does who has nothing but the model's id.
STRANGER = """
import importlib.util, pickle, sys
assert importlib.util.find_spec("pipeline") is None, "the project is importable"

import mlflow

vae = mlflow.pyfunc.load_model(sys.argv[1])

def ask(given, task):
    try:
        return vae.predict(given, params={"task": task})
    except mlflow.MlflowException as error:
        return error.get_http_status_code(), str(error)

questions = pickle.load(sys.stdin.buffer)
answers = [vae.predict(vae.input_example), *(ask(*question) for question in questions)]
sys.stdout.buffer.write(pickle.dumps((sys.modules["pipeline"].__file__, answers)))
"""


class Logged(NamedTuple):
    """A logged model, an environment that knows only its store, and the model of its file."""

    uri: str
    folder: Path
    environment: dict[str, str]
    vae: VAE


@pytest.fixture(scope="module")
def logged(finished_workspace, mlflow_tables, tmp_path_factory) -> Logged:
    root = tmp_path_factory.mktemp("logged")
    shutil.copytree(finished_workspace, root, dirs_exist_ok=True)
    shutil.copy(mlflow_tables, root)
    with pytest.MonkeyPatch.context() as patch:
        use_folder(patch, root)
        log.main()
    client, run = only_run(root)
    (model,) = models_of(client, run)
    private = ("DVC_", "MLFLOW_", "PYTHON")
    environment = {name: os.environ[name] for name in os.environ if not name.startswith(private)}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": client.tracking_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONDONTWRITEBYTECODE": "1",  # MLflow executes the code in its artifact folder
    }
    folder = root / "mlartifacts" / "models" / model.model_id / "artifacts"
    return Logged(f"models:/{model.model_id}", folder, environment, load_vae(root / MODEL))


@torch.inference_mode()
def expected(vae: VAE) -> dict[str, np.ndarray]:
    posterior = vae.encode(Batch(torch.from_numpy(X)))
    images, again = vae.decode(torch.from_numpy(Z)), vae.decode(posterior.mu)
    values = {"images": images.sigmoid(), "again": again.sigmoid(), **posterior._asdict()}
    return {name: value.numpy() for name, value in values.items()}


def close(got: object, wanted: np.ndarray) -> bool:
    got = np.array(got)
    return got.shape == wanted.shape and np.allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_without_the_project_it_computes_what_the_model_file_computes(logged, tmp_path):
    """And reports an invalid input in one line; it brings its own code."""
    tasks = [(Z, "generate"), (X, "encode"), (X, "reconstruct"), *INVALID.values()]
    done = subprocess.run(
        [sys.executable, "-IB", "-c", STRANGER, logged.uri],
        input=pickle.dumps(tasks), capture_output=True, cwd=tmp_path, env=logged.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    code, (example, images, encoded, again, *messages) = pickle.loads(done.stdout)
    assert Path(code).is_relative_to(logged.folder)
    wanted = expected(logged.vae)
    assert example.shape == (2, 784) and close(images, wanted["images"])
    assert close(encoded["mu"], wanted["mu"]) and close(encoded["log_var"], wanted["log_var"])
    assert close(again, wanted["again"])
    assert messages == [(400, line) for line in INVALID]


def test_no_file_of_it_is_a_pickle_or_names_this_machine(logged):
    files = [path for path in logged.folder.rglob("*") if path.is_file()]
    forms = {path.suffix for path in files if path.name not in ("MLmodel", "registered_model_meta")}
    assert forms == {".json", ".py", ".safetensors", ".txt", ".yaml"}
    required = {name: version(name) for name in ("mlflow", "numpy", "safetensors", "torch")}
    lines = (logged.folder / "requirements.txt").read_text().splitlines()
    assert lines == [f"{name}=={number}" for name, number in required.items()]
    checkout = str(Path(__file__).parents[2]).encode()
    assert [path.name for path in files if checkout in path.read_bytes()] == []


def test_a_conditional_model_needs_a_label_and_another_one_takes_none():
    served, vae = ServedVAE(), small_vae(num_classes=3)
    served.vae = vae
    given = {"generate": Z, "encode": X, "reconstruct": X}
    for task, values in given.items():
        for label in (-1, 3):
            with pytest.raises(MlflowException, match=rf"one of 0, 1, 2 \(got {label}\)"):
                served.predict(None, values, {"task": task, "label": label})
    images = served.predict(None, Z, {"label": 2})
    with torch.inference_mode():
        assert close(images, vae.mean(torch.from_numpy(Z), torch.full((16,), 2)).numpy())
    served.vae = small_vae()
    with pytest.raises(MlflowException, match=r"label: must be one of -1 \(got 2\)"):
        served.predict(None, Z, {"label": 2})
