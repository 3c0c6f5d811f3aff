import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.models import PRECISIONS, documented, small_vae, weights
from torch import nn
from torch.nn import functional as F

from pipeline.data.datasets import Split, above, hold_out, thresholds, to_unit
from pipeline.evaluation.bounds import elbo
from pipeline.model import network as network_module
from pipeline.model.network import NETWORKS, Batch, to_batch
from pipeline.model.objective import NEG_ELBO, Objective, dreg_terms, elbo_terms, iwae_terms
from pipeline.runtime.device import prepare_device
from pipeline.runtime.finite import DivergenceError
from pipeline.runtime.randomness import permutation, standard_normal
from pipeline.training import fit as fit_module
from pipeline.training.best_epoch import BestEpoch
from pipeline.training.fit import fit
from pipeline.training.optimizer import Optimizer

SETTINGS = {  # of the optimizer
    "default": {},
    "scheduled": {"lr_schedule": "cosine", "num_epochs": 4, "weight_decay": 0.1},
}


@pytest.fixture(scope="module")
def data(small_train):
    """500 images for training, 100 for validation."""
    return hold_out(small_train, 100)


def train(
    data, epochs=2, learning_rate=1e-3, precision="float32", model=None, settings="default",
    **options,
):  # fmt: skip
    """Returns the model and its records."""
    optimizer = Optimizer(model or small_vae(), learning_rate, precision, **SETTINGS[settings])
    options = {"batch_size": 64, "seed": 0} | options
    records = list(fit(optimizer, *data, range(1, epochs + 1), **options))
    return optimizer.model, records


def train_resumed(
    data, done, epochs=4, device="cpu", precision="float32", settings="default", binarize=False,
    **architecture,
):  # fmt: skip
    """Train for `done` epochs; another optimizer, as of another process, resumes from the state."""
    options = {"batch_size": 64, "seed": 0, "binarize": binarize}
    models = (small_vae(seed, **architecture).to(device) for seed in (0, 1))
    first, second = (Optimizer(model, 1e-3, precision, **SETTINGS[settings]) for model in models)
    list(fit(first, *data, range(1, done + 1), **options))
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    return second.model, list(fit(second, *data, range(done + 1, epochs + 1), **options))


def reference_losses(data, epochs, learning_rate=1e-3):
    """The loop of the original script, given the same order and noise: (epoch, step, loss)."""
    model, images = small_vae(), to_unit(data[0].images)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, foreach=False)
    for epoch in range(1, epochs + 1):
        order = permutation(len(images), 0, "shuffle", epoch).split(64)
        noise = standard_normal((len(images), 4), 0, "noise", epoch).split(64)
        for step, (indices, eps) in enumerate(zip(order, noise, strict=True), 1):
            x = images[indices]
            mu, log_var = model.encode(Batch(x))
            logits = model.decode(mu + eps * torch.exp(log_var / 2))
            recon = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            loss = recon - 0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield epoch, step, loss.item(), model


def test_an_epoch_equals_the_loop_of_the_original_script(data):
    model, records = train(data, epochs=1)
    *_, (_, _, _, reference) = losses = list(reference_losses(data, 1))
    total = sum(loss for _, _, loss, _ in losses)
    assert records[0]["train/neg_elbo"] == pytest.approx(total / 500, rel=1e-5)
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-3, atol=1e-5)


EPOCHS = [  # an objective, and the loss of its epochs 1 and 2
    (Objective(beta=4.0, warmup_epochs=1), [partial(elbo_terms, beta=beta) for beta in (2.0, 4.0)]),
    (Objective(beta=4.0), [partial(elbo_terms, beta=4.0)] * 2),
    (Objective(free_bits=0.5), [partial(elbo_terms, free_bits=0.5)] * 2),
    (Objective(num_samples=3), [elbo_terms] * 2),
    (Objective("iwae", 3), [iwae_terms] * 2),
    (Objective("dreg", 3), [dreg_terms] * 2),
    (NEG_ELBO, [elbo_terms] * 2),
]


