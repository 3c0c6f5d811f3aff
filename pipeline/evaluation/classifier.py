"""The judge: a small convolutional network that tells digits apart, trained on the training split alone.

What it holds of an image before its last layer, 64 numbers, is where samples are compared with real images
(sample_quality.py). It is trained on the CPU and on one thread: the parts that oneDNN adds gradients up from, and with
them the bits, are as many as there are threads. One is also what a machine that is busy otherwise has free: two that
wait for one another there take many times as long.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from pipeline.errors import InputError
from pipeline.runtime.device import one_thread
from pipeline.data.mnist import SIDE, to_unit
from pipeline.runtime.randomness import PROTOCOL_SEED, generator, permutation

DIGITS = 10
FEATURES = 64  # with ReLU on batch-normalized sums: none is always 0, and 10,000 images make their covariance
EPOCHS = 6
BATCH = 128
LEARNING_RATE = 1e-2  # Adam's at its peak
WARM_UP = 0.15  # of all steps
SHIFT = 1  # pixels, at most, by which a training image is moved each way
CHUNK = 500  # images judged at a time
HEADER = "judge"

Record = dict[str, float]


class Judged(NamedTuple):
    """What the judge makes of N images: features float32 [N, F], the digit it takes each for, int64 [N]; on the CPU."""

    features: Tensor
    classes: Tensor


class Classifier(nn.Module):
    """28 × 28 → 16 × 12 × 12 → 32 × 5 × 5 → 64 × 3 × 3 → F = 64 features → 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
            nn.Linear(64 * 3 * 3, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, DIGITS)
        self.to(memory_format=torch.channels_last)  # a third less time

    def reset_parameters(self, generator: torch.Generator) -> None:
        """PyTorch's default for linear and convolutional layers, U(−1/√fan_in, 1/√fan_in), drawn from `generator`."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                bound = 1 / math.sqrt(layer.weight[0].numel())
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                if layer.bias is not None:
                    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 784] in [0, 1] → what the last layer decides from, [B, F], none below 0."""
        features: Tensor = self.body(images.view(-1, 1, SIDE, SIDE))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 784] in [0, 1] → logits of the ten digits, [B, 10]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def new_classifier(seed: int = PROTOCOL_SEED) -> Classifier:
    """A judge that has learnt nothing yet."""
    model = Classifier()
    model.reset_parameters(generator(seed, "judge/init"))
    return model


def train_classifier(
    model: Classifier, images: Tensor, labels: Tensor, *, num_epochs: int = EPOCHS, seed: int = PROTOCOL_SEED
) -> Iterator[Record]:
    """Train `model` in place on the CPU and yield a record after every epoch: images uint8 [N, 784], labels uint8 [N].

    Adam, whose learning rate rises linearly to its peak and falls linearly to 0; every image is moved by up to a pixel
    each way, anew in every epoch. A record holds `epoch` (from 1) and, of the steps of the epoch, the mean
    cross-entropy, `loss`, in nats, and `accuracy`. Raises ValueError for a single image, of which there is no variance.
    """
    if len(images) < 2 or len(images) != len(labels):
        raise ValueError(f"two images or more, and a label each (got {len(images)} and {len(labels)})")
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    steps = math.ceil(len(images) / BATCH)
    padded = pad(images.view(-1, SIDE, SIDE), (SHIFT,) * 4)
    moved = padded.unfold(1, SIDE, 1).unfold(2, SIDE, 1)  # [N, 2 SHIFT + 1, 2 SHIFT + 1, 28, 28], a view
    for epoch in range(1, num_epochs + 1):
        order = permutation(len(images), seed, "judge/shuffle", epoch)
        shifts = torch.randint(2 * SHIFT + 1, (len(images), 2), generator=generator(seed, "judge/shift", epoch))
        batches = order.tensor_split(steps)  # as long as one another: batch norm has no use for a small rest
        rates = [_rate((epoch - 1 + step / steps) / num_epochs) for step in range(steps)]
        loss, accuracy = _epoch(model, optimizer, moved, labels, batches=batches, shifts=shifts, rates=rates)
        yield {"epoch": epoch, "loss": loss, "accuracy": accuracy}


def _rate(done: float) -> float:
    """The share of the peak learning rate after the share `done` of all steps; never 0 before the end."""
    return min((done + 0.01) / WARM_UP, (1 - done) / (1 - WARM_UP))


@one_thread()
def _epoch(
    model: Classifier, optimizer: torch.optim.Adam, moved: Tensor, labels: Tensor, *,
    batches: Sequence[Tensor], shifts: Tensor, rates: list[float],
) -> tuple[float, float]:  # fmt: skip
    """A pass over all images: (mean cross-entropy, accuracy) of its steps."""
    model.train()
    loss, right = 0.0, 0
    for batch, rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
        logits = model(to_unit(moved[batch, shifts[batch, 0], shifts[batch, 1]]).flatten(1))
        digits = labels[batch].long()
        mean = cross_entropy(logits, digits)
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        loss += mean.item() * len(batch)
        right += int((logits.argmax(dim=-1) == digits).sum())
    return loss / len(labels), right / len(labels)


@one_thread()
@torch.no_grad()
def judge(model: Classifier, images: Tensor) -> Judged:
    """What the judge makes of images, uint8 or float in [0, 1], [N, 784], on its device; puts it into eval mode."""
    model.eval()
    device = model.head.weight.device
    found = []
    for chunk in images.split(CHUNK):
        x = chunk.to(device)
        features = model.features(x if x.is_floating_point() else to_unit(x))
        found.append(Judged(features.cpu(), model.head(features).argmax(dim=-1).cpu()))
    return Judged(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def save_classifier(model: Classifier, path: Path) -> None:
    """Write the weights and batch norm's means and variances; the header names what they belong to."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path.write_bytes(save(tensors, metadata={HEADER: json.dumps({"features": FEATURES})}))


def load_classifier(path: Path) -> Classifier:
    """The judge in `path`, on the CPU, in eval mode. Raises InputError if the file is no judge of this project."""
    try:
        with safe_open(path, framework="pt") as file:
            if json.loads((file.metadata() or {})[HEADER]) != {"features": FEATURES}:
                raise ValueError("another judge")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        model = Classifier()
        model.load_state_dict(tensors)
    except OSError as error:
        raise InputError(f"{path}: cannot be read; `dvc repro judge` makes it") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: is not a judge of this project; `dvc repro judge` makes it") from error
    return model.eval()
