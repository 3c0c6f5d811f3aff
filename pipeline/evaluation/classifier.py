"""A small convolutional classifier of the dataset, trained on the training split alone.

Samples and real images are compared in its last hidden layer of 64 features (sample_quality.py).
It is trained on the CPU on one thread: oneDNN adds gradients up from as many parts as there are
threads, so the bits depend on their number.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from pipeline.data.datasets import Split, to_unit
from pipeline.runtime.device import one_thread
from pipeline.runtime.randomness import PROTOCOL_SEED, generator, permutation, seeded
from pipeline.runtime.tensor_file import read_header, read_tensors, reading, write_tensors

SIDE = 20  # the smallest input of the convolutions
FEATURES = 64  # ReLU of batch-normalized sums: none is always 0
EPOCHS = 6
BATCH = 128
PEAK = 1e-2  # learning rate of Adam, which rises to it in the first WARM_UP of all steps
WARM_UP = 0.15
CHUNK = 500  # images classified at a time


class Classified(NamedTuple):
    """Features float32 [N, F] and predicted classes int64 [N], on the CPU."""

    features: Tensor
    classes: Tensor


class Classifier(nn.Module):
    """Image → 16 → 32 → 64 maps of 3 × 3 → F = 64 features → logits."""

    def __init__(self, image_shape: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.image_shape, self.num_classes = image_shape, num_classes
        border = max(0, math.ceil((SIDE - min(image_shape)) / 2))  # black
        self.body = nn.Sequential(
            nn.Sequential(nn.Unflatten(1, (1, *image_shape)), nn.ZeroPad2d(border)),
            nn.Conv2d(1, 16, 5, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(),  # images of 28 × 28 have 3 × 3 here already
            nn.Linear(64 * 3 * 3, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, num_classes)
        self.to(memory_format=torch.channels_last)  # takes a third less time

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, D] in [0, 1] → logits [B, num_classes]."""
        return self.head(self.body(x))


def new_classifier(image_shape: tuple[int, int], num_classes: int) -> Classifier:
    """An untrained classifier."""
    with seeded(PROTOCOL_SEED, "classifier/init"):
        return Classifier(image_shape, num_classes)


@one_thread()
def train_classifier(model: Classifier, split: Split, num_epochs: int = EPOCHS) -> None:
    """Train `model` in place on the CPU, with a progress bar.

    Every batch is shifted by up to a pixel each way, differently in every epoch.
    """
    model.train()
    images, labels = split.images.view(-1, *split.image_shape), split.labels.long()
    steps = math.ceil(len(images) / BATCH)
    optimizer = Adam(model.parameters(), fused=True)
    total = num_epochs * steps
    schedule = OneCycleLR(
        optimizer, PEAK, total, pct_start=WARM_UP, anneal_strategy="linear", cycle_momentum=False
    )
    for epoch in tqdm(range(1, num_epochs + 1), unit="epoch", disable=None):
        order = permutation(len(images), PROTOCOL_SEED, "classifier/shuffle", epoch)
        draw = generator(PROTOCOL_SEED, "classifier/shift", epoch)
        shifts = torch.randint(-1, 2, (steps, 2), generator=draw).tolist()
        # Batches of about equal size: batch norm cannot use a last batch of one image.
        for batch, shift in zip(order.tensor_split(steps), shifts, strict=True):
            shifted = images[batch].roll(shift, dims=(1, 2))
            optimizer.zero_grad()
            cross_entropy(model(to_unit(shifted.flatten(1))), labels[batch]).backward()
            optimizer.step()
            schedule.step()


@one_thread()
@torch.no_grad()
def classify(model: Classifier, images: Tensor) -> Classified:
    """Classify images [N, D], uint8 or floats in [0, 1]; puts the model into eval mode."""
    model.eval()
    parts = []
    for chunk in images.split(CHUNK):
        parts.append(model.body(chunk if chunk.is_floating_point() else to_unit(chunk)))
    features = torch.cat(parts)
    return Classified(features, model.head(features).argmax(dim=-1))


def save_classifier(model: Classifier, path: Path) -> None:
    """Write the weights and the statistics of batch norm."""
    header = {"image_shape": model.image_shape, "num_classes": model.num_classes}
    write_tensors(path, model.state_dict(), {"classifier": header})


def load_classifier(path: Path) -> Classifier:
    """The classifier in `path`, on the CPU, in eval mode. Raises UserError if it is not one."""
    with reading(path):
        header = read_header(path)["classifier"]
        model = Classifier(tuple(header["image_shape"]), header["num_classes"])
        model.load_state_dict(read_tensors(path))
    return model.eval()
