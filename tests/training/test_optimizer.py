import pytest
import torch
from helpers.models import small_vae, weights

from pipeline.training.optimizer import PRECISIONS, Optimizer


def walk(optimizer, steps, seed=1):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in optimizer.working.parameters():
            gradient = torch.randn(parameter.shape, generator=rng)
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


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


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_restored_state_continues_with_the_same_bits(precision):
    optimizer = Optimizer(small_vae(), 1e-2, precision)
    walk(optimizer, 3)
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    restored = Optimizer(small_vae(seed=1), 1e-2, precision)
    restored.restore(state)
    for each in (optimizer, restored):
        walk(each, 3, seed=2)
    assert torch.equal(weights(optimizer.model), weights(restored.model))
    assert torch.equal(weights(optimizer.working), weights(restored.working))


def test_in_bfloat16_a_copy_follows_the_float32_weights():
    optimizer = Optimizer(small_vae(), 1e-2, "bfloat16")
    walk(optimizer, 2)
    assert weights(optimizer.model).dtype == torch.float32
    assert torch.equal(weights(optimizer.working), weights(optimizer.model).bfloat16())
