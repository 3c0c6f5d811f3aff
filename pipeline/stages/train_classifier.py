"""Stage `judge`: a classifier trained on the training split, in whose features samples are compared with real images.

Notable: it depends on the data set alone, so DVC runs it once for all experiments. The floor is what real training
images score against the test images: no sample can be asked to come nearer.
"""

from pipeline.errors import InputError, run, writing
from pipeline.params import load_params
from pipeline.runtime.files import home
from pipeline.runtime.cores import join

if __name__ == "__main__":
    run(load_params)  # what is wrong in params.yaml is said before the seconds that torch takes to import
    join(home())  # and who computes already has made room by then

import hashlib
import json
import math
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from pipeline.evaluation.classifier import EPOCHS, Classifier, judge, new_classifier, save_classifier, train_classifier
from pipeline.data.mnist import IMAGES, load_labelled
from pipeline.evaluation.sample_quality import NEIGHBORS, quality

RAW = Path("data/raw")
JUDGE = Path("data/judge/judge.safetensors")
REPORT = Path("reports/judge.json")


def main() -> None:
    """Read the images and their labels, train the judge, write it and what it is worth."""
    params = load_params()
    train, train_labels = read("train")
    test, test_labels = read("test")
    print(f"judge: {len(train)} images of {params.dataset}")

    model = trained(train, train_labels)
    with writing(JUDGE):
        JUDGE.parent.mkdir(parents=True, exist_ok=True)
        save_classifier(model, JUDGE)

    seen = judge(model, test)
    accuracy = int((seen.classes == test_labels).sum()) / len(test)
    count = min(len(train), len(test))
    floor = quality(seen.features, judge(model, train[:count]).features)
    report = {
        "judge": {
            "accuracy": accuracy,
            "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(test)),
            "num_images": len(test),
            "sha256": hashlib.sha256(JUDGE.read_bytes()).hexdigest(),
        },
        "floor": floor | {"num_images": count},
    }
    with writing(REPORT):
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    print(f"judge: {accuracy:.2%} of {len(test)} test images right")
    print(
        "judge: the floor, training against test images: Fréchet distance {fd_judge:.4f}, precision {precision:.3f}, "
        "recall {recall:.3f}, density {density:.3f}, coverage {coverage:.3f}".format(**floor)
    )
    print(f"judge: wrote {JUDGE} and {REPORT}")


def read(split: str) -> tuple[Tensor, Tensor]:
    """The images of a split and their labels. Raises InputError where they are too few to compare."""
    images, labels = load_labelled(RAW, split)
    if len(images) <= NEIGHBORS:
        raise InputError(f"{RAW / IMAGES[split]}: must hold more than {NEIGHBORS} images (it holds {len(images)})")
    return images, labels


def trained(images: Tensor, labels: Tensor) -> Classifier:
    """A judge of these images, on the CPU whatever device trains the VAE."""
    model = new_classifier()
    with tqdm(train_classifier(model, images, labels), total=EPOCHS, unit="epoch", disable=None) as progress:
        for record in progress:
            progress.set_postfix_str("loss {loss:.3f}, accuracy {accuracy:.4f}".format(**record))
    return model


if __name__ == "__main__":
    run(main)
