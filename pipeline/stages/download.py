"""Stage `download`: fetch and verify the files of the dataset, and write it as one file.

The original files stay in data/raw under the repository's root, a cache for all experiments. The
user's own images are read from data/own.
"""

from pipeline.data.catalog import OWN_IMAGES, Dataset, find_dataset
from pipeline.data.datasets import Splits, save_dataset
from pipeline.data.own import read_own
from pipeline.data.sources import fetch
from pipeline.errors import run
from pipeline.params import load_params
from pipeline.paths import DATASET, OWN
from pipeline.runtime.files import home


def main() -> None:
    """Write the dataset that params.yaml names."""
    name = load_params().dataset
    splits = read_own(OWN) if name == OWN_IMAGES else read_original(find_dataset(name))
    save_dataset(DATASET, name, splits)
    counts = ", ".join(f"{len(images)} {split} images" for split, (images, _) in splits.items())
    labels = splits["train"][1]
    classes = "no labels" if labels is None else f"{len(labels.unique())} classes"
    print(f"download: {name} written to {DATASET} ({counts}, {classes})")


def read_original(dataset: Dataset) -> Splits:
    """The splits of a dataset of the catalog, as torchvision reads its files."""
    raw = home() / "data" / "raw" / dataset.torchvision_class / "raw"
    fetch(dataset, raw)
    # Its datasets would prefer what older versions left in `processed` beside the verified files.
    from torchvision.datasets.mnist import read_image_file, read_label_file  # noqa: PLC0415 (1.2 s)

    splits: Splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_image_file(str(raw / f"{prefix}-images-idx3-ubyte"))
        splits[split] = (images, read_label_file(str(raw / f"{prefix}-labels-idx1-ubyte")))
    return splits


if __name__ == "__main__":
    run(main)
