import torch
from helpers.models import small_vae, weights

from pipeline.training.optimizer import Optimizer


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
