import hashlib
import json
import math
from pathlib import Path

import pytest
from conftest import committed, set_params, subset

from pipeline import judge
from pipeline.errors import InputError
from pipeline.evaluation import classifier
from pipeline.data.mnist import load_images, load_labels
from pipeline.evaluation.sample_quality import quality

FIGURES = ["fd_judge", "precision", "recall", "density", "coverage"]


def test_the_committed_judge_is_worth_trusting():
    """99.2 % of all 10,000 test images, and the floor that goes with it."""
    report = json.loads(committed("reports/judge.json"))
    assert report["judge"]["num_images"] == report["floor"]["num_images"] == 10_000
    assert report["judge"]["accuracy"] - 2 * report["judge"]["accuracy_se"] >= 0.992
    assert 0 < report["floor"]["fd_judge"] < 1
    assert all(0.9 < report["floor"][name] < 1 for name in ("precision", "recall", "density", "coverage"))


def test_it_writes_a_judge_and_what_it_is_worth(workplace, capsys):
    judge.main()
    report = json.loads(Path("reports/judge.json").read_text())
    model = classifier.load_classifier(judge.JUDGE)
    test = classifier.judge(model, load_images(judge.RAW, "test"))
    accuracy = (test.classes == load_labels(judge.RAW, "test")).double().mean().item()
    assert report["judge"] == {
        "accuracy": pytest.approx(accuracy),
        "accuracy_se": pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 200)),
        "num_images": 200,
        "sha256": hashlib.sha256(judge.JUDGE.read_bytes()).hexdigest(),
    }
    real = classifier.judge(model, load_images(judge.RAW, "train")[:200])
    assert report["floor"] == quality(test.features, real.features) | {"num_images": 200}
    assert list(report["floor"]) == [*FIGURES, "num_images"]
    assert "judge: 600 images of mnist" in capsys.readouterr().out


def test_the_training_never_sees_the_test_split_and_gives_the_same_bytes_again(workplace):
    judge.main()
    before, report = judge.JUDGE.read_bytes(), judge.REPORT.read_bytes()
    judge.main()
    assert (judge.JUDGE.read_bytes(), judge.REPORT.read_bytes()) == (before, report)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        path = judge.RAW / name
        content = path.read_bytes()
        path.write_bytes(content[:16] + bytes(len(content) - 16))
    judge.main()
    assert judge.JUDGE.read_bytes() == before


@pytest.mark.parametrize(("train", "test"), [(6, 6), (200, 6), (6, 200)])
def test_the_fewest_images_there_can_be(workplace, mnist, train, test):
    subset(mnist, judge.RAW, train, test)
    judge.main()
    floor = json.loads(judge.REPORT.read_text())["floor"]
    assert floor["num_images"] == 6 and all(math.isfinite(floor[name]) for name in FIGURES)


def test_too_few_images_to_compare_are_refused_in_one_line(workplace, mnist):
    subset(mnist, judge.RAW, 600, 5)
    with pytest.raises(InputError, match=r"^data/raw/t10k-images-idx3-ubyte: must hold more than 5 images"):
        judge.main()


def test_images_without_a_label_each_are_refused_in_one_line(workplace):
    path = judge.RAW / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:4] + (500).to_bytes(4, "big") + path.read_bytes()[8 : 8 + 500])
    with pytest.raises(
        InputError, match=r"^data/raw/train-labels-idx1-ubyte: must hold a label for each of 600 images"
    ):
        judge.main()


def test_the_device_of_the_vae_is_not_asked(workplace):
    judge.main()
    before = judge.JUDGE.read_bytes()
    set_params(workplace, {"device": "cuda:7"})
    judge.main()
    assert judge.JUDGE.read_bytes() == before
