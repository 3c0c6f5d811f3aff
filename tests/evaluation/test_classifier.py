import math
from dataclasses import replace

import pytest
import torch
from conftest import error_about

from pipeline.data.datasets import Split
from pipeline.evaluation import classifier
from pipeline.evaluation.classifier import (
    FEATURES,
    Classifier,
    classify,
    load_classifier,
    new_classifier,
    save_classifier,
    train_classifier,
)
from pipeline.runtime.tensor_file import write_tensors


@pytest.fixture(scope="module")
def trained(small_train) -> Classifier:
    """A classifier of 600 images, which is right about four of five others."""
    model = new_classifier((28, 28), 10)
    train_classifier(model, small_train, 8)
    return model


def test_few_images_are_enough_to_classify_others(trained, small_test):
    features, classes = classify(trained, small_test.images)
    assert (classes == small_test.labels).double().mean() > 0.8
    assert features.shape == (200, FEATURES) and features.dtype == torch.float32
    assert (features >= 0).all() and classes.dtype == torch.int64


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_features_do_not_depend_on_chunks_or_other_images(trained, small_test, monkeypatch, chunk):
    whole = classify(trained, small_test.images)
    monkeypatch.setattr(classifier, "CHUNK", chunk)
    features, classes = classify(trained, small_test.images[:130])
    torch.testing.assert_close(features, whole.features[:130], rtol=1e-5, atol=1e-5)
    assert torch.equal(classes, whole.classes[:130])


@pytest.mark.parametrize("n", [2, 129, 257])
def test_no_number_of_images_gives_a_batch_of_one(small_train, n):
    few = replace(small_train, images=small_train.images[:n], labels=small_train.labels[:n])
    train_classifier(new_classifier((28, 28), 10), few, 1)


@pytest.mark.parametrize("shape", [(20, 33), (8, 8), (9, 64), (64, 64)])
def test_images_of_another_shape_are_classified(tmp_path, shape):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, math.prod(shape)), generator=draw, dtype=torch.uint8)
    split = Split(images, torch.arange(60, dtype=torch.uint8) % 13, shape)
    model = new_classifier(shape, 13)
    train_classifier(model, split, 1)
    save_classifier(model, tmp_path / "c")
    ours, theirs = classify(model, images), classify(load_classifier(tmp_path / "c"), images)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


HEADER = {"image_shape": [28, 28], "num_classes": 10}
WEIGHTS = Classifier((28, 28), 10).state_dict()
INVALID = {
    "another header": (WEIGHTS, {"architecture": {}}),
    "another number of classes": (WEIGHTS, {"classifier": HEADER | {"num_classes": 11}}),
    "other weights": ({"w": torch.zeros(2)}, {"classifier": HEADER}),
}


@pytest.mark.parametrize(("tensors", "header"), INVALID.values(), ids=INVALID)
def test_a_file_that_is_no_classifier_is_refused(tmp_path, tensors, header):
    path = tmp_path / "classifier.safetensors"
    write_tensors(path, tensors, header)
    with error_about(path):
        load_classifier(path)
