"""Stage `download`: fetch and verify the files of the dataset, and write it as one file.

The original files stay in data/raw under the repository's root, a cache for all experiments.
"""

import tempfile
from pathlib import Path

from pipeline.data.catalog import find_dataset
from pipeline.data.datasets import save_dataset
from pipeline.data.sources import fetch
from pipeline.errors import run
from pipeline.params import load_params
from pipeline.paths import DATASET
from pipeline.runtime.files import home


def main() -> None:
    """Write the dataset that params.yaml names, as torchvision reads it."""
    name = load_params().dataset
    dataset = find_dataset(name)
    raw = home() / "data" / "raw" / dataset.torchvision_class / "raw"
    fetch(dataset, raw)
    from torchvision import datasets  # noqa: PLC0415 (1.2 s)

    reader = getattr(datasets, dataset.torchvision_class)
    with tempfile.TemporaryDirectory() as root:
        # torchvision prefers what its older versions left in `processed` beside the verified files.
        (Path(root) / dataset.torchvision_class).mkdir()
        (Path(root) / dataset.torchvision_class / "raw").symlink_to(raw)
        parts = {split: reader(root, train=split == "train") for split in ("train", "test")}
    splits = {split: (part.data, part.targets) for split, part in parts.items()}
    save_dataset(DATASET, name, splits)
    counts = ", ".join(f"{len(images)} {split} images" for split, (images, _) in splits.items())
    print(f"download: {name} written to {DATASET} ({counts})")


if __name__ == "__main__":
    run(main)
