import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import set_params

from pipeline.data.datasets import Split, load_split, save_dataset
from pipeline.evaluation.classifier import classify, load_classifier
from pipeline.evaluation.sample_quality import quality
from pipeline.paths import CLASSIFIER, CLASSIFIER_REPORT, DATASET
from pipeline.runtime.files import sha256_file
from pipeline.stages import train_classifier


def write_dataset(train: Split, test: Split) -> None:
    splits = {"train": train, "test": test}
    pairs = {name: (s.images.view(-1, *s.image_shape), s.labels) for name, s in splits.items()}
    save_dataset(DATASET, "mnist", pairs)


def first(split: Split, n: int) -> Split:
    return replace(split, images=split.images[:n], labels=split.labels[:n])


def test_the_report_has_the_accuracy_and_the_floor(finished):
    report = json.loads(CLASSIFIER_REPORT.read_text())
    model, test = load_classifier(CLASSIFIER), load_split(DATASET, "test")
    real = classify(model, test.images)
    accuracy = (real.classes == test.labels).double().mean().item()
    assert report["classifier"] == {
        "test_accuracy": pytest.approx(accuracy),
        "test_accuracy_se": pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 200)),
        "num_images": 200,
        "sha256": sha256_file(CLASSIFIER),
    }
    train = classify(model, load_split(DATASET, "train").images[:200])
    assert report["floor"] == quality(real.features, train.features) | {"num_images": 200}


def test_the_bytes_depend_on_the_training_split_alone(finished, small_train, small_test):
    before = CLASSIFIER.read_bytes()
    set_params(finished, {"device": "cuda:7", "seed": 3})
    write_dataset(small_train, replace(small_test, images=torch.zeros_like(small_test.images)))
    train_classifier.main()
    assert CLASSIFIER.read_bytes() == before


@pytest.mark.parametrize(("train", "test"), [(6, 6), (200, 6), (6, 200)])
def test_six_images_are_enough(workplace, small_train, small_test, train, test):
    write_dataset(first(small_train, train), first(small_test, test))
    train_classifier.main()
    floor = json.loads(CLASSIFIER_REPORT.read_text())["floor"]
    assert floor["num_images"] == 6 and all(map(math.isfinite, floor.values()))
