import torch
from torch import nn

from pipeline.figures.samples import generate, reconstruct
from pipeline.model.network import Architecture, to_batch
from pipeline.model.vae import VAE, new_vae

LABELS = torch.arange(128) % 10


def made(h_dim: int = 16, z_dim: int = 3) -> VAE:
    return new_vae(Architecture("mlp", "bernoulli", (28, 28), z_dim, h_dim, 1, "relu"), seed=0)


def test_samples_use_the_same_noise_each_time_and_only_the_decoder():
    model = made()
    images = generate(model, LABELS[:10])
    assert images.shape == (10, 784) and images.min() >= 0 and images.max() <= 1
    torch.manual_seed(5)
    for parameter in model.network.encoder.parameters():
        nn.init.constant_(parameter, torch.nan)
    assert torch.equal(generate(model, LABELS[:10]), images)


def test_reconstructions_sample_z_with_the_same_noise_each_time(small_test):
    model, images, labels = made(), small_test.images[:5], small_test.labels[:5]
    first = reconstruct(model, images, labels)
    assert first.shape == (5, 784) and torch.equal(reconstruct(model, images, labels), first)
    mu, _ = model.encode(to_batch(images, labels, model.device))
    assert not torch.allclose(model.mean(mu), first, atol=1e-4)


def test_labels_reach_the_decoder(small_test):
    """A network whose logits are the label."""
    model = made()
    model.network.decode = lambda z, y: y.unsqueeze(-1).expand(*z.shape[:-1], 784).float()
    expected = torch.sigmoid(LABELS.float()).unsqueeze(1).expand(-1, 784)
    assert torch.equal(generate(model, LABELS), expected)
    labels = small_test.labels[:5]
    expected = torch.sigmoid(labels.float()).unsqueeze(1).expand(-1, 784)
    assert torch.equal(reconstruct(model, small_test.images[:5], labels), expected)