@pytest.mark.parametrize("num_classes", [0, 10])
@pytest.mark.parametrize(("objective", "losses"), EPOCHS)
def test_an_epoch_trains_its_objective_with_the_labels_of_its_images(
    data, objective, losses, num_classes
):
    model, other = (small_vae(num_classes=num_classes) for _ in range(2))
    train(data, model=model, objective=objective)
    adam = torch.optim.Adam(other.parameters(), foreach=False)
    for epoch, loss in enumerate(losses, 1):
        order = permutation(500, 0, "shuffle", epoch).split(64)
        noise = standard_normal((500, objective.num_samples, 4), 0, "noise", epoch).split(64)
        for chosen, eps in zip(order, noise, strict=True):
            adam.zero_grad()
            loss(other, to_batch(data[0][chosen], other.device), eps).loss.sum().backward()
            adam.step()
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_is_reported_with_its_epoch_and_step(data):
    with pytest.raises(DivergenceError) as error:
        train(data, epochs=50, learning_rate=1e4)
    losses = reference_losses(data, 50, learning_rate=1e4)
    first = next((epoch, step) for epoch, step, loss, _ in losses if not math.isfinite(loss))
    assert "epoch {}, step {},".format(*first) in str(error.value)


def test_weights_that_overflow_in_the_last_step_are_noticed(data):
    """No later step and no validation would show it."""
    with pytest.raises(DivergenceError) as error:
        train((data[0], hold_out(data[0], 0)[1]), 1, learning_rate=1e39, batch_size=500)
    assert "epoch 1, step 1," in str(error.value)


@pytest.mark.parametrize(("accelerated", "network"), [(1, "mlp"), (0, "mlp"), (0, "conv")])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_number_of_threads_changes_no_bit(
    data, monkeypatch, set_threads, accelerated, network, precision
):
    if not accelerated:
        monkeypatch.setattr("pipeline.training.accelerated.TOLERANCE", -1.0)
    runs = []
    for threads in (1, 2):
        set_threads(threads)
        model = small_vae(h_dim=400, z_dim=20, network=network)
        model, records = train(data, precision=precision, model=model)
        runs.append((weights(model).tolist(), records))
    assert runs[0] == runs[1]


def test_the_pixels_of_an_epoch_are_drawn_from_its_address(data):
    """The second epoch trains on other pixels than the first."""
    first, second = (
        above(data[0].images, thresholds((500, 784), 0, "binarize", k)) for k in (1, 2)
    )
    assert not torch.equal(first, second)
    model, records = train(data, binarize=True)
    optimizer = Optimizer(small_vae(), 1e-3)
    expected = []
    for epoch, images in enumerate((first, second), 1):
        drawn = replace(data[0], images=images)
        epochs = range(epoch, epoch + 1)
        expected += fit(optimizer, drawn, data[1], epochs, batch_size=64, seed=0)
    assert records == expected and torch.equal(weights(model), weights(optimizer.model))


@pytest.fixture
def residual(monkeypatch):
    """The documented network, which has dropout."""
    monkeypatch.setitem(NETWORKS, "residual", documented(network_module)["Residual"])
    return "residual"


def test_validation_uses_the_same_noise_each_epoch_and_seed_and_no_dropout(data, residual):
    for network in ("mlp", residual):
        records = []
        for seed in (0, 1):
            model = small_vae(network=network)
            records += train(data, learning_rate=1e-30, model=model, seed=seed)[1]
        assert len({record["val/neg_elbo"] for record in records}) == 1
        assert len({record["train/neg_elbo"] for record in records}) == 4


def test_validation_is_the_mean_over_all_images_in_any_batches(data, monkeypatch):
    monkeypatch.setattr(fit_module, "VALIDATION_BATCH", 30)
    model, records = train(data)
    batch, eps = to_batch(data[1], model.device), standard_normal((100, 1, 4), 0, "validate")
    mean = elbo_terms(model, batch, eps).neg_elbo.mean().item()
    assert records[-1]["val/neg_elbo"] == pytest.approx(mean, rel=1e-5)


