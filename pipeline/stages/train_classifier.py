"""Stage `train_classifier`: the dataset -> a classifier whose features compare samples with images.

It depends on the dataset alone, so DVC runs it once for all experiments. The floor in its report is
the score of real training images against the test images.
"""

import math
import os

from pipeline.data.datasets import load_split
from pipeline.errors import run
from pipeline.evaluation import classifier
from pipeline.evaluation.sample_quality import quality
from pipeline.paths import CLASSIFIER, CLASSIFIER_REPORT, DATASET
from pipeline.runtime.files import sha256_file, write_json
from pipeline.runtime.pending_run import mark_failure
from pipeline.runtime.tensor_file import write_tensors


@mark_failure()
def main() -> None:
    """Read the dataset, train the classifier, write it and its report.

    Without labels the file has no weights, and the report only its sha256.
    """
    train, test = load_split(DATASET, "train"), load_split(DATASET, "test")
    if not train.has_labels:
        write_tensors(CLASSIFIER, {}, {"classifier": None})
        write_json(CLASSIFIER_REPORT, {"classifier": {"sha256": sha256_file(CLASSIFIER)}})
        print(f"train_classifier: the dataset has no labels; wrote an empty {CLASSIFIER}")
        return
    count = min(len(train.images), len(test.images))
    print(f"train_classifier: {len(train.images)} images")

    model = classifier.new_classifier(train.image_shape, int(train.labels.max()) + 1)
    classifier.train_classifier(model, train)
    classifier.save_classifier(model, CLASSIFIER)

    real = classifier.classify(model, test.images)
    training = classifier.classify(model, train.images[:count])
    floor = quality(real.features, training.features)
    accuracy = int((real.classes == test.labels).sum()) / len(test.images)
    report = {
        "classifier": {
            "test_accuracy": accuracy,
            "test_accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(test.images)),
            "num_images": len(test.images),
            "sha256": sha256_file(CLASSIFIER),
        },
        "floor": floor | {"num_images": count},
    }
    write_json(CLASSIFIER_REPORT, report)

    distance = f"Frechet distance of training images {floor['frechet_distance']:.4f}"
    print(f"train_classifier: accuracy {accuracy:.2%} on test images; {distance}")
    print(f"train_classifier: wrote {CLASSIFIER} and {CLASSIFIER_REPORT}")


if __name__ == "__main__":
    # It computes on the CPU, but PyTorch's Adam would ask a GPU, and fail with it.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    run(main)
