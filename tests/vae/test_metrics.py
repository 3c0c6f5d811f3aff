import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from pipeline.vae.metrics import evaluate
from pipeline.vae.mnist import to_unit
from pipeline.vae.model import VAE
from pipeline.vae.randomness import PROTOCOL_SEED, generator, standard_normal


@pytest.fixture(scope="module")
def model():
    model = VAE(x_dim=784, h_dim=32, z_dim=4, h_layers=1, activation="relu")
    model.reset_parameters(generator(0, "init"))
    return model


@pytest.fixture(scope="module")
def images(small_images):
    return torch.cat([small_images] * 3)[:1500]  # more than one batch


@torch.no_grad()
def reference(model, images, eps):
    x = to_unit(images)
    mu, log_var = model.encode(x)
    p = torch.sigmoid(model.decode(mu + eps * torch.exp(log_var / 2)))
    recon = F.binary_cross_entropy(p, x, reduction="none").sum(1).double().mean().item()
    kl = kl_divergence(Normal(mu, torch.exp(log_var / 2)), Normal(0.0, 1.0)).sum(1).double().mean().item()
    return {"recon": recon, "kl": kl, "mse": np.mean((p.numpy() - x.numpy()) ** 2)}


def test_metrics_equal_an_independent_computation(model, images):
    eps = standard_normal((len(images), 4), PROTOCOL_SEED, "evaluate")
    metrics = evaluate(model, images)
    for name, expected in reference(model, images, eps).items():
        assert metrics[name] == pytest.approx(expected, rel=1e-5), name
    assert metrics["neg_elbo"] == metrics["recon"] + metrics["kl"]
    assert metrics["num_images"] == 1500


def test_z_is_sampled_not_set_to_its_mean(model, images):
    """At z = μ the reconstruction term is another number, too good once a model is trained."""
    at_the_mean = reference(model, images, torch.zeros(len(images), 4))
    assert abs(evaluate(model, images)["recon"] - at_the_mean["recon"]) > 1e-3


def test_measuring_twice_gives_the_same_bits(model, images):
    first = evaluate(model, images)
    torch.manual_seed(123)
    assert evaluate(model, images) == first