def test_dropout_is_drawn_from_the_address_of_an_epoch(data, residual):
    masks = []
    for _ in range(2):
        model = small_vae(network=residual)
        (dropout,) = (
            each for each in model.network.decoder.modules() if isinstance(each, nn.Dropout)
        )
        dropout.register_forward_hook(lambda _, inputs, output: masks.append(output == 0))
        before = len(masks)
        train((data[0], hold_out(data[0], 0)[1]), model=model, batch_size=500)
        masks[before:] = masks[-2:]  # without that of the check before the training
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2]) and torch.equal(masks[1], masks[3])


@pytest.mark.parametrize("message", ["CUDA out of memory", "CUDA error: unknown error"])
def test_a_gpu_that_fails_is_no_reason_for_another_gradient(data, monkeypatch, message):
    def fail(*arguments):
        raise RuntimeError(message)

    monkeypatch.setattr("pipeline.training.accelerated.checked_gradient", fail)
    with pytest.raises(RuntimeError, match=message):
        train(data)


def test_bfloat16_trains_what_float32_trains(data):
    model, rough = train(data, precision="bfloat16", epochs=8)
    _, exact = train(data, epochs=8)
    assert weights(model).dtype == torch.float32 and rough != exact
    for column in ("train/neg_elbo", "val/neg_elbo"):
        assert rough[-1][column] == pytest.approx(exact[-1][column], rel=1e-2)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_a_conditional_network_is_trained_by_autograd_with_its_labels_and_one_message(
    data, network, precision
):
    model, messages = small_vae(network=network, num_classes=10), []
    perceptron = model.network.inner if network == "conv" else model.network
    of_labels = perceptron.decoder[0].weight[:, 4:]
    before = of_labels.clone()
    _, records = train(data, model=model, precision=precision, epochs=8, report=messages.append)
    assert records[-1]["val/neg_elbo"] < 0.8 * records[0]["val/neg_elbo"]
    assert not (of_labels == before).all(dim=0).any(), "every label is used"
    assert len(messages) == 1 and "autograd" in messages[0] and "written out" in messages[0]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("done", [1, 2, 4])
@pytest.mark.parametrize(
    ("options", "architecture"),
    [
        ({}, {}),
        ({"binarize": True}, {}),
        ({"settings": "scheduled"}, {}),
        ({}, {"network": "conv", "num_classes": 10}),
        ({}, {"prior": "mixture", "num_classes": 10}),
        ({}, {"prior": "vamp"}),
    ],
)
def test_resumed_training_is_bit_identical(data, done, precision, options, architecture):
    options = options | {"precision": precision}
    whole, records = train(data, epochs=4, model=small_vae(**architecture), **options)
    model, rest = train_resumed(data, done, **options, **architecture)
    assert torch.equal(weights(model), weights(whole)) and rest == records[done:]


GAUSSIANS = [{"likelihood": "gaussian", "sigma": sigma} for sigma in ("learned", "optimal")]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", [{"likelihood": "continuous_bernoulli"}, *GAUSSIANS])
def test_every_likelihood_learns_and_is_resumed_bit_by_bit(data, architecture, precision):
    whole, records = train(data, 4, 1e-2, precision, small_vae(**architecture))
    values = [record["val/neg_elbo"] for record in records]
    assert values == sorted(values, reverse=True)
    whole, records = train(data, 4, precision=precision, model=small_vae(**architecture))
    model, rest = train_resumed(data, 2, precision=precision, **architecture)
    state = model.state_dict()
    assert rest == records[2:]
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_optimal_sigma_of_the_model_is_that_of_its_training_images(data, precision):
    """The average does not stand still in bfloat16, and validation uses it."""
    model, _ = train(data, 25, 1e-2, precision, small_vae(likelihood="gaussian", sigma="optimal"))
    assert model.likelihood.average.dtype == torch.float32
    mse = elbo(model, data[0])[1].mean().item()
    variance = model.likelihood.average[0] / model.likelihood.average[1]
    assert mse < 0.06 and variance.item() == pytest.approx(mse, rel=0.1)


