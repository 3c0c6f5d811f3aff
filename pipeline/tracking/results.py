"""The results of one execution of the pipeline, read from its files: what its MLflow run contains.

The files are in the working directory, or in a folder into which those of a commit were put.
Nothing here imports MLflow.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import pandas as pd
import pyarrow.parquet

from pipeline.errors import UserError
from pipeline.params import Params, load_params
from pipeline.paths import (
    BOUND,
    CLASSES,
    CLASSIFIER_REPORT,
    EVALUATION,
    FIGURES,
    GENERATED,
    HISTORY,
    KL_PER_DIMENSION,
    METRICS,
    MODEL,
    PARAMS,
    PER_IMAGE,
    RECONSTRUCTED,
    SAMPLES,
)
from pipeline.runtime.files import sha256_file
from pipeline.runtime.tensor_file import read_header

REPORTS = (
    HISTORY,
    METRICS,
    EVALUATION,
    CLASSIFIER_REPORT,
    PER_IMAGE,
    BOUND,
    CLASSES,
    KL_PER_DIMENSION,
    GENERATED,
    RECONSTRUCTED,
)
CACHED = (MODEL, PER_IMAGE)  # in DVC's cache; everything else is in git


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
    pictures: tuple[Picture, ...]
    splits: tuple[Split, ...]
    classifier_sha256: str  # scores of samples compare only within one classifier
    model_sha256: str
    results_sha256: str  # of the parameters, the model and the reports


def read_results(folder: Path = Path()) -> Results:
    """Read a finished execution. Raises UserError about a missing or invalid file."""
    params = load_params(folder / PARAMS)
    provenance = read_provenance(folder / MODEL)
    for key, value in provenance["params"].items():
        if params.model_dump().get(key) != value:
            raise UserError(f"params.yaml: {key}", f"the model has {value!r}; run `dvc repro`")
    with _reading(HISTORY):
        history = read_history(folder / HISTORY)
    with _reading(EVALUATION):
        metrics = flat(json.loads((folder / EVALUATION).read_text(encoding="utf-8")))
    with _reading(CLASSIFIER_REPORT):
        classifier = json.loads((folder / CLASSIFIER_REPORT).read_text(encoding="utf-8"))
        classifier_sha256 = str(classifier["classifier"]["sha256"])
    with _reading(PER_IMAGE):
        splits = (*_trained_on(provenance), _tested_on(folder / PER_IMAGE))
    reports = (*REPORTS, *_pngs(folder, FIGURES), *_pngs(folder, SAMPLES))
    with _reading(HISTORY.parent):
        model_sha256 = sha256_file(folder / MODEL)
        contents = {str(path): sha256_file(folder / path) for path in reports}
    identity = json.dumps([params.model_dump(), model_sha256, contents], sort_keys=True)
    return Results(
        folder=folder,
        params=params,
        provenance=provenance,
        history=history,
        metrics=metrics,
        reports=reports,
        # The grid opens at step 0, where these show the final model.
        pictures=(
            Picture("view/generated", 0, folder / GENERATED),
            Picture("view/reconstructed", 0, folder / RECONSTRUCTED),
            *sample_pictures(folder / SAMPLES),
        ),
        splits=splits,
        classifier_sha256=classifier_sha256,
        model_sha256=model_sha256,
        results_sha256=hashlib.sha256(identity.encode()).hexdigest(),
    )


def read_provenance(path: Path) -> dict[str, Any]:
    """What decided the weights in a model file. Raises UserError if it is not a model file."""
    try:
        provenance: dict[str, Any] = read_header(path)["provenance"]
        _ = provenance["params"].items(), provenance["splits"].items()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(path.name, "is not a model file; run `dvc repro train`") from error
    return provenance


def read_history(path: Path | IO[str]) -> pd.DataFrame:
    """One row per epoch, each value equal to the one that was written."""
    history = pd.read_csv(path, float_precision="round_trip")
    return history.astype(float).astype({"epoch": int})


def flat(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Map {"test": {"kl": 25.0}} to {"test/kl": 25.0}."""
    return {
        f"{split}/{name}": float(value)
        for split, values in metrics.items()
        for name, value in values.items()
    }


def sample_pictures(folder: Path) -> tuple[Picture, ...]:
    """`NAME-epoch-0010.png` as view/training-NAME at step 10; first all of epoch 0, and so on."""
    pictures = []
    for path in folder.glob("*.png"):
        if match := re.fullmatch(r"(.+)-epoch-(\d+)\.png", path.name):
            pictures.append(Picture(f"view/training-{match[1]}", int(match[2]), path))
    return tuple(sorted(pictures, key=lambda picture: (picture.step, picture.key)))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what reading an invalid or missing file raises into a UserError about `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror}); run `dvc repro`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(path, "is not what the stages write; run `dvc repro`") from error


def _trained_on(provenance: Mapping[str, Any]) -> list[Split]:
    splits = provenance["splits"].items()
    return [Split(name, split["num_images"], split["sha256"]) for name, split in splits]


def _tested_on(path: Path) -> Split:
    table = pyarrow.parquet.read_metadata(path)
    protocol = json.loads(table.metadata[b"protocol"])
    return Split("test", table.num_rows, protocol["images"])


def _pngs(folder: Path, below: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in (folder / below).glob("*.png"))
