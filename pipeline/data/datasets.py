"""The dataset as all stages after `download` read it: one file of uint8 images and labels.

60,000 images of 784 bytes are 47 MB; they stay on the training device as bytes and become floats
one batch at a time.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.runtime.randomness import PROTOCOL_SEED, generator
from pipeline.runtime.tensor_file import read_tensors, reading, write_tensors

# Of the fixed binarization of each split.
PURPOSES = {"train": "binarize/train", "test": "binarize"}
# By name: images uint8 [N, height, width] and labels [N], if there are any.
Splits = dict[str, tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Split:
    """The images of one split ("train" or "test"), flat: D = height · width pixels."""

    images: Tensor  # [N, D], uint8
    labels: Tensor  # [N], uint8; all 0 without labels
    image_shape: tuple[int, int]  # height, width
    has_labels: bool = True

    def to(self, device: torch.device) -> "Split":
        """The same split on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def __getitem__(self, chosen: slice | Tensor) -> "Split":
        """The chosen images."""
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


def save_dataset(path: Path, name: str, splits: Splits) -> None:
    """Write the splits; equal data, equal bytes."""
    tensors = {}
    for split, (images, labels) in splits.items():
        tensors[f"{split}_images"] = images
        if labels is not None:
            tensors[f"{split}_labels"] = labels.byte()
    write_tensors(path, tensors, {"dataset": name})


def load_split(path: Path, split: str, binarization: str = "none") -> Split:
    """Read "train" or "test", with gray pixels or, if the binarization is not "none", a fixed one.

    Raises UserError if the file is missing or not a dataset.
    """
    tensors = read_tensors(path)
    with reading(path):
        images = tensors[f"{split}_images"]
        height, width = images.shape[1:]
    labels = tensors.get(f"{split}_labels", images.new_zeros(len(images)))
    flat = images.flatten(start_dim=1)
    if binarization != "none":
        flat = binarize(flat, PURPOSES[split])
    return Split(flat, labels, (height, width), f"{split}_labels" in tensors)


def hold_out(split: Split, val_size: int) -> tuple[Split, Split]:
    """(for training, the last `val_size` images for validation): the same for every seed.

    Raises UserError if nothing would be left to train on.
    """
    n = len(split.images) - val_size
    if n <= 0:
        message = f"must be less than the {len(split.images)} images (got {val_size})"
        raise UserError("params.yaml: val_size", message)
    return split[:n], split[n:]


def binarize(images: Tensor, purpose: str = PURPOSES["test"]) -> Tensor:
    """One fixed draw of black and white images: uint8 [N, D] → 0 or 255, on the CPU.

    Another draw of the test images would move −log p(b) by about 0.06 nats.
    """
    return above(images.cpu(), thresholds(images.shape, PROTOCOL_SEED, purpose))


def thresholds(shape: Sequence[int], seed: int, purpose: str, epoch: int = 0) -> Tensor:
    """Uniform integers 0 … 254, uint8, on the CPU: the same on every machine."""
    draw = generator(seed, purpose, epoch)
    return torch.randint(0, 255, tuple(shape), generator=draw, dtype=torch.uint8)


def above(images: Tensor, limits: Tensor) -> Tensor:
    """255 above the limit, else 0. For `thresholds` a pixel is white with probability x / 255."""
    return (limits < images).to(torch.uint8).mul_(255)


def digest(images: Tensor) -> str:
    """The sha256 of the bytes of images."""
    return hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()


def to_unit(images: Tensor) -> Tensor:
    """Bytes to float32 in [0, 1], same shape."""
    return images.float().div_(255)
