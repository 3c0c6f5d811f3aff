"""Every draw has its own generator, whose seed depends on (seed, purpose, epoch), its address.

Nothing depends on earlier draws: an epoch can be repeated alone, and one more validation pass
changes no training noise. Everything is drawn on the CPU and then moved, because CUDA's generator
gives different numbers on different GPU models: the noise is the same on every device.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# The seed of everything that all runs must share to be comparable, such as evaluation noise.
# `params.seed` decides the rest.
PROTOCOL_SEED = 0


def address(seed: int, purpose: str, epoch: int = 0) -> int:
    """The seed of the generator at this address: 64 bits, of which PyTorch's uses the lower 32."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def generator(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator for this address alone."""
    return torch.Generator().manual_seed(address(seed, purpose, epoch))


@contextmanager
def seeded(seed: int, purpose: str, epoch: int = 0) -> Iterator[None]:
    """Inside the block, PyTorch's global CPU generator starts from this address.

    For code that draws from it, such as the initialization of PyTorch's own layers. Its state is
    restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address(seed, purpose, epoch))
        yield


def standard_normal(shape: tuple[int, ...], seed: int, purpose: str, epoch: int = 0) -> Tensor:
    """ε ~ N(0, I) of the given shape, float32, on the CPU."""
    return torch.randn(shape, generator=generator(seed, purpose, epoch))


def standard_normal_columns(n: int, columns: int, seed: int, purpose: str) -> Tensor:
    """ε [n, columns]; column j is the same for any number: models of any z_dim share noise."""
    drawn = [standard_normal((n,), seed, f"{purpose}/{j}") for j in range(columns)]
    return torch.stack(drawn, dim=1)


def uniform(n: int, seed: int, purpose: str) -> Tensor:
    """U [n], uniform in [0, 1), float32, on the CPU."""
    return torch.rand(n, generator=generator(seed, f"{purpose}/uniform"))


def permutation(n: int, seed: int, purpose: str, epoch: int = 0) -> Tensor:
    """A random order of 0 … n−1, int64, on the CPU."""
    return torch.randperm(n, generator=generator(seed, purpose, epoch))
