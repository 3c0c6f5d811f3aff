"""Images of one's own, in data/own/: pictures, or one file of NumPy arrays. Nothing is unpickled.

Pictures in subfolders have the name of the subfolder as label. Arrays are images [N, H, W] in one
.npy file, or images, labels, test_images and test_labels in one .npz file; all but the first are
optional.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, from_numpy

from pipeline.data.datasets import Splits
from pipeline.errors import UserError
from pipeline.runtime.randomness import PROTOCOL_SEED, permutation

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF")
LABELS = {"images": "labels", "test_images": "test_labels"}  # arrays, and those of their labels
NAMES = [{"images"}, {"images", "labels"}, {*LABELS}, {*LABELS, *LABELS.values()}]
SIDES = frozenset(range(8, 65))  # pixels
MIN_IMAGES = 16  # of a split: an image has up to 15 neighbors in the evaluation
TEST_SHARE = 6  # without a test split, one of so many images is a test image
MAX_CLASSES = 256  # a label is a byte

Array = NDArray[Any]
Arrays = dict[str, Array]
Pair = tuple[Tensor, Tensor]  # images and labels


def read_own(folder: Path) -> Splits:
    """Splits "train", in random order, and "test", the same for every seed.

    Labels are numbered in sorted order. A single class is none: there are no labels then.
    Raises UserError, in one line about the file or the folder.
    """
    files = [path for path in sorted(folder.rglob("*")) if _is_data(path, folder)]
    if not files:
        advice = "with --temp or in a queue, `dvc add` them first"
        raise UserError(folder, f"has no images: put pictures or one .npz file there; {advice}")
    packed = [path for path in files if path.suffix in (".npy", ".npz")]
    source = files[0] if packed else folder
    arrays = _read_arrays(packed[0], files) if packed else _read_pictures(folder, files)
    _require_valid(arrays, source)
    classes, train, test = _split(arrays)
    if len(missing := np.setdiff1d(test[1].numpy(), train[1].numpy())):
        label = classes[missing[0]]
        name = label if packed else sorted({_folder_name(path, folder) for path in files})[label]
        advice = "add more, or choose test_images yourself (a file of arrays)"
        raise UserError(source, f"only test images are of class {name}; {advice}")
    if len(train[1].unique()) == 1:
        return {"train": (train[0], None), "test": (test[0], None)}
    return {"train": train, "test": test}


def _is_data(path: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.is_file() and not is_hidden and path.suffix != ".dvc"


def _read_arrays(path: Path, files: list[Path]) -> Arrays:
    if len(files) > 1:
        raise UserError(path, "must be the only file in its folder")
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"images": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # of any kind: a file may contain anything
        raise UserError(path, "cannot be read by np.load(..., allow_pickle=False)") from error


def _read_pictures(folder: Path, files: list[Path]) -> Arrays:
    pictures = [_read_picture(path) for path in files]
    for path, picture in zip(files, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            sizes = "{} x {}, not {} x {}".format(*picture.shape, *pictures[0].shape)
            raise UserError(path, f"has another size than {files[0].name}: {sizes}")
    names = [_folder_name(path, folder) for path in files]
    if "" in names and any(names):
        raise UserError(folder, "has pictures in subfolders, whose names are labels, and others")
    return {"images": np.stack(pictures), "labels": np.unique(names, return_inverse=True)[1]}


def _folder_name(path: Path, folder: Path) -> str:
    """Of the subfolder, or "" without one."""
    return "".join(path.relative_to(folder).parts[:-1][:1])


def _read_picture(path: Path) -> Array:
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode, pixels = image.mode, np.asarray(image.convert("L"))
    except Exception as error:  # of any kind: a file may contain anything
        raise UserError(path, f"is not a picture in {' or '.join(FORMATS)}") from error
    if mode not in ("1", "L"):
        raise UserError(path, f"must have one channel of 8 bits, mode L (got mode {mode})")
    return pixels


def _require_valid(arrays: Arrays, source: Path) -> None:
    for holds, requirement in _requirements(arrays):
        if not holds:
            got = (f"{name} {array.dtype} {list(array.shape)}" for name, array in arrays.items())
            raise UserError(source, f"{requirement} (got {', '.join(got)})")


def _requirements(arrays: Arrays) -> Iterator[tuple[bool, str]]:
    """Whether each holds, and its text; one may rely on those before it."""
    which = "must contain images, maybe test_images, and labels of all of them or of none"
    yield set(arrays) in NAMES, which
    images, labels = zip(*_pairs(arrays), strict=True)
    kinds = {(each.dtype.name, each.ndim) for each in images}
    yield kinds == {("uint8", 3)}, "images must be uint8 [N, height, width], one channel"
    sizes = {each.shape[1:] for each in images}
    yield len(sizes) == 1, "images and test_images must have the same size"
    yield SIDES.issuperset(*sizes), f"sides must be {min(SIDES)} to {max(SIDES)} pixels"
    fewest = MIN_IMAGES * (TEST_SHARE if len(images) == 1 else 1)
    yield min(map(len, images)) >= fewest, f"must have {fewest} images or more"
    counts = [(len(each),) for each in images]
    yield [each.shape for each in labels] == counts, "must have one label per image"
    yield all(each.dtype.kind in "iu" for each in labels), "labels must be integers"
    fits = len(np.unique(labels[0])) <= MAX_CLASSES
    yield fits, f"must have at most {MAX_CLASSES} classes"


def _pairs(arrays: Arrays) -> list[tuple[Array, Array]]:
    """Images and labels of each split. Without labels all are of one class."""
    return [
        (arrays[name], arrays.get(label, np.zeros(arrays[name].shape[:1], int)))
        for name, label in LABELS.items()
        if name in arrays
    ]


def _split(arrays: Arrays) -> tuple[Array, Pair, Pair]:
    """The classes; the training images and the test images with the numbers of their classes."""
    pairs = _pairs(arrays)
    classes = np.unique(np.concatenate([labels for _, labels in pairs]))
    tensors = [(from_numpy(a), from_numpy(np.searchsorted(classes, b))) for a, b in pairs]
    images, labels = tensors[0]
    train = permutation(len(images), PROTOCOL_SEED, "own/split")
    if len(tensors) == 1:
        test, train = train.tensor_split([len(train) // TEST_SHARE])
        tensors.append((images[test], labels[test]))
    return classes, (images[train], labels[train]), tensors[1]
