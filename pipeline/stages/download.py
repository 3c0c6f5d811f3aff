"""Stage `download`: fetch and verify the files of the dataset, and write it as one file.

The original files stay in data/raw under the repository's root, a cache for all experiments.
"""

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
    # Its datasets would prefer what older versions left in `processed` beside the verified files.
    from torchvision.datasets.mnist import read_image_file, read_label_file  # noqa: PLC0415 (1.2 s)

    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_image_file(str(raw / f"{prefix}-images-idx3-ubyte"))
        splits[split] = (images, read_label_file(str(raw / f"{prefix}-labels-idx1-ubyte")))
    save_dataset(DATASET, name, splits)
    counts = ", ".join(f"{len(images)} {split} images" for split, (images, _) in splits.items())
    print(f"download: {name} written to {DATASET} ({counts})")


if __name__ == "__main__":
    run(main)
