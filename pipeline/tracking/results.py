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
from pipeline.errors import NoResultsError, UserError
from pipeline.params import DEFAULTS, Params, load_params, read_yaml
from pipeline.runtime.files import sha256_file
from pipeline.runtime.fingerprint import CODE
from pipeline.runtime.tensor_file import read_header

CACHED = (paths.MODEL, paths.PER_IMAGE)  # in DVC's cache; the other results are in git


class Picture(NamedTuple):
    """A PNG for MLflow's image grid, which shows the steps of a key side by side."""

    key: str
    step: int
    path: Path


@dataclass(frozen=True)
class Results:
    """Everything that one MLflow run contains. Metric names are `split/quantity`."""

    folder: Path
    params: Params
    provenance: Mapping[str, Any]  # of the model file
    history: pd.DataFrame  # one row per epoch; NaN without validation
    metrics: Mapping[str, float]  # of the test split, standard errors as NAME_se
    reports: tuple[Path, ...]  # every file under reports/, relative to `folder`
    splits: Mapping[str, Mapping[str, Any]]  # training, validation, test: num_images, sha256
    classifier_sha256: str  # scores of samples compare only within one classifier
    model_sha256: str
    results_sha256: str  # of the parameters, the model and the reports

    @property
    def code(self) -> Path:
        """The folder that has dvc.yaml and the package with which the results were computed."""
        return CODE if self.folder == Path() else self.folder

    @property
    def pictures(self) -> list[Picture]:
        """What the image grid shows. It opens at step 0, which has the final model's first."""
        files = [self.folder / path for path in (paths.GENERATED, paths.RECONSTRUCTED)]
        final = [Picture(f"view/{file.stem}", 0, file) for file in files]
        return [*final, *sample_pictures(self.folder / paths.SAMPLES)]


def read_results(folder: Path = Path()) -> Results:
    """Read a finished execution. Raises UserError about an invalid file.

    Raises NoResultsError about a missing file, or a parameter with another value than the results
    have.
    """
    params = load_params(folder / paths.PARAMS)
    try:
        provenance = read_header(folder / paths.MODEL)["provenance"]
        per_image = pyarrow.parquet.read_metadata(folder / paths.PER_IMAGE)
        protocol = json.loads(per_image.metadata[b"protocol"])
        for key, value in (DEFAULTS | protocol | provenance["params"]).items():
            if params.model_dump().get(key, value) != value:
                message = f"the results have {value!r}; run `dvc repro`"
                raise NoResultsError(f"params.yaml: {key}", message)
        reports = _reports(folder)
        sums = {path.as_posix(): sha256_file(folder / path) for path in (paths.MODEL, *reports)}
        model = sums[paths.MODEL.as_posix()]
        if per_image.metadata.get(b"model", model.encode()) != model.encode():
            raise UserError(paths.PER_IMAGE, "was evaluated with another model; run `dvc repro`")
        identity = json.dumps([params.model_dump(), sums], sort_keys=True)
        evaluation = json.loads((folder / paths.EVALUATION).read_bytes())
        classifier = json.loads((folder / paths.CLASSIFIER_REPORT).read_bytes())["classifier"]
        return Results(
            folder=folder,
            params=params,
            provenance=provenance,
            history=read_history(folder / paths.HISTORY),
            metrics={f"test/{name}": float(value) for name, value in evaluation["test"].items()},
            reports=reports,
            splits=provenance["splits"]
            | {"test": {"num_images": per_image.num_rows, "sha256": protocol["images"]}},
            classifier_sha256=str(classifier["sha256"]),
            model_sha256=model,
            results_sha256=hashlib.sha256(identity.encode()).hexdigest(),
        )
    except OSError as error:
        raise NoResultsError("results", f"cannot be read ({error}); run `dvc repro`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("results", "are not what the stages write; run `dvc repro`") from error


def read_history(path: Path | IO[str]) -> pd.DataFrame:
    """One row per epoch, each value equal to the one that was written."""
    # Python's own conversion is exact, that of older versions of pandas is not.
    return pd.read_csv(path, dtype=str).astype(float).astype({"epoch": int})


def sample_pictures(folder: Path) -> list[Picture]:
    """`NAME-epoch-0010.png` as view/training-NAME at step 10, in the order of the epochs."""
    pictures = []
    for path in folder.glob("[!.]*.png"):
        if match := re.fullmatch(r"(.+)-epoch-(\d+)", path.stem):
            pictures.append(Picture(f"view/training-{match[1]}", int(match[2]), path))
    return sorted(pictures, key=lambda picture: (picture.step, picture.key))


def _reports(folder: Path) -> tuple[Path, ...]:
    """The files under reports/ that the stage `log` declares; of a folder, the pictures in it."""
    files: list[Path] = []
    for name in read_yaml(folder / paths.DVC_YAML)["stages"]["log"]["deps"]:
        if name.startswith("reports/"):
            inside = sorted((folder / name).glob("[!.]*.png"))
            files += [path.relative_to(folder) for path in inside] or [Path(name)]
    return tuple(files)
