"""Images of one's own, in data/own/: pictures, or one file of NumPy arrays. Nothing is unpickled.

Pictures in subfolders have the name of the subfolder as label. Arrays are images [N, H, W] in one
.npy file, or images, labels, test_images and test_labels in one .npz file; all but the first are
optional.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import from_numpy

from pipeline.data.datasets import Splits
from pipeline.errors import UserError
from pipeline.runtime.randomness import PROTOCOL_SEED, permutation

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF")
LABELS = {"images": "labels", "test_images": "test_labels"}  # arrays, and those of their labels
LOW, HIGH = 8, 64  # pixels of a side
MIN_IMAGES = 16  # of a split: an image has up to 15 neighbors in the evaluation
TEST_SHARE = 6  # without a test split, one of so many images is a test image
MAX_CLASSES = 256  # a label is a byte

Arrays = dict[str, NDArray[Any]]


def read_own(folder: Path) -> Splits:
    """Splits "train", in random order, and "test", the same for every seed.

    Labels are numbered in alphabetical order. A single class is none: there are no labels then.
    Raises UserError, in one line about the file or the folder.
    """
    files = [path for path in sorted(folder.rglob("*")) if _is_data(path, folder)]
    if not files:
        advice = "an experiment of --temp or a queue has what git or `dvc add` tracks"
        raise UserError(folder, f"has no images; {advice}")
    array_files = [path for path in files if path.suffix in (".npy", ".npz")]
    if array_files and len(files) > 1:
        raise UserError(array_files[0], f"must be the only file in {folder}")
    arrays = _read_arrays(files[0]) if array_files else _read_pictures(folder, files)
    for problem in chain(_wrong_images(arrays), _wrong_labels(arrays)):
        raise UserError(files[0] if array_files else folder, problem)
    return _split(arrays)


def _is_data(path: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.is_file() and not is_hidden and path.suffix != ".dvc"


def _read_arrays(path: Path) -> Arrays:
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"images": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # of any kind: a file may contain anything
        raise UserError(path, "cannot be read by np.load(..., allow_pickle=False)") from error


def _read_pictures(folder: Path, files: list[Path]) -> Arrays:
    arrays = {"images": np.stack(list(_pictures_of_one_size(files)))}
    subfolders = [path.relative_to(folder).parts[:-1] for path in files]
    if any(subfolders):
        if not all(subfolders):
            raise UserError(
                folder, "has pictures in subfolders, whose names are labels, and others"
            )
        _, arrays["labels"] = np.unique([parts[0] for parts in subfolders], return_inverse=True)
    return arrays


def _pictures_of_one_size(files: list[Path]) -> Iterator[NDArray[Any]]:
    size = None
    for path in files:
        try:
            with Image.open(path, formats=FORMATS) as image:
                mode, pixels = image.mode, np.asarray(image.convert("L"))
        except Exception as error:  # of any kind: a file may contain anything
            formats = ", ".join(FORMATS)
            raise UserError(path, f"is not a picture that can be read ({formats})") from error
        if mode not in ("1", "L"):
            raise UserError(path, f"must have one channel of 8 bits, mode L (got mode {mode})")
        size = size or pixels.shape
        if pixels.shape != size:
            sizes = "{} x {}, not {} x {} as in {}".format(*pixels.shape, *size, files[0].name)
            raise UserError(path, f"has another size than the first picture: {sizes}")
        yield pixels


def _wrong_images(arrays: Arrays) -> Iterator[str]:
    """What is wrong; a check may rely on those before it."""
    if "images" not in arrays or not arrays.keys() <= {*LABELS, *LABELS.values()}:
        known = ", ".join([*LABELS, *LABELS.values()])
        yield f"must contain images and nothing but {known} (got {', '.join(arrays)})"
    has_test = "test_images" in arrays
    fewest = MIN_IMAGES if has_test else MIN_IMAGES * TEST_SHARE
    for name in sorted(LABELS.keys() & arrays.keys()):
        images = arrays[name]
        if images.dtype != np.uint8 or images.ndim != 3:
            got = f"{images.dtype} {list(images.shape)}"
            yield f"{name} must be uint8 [N, height, width] (got {got})"
        if images.shape[1:] != arrays["images"].shape[1:]:
            yield "images and test_images must have the same height and width"
        if not all(LOW <= side <= HIGH for side in images.shape[1:]):
            size = "{} x {}".format(*images.shape[1:])
            yield f"{name} must have {LOW} to {HIGH} pixels on each side (got {size})"
        if len(images) < fewest:
            yield f"must have at least {fewest} {name} (got {len(images)})"


def _wrong_labels(arrays: Arrays) -> Iterator[str]:
    """The same of labels, if nothing is wrong with the images."""
    labels = {name: arrays[name] for name in LABELS.values() if name in arrays}
    if labels and labels.keys() != {LABELS[name] for name in LABELS.keys() & arrays.keys()}:
        yield f"must have labels of both splits or of none (got {', '.join(arrays)})"
    for images, name in LABELS.items():
        if name in labels and labels[name].shape != arrays[images].shape[:1]:
            yield f"{name} must be one per image (got {list(labels[name].shape)})"
        if name in labels and labels[name].dtype.kind not in "iu":
            yield f"{name} must be integers (got {labels[name].dtype})"
    if (count := len(_classes(arrays))) > MAX_CLASSES:
        yield f"labels must have at most {MAX_CLASSES} classes (got {count})"


def _classes(arrays: Arrays) -> NDArray[Any]:
    given = [arrays[name] for name in LABELS.values() if name in arrays]
    return np.unique(np.concatenate(given)) if given else np.empty(0)


def _split(arrays: Arrays) -> Splits:
    classes = _classes(arrays)
    tensors = {name: from_numpy(arrays[name]) for name in LABELS if name in arrays}
    for name in LABELS.values():
        if name in arrays:
            tensors[name] = from_numpy(np.searchsorted(classes, arrays[name])).byte()
    order = permutation(len(tensors["images"]), PROTOCOL_SEED, "own/split")
    if "test_images" not in tensors:
        first = len(order) // TEST_SHARE
        held_out, order = order[:first], order[first:]
        tensors |= {f"test_{name}": tensor[held_out] for name, tensor in tensors.items()}
    train = {name: tensors[name][order] for name in ("images", "labels") if name in tensors}
    if "labels" not in train or len(train["labels"].unique()) < 2:
        return {"train": (train["images"], None), "test": (tensors["test_images"], None)}
    test = tensors["test_images"], tensors["test_labels"]
    return {"train": (train["images"], train["labels"]), "test": test}
