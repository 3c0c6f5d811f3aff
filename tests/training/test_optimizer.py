import pytest
import torch
from helpers.models import PRECISIONS, small_vae, weights
from torch import nn
from torch.optim import lr_scheduler

from pipeline.errors import UserError
from pipeline.model.network import Batch
from pipeline.training.gradient import AutogradGradient
from pipeline.training.optimizer import Optimizer

TWENTY = {  # the schedulers of PyTorch for 20 epochs
    "constant": lambda adam: lr_scheduler.ConstantLR(adam, factor=1.0),
    "cosine": lambda adam: lr_scheduler.CosineAnnealingLR(adam, T_max=20),
    "step": lambda adam: lr_scheduler.MultiStepLR(adam, [8, 14], gamma=10 ** (-1 / 5)),
}


def test_steps_are_those_of_the_paper():
    """Algorithm 1 of Kingma & Ba (2015), in float64."""
    model = small_vae(h_dim=6)
    theta = weights(model).double()
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    optimizer, rng = Optimizer(model, 1e-2), torch.Generator().manual_seed(1)
    for t in range(1, 21):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=rng)
        g = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(weights(model).double(), theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lr_schedule", TWENTY)
def test_the_weights_follow_adamw_and_a_schedule_of_pytorch(lr_schedule):
    """Two steps in each of 20 epochs."""
    model, other = small_vae(h_dim=6), small_vae(h_dim=6)
    options = {"lr_schedule": lr_schedule, "num_epochs": 20, "weight_decay": 0.5}
    optimizer = Optimizer(model, 1e-2, **options)
    adam = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.5, foreach=False)
    scheduler, rng = TWENTY[lr_schedule](adam), torch.Generator().manual_seed(1)
    for epoch in range(1, 21):
        assert optimizer.begin_epoch(epoch) == pytest.approx(adam.param_groups[0]["lr"])
        for _ in range(2):
            for one, two in zip(model.parameters(), other.parameters(), strict=True):
                one.grad = torch.randn(one.shape, generator=rng)
                two.grad = one.grad.clone()
            optimizer.step()
            adam.step()
        scheduler.step()
        torch.testing.assert_close(weights(model), weights(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_model_has_the_statistics_of_normalization_layers(precision):
    """After one step a tenth of the mean, as momentum is 0.1."""
    model, x = small_vae(h_dim=6), torch.rand(50, 784)
    expected = model.network.encoder[0](x).mean(dim=0) / 10
    model.network.encoder.insert(1, nn.BatchNorm1d(6))
    optimizer = Optimizer(model, 1e-3, precision)
    AutogradGradient(optimizer.working)(Batch(x), torch.randn(50, 1, 4))
    optimizer.step()
    found = model.network.encoder[1].running_mean
    torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_without_a_gradient_stays_as_it_is(precision):
    """As in layers that are skipped at random."""
    optimizer = Optimizer(small_vae(h_dim=6), 1e-2, precision)
    batch, eps = Batch(torch.rand(5, 784)), torch.randn(5, 1, 4)
    AutogradGradient(optimizer.working)(batch, eps)
    optimizer.step()
    before = optimizer.model.network.encoder[0].bias.clone()
    AutogradGradient(optimizer.working)(batch, eps)
    optimizer.working.network.encoder[0].bias.grad = None
    optimizer.step()
    assert torch.equal(optimizer.model.network.encoder[0].bias, before)


def test_tf32_needs_a_gpu():
    with pytest.raises(UserError) as error:
        Optimizer(small_vae(), 1e-3, "tf32")
    assert error.value.subject == "params.yaml: precision"
