import pytest
import torch

from pipeline.training.adam import Adam
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import generator


def make(z_dim=2):
    model = VAE(x_dim=12, h_dim=6, z_dim=z_dim, h_layers=1, activation="relu")
    model.reset_parameters(generator(0, "init"))
    return model


def weights(model):
    return torch.cat([parameter.detach().view(-1) for parameter in model.parameters()])


def walk(model, optimizer, steps, seed=1):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in optimizer.working.parameters():
            parameter.grad.copy_(torch.randn(parameter.shape, generator=draw))
        optimizer.step()


def test_steps_are_those_of_the_paper():
    """Algorithm 1, number by number, in float64."""
    model = make()
    theta = weights(model).double()
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    optimizer, draw = Adam(model, 1e-2), torch.Generator().manual_seed(1)
    for t in range(1, 21):
        grads = [torch.randn(parameter.shape, generator=draw) for parameter in model.parameters()]
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.grad.copy_(grad)
        optimizer.step()
        g = torch.cat([grad.view(-1) for grad in grads]).double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(weights(model).double(), theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_state_goes_on_to_the_same_bits(precision):
    model, other = make(), make()
    optimizer = Adam(model, 1e-2, precision)
    walk(model, optimizer, 3)
    state, before = {name: tensor.clone() for name, tensor in optimizer.state.items()}, model.state_dict()
    other.load_state_dict(before)
    goes_on = Adam(other, 1e-2, precision)
    goes_on.restore(state)
    for each, of in ((model, optimizer), (other, goes_on)):
        walk(each, of, 3, seed=2)
    assert torch.equal(weights(model), weights(other))


def test_a_state_of_another_model_is_refused():
    with pytest.raises(RuntimeError, match=r"exp_avg\.0"):
        Adam(make(), 1e-2).restore(
            {name: torch.zeros(() if name == "step" else 3) for name in Adam(make(), 1e-2).state}
        )


def test_in_bfloat16_a_copy_follows_the_weights():
    model = make()
    optimizer = Adam(model, 1e-2, torch.bfloat16)
    walk(model, optimizer, 2)
    assert weights(model).dtype == torch.float32
    assert torch.equal(weights(optimizer.working), weights(model).bfloat16())


def test_what_it_changes_is_all_that_it_names():
    """What a CUDA graph puts back after it was tried out."""
    for precision in (torch.float32, torch.bfloat16):
        model = make()
        optimizer = Adam(model, 1e-2, precision)
        walk(model, optimizer, 1)
        before = [tensor.clone() for tensor in optimizer.tensors]
        copied = weights(model), weights(optimizer.working)
        walk(model, optimizer, 2)
        assert not torch.equal(weights(model), copied[0])
        for tensor, value in zip(optimizer.tensors, before, strict=True):
            tensor.copy_(value)
        assert torch.equal(weights(model), copied[0]) and torch.equal(weights(optimizer.working), copied[1])
        assert optimizer.state["step"] == 1
