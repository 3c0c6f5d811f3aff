"""One fixed binarization of the test images: the bridge between likelihoods.

The binary cross-entropy of x in [0, 1] is E_{b ~ Bern(x)}[−log p(b|z)], so a model of gray values
also assigns a probability to binary images. They are drawn once, from integers, and are the same on
every machine. Another draw would move −log p(b) by about 0.06 nats.
"""

import hashlib

import torch
from torch import Tensor

from pipeline.runtime.randomness import PROTOCOL_SEED, generator


def binarize(images: Tensor) -> Tensor:
    """Each pixel becomes 255 with probability x / 255, else 0: uint8 [N, D] → uint8 [N, D], CPU."""
    draw = generator(PROTOCOL_SEED, "binarize")
    thresholds = torch.randint(0, 255, images.shape, generator=draw, dtype=torch.uint8)
    return (thresholds < images.cpu()).to(torch.uint8) * 255


def digest(images: Tensor) -> str:
    """The sha256 of the bytes of images."""
    return hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()
