import pytest
import torch
from torch import nn

from pipeline.runtime.device import one_thread
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import generator
from pipeline.figures.samples import generate, reconstruct


@pytest.fixture
def model():
    model = VAE(x_dim=784, h_dim=16, z_dim=3, h_layers=1, activation="relu")
    model.reset_parameters(generator(0, "init"))
    return model


def test_samples_are_images_from_the_same_noise_each_time(model):
    images = generate(model, 10)
    assert images.shape == (10, 784) and images.min() >= 0 and images.max() <= 1
    torch.manual_seed(5)
    assert torch.equal(generate(model, 10), images)


def test_samples_use_the_decoder_alone(model):
    images = generate(model, 10)
    for parameter in model.encoder.parameters():
        nn.init.constant_(parameter, torch.nan)
    assert torch.equal(generate(model, 10), images)


def test_reconstructions_sample_z_with_the_same_noise_each_time(model, small_images):
    images = small_images[:5]
    first = reconstruct(model, images)
    assert first.shape == (5, 784) and torch.equal(reconstruct(model, images), first)
    mu, _ = model.encode(images.float() / 255)
    assert not torch.allclose(torch.sigmoid(model.decode(mu)), first, atol=1e-4)


def test_the_bits_are_the_same_with_any_number_of_threads(small_images):
    """Of sizes whose products come out otherwise, shared by three threads or more."""
    model = VAE(x_dim=784, h_dim=400, z_dim=20, h_layers=1, activation="relu")
    model.reset_parameters(generator(0, "init"))
    with one_thread():
        samples, reconstructions = generate(model, 128), reconstruct(model, small_images[:64])
        for number in (2, 3, 4, 8):
            torch.set_num_threads(number)
            assert torch.equal(generate(model, 128), samples)
            assert torch.equal(reconstruct(model, small_images[:64]), reconstructions)
            assert torch.get_num_threads() == number
