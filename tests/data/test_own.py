"""data/own: what is read, and the one line about what is not."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.own import read_own
from pipeline.errors import UserError
from pipeline.paths import OWN

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, (120, 9, 11), dtype="uint8")
CLASSES = np.arange(120) % 3


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """data/own as in a clone, with what file managers and DVC leave there."""
    monkeypatch.chdir(tmp_path)
    OWN.mkdir(parents=True)
    for name in (".gitignore", ".DS_Store", "images.npz.dvc"):
        (OWN / name).write_text("x")
    return OWN


def save_pictures(images, names, form: str = "png", **options) -> None:
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        (OWN / name).mkdir(exist_ok=True)
        Image.fromarray(image).save(OWN / name / f"{number:03d}.{form}", **options)


def rows(images) -> list[bytes]:
    """Images in an order that does not depend on theirs."""
    return sorted(np.asarray(image).tobytes() for image in images)


@pytest.mark.parametrize("form", ["png", "bmp", "pgm", "tiff"])
def test_the_subfolder_of_a_picture_is_its_label(form):
    save_pictures(GRAY, np.array(["b", "a", "c"])[CLASSES], form)
    splits = read_own(OWN)
    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    assert train.shape == (100, 9, 11) and test.shape == (20, 9, 11)
    assert rows([*train, *test]) == rows(GRAY)
    of_image = {GRAY[i].tobytes(): [1, 0, 2][CLASSES[i]] for i in range(120)}
    for image, label in zip([*train, *test], [*train_labels, *test_labels], strict=True):
        assert of_image[image.numpy().tobytes()] == label
    assert len(train_labels[-20:].unique()) == 3, "validation images are of every class"


def test_jpeg_and_black_and_white_pictures_are_read():
    save_pictures(GRAY[:100], ["a"] * 100, "jpg")
    save_pictures(GRAY[100:] > 127, ["b"] * 20)
    images = torch.cat([images for images, _ in read_own(OWN).values()])
    assert images.shape == (120, 9, 11)
    assert set(rows((GRAY[100:] > 127) * np.uint8(255))) <= set(rows(images))


@pytest.mark.parametrize("names", [[""] * 120, ["all"] * 120])
def test_one_class_is_no_class(names):
    save_pictures(GRAY, names)
    assert [labels for _, labels in read_own(OWN).values()] == [None, None]


def test_a_test_split_stays_as_it_is():
    labels = {"labels": [7] * 50 + [-3] * 50, "test_labels": [-3, 7] * 10}
    np.savez(OWN / "x.npz", images=GRAY[:100], test_images=GRAY[100:], **labels)
    (train, train_labels), (test, test_labels) = read_own(OWN).values()
    assert rows(train) == rows(GRAY[:100]) and not np.array_equal(train, GRAY[:100])
    assert train_labels.bincount().tolist() == [50, 50]
    assert np.array_equal(test, GRAY[100:]) and test_labels.tolist() == [0, 1] * 10


def test_a_class_of_which_only_a_test_image_is_drawn_is_refused():
    labels = np.zeros(len(GRAY), int)
    np.savez(OWN / "x.npz", images=GRAY, labels=np.arange(len(GRAY)) % 2)
    test, _ = read_own(OWN)["test"]
    labels[(test[0].numpy() == GRAY).all(axis=(1, 2)).argmax()] = 9
    np.savez(OWN / "x.npz", images=GRAY, labels=labels)
    with pytest.raises(UserError, match="only test images are of class 9"):
        read_own(OWN)


def test_arrays_without_labels_are_split_like_those_with_labels():
    np.save(OWN / "x.npy", np.asfortranarray(GRAY))
    alone = read_own(OWN)
    (OWN / "x.npy").unlink()
    np.savez_compressed(OWN / "x.npz", images=GRAY, labels=CLASSES)
    for split, (images, labels) in read_own(OWN).items():
        assert torch.equal(images, alone[split][0]) and alone[split][1] is None
        assert len(labels) == len(images)


class Unpickled:
    """Unpickling one creates a file."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def many(count: int) -> np.ndarray:
    return np.zeros((count, 8, 8), "uint8")