def test_an_epoch_of_the_warm_up_is_never_the_best():
    best, stops = BestEpoch(small_vae(), patience=2, warmup_epochs=3), []
    for epoch, neg_elbo in enumerate([1.0, 2.0, 0.5, 9.0, 8.0, 8.5, 8.5], 1):
        best.update(epoch, neg_elbo)
        stops.append(best.stops(epoch))
    assert best.epoch == 5 and stops == [*[False] * 6, True]


def test_patience_stops_the_training_and_keeps_the_weights_of_the_best_epoch(data):
    messages, best = [], BestEpoch(small_vae(), patience=3)
    options = {"learning_rate": 0.05, "epochs": 200, "report": messages.append}
    model, records = train(data, model=best.model, best=best, **options)
    values = [record["val/neg_elbo"] for record in records]
    assert 1 < best.epoch == 1 + values.index(min(values)) == len(records) - 3
    assert messages == [f"stopped after epoch {len(records)}: no better validation for 3 epochs"]
    until_best, _ = train(data, **options | {"epochs": best.epoch})
    assert torch.equal(weights(model), weights(until_best))


def test_a_training_that_patience_does_not_stop_ends_with_the_weights_of_the_best_epoch(data):
    """Buffers included, such as the average behind an optimal sigma."""
    first, second = (small_vae(likelihood="gaussian", sigma="optimal") for _ in range(2))
    best = BestEpoch(first, patience=200)
    _, records = train(data, 40, 0.05, model=first, best=best)
    assert len(records) == 40 > best.epoch
    train(data, best.epoch, 0.05, model=second)
    state = second.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in first.state_dict().items())


def test_only_the_steps_may_round_to_tf32(data, monkeypatch):
    optimizer, found = Optimizer(small_vae(), 1e-3), []
    optimizer.precision = "tf32"  # refused without a GPU

    def watched(function):
        def call(*arguments):
            found.append(torch.backends.cuda.matmul.fp32_precision)
            return function(*arguments)

        return call

    monkeypatch.setattr(Optimizer, "step", watched(Optimizer.step))
    monkeypatch.setattr(fit_module, "_validate", watched(fit_module._validate))
    list(fit(optimizer, *data, range(1, 2), batch_size=300, seed=0))
    assert found == ["tf32", "tf32", "ieee"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("precision", [*PRECISIONS, "tf32"])
def test_a_gpu_gives_the_same_bits_twice_and_the_losses_of_the_cpu(precision, settings):
    """The noise is drawn on the CPU for every device, so only rounding differs.

    The images are random: a machine with a GPU may have no MNIST.
    """
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (600, 784), dtype=torch.uint8, generator=rng)
    data = hold_out(Split(images, torch.zeros(600, dtype=torch.uint8), (28, 28)), 100)
    device = prepare_device("cuda")
    try:
        on_gpu = [split.to(device) for split in data]
        options = {"precision": precision, "settings": settings}
        runs = [train(on_gpu, model=small_vae().to(device), **options) for _ in range(2)]
        model, rest = train_resumed(on_gpu, 1, 2, device, **options)
    finally:
        torch.set_deterministic_debug_mode("default")
    (first, records), (second, other_records) = runs
    assert records == other_records and torch.equal(weights(first), weights(second))
    assert rest == records[1:] and torch.equal(weights(model), weights(first))
    _, expected = train(data, settings=settings)
    for record, on_cpu in zip(records, expected, strict=True):
        assert record == pytest.approx(on_cpu, rel=1e-3 if precision == "float32" else 1e-2)
