"""MNIST as one uint8 tensor: the IDX files read strictly, no DataLoader.

60,000 images of 784 bytes are 47 MB; they live on the training device as they are and become floats a batch at a time.
"""

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError

IMAGES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
LABELS = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}
SIDE = 28
PIXELS = SIDE * SIDE


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes into a uint8 tensor of the shape its header declares.

    The format: two zero bytes, the type (8: uint8), the number of dimensions, each dimension as a big-endian
    uint32, the data in C order (Y. LeCun, "The MNIST database of handwritten digits").
    Raises InputError if the file is missing, of another type, or not exactly as long as its header says.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); `dvc repro download` fetches it") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise InputError(f"{path}: is not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = len(raw) - 4 - 4 * len(shape)
    if body != math.prod(shape):
        raise InputError(f"{path}: its header declares {math.prod(shape)} bytes of data, it holds {body}")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=len(raw) - body).reshape(shape).copy())


def load_images(folder: Path, split: str) -> Tensor:
    """The images of `split` ("train" or "test") as uint8 [N, 784]. Raises InputError on anything but 28 × 28 images."""
    path = folder / IMAGES[split]
    images = read_idx(path)
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or len(images) == 0:
        raise InputError(f"{path}: must hold 28 × 28 images (its header says {' × '.join(map(str, images.shape))})")
    return images.reshape(-1, PIXELS)


def load_labels(folder: Path, split: str) -> Tensor:
    """The digits that the images of `split` show, uint8 [N] in 0 … 9. Raises InputError on anything else."""
    path = folder / LABELS[split]
    labels = read_idx(path)
    if labels.ndim != 1 or len(labels) == 0 or labels.max() > 9:
        raise InputError(f"{path}: must hold one digit an image")
    return labels


def load_labelled(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """The images of `split` and the digit of each. Raises InputError where there are not as many of both."""
    images, labels = load_images(folder, split), load_labels(folder, split)
    if len(images) != len(labels):
        path = folder / LABELS[split]
        raise InputError(f"{path}: must hold a label for each of {len(images)} images, not {len(labels)}")
    return images, labels


def hold_out(images: Tensor, val_size: int) -> tuple[Tensor, Tensor]:
    """(training images, the last `val_size` images for validation): the same split whatever the seed."""
    n = len(images) - val_size
    return images[:n], images[n:]


def to_unit(images: Tensor, out: Tensor | None = None) -> Tensor:
    """Bytes to float32 in [0, 1], same shape; to `out` if there is one."""
    return (images.float() if out is None else out.copy_(images)).div_(255)
