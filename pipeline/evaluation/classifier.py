"""A small convolutional classifier of the dataset, trained on the training split alone.

Samples and real images are compared in its last hidden layer of 64 features (sample_quality.py).
It is trained on the CPU on one thread: oneDNN adds gradients up from as many parts as there are
threads, so the bits depend on their number.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from pipeline.data.datasets import Split, to_unit
from pipeline.errors import UserError
from pipeline.runtime.device import one_thread
from pipeline.runtime.randomness import PROTOCOL_SEED, generator, permutation, seeded
from pipeline.runtime.tensor_file import read_header, read_tensors, write_tensors

FEATURES = 64  # ReLU of batch-normalized sums: none is always 0
MIN_SIDE = 20  # pixels, so that the last convolution has an output
EPOCHS = 6
BATCH = 128
LEARNING_RATE = 1e-2  # of Adam, at its peak
WARM_UP = 0.15  # share of all steps
SHIFT = 1  # maximum shift of a training image, in pixels, in each direction
CHUNK = 500  # images classified at a time


class Classified(NamedTuple):
    """Features float32 [N, F] and predicted classes int64 [N], on the CPU."""

    features: Tensor
    classes: Tensor


class Classifier(nn.Module):
    """Image → 16 → 32 → 64 maps of (for 28 × 28) 3 × 3 → F = 64 features → logits."""

    def __init__(self, image_shape: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(),
            nn.Linear(64 * 3 * 3, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, num_classes)
        self.to(memory_format=torch.channels_last)  # takes a third less time

    def features(self, x: Tensor) -> Tensor:
        """Images [B, D] in [0, 1] → features [B, F], not negative."""
        features: Tensor = self.body(x.view(-1, 1, *self.image_shape))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, D] in [0, 1] → logits [B, num_classes]."""
        logits: Tensor = self.head(self.features(x))
        return logits


def new_classifier(dataset: str, image_shape: tuple[int, int], num_classes: int) -> Classifier:
    """An untrained classifier. Raises UserError about the dataset if its images are too small."""
    height, width = image_shape
    if min(height, width) < MIN_SIDE:
        needed = f"the classifier needs {MIN_SIDE} x {MIN_SIDE} pixels"
        raise UserError(dataset, f"{needed} or more (the images have {height} x {width})")
    with seeded(PROTOCOL_SEED, "classifier/init"):
        return Classifier(image_shape, num_classes)


def train_classifier(
    model: Classifier, split: Split, num_epochs: int = EPOCHS
) -> Iterator[dict[str, float]]:
    """Train `model` in place on the CPU; yields epoch, mean cross-entropy (loss) and accuracy.

    Adam with a learning rate that rises linearly to its peak and then falls linearly to 0. Every
    image is shifted by up to a pixel each way, differently in every epoch.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    n = len(split.images)
    steps = math.ceil(n / BATCH)
    height, width = split.image_shape
    padded = pad(split.images.view(-1, height, width), (SHIFT,) * 4)
    shifted = padded.unfold(1, height, 1).unfold(2, width, 1)  # [N, 3, 3, height, width], a view
    for epoch in range(1, num_epochs + 1):
        model.train()
        order = permutation(n, PROTOCOL_SEED, "classifier/shuffle", epoch)
        draw = generator(PROTOCOL_SEED, "classifier/shift", epoch)
        shifts = torch.randint(2 * SHIFT + 1, (n, 2), generator=draw)
        loss, correct = 0.0, 0
        # Batches of about equal size: batch norm cannot use a last batch of one image.
        for step, batch in enumerate(order.tensor_split(steps)):
            optimizer.param_groups[0]["lr"] = _rate((epoch - 1 + step / steps) / num_epochs)
            x = to_unit(shifted[batch, shifts[batch, 0], shifts[batch, 1]]).flatten(1)
            batch_loss, batch_correct = _step(model, optimizer, x, split.labels[batch].long())
            loss += batch_loss * len(batch)
            correct += batch_correct
        yield {"epoch": epoch, "loss": loss / n, "accuracy": correct / n}


def _rate(done: float) -> float:
    """The learning rate after the share `done` of all steps."""
    return LEARNING_RATE * min((done + 0.01) / WARM_UP, (1 - done) / (1 - WARM_UP))


@one_thread()
def _step(
    model: Classifier, optimizer: torch.optim.Adam, x: Tensor, y: Tensor
) -> tuple[float, int]:
    """One step: (mean cross-entropy, number of correct predictions) before it."""
    logits = model(x)
    loss = cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), int((logits.argmax(dim=-1) == y).sum())


@one_thread()
@torch.no_grad()
def classify(model: Classifier, images: Tensor) -> Classified:
    """Classify images [N, D], uint8 or floats in [0, 1]; puts the model into eval mode."""
    model.eval()
    parts = []
    for chunk in images.split(CHUNK):
        features = model.features(chunk if chunk.is_floating_point() else to_unit(chunk))
        parts.append(Classified(features, model.head(features).argmax(dim=-1)))
    return Classified(*(torch.cat(field) for field in zip(*parts, strict=True)))


def save_classifier(model: Classifier, path: Path) -> None:
    """Write the weights and the statistics of batch norm."""
    header = {"image_shape": model.image_shape, "num_classes": model.head.out_features}
    write_tensors(path, model.state_dict(), {"classifier": header})


def load_classifier(path: Path) -> Classifier:
    """The classifier in `path`, on the CPU, in eval mode. Raises UserError if it is not one."""
    try:
        header = read_header(path)["classifier"]
        model = Classifier(tuple(header["image_shape"]), header["num_classes"])
        model.load_state_dict(read_tensors(path))
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(path, "is not a classifier; run `dvc repro train_classifier`") from error
    return model.eval()
