"""The dataset as all stages after `download` read it: one file of uint8 images and labels.

60,000 images of 784 bytes are 47 MB; they stay on the training device as bytes and become floats
one batch at a time.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.runtime.tensor_file import read_tensors, write_tensors


@dataclass(frozen=True)
class Split:
    """The images of one split ("train" or "test"), flat: D = height · width pixels."""

    images: Tensor  # [N, D], uint8
    labels: Tensor  # [N], uint8
    image_shape: tuple[int, int]  # height, width

    def to(self, device: torch.device) -> "Split":
        """The same split on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def save_dataset(path: Path, name: str, splits: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Write splits of images uint8 [N, height, width] and labels [N]; equal data, equal bytes."""
    tensors = {}
    for split, (images, labels) in splits.items():
        tensors[f"{split}_images"] = images
        tensors[f"{split}_labels"] = labels.byte()
    write_tensors(path, tensors, {"dataset": name})


def load_split(path: Path, split: str) -> Split:
    """Read "train" or "test". Raises UserError if the file is missing or not a dataset."""
    tensors = read_tensors(path)
    try:
        images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
        height, width = images.shape[1:]
    except (KeyError, ValueError) as error:
        message = "is not a dataset of this project; run `dvc repro download`"
        raise UserError(path, message) from error
    return Split(images.flatten(start_dim=1), labels, (height, width))


def hold_out(split: Split, val_size: int) -> tuple[Split, Split]:
    """(for training, the last `val_size` images for validation): the same for every seed."""
    n = len(split.images) - val_size
    train = replace(split, images=split.images[:n], labels=split.labels[:n])
    return train, replace(split, images=split.images[n:], labels=split.labels[n:])


def digest(images: Tensor) -> str:
    """The sha256 of the bytes of images."""
    return hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()


def to_unit(images: Tensor) -> Tensor:
    """Bytes to float32 in [0, 1], same shape."""
    return images.float().div_(255)
