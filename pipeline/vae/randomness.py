"""Randomness has an address, (seed, purpose, epoch), not a history.

Every draw starts from a generator of its own, so nothing depends on what was drawn before: an epoch can be done
again alone, and one more validation pass changes no training noise. All of it is drawn on the CPU and then moved,
since CUDA's generator gives different numbers on different GPU models: the noise is the same on every device.
"""

import hashlib

import torch
from torch import Tensor

# The seed of what every run must share to be comparable: evaluation noise, sample grids. Never `params.seed`.
PROTOCOL_SEED = 0


def generator(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator that belongs to this address alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def standard_normal(shape: tuple[int, ...], seed: int, purpose: str, epoch: int = 0) -> Tensor:
    """ε ~ N(0, I) of the given shape, float32, on the CPU."""
    return torch.randn(shape, generator=generator(seed, purpose, epoch))


def standard_normal_columns(n: int, columns: int, seed: int, purpose: str) -> Tensor:
    """ε [n, columns] in which column j is the same however many there are: models of different z_dim share it."""
    return torch.stack([standard_normal((n,), seed, f"{purpose}/{j}") for j in range(columns)], dim=1)


def permutation(n: int, seed: int, purpose: str, epoch: int = 0) -> Tensor:
    """A random order of 0 … n−1, int64, on the CPU."""
    return torch.randperm(n, generator=generator(seed, purpose, epoch))
