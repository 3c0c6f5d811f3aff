"""The results of one execution of the pipeline, read from its files: what its MLflow run contains.

The files are in the working directory, or in a folder into which those of a commit were put.
Nothing here imports MLflow.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import pandas as pd
import pyarrow.parquet

from pipeline import paths
from pipeline.errors import UserError
from pipeline.params import Params, load_params, read_yaml
from pipeline.runtime.files import sha256_file
from pipeline.runtime.tensor_file import read_header

CACHED = (paths.MODEL, paths.PER_IMAGE)  # in DVC's cache; the other results are in git
INVALID = (ValueError, KeyError, TypeError, AttributeError)


class Picture(NamedTuple):
    """A PNG for MLflow's image grid, which shows the steps of a key side by side."""

    key: str
    step: int
    path: Path


class Split(NamedTuple):
    """The images of one split: "training", "validation" or "test"."""

    name: str
    num_images: int
    sha256: str  # of the pixels


@dataclass(frozen=True)
class Results:
    """Everything that one MLflow run contains. Metric names are `split/quantity`."""

    folder: Path
    params: Params
    provenance: Mapping[str, Any]  # of the model file
    history: pd.DataFrame  # one row per epoch; NaN without validation
    metrics: Mapping[str, float]  # of the test split, standard errors as NAME_se
    reports: tuple[Path, ...]  # every file under reports/, relative to `folder`
    splits: tuple[Split, ...]
    classifier_sha256: str  # scores of samples compare only within one classifier
    model_sha256: str
    results_sha256: str  # of the parameters, the model and the reports

    @property
    def pictures(self) -> list[Picture]:
        """What the image grid shows. It opens at step 0, which has the final model's first."""
        final = [
            Picture("view/generated", 0, self.folder / paths.GENERATED),
            Picture("view/reconstructed", 0, self.folder / paths.RECONSTRUCTED),
        ]
        return [*final, *sample_pictures(self.folder / paths.SAMPLES)]


def read_results(folder: Path = Path()) -> Results:
    """Read a finished execution. Raises UserError about a missing or invalid file."""
    params = load_params(folder / paths.PARAMS)
    provenance = read_provenance(folder / paths.MODEL)
    for key, value in provenance["params"].items():
        if params.model_dump().get(key) != value:
            raise UserError(f"params.yaml: {key}", f"the model has {value!r}; run `dvc repro`")
    try:
        reports = _reports(folder)
        sums = {path.as_posix(): sha256_file(folder / path) for path in (paths.MODEL, *reports)}
        classifier = json.loads((folder / paths.CLASSIFIER_REPORT).read_bytes())["classifier"]
        identity = json.dumps([params.model_dump(), sums], sort_keys=True)
        return Results(
            folder=folder,
            params=params,
            provenance=provenance,
            history=read_history(folder / paths.HISTORY),
            metrics=flat(json.loads((folder / paths.EVALUATION).read_bytes())),
            reports=reports,
            splits=(*_trained_on(provenance), _tested_on(folder / paths.PER_IMAGE)),
            classifier_sha256=str(classifier["sha256"]),
            model_sha256=sums[paths.MODEL.as_posix()],
            results_sha256=hashlib.sha256(identity.encode()).hexdigest(),
        )
    except OSError as error:
        raise UserError("reports", f"cannot be read ({error}); run `dvc repro`") from error
    except INVALID as error:
        raise UserError("reports", "are not what the stages write; run `dvc repro`") from error


def read_provenance(path: Path) -> dict[str, Any]:
    """What decided the weights in a model file. Raises UserError if it is not a model file."""
    try:
        provenance: dict[str, Any] = read_header(path)["provenance"]
        provenance["params"].items(), provenance["splits"].items()
    except INVALID as error:
        raise UserError(path.name, "is not a model file; run `dvc repro train`") from error
    return provenance


def read_history(path: Path | IO[str]) -> pd.DataFrame:
    """One row per epoch, each value equal to the one that was written."""
    # Python's own conversion is exact, that of older versions of pandas is not.
    history = pd.read_csv(path, dtype=str)
    return history.astype(float).astype({"epoch": int})


def flat(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Map {"test": {"kl": 25.0}} to {"test/kl": 25.0}."""
    return {
        f"{split}/{name}": float(value)
        for split, values in metrics.items()
        for name, value in values.items()
    }


def sample_pictures(folder: Path) -> list[Picture]:
    """`NAME-epoch-0010.png` as view/training-NAME at step 10, in the order of the epochs."""
    pictures = []
    for path in folder.glob("*.png"):
        if match := re.fullmatch(r"(.+)-epoch-(\d+)", path.stem):
            pictures.append(Picture(f"view/training-{match[1]}", int(match[2]), path))
    return sorted(pictures, key=lambda picture: (picture.step, picture.key))


def _reports(folder: Path) -> tuple[Path, ...]:
    """The files under reports/ that the stage `log` declares; of a folder, all that is in it."""
    declared = [Path(name) for name in read_yaml(folder / paths.DVC_YAML)["stages"]["log"]["deps"]]
    files: list[Path] = []
    for path in declared:
        if path.is_relative_to("reports"):
            inside = sorted((folder / path).rglob("*"))
            files += [file.relative_to(folder) for file in inside] or [path]
    return tuple(files)


def _trained_on(provenance: Mapping[str, Any]) -> list[Split]:
    splits = provenance["splits"].items()
    return [Split(name, split["num_images"], split["sha256"]) for name, split in splits]


def _tested_on(path: Path) -> Split:
    table = pyarrow.parquet.read_metadata(path)
    protocol = json.loads(table.metadata[b"protocol"])
    return Split("test", table.num_rows, protocol["images"])
