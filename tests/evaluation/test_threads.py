"""On the CPU, the bits of an evaluation do not depend on the number of threads.

The sizes are those whose products have other bits if three or more threads share them.
"""

from collections.abc import Iterable

import pytest
import torch
from helpers.models import small_vae

from pipeline.data.datasets import Split
from pipeline.evaluation import bounds, sample_quality
from pipeline.evaluation.classifier import classify, new_classifier, train_classifier
from pipeline.evaluation.latent_code import kl_per_dimension, kl_split
from pipeline.evaluation.latent_walks import decode
from pipeline.evaluation.reconstruction import FAST
from pipeline.figures.samples import generate, reconstruct
from pipeline.model.network import Posterior
from pipeline.model.prior import StandardNormal
from pipeline.runtime.randomness import standard_normal

MODEL = small_vae(z_dim=20, h_dim=400)
NOISE = standard_normal((3, 2000, 64), 0, "test")
LABELS = torch.arange(128) % 10


def elbo(split: Split, threads: int) -> Iterable[torch.Tensor]:
    terms, errors, posterior = bounds.elbo(MODEL, split)
    return *terms, errors, *posterior


def nll_bounds(split: Split, threads: int) -> Iterable[torch.Tensor]:
    """Several chunks, as many at a time as there are threads."""
    return bounds.nll_bounds(MODEL, split, FAST["bernoulli"], (20, 1.4), threads)


def mixture_prior(split: Split, threads: int) -> Iterable[torch.Tensor]:
    """The one prior with products of matrices."""
    with torch.no_grad():
        mixture = small_vae(z_dim=20, prior="mixture", prior_components=300).p_z()
    posterior, eps = Posterior(NOISE[0, :, :20], NOISE[1, :, :20]), NOISE[2, :, :20]
    parts = kl_split(posterior, mixture, eps[:500]).values()
    return *parts, kl_per_dimension(posterior, mixture, eps)


def classifier(split: Split, threads: int) -> Iterable[torch.Tensor]:
    model = new_classifier((28, 28), 10)
    train_classifier(model, split, 1)
    return *model.state_dict().values(), classify(model, split.images).features


def quality(split: Split, threads: int) -> Iterable[torch.Tensor]:
    return [torch.tensor([*sample_quality.quality(*NOISE[:2]).values()], dtype=torch.float64)]


def total_correlation(split: Split, threads: int) -> Iterable[torch.Tensor]:
    mu, log_var, eps = NOISE[:, :, :3]
    return kl_split(Posterior(mu, log_var), StandardNormal(), eps).values()


def pictures(split: Split, threads: int) -> Iterable[torch.Tensor]:
    walks = decode(MODEL, NOISE[0, :600, :20].view(30, 20, 20), LABELS[:30])
    return walks, generate(MODEL, LABELS), reconstruct(MODEL, split)


@pytest.mark.parametrize(
    "compute",
    [elbo, nll_bounds, mixture_prior, classifier, quality, total_correlation, pictures],
)
def test_the_bits_do_not_depend_on_the_number_of_threads(
    small_train, monkeypatch, set_threads, compute
):
    monkeypatch.setattr(bounds, "MAX_IMAGES", 50)
    set_threads(1)
    expected = compute(small_train, 1)
    for threads in (2, 3, 4, 8):
        set_threads(threads)
        results = compute(small_train, threads)
        assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))
        assert torch.get_num_threads() == threads
