"""Networks: sizes of images and outputs, and what a label changes."""

import itertools

import pytest
import torch
from helpers.models import DEFAULT, documented, small_vae
from torch.nn import functional as F

from pipeline.model import network as module
from pipeline.model.network import ACTIVATIONS, NETWORKS, Architecture, Batch, beside

SIDES = (8, 9, 27, 28, 37, 64)


@pytest.mark.parametrize("h_layers", [1, 2, 3, 8])
def test_convolutions_fit_images_of_any_size(h_layers):
    """With 8 layers a side is 1 before the last one."""
    many = itertools.product(SIDES, SIDES) if h_layers < 8 else [(9, 8)]
    for shape in many:
        architecture = Architecture("conv", "bernoulli", shape, 3, 4, h_layers, "relu")
        x = torch.rand(2, architecture.num_pixels)
        with torch.device("meta" if h_layers == 8 else "cpu"):
            network = NETWORKS["conv"](architecture, 2 * architecture.num_pixels)
        x = x.to(next(network.parameters()).device)
        mu, _ = network.encode(Batch(x))
        assert mu.shape == (2, 3)
        assert network.decode(mu, None).shape == (2, 2 * architecture.num_pixels)


@torch.no_grad()
def test_an_mlp_has_as_many_hidden_layers_as_it_says():
    network = NETWORKS["mlp"](Architecture("mlp", "", (3, 4), 5, 7, 2, "relu"), 12)
    for part, sizes in (
        (network.encoder, [(7, 12), (7, 7), (10, 7)]),
        (network.decoder, [(7, 5), (7, 7), (12, 7)]),
    ):
        assert [each.weight.shape for each in part[::2]] == sizes


@torch.no_grad()
def test_a_convolutional_network_is_what_it_says():
    """Its layers, called one by one: (weight, bias) in the order of data."""
    network = NETWORKS["conv"](Architecture("conv", "", (8, 8), 3, 5, 3, "tanh"), 64)
    layers = list(zip(*[iter(network.parameters())] * 2, strict=True))
    down, (hidden, q, back, wide), up = layers[:3], layers[3:-3], layers[-3:]
    assert [len(bias) for _, bias in (*down, hidden, q)] == [32, 64, 128, 5, 6]
    x, z = torch.rand(2, 64), torch.randn(2, 3)
    h = x.view(2, 1, 8, 8)
    for layer in down:
        h = F.conv2d(h, *layer, stride=2, padding=1).tanh()
    expected = F.linear(F.linear(h.flatten(1), *hidden).tanh(), *q)
    torch.testing.assert_close(torch.cat(network.encode(Batch(x)), dim=-1), expected)
    h = F.linear(F.linear(z, *back).tanh(), *wide).view(2, 128, 1, 1)
    for layer in up:
        h = F.conv_transpose2d(h.tanh(), *layer, stride=2, padding=1, output_padding=1)
    torch.testing.assert_close(network.decode(z, None), h.flatten(1))


def test_activations_are_what_their_names_say():
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    expected = {
        "relu": x.clamp(min=0), "tanh": 1 - 2 / ((2 * x).exp() + 1),
        "gelu": x * torch.special.ndtr(x), "silu": x / (1 + (-x).exp()),
    }  # fmt: skip
    torch.testing.assert_close({name: kind()(x) for name, kind in ACTIVATIONS.items()}, expected)


@torch.no_grad()
def test_several_outputs_per_pixel_are_one_after_the_other():
    network = NETWORKS["conv"](Architecture("conv", "", (8, 9), 3, 4, 2, "relu"), 144)
    *_, last, _ = network.up
    last.weight.zero_()
    last.bias.copy_(torch.tensor([1.0, 5.0]))
    first, second = network.decode(torch.zeros(1, 3), None).chunk(2, dim=-1)
    assert (first == 1).all() and (second == 5).all()


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_encoder_and_decoder_of_a_conditional_model_read_the_label(network):
    x, z, y = torch.rand(1, 784).expand(3, -1), torch.ones(3, 4), torch.arange(3)
    for num_classes, distinct in ((0, 1), (3, 3)):
        model = small_vae(network=network, num_classes=num_classes)
        for values in (model.encode(Batch(x, y)).mu, model.decode(z, y)):
            assert len(values.unique(dim=0)) == distinct


def test_the_documented_network_has_dropout_in_training_alone():
    network = documented(module)["Residual"](Architecture(**DEFAULT), 784)
    z = torch.ones(2, 4)
    assert not torch.equal(network.decode(z, None), network.decode(z, None))
    network.eval()
    assert torch.equal(network.decode(z, None), network.decode(z, None))


def test_a_label_is_as_long_as_normal_values():
    joined = beside(torch.zeros(2, 4), torch.tensor([0, 2]), 3)
    assert joined[:, 4:].tolist() == [[2, 0, 0], [0, 0, 2]]
