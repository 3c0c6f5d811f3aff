import pytest
import torch
from conftest import error_about, read_idx_split

from pipeline.data.catalog import find_dataset
from pipeline.data.datasets import Split, hold_out, load_split, save_dataset, to_unit
from pipeline.errors import UserError
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
