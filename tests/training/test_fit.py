import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.runtime.device import prepare_device
from pipeline.training.fit import PRECISIONS, DivergenceError, fit, new_optimizer, restore_training, training_state
from pipeline.training.accelerated.gradient import ByAutograd, gradient_of
from pipeline.data.mnist import to_unit
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import generator, permutation, standard_normal

OPTIONS = {"num_epochs": 2, "batch_size": 64, "seed": 0}


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


def trained(images, val, learning_rate=1e-3, precision="float32", **changes):
    model = make()
    return model, list(fit(model, new_optimizer(model, learning_rate, precision), images, val, **OPTIONS | changes))


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


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_number_of_threads_changes_no_bit(images, val, precision):
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(trained(images, val, precision=precision))
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


def test_bfloat16_trains_what_float32_trains(images, val):
    """Not the same bits, but the same model: losses within a hundredth, and weights in float32 all the same."""
    (model, rough), (_, exact) = (
        trained(images, val, precision=name, num_epochs=8) for name in ("bfloat16", "float32")
    )
    assert weights(model).dtype == torch.float32 and rough != exact
    for split in ("train", "val"):
        assert rough[-1][f"{split}/neg_elbo"] == pytest.approx(exact[-1][f"{split}/neg_elbo"], rel=1e-2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_layer_that_is_not_known_is_trained_by_autograd(images, val, precision):
    model = make()
    model.encoder[1], model.decoder[1] = torch.nn.ELU(), torch.nn.ELU()
    optimizer = new_optimizer(model, 1e-3, precision)
    assert isinstance(gradient_of(optimizer.working), ByAutograd)
    first, *_, last = fit(model, optimizer, images, val, **OPTIONS | {"num_epochs": 8})
    assert last["val/neg_elbo"] < 0.6 * first["val/neg_elbo"]


def test_validation_uses_the_same_noise_each_epoch(images, val):
    _, records = trained(images, val, learning_rate=1e-30)
    assert records[0]["val/neg_elbo"] == records[1]["val/neg_elbo"]


def go_on(images, val, done, num_epochs, device="cpu", precision="float32"):
    """Train for `done` epochs; then another model goes on from the state, as another process would."""
    first, second = make().to(device), make(z_dim=4).to(device)
    optimizer = new_optimizer(first, 1e-3, precision)
    list(fit(first, optimizer, images, val, **OPTIONS | {"num_epochs": done}))
    state = {name: tensor.clone() for name, tensor in training_state(first, optimizer).items()}
    optimizer = new_optimizer(second, 1e-3, precision)
    restore_training(second, optimizer, state)
    return second, list(fit(second, optimizer, images, val, **OPTIONS | {"num_epochs": num_epochs, "done": done}))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_training_goes_on_from_its_state_to_the_same_bits(images, val, done, precision):
    whole, records = trained(images, val, num_epochs=4, precision=precision)
    model, rest = go_on(images, val, done, 4, precision=precision)
    assert torch.equal(weights(model), weights(whole)) and rest == records[done:]


def test_a_state_of_another_model_is_refused(images, val):
    model = make()
    optimizer = new_optimizer(model, 1e-3)
    list(fit(model, optimizer, images, val, **OPTIONS | {"num_epochs": 1}))
    state, other = training_state(model, optimizer), make(z_dim=5)
    with pytest.raises(RuntimeError, match="size mismatch"):
        restore_training(other, new_optimizer(other, 1e-3), state)


def test_a_loss_that_is_not_finite_is_told_with_its_epoch_and_step(images, val):
    """The losses of a loop that looks at each step name the same one."""
    model, reference = make(), make()
    with pytest.raises(DivergenceError) as caught:
        list(fit(model, new_optimizer(model, 1e4), images, val, **OPTIONS | {"num_epochs": 50}))
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e4)
    for epoch in range(1, 51):
        order = permutation(len(images), 0, "shuffle", epoch)
        eps = standard_normal((len(images), 4), 0, "noise", epoch)
        for step, start in enumerate(range(0, len(images), 64), 1):
            rows = slice(start, start + 64)
            mu, log_var = reference.encode(to_unit(images[order[rows]]))
            logits = reference.decode(mu + eps[rows] * torch.exp(log_var / 2))
            recon = F.binary_cross_entropy_with_logits(logits, to_unit(images[order[rows]]), reduction="sum")
            loss = recon - 0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())
            if not math.isfinite(loss.item()):
                assert (caught.value.epoch, caught.value.step) == (epoch, step)
                return
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    raise AssertionError("the reference did not diverge")


def test_weights_that_break_in_the_very_last_step_are_noticed(images, val):
    """With a learning rate that overflows float32 in one step, and no validation that would tell."""
    model = make()
    with pytest.raises(DivergenceError) as caught:
        list(fit(model, new_optimizer(model, 1e39), images, val[:0], num_epochs=1, batch_size=500, seed=0))
    assert (caught.value.epoch, caught.value.step) == (1, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bits_twice_and_the_cpus_losses(images, val):
    """The noise is drawn on the CPU for every device, so only the rounding of the arithmetic differs."""
    device, runs = prepare_device("cuda", "params.yaml"), []
    try:
        for _ in range(2):
            model = make().to(device)
            records = fit(model, new_optimizer(model, 1e-3), images.to(device), val.to(device), **OPTIONS)
            runs.append((list(records), weights(model).cpu()))
        model, rest = go_on(images.to(device), val.to(device), 1, 2, device)
    finally:
        torch.use_deterministic_algorithms(False)
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert torch.equal(weights(model).cpu(), runs[0][1]) and rest == runs[0][0][1:]
    _, expected = trained(images, val)
    for record, on_cpu in zip(runs[0][0], expected, strict=True):
        assert record == pytest.approx(on_cpu, rel=1e-3)
