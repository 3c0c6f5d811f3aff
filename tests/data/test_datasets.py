import gzip
import hashlib
from pathlib import Path

import pytest
import torch
from conftest import error_about, read_idx_split, set_params

from pipeline.data.catalog import DATASETS, Dataset, find_dataset
from pipeline.data.datasets import (
    Split,
    binarize,
    digest,
    hold_out,
    load_split,
    save_dataset,
    to_unit,
)
from pipeline.errors import UserError
from pipeline.paths import DATASET
from pipeline.runtime.tensor_file import write_tensors
from pipeline.stages import download


def test_the_stage_writes_the_images_and_labels_of_the_original_files(
    mnist, tmp_path, monkeypatch, workplace
):
    raw = tmp_path / "home" / "data" / "raw" / "MNIST"
    raw.mkdir(parents=True)
    (raw / "raw").symlink_to(mnist)
    (raw / "processed").mkdir()  # torchvision would read what its older versions left there
    for name in ("training.pt", "test.pt"):
        (raw / "processed" / name).write_bytes(b"never verified")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "home"))
    download.main()
    path = workplace / "data" / "dataset.safetensors"
    for split, count in {"train": 60_000, "test": 10_000}.items():
        images, labels = read_idx_split(mnist, split)
        loaded = load_split(path, split)
        assert loaded.image_shape == (28, 28)
        assert loaded.images.shape == (count, 784)
        assert torch.equal(loaded.images, images.flatten(start_dim=1))
        assert torch.equal(loaded.labels, labels)


def test_images_have_height_and_width(tmp_path):
    splits = {"train": (torch.zeros(2, 3, 4, dtype=torch.uint8), torch.tensor([1, 0]))}
    save_dataset(tmp_path / "toy", "toy", splits)
    assert load_split(tmp_path / "toy", "train").image_shape == (3, 4)


@pytest.mark.parametrize(
    "tensors", [{}, {"train_images": torch.zeros(2), "train_labels": torch.zeros(2)}]
)
def test_another_tensor_file_is_refused(tmp_path, tensors):
    write_tensors(tmp_path / "x", tensors, {})
    with error_about(tmp_path / "x"):
        load_split(tmp_path / "x", "train")


def test_an_unknown_dataset_is_refused_with_the_known_names():
    with pytest.raises(UserError, match="mnist") as error:
        find_dataset("mnits")
    assert error.value.subject == "params.yaml: dataset"


@pytest.mark.parametrize("val_size", [0, 3])
def test_validation_images_are_the_last_ones(val_size):
    numbers = torch.arange(10, dtype=torch.uint8)
    train, val = hold_out(Split(numbers.view(10, 1), numbers, (1, 1)), val_size)
    assert [*train.labels, *val.labels] == [*numbers]
    assert val.images.flatten().tolist() == val.labels.tolist() == list(range(10 - val_size, 10))


def test_bytes_become_the_unit_interval():
    pixels = to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert pixels.tolist() == pytest.approx([0, 0.2, 1])


def test_the_binarization_of_the_test_images_never_changes(mnist):
    """It is drawn from integers, so it is the same on any machine."""
    images, _ = read_idx_split(mnist, "test")
    expected = "ccf7f7f10fbe12fa3b3bb07bcd58106ea53513ae3275af0707329a85343d56a7"
    assert digest(binarize(images.flatten(1))) == expected


def test_a_pixel_is_white_with_the_probability_of_its_gray_value():
    values = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8)
    shares = to_unit(binarize(values.expand(200_000, -1))).mean(dim=0)
    expected = values / 255
    errors = (expected * (1 - expected) / 200_000).sqrt()
    assert ((shares - expected).abs() <= 4 * errors).all()
    assert shares[0] == 0 and shares[-1] == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_is_binarized_once_for_all_runs(small_dataset, split):
    gray, first, again = (
        load_split(small_dataset, split, how).images for how in ("none", "fixed", "dynamic")
    )
    assert torch.equal(first, again) and {*first.unique().tolist()} == {0, 255}
    assert (first[gray == 0] == 0).all() and (first[gray == 255] == 255).all()
    assert torch.equal(binarize(first), first), "evaluation binarizes test images again"
    assert torch.equal(first, binarize(gray)) is (split == "test")


def test_a_dataset_without_labels_has_labels_0(tmp_path):
    save_dataset(tmp_path / "x", "own", {"test": (torch.ones(2, 8, 9, dtype=torch.uint8), None)})
    split = load_split(tmp_path / "x", "test")
    assert split.labels.tolist() == [0, 0] and not split.has_labels


FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_is_a_dataset_of_the_catalog(workplace, monkeypatch):
    monkeypatch.setenv("MNIST_MIRROR", str(FASHION))
    set_params(workplace, {"dataset": "fashion_mnist"})
    download.main()
    for split, count in {"train": 6000, "test": 1000}.items():
        assert load_split(DATASET, split).labels.bincount().tolist() == [count] * 10


def test_packed_files_are_verified_as_they_are(small_mnist, workplace, monkeypatch):
    """As those of KMNIST, whose published sums are of packed files."""
    packed = {f"{path.name}.gz": gzip.compress(path.read_bytes()) for path in small_mnist.iterdir()}
    for name, content in packed.items():
        (workplace / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in packed.items()}
    monkeypatch.setitem(DATASETS, "kmnist", Dataset("KMNIST", sums))
    monkeypatch.setenv("MNIST_MIRROR", str(workplace))
    expected = load_split(DATASET, "train")
    set_params(workplace, {"dataset": "kmnist"})
    download.main()
    loaded = load_split(DATASET, "train")
    assert torch.equal(loaded.images, expected.images)
    assert torch.equal(loaded.labels, expected.labels)