ARRAYS = {
    "color": {"images": np.zeros((120, 9, 11, 3), "uint8")},
    "floats": {"images": GRAY / 255},
    "NaN": {"images": np.full((120, 9, 11), np.nan)},
    "one image": {"images": GRAY[:1]},
    "no image": {"images": GRAY[:0]},
    "95 images": {"images": GRAY[:95]},
    "few test images": {"images": GRAY, "test_images": GRAY[:15]},
    "too large": {"images": np.zeros((120, 8, 65), "uint8")},
    "too small": {"images": np.zeros((120, 7, 8), "uint8")},
    "another size": {"images": GRAY, "test_images": many(120)},
    "65,536 labels": {"images": many(65_536), "labels": np.arange(65_536)},
    "257 classes": {
        "images": many(257), "labels": np.arange(257),
        "test_images": many(16), "test_labels": np.arange(16),
    },
    "a class of test images alone": {
        "images": GRAY[:100], "labels": CLASSES[:100],
        "test_images": GRAY[100:], "test_labels": np.full(20, 3),
    },
    "float labels": {"images": GRAY, "labels": CLASSES / 2},
    "missing labels": {"images": GRAY, "labels": CLASSES[:-1]},
    "labels of one split": {"images": GRAY, "test_images": GRAY, "labels": CLASSES},
    "labels of no images": {"images": GRAY, "labels": CLASSES, "test_labels": CLASSES},
    "unknown name": {"images": GRAY, "label": CLASSES},
    "no images": {"labels": CLASSES},
    "objects": {"images": GRAY, "labels": np.array([Unpickled()] * 120)},
}  # fmt: skip


def refused(subject: Path) -> None:
    """Reading is one line about `subject`, and executes nothing."""
    with pytest.raises(UserError) as error:
        read_own(OWN)
    assert error.value.subject == str(subject)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 200
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("arrays", ARRAYS.values(), ids=ARRAYS)
def test_other_arrays_are_refused(arrays):
    np.savez(OWN / "x.npz", **arrays)
    refused(OWN / "x.npz")


TORN = {
    "pickle": pickle.dumps(Unpickled()),
    "empty": b"",
    "zip": b"PK\3\4",
    "npy": b"\x93NUMPY\1\0",
}


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("content", TORN.values(), ids=TORN)
def test_a_file_without_arrays_is_refused(name, content):
    (OWN / name).write_bytes(content)
    refused(OWN / name)


def test_a_file_of_arrays_beside_another_file_is_refused():
    np.save(OWN / "x.npy", GRAY)
    save_pictures(GRAY[:1], [""])
    refused(OWN / "x.npy")


PICTURES = {
    "color": np.zeros((9, 11, 3), "uint8"),
    "16 bits": np.zeros((9, 11), "uint16"),
    "another size": np.zeros((11, 9), "uint8"),
}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_a_picture_unlike_the_others_is_refused_by_its_name(picture):
    save_pictures([*GRAY[:110], picture], ["a"] * 111)
    refused(OWN / "a/110.png")


def test_a_file_that_is_no_picture_is_refused_by_its_name():
    save_pictures(GRAY, ["a"] * 120)
    (OWN / "a" / "notes.txt").write_text("x")
    refused(OWN / "a/notes.txt")
    whole = (OWN / "a/000.png").read_bytes()
    (OWN / "a/000.png").write_bytes(whole[:-30])
    refused(OWN / "a/000.png")


def test_few_pictures_and_pictures_beside_subfolders_are_refused():
    save_pictures(GRAY[:1], ["a"])
    refused(OWN)
    save_pictures(GRAY[1:], [""] * 119)
    refused(OWN)


def test_an_empty_folder_is_reported_with_what_an_experiment_sees():
    with pytest.raises(UserError, match="dvc add") as error:
        read_own(OWN)
    assert error.value.subject == str(OWN)


def test_hidden_folders_are_left_out():
    save_pictures(GRAY, CLASSES.astype(str))
    save_pictures(GRAY[:9], [".ipynb_checkpoints"] * 9)
    images, labels = (torch.cat(parts) for parts in zip(*read_own(OWN).values(), strict=True))
    assert rows(images) == rows(GRAY) and len(labels.unique()) == 3


def test_folders_in_a_subfolder_have_its_label():
    for name in ("a/x", "a/y", "b/z"):
        (OWN / name).mkdir(parents=True)
    save_pictures(GRAY, np.array(["a/x", "a/y", "b/z"])[CLASSES])
    labels = torch.cat([labels for _, labels in read_own(OWN).values()])
    assert labels.bincount().tolist() == [80, 40]
