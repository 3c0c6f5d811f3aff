import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.vae.device import prepare_device
from pipeline.vae.fit import fit
from pipeline.vae.mnist import to_unit
from pipeline.vae.model import VAE
from pipeline.vae.randomness import generator, permutation, standard_normal

OPTIONS = {"num_epochs": 2, "batch_size": 64, "learning_rate": 1e-3, "seed": 0}


def make(z_dim=4):
    model = VAE(x_dim=784, h_dim=32, z_dim=z_dim, h_layers=1, activation="relu")
    model.reset_parameters(generator(0, "init"))
    return model


def weights(model):
    return torch.cat([p.detach().view(-1) for p in model.parameters()])


@pytest.fixture(scope="module")
def images(small_images):
    return small_images[:500]


@pytest.fixture(scope="module")
def val(small_images):
    return small_images[500:]


def trained(images, val, **changes):
    model = make()
    return model, list(fit(model, images, val, **OPTIONS | changes))


def test_training_lowers_the_bound_on_both_splits(images, val):
    _, records = trained(images, val, num_epochs=8)
    assert [record["epoch"] for record in records] == list(range(1, 9))
    for split in ("train", "val"):
        assert records[-1][f"{split}/neg_elbo"] < 0.6 * records[0][f"{split}/neg_elbo"]


def test_records_hold_the_terms_and_their_sum(images, val):
    _, records = trained(images, val)
    names = [f"{split}/{term}" for split in ("train", "val") for term in ("recon", "kl", "neg_elbo")]
    for record in records:
        assert list(record) == ["epoch", *names]
        for split in ("train", "val"):
            assert record[f"{split}/neg_elbo"] == record[f"{split}/recon"] + record[f"{split}/kl"]


def test_without_validation_images_their_mean_is_not_a_number(images):
    _, records = trained(images, images[:0])
    assert all(math.isnan(records[0][f"val/{term}"]) for term in ("recon", "kl", "neg_elbo"))
    assert math.isfinite(records[0]["train/neg_elbo"])


def test_an_epoch_equals_the_seeds_loop_given_the_same_noise(images, val):
    """Independent reference: BCE on sigmoid outputs, summed over the batch, and plain Adam, in a loop of its own."""
    model, records = trained(images, val, num_epochs=1)

    reference = make()
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3, foreach=False)
    order = permutation(len(images), 0, "shuffle", 1)
    eps = standard_normal((len(images), 4), 0, "noise", 1)
    total = 0.0
    for start in range(0, len(images), 64):
        x = to_unit(images[order[start : start + 64]])
        mu, log_var = reference.encode(x)
        p = torch.sigmoid(reference.decode(mu + eps[start : start + 64] * torch.exp(log_var / 2)))
        recon = F.binary_cross_entropy(p, x, reduction="sum")
        loss = recon - 0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    assert records[0]["train/neg_elbo"] == pytest.approx(total / len(images), rel=1e-5)
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-3, atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(images, val):
    first, second, other = (trained(images, val, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(weights(first[0]), weights(second[0])) and first[1] == second[1]
    assert not torch.equal(weights(first[0]), weights(other[0]))


def test_the_number_of_threads_changes_no_bit(images, val):
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(trained(images, val))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(weights(runs[0][0]), weights(runs[1][0])) and runs[0][1] == runs[1][1]


def test_an_epoch_does_not_depend_on_how_many_follow_nor_on_validation(images, val):
    short, long = (trained(images, v, num_epochs=n)[1] for n, v in ((1, val), (3, val[:0])))
    assert short[0]["train/neg_elbo"] == long[0]["train/neg_elbo"]


def test_every_image_is_used_once_an_epoch_the_smaller_last_batch_included(images, val):
    """At learning rate ~0 the mean over an epoch is the mean over all images, each with its own noise."""
    _, records = trained(images, val, learning_rate=1e-30, num_epochs=1, batch_size=300)
    _, whole = trained(images, val, learning_rate=1e-30, num_epochs=1, batch_size=60_000)
    assert records[0]["train/neg_elbo"] == pytest.approx(whole[0]["train/neg_elbo"], rel=1e-6)


def test_validation_uses_the_same_noise_each_epoch(images, val):
    _, records = trained(images, val, learning_rate=1e-30)
    assert records[0]["val/neg_elbo"] == records[1]["val/neg_elbo"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bits_twice_and_the_cpus_losses(images, val):
    """The noise is drawn on the CPU for every device, so only the rounding of the arithmetic differs."""
    device, runs = prepare_device("cuda", "params.yaml"), []
    try:
        for _ in range(2):
            model = make().to(device)
            runs.append((list(fit(model, images.to(device), val.to(device), **OPTIONS)), weights(model).cpu()))
    finally:
        torch.use_deterministic_algorithms(False)
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    _, expected = trained(images, val)
    for record, on_cpu in zip(runs[0][0], expected, strict=True):
        assert record == pytest.approx(on_cpu, rel=1e-3)
