"""What the files of one execution of the pipeline say: everything that its MLflow run is to hold.

Read from the working directory, or from a folder into which a commit's files were put: the same either way.
"""

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from pipeline.errors import InputError
from pipeline.params import Params, load_params

MODEL = Path("data/model/vae.safetensors")
HISTORY = Path("reports/history.csv")
METRICS = Path("reports/metrics.json")
JUDGED = Path("reports/judge.json")
PER_IMAGE = Path("reports/per_image.parquet")
BOUND = Path("reports/bound.csv")
CLASSES = Path("reports/classes.csv")
KL_PER_DIMENSION = Path("reports/kl_per_dimension.csv")
SAMPLES = Path("reports/samples")
FIGURES = Path("reports/figures")
GENERATED = Path("reports/generated.png")
RECONSTRUCTED = Path("reports/reconstructed.png")
# The files that belong into a run as they are.
REPORTS = (HISTORY, METRICS, JUDGED, PER_IMAGE, BOUND, CLASSES, KL_PER_DIMENSION, GENERATED, RECONSTRUCTED)
SUMS = Path("pipeline/data/mnist.sha256")

CACHED = (MODEL, PER_IMAGE)  # in DVC's cache; all else that is mirrored is in git

Record = dict[str, float]


class Picture(NamedTuple):
    """A PNG that shows `key` after `step` epochs: the UI lays the steps of one key side by side."""

    key: str
    step: int
    path: Path


class Split(NamedTuple):
    """The images that were used as `context`: training, validation or test."""

    context: str
    num_images: int
    sha256: str  # of the pixels; for the test split of their file


@dataclass(frozen=True)
class Execution:
    """One execution, from the files in `folder`; metric names are `split/quantity`, a record is one epoch."""

    folder: Path
    params: Params
    provenance: Mapping[str, Any]  # the model file's: fingerprint, params, device, data, code, versions
    history: Sequence[Record]
    metrics: Mapping[str, float]
    pictures: Sequence[Picture]
    splits: Sequence[Split]
    judge_sha256: str  # of the classifier that samples were judged by: fd_judge and the like compare within one

    @property
    def fingerprint(self) -> str:
        """Of the training that the model file comes from."""
        return str(self.provenance["fingerprint"])

    @property
    def model(self) -> Path:
        """The model file."""
        return self.folder / MODEL

    @property
    def reports(self) -> list[Path]:
        """The files of REPORTS."""
        return [self.folder / path for path in REPORTS]

    @cached_property
    def model_sha256(self) -> str:
        """What makes two models the same one."""
        return hashlib.sha256(self.model.read_bytes()).hexdigest()

    @cached_property
    def results(self) -> str:
        """A sha256 over parameters and every file that is mirrored: with it, and only then, a run is this one's."""
        files = [self.model, *self.reports, *(picture.path for picture in self.pictures)]
        sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        return hashlib.sha256(json.dumps([self.params.model_dump(), sums]).encode()).hexdigest()


def read_execution(folder: Path = Path()) -> Execution:
    """Read a finished execution. Raises InputError where a file is missing, torn, or not what the stages write."""
    params = load_params(folder / "params.yaml")
    try:
        history = list(read_history(folder / HISTORY))
        metrics = flat(json.loads((folder / METRICS).read_text(encoding="utf-8")))
        judge_sha256 = str(json.loads((folder / JUDGED).read_text(encoding="utf-8"))["judge"]["sha256"])
        # What `evaluate` drew stands at step 0: where the UI's slider is when a run is opened.
        final = {"test/generated": GENERATED, "test/reconstructed": RECONSTRUCTED}
        pictures = [Picture(key, 0, folder / path) for key, path in final.items()]
        pictures += [Picture(f"figures/{path.stem}", 0, path) for path in sorted((folder / FIGURES).glob("*.png"))]
        pictures += sample_pictures(folder / SAMPLES)
        provenance = read_provenance(folder / MODEL)
        for key, value in provenance["params"].items():
            if getattr(params, key) != value:
                raise InputError(f"{MODEL}: was trained with {key}: {value}, params.yaml has another; run `dvc repro`")
        splits = read_splits(provenance, folder / SUMS, metrics)
        execution = Execution(folder, params, provenance, history, metrics, pictures, splits, judge_sha256)
        _ = execution.results  # reads every file
    except OSError as error:
        name = Path(str(error.filename)).relative_to(folder) if error.filename else "a file"
        raise InputError(f"{name}: cannot be read ({error.strerror}); `dvc repro` makes it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{HISTORY}, {METRICS}, {JUDGED} or {SUMS}: is not what the stages write; `dvc repro` makes it"
        ) from error
    return execution


def read_provenance(path: Path) -> Mapping[str, Any]:
    """What the model in `path` says of where it comes from. Raises InputError where it says nothing."""
    try:
        with safe_open(path, framework="numpy") as file:
            provenance: Mapping[str, Any] = json.loads((file.metadata() or {})["vae"])["provenance"]
        if not isinstance(provenance["fingerprint"], str):
            raise ValueError("no fingerprint")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{MODEL}: is no model file of this version of the project; `dvc repro` makes it") from error
    return provenance


def read_history(path: Path) -> list[Record]:
    """One record an epoch, each float equal to the one that was written; NaN (no validation split) is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [parse(row) for row in csv.DictReader(file)]


def parse(row: Mapping[str, str]) -> Record:
    """A line of the history as numbers, those that are NaN left out."""
    values = {name: float(value) for name, value in row.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def flat(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{"test": {"kl": 25.0}} → {"test/kl": 25.0}."""
    return {f"{split}/{name}": value for split, values in metrics.items() for name, value in values.items()}


def sample_pictures(folder: Path) -> list[Picture]:
    """`NAME-epoch-0010.png` → the picture of samples/NAME at step 10, in the order of epochs."""
    found = [(re.fullmatch(r"(.+)-epoch-(\d+)\.png", path.name), path) for path in folder.iterdir()]
    pictures = [Picture(f"samples/{match[1]}", int(match[2]), path) for match, path in found if match]
    return sorted(pictures, key=lambda picture: (picture.step, picture.key))


def read_splits(provenance: Mapping[str, Any], sums: Path, metrics: Mapping[str, float]) -> list[Split]:
    """What the model was trained on and measured with."""
    splits = [Split(context, said["num_images"], said["sha256"]) for context, said in provenance["splits"].items()]
    by_name = {name: digest for digest, name in (line.split() for line in sums.read_text().splitlines())}
    return [*splits, Split("test", int(metrics["test/num_images"]), by_name["t10k-images-idx3-ubyte"])]
