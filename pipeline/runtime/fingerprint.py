"""One configuration, one fingerprint: a hash over everything that decides the bytes a stage writes.

dvc.yaml names a stage's parameters, data and code, and a test holds those lists to what the module reads and
imports; the device and the versions of the libraries that compute and write complete them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

CODE = Path(__file__).parents[2]  # where dvc.yaml and the package lie; data is read from the working directory
LIBRARIES = ("numpy", "pillow", "safetensors", "torch")


def ingredients(stage: str, params: Mapping[str, object], device: str) -> dict[str, Any]:
    """What decides the outputs of `stage`: its params, device, data, code and libraries.

    `params` may hold more keys than the stage declares. `device` is the device that is used, in words; it stands in
    the place of the parameter of that name, which may be `auto`.
    """
    declared = YAML(typ="safe").load((CODE / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]
    code = [dep for dep in declared["deps"] if dep.startswith("pipeline/")]
    data = [dep for dep in declared["deps"] if dep not in code]
    return {
        "stage": stage,
        "params": {key: params[key] for key in declared["params"] if key != "device"},
        "device": device,
        "data": {dep: _sha256(_files(Path(dep))) for dep in data},
        "code": {dep: _sha256([CODE / dep]) for dep in code},
        "versions": {name: version(name) for name in LIBRARIES},
    }


def fingerprint(of: Mapping[str, Any]) -> str:
    """The sha256 of what `ingredients` gives, in canonical JSON: keys sorted, floats as Python writes them."""
    text = json.dumps(of, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _sha256(files: Iterable[Path]) -> str:
    """Of one file its sha256; of several a hash over their names and sums."""
    sums = {file.as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if len(sums) == 1:
        return next(iter(sums.values()))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()).hexdigest()
