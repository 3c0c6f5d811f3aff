import pytest
import torch
from torch import nn

from pipeline.training.adam import Adam
from pipeline.training.accelerated.gradient import ACTIVATIONS as WRITTEN_OUT
from pipeline.training.accelerated.gradient import ByAutograd, WrittenOut, gradient_of, most_threads
from pipeline.training.accelerated.layout import MOST, TURNS, Columns, Places, Rows, layout_for
from pipeline.model.vae import ACTIVATIONS, VAE
from pipeline.runtime.randomness import generator

SHAPES = [(400, 1, 20), (33, 3, 5), (2, 2, 1)]  # h_dim, h_layers, z_dim: even, odd, tiny


def make(h_dim, h_layers, z_dim, activation, dtype=torch.float64):
    model = VAE(x_dim=784, h_dim=h_dim, z_dim=z_dim, h_layers=h_layers, activation=activation)
    model.reset_parameters(generator(0, "init"))
    model.to(dtype)
    Adam(model, 1e-3, dtype)
    return model


def gradients(model):
    return torch.cat([parameter.grad.view(-1) for parameter in model.parameters()])


def batch(n, z_dim, dtype=torch.float64):
    draw = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 784), dtype=torch.uint8, generator=draw)
    return images, torch.randn(n, z_dim, generator=draw).to(dtype)


@pytest.fixture(params=[Columns, Rows])
def layout(request, monkeypatch):
    """Either, whichever this device would take."""
    monkeypatch.setattr("pipeline.training.accelerated.gradient.layout_for", lambda device, dtype: request.param)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 77])
def test_written_out_it_is_what_autograd_finds(shape, activation, n):
    model, (images, eps) = make(*shape, activation), batch(n, shape[-1])
    assert isinstance(gradient_of(model), WrittenOut)
    for parameter in model.parameters():
        parameter.grad.fill_(torch.nan)  # whatever was there is not added to
    terms, found = WrittenOut(model)(images, eps), gradients(model).clone()
    expected = ByAutograd(model)(images, eps)
    torch.testing.assert_close(terms, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, gradients(model), rtol=1e-10, atol=1e-10 * gradients(model).abs().max().item())


def test_autograd_is_the_derivative():
    """The oracle itself: central differences of Σ −ELBO along a direction."""
    model, (images, eps) = make(6, 1, 2, "tanh"), batch(5, 2)
    ByAutograd(model)(images, eps)
    direction = [
        torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1)) for p in model.parameters()
    ]
    slope = sum((d * p.grad).sum() for d, p in zip(direction, model.parameters(), strict=True))
    losses = []
    for h in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(model.parameters(), direction, strict=True):
                p.add_(d, alpha=h)
        losses.append(ByAutograd(model)(images, eps).neg_elbo.sum())
    assert ((losses[0] - losses[1]) / 2e-6).item() == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.usefixtures("layout")
def test_in_float32_both_agree_to_its_rounding():
    model, (images, eps) = make(400, 1, 20, "relu", torch.float32), batch(128, 20, torch.float32)
    WrittenOut(model)(images, eps)
    found = gradients(model).clone()
    ByAutograd(model)(images, eps)
    assert (found - gradients(model)).norm() < 1e-6 * gradients(model).norm()


@pytest.mark.usefixtures("layout")
def test_a_step_leaves_the_terms_of_the_steps_before_alone():
    """What it writes to in turns is its own."""
    gradient = WrittenOut(make(6, 1, 2, "relu"))
    first = gradient(*batch(5, 2))
    before = [values.clone() for values in first]
    for _ in range(2 * TURNS):
        gradient(batch(5, 2)[0] // 2, batch(5, 2)[1])
    torch.testing.assert_close(list(first), before, rtol=0, atol=0)


def test_places_take_turns_and_no_more_memory_than_is_worth_it():
    places = Places(torch.device("cpu"), torch.float32, TURNS)
    small = [places(2, 3).data_ptr() for _ in range(2 * TURNS)]
    assert len(set(small[:TURNS])) == TURNS and small[TURNS:] == small[:TURNS]
    assert len({places(MOST // 4 // 3).data_ptr() for _ in range(TURNS)}) == 3
    assert len({places(MOST).data_ptr() for _ in range(3)}) == 1


def test_every_activation_of_the_parameters_is_written_out():
    assert set(ACTIVATIONS.values()) == set(WRITTEN_OUT)


def test_any_other_layer_is_left_to_autograd():
    model = make(8, 1, 2, "relu")
    model.decoder[1] = nn.ELU()
    assert isinstance(gradient_of(model), ByAutograd) and most_threads(model) == 1


def test_without_a_place_for_gradients_it_says_so():
    model = VAE(x_dim=784, h_dim=8, z_dim=2, h_layers=1, activation="relu")
    with pytest.raises(ValueError, match="no place for its gradient"):
        WrittenOut(model)


def test_a_gpu_and_bfloat16_have_rows():
    assert layout_for(torch.device("cpu"), torch.float32) is Columns
    assert layout_for(torch.device("cpu"), torch.bfloat16) is Rows
    assert layout_for(torch.device("cuda"), torch.float32) is Rows


@pytest.mark.parametrize(("h_dim", "threads"), [(400, 2), (401, 1)])
def test_two_threads_where_every_layer_has_two_halves(h_dim, threads):
    assert most_threads(make(h_dim, 1, 3, "relu")) == threads
