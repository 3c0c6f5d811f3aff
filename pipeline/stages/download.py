"""Stage `download`: fetch and verify the files of the dataset, and write it as one file.

The original files stay in data/raw under the repository's root, a cache for all experiments.
"""

from torch import Tensor

from pipeline.data.catalog import Dataset, find_dataset
from pipeline.data.datasets import save_dataset
from pipeline.data.sources import fetch
from pipeline.errors import run
from pipeline.params import load_params
from pipeline.paths import DATASET
from pipeline.runtime.files import home


def main() -> None:
    """Write the dataset that params.yaml names."""
    name = load_params().dataset
    splits = download(find_dataset(name))
    save_dataset(DATASET, name, splits)
    counts = ", ".join(f"{len(images)} {split} images" for split, (images, _) in splits.items())
    print(f"download: {name} written to {DATASET} ({counts})")


def download(dataset: Dataset) -> dict[str, tuple[Tensor, Tensor]]:
    """Images uint8 [N, height, width] and labels [N] by split, as torchvision reads them."""
    root = home() / "data" / "raw"
    fetch(dataset, root / dataset.torchvision_class / "raw")
    from torchvision import datasets  # noqa: PLC0415 (1.2 s)

    reader = getattr(datasets, dataset.torchvision_class)
    splits = {split: reader(root, train=split == "train") for split in ("train", "test")}
    return {split: (part.data, part.targets) for split, part in splits.items()}


if __name__ == "__main__":
    run(main)
