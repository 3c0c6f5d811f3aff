import struct

import pytest
import torch
from torchvision.datasets.mnist import read_image_file, read_label_file

from pipeline.errors import InputError
from pipeline.data.mnist import IMAGES, LABELS, hold_out, load_images, load_labels, read_idx, to_unit


def idx(*shape, data=None, kind=8):
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + (data or b"")


def test_the_real_files_read_as_torchvision_reads_them(mnist):
    for name in ("train", "t10k"):
        images, labels = mnist / f"{name}-images-idx3-ubyte", mnist / f"{name}-labels-idx1-ubyte"
        assert torch.equal(read_idx(images), read_image_file(str(images)))
        assert torch.equal(read_idx(labels).long(), read_label_file(str(labels)))


def test_splits_have_their_published_sizes(mnist):
    assert load_images(mnist, "train").shape == (60_000, 784)
    assert load_images(mnist, "test").shape == (10_000, 784)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00",
        b"<!DOCTYPE html><html></html>",
        idx(2, 28, 28, data=bytes(2 * 784), kind=13),
        idx(2, 28, 28, data=bytes(2 * 784 - 1)),
        idx(2, 28, 28, data=bytes(2 * 784 + 1)),
        idx(2**32 - 1, 2**32 - 1, 2**32 - 1, data=bytes(784)),
        idx(2, 28, 28)[:9],
        idx(2, 28, 27, data=bytes(2 * 28 * 27)),
        idx(784, data=bytes(784)),
        idx(0, 28, 28),
    ],
    ids=[
        "empty", "two bytes", "a web page", "floats", "a byte short", "a byte long",
        "a header that lies", "half a header", "not 28 × 28", "labels", "no image",
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_name_in_one_line(tmp_path, content):
    (tmp_path / IMAGES["train"]).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_images(tmp_path, "train")
    assert IMAGES["train"] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [idx(2, 28, 28, data=bytes(2 * 784)), idx(0), idx(2, data=bytes([3, 10]))])
def test_what_is_no_digits_is_refused(tmp_path, content):
    (tmp_path / LABELS["train"]).write_bytes(content)
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte: must hold one digit an image"):
        load_labels(tmp_path, "train")


def test_a_missing_file_is_named_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte: cannot be read .*dvc repro download"):
        load_images(tmp_path, "test")


def test_validation_is_the_end_of_the_file_and_nothing_is_lost():
    images = torch.arange(10)
    train, val = hold_out(images, 3)
    assert val.tolist() == [7, 8, 9] and train.tolist() == list(range(7))
    train, val = hold_out(images, 0)
    assert len(train) == 10 and len(val) == 0


def test_bytes_become_the_unit_interval():
    assert to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
