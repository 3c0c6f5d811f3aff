"""One configuration, one fingerprint: a hash of everything that decides what `train` writes.

dvc.yaml lists the parameters, data and code of the stage, and a test compares those lists with what
is read and imported. The device and the versions of the libraries that compute and write complete
them.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.params import DEFAULTS, NOT_IN_RESULTS, read_yaml
from pipeline.paths import DATASET, DVC_YAML
from pipeline.runtime.files import modules, sha256_file
from pipeline.runtime.tensor_file import read_header

# The code's folder, which has dvc.yaml and the package. Data is read from the working directory.
CODE = Path(__file__).parents[2]
LIBRARIES = ("numpy", "pillow", "safetensors", "torch")


def provenance(params: Mapping[str, object], device: str) -> dict[str, Any]:
    """What decides the trained weights, apart from the code.

    params: at least the parameters that `train` declares in dvc.yaml.
    device: the device that is used, by `device_name`.
    """
    declared = [key for key in _train_stage(CODE)["params"] if key not in NOT_IN_RESULTS]
    return {
        "params": {key: params[key] for key in declared if params[key] != DEFAULTS.get(key)},
        "device": device,
        "data": {"dataset": read_header(DATASET)["dataset"], "sha256": sha256_file(DATASET)},
        "versions": {name: version(name) for name in LIBRARIES},
    }


def fingerprint(
    provenance: Mapping[str, Any], params: Mapping[str, object], root: Path = CODE
) -> str:
    """The sha256 of the provenance, and of the parameters and code that `train` declares.

    root: the folder of dvc.yaml and the code.
    """
    stage = _train_stage(root)
    code = [dependency for dependency in stage["deps"] if dependency.startswith("pipeline/")]
    inputs = {
        "provenance": provenance,
        "params": {key: params[key] for key in stage["params"]},
        "code": {dependency: _sha256(root / dependency) for dependency in code},
    }
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _train_stage(root: Path) -> Any:
    return read_yaml(root / DVC_YAML)["stages"]["train"]


def _sha256(path: Path) -> str:
    """Of a file, or of the names and contents of the Python files of a directory."""
    if path.is_file():
        return sha256_file(path)
    files = [(file, file.relative_to(path).as_posix()) for file in modules(path)]
    lines = [f"{sha256_file(file)}  {name}\n" for file, name in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
