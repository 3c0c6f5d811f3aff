import torch
from helpers.models import show_labels, small_vae
from torch import nn

from pipeline.figures.samples import generate, reconstruct, rows_of_labels
from pipeline.model.network import to_batch

LABELS = torch.arange(128) % 10


def test_samples_use_the_same_noise_each_time_and_only_the_decoder():
    model = small_vae()
    images = generate(model, LABELS[:10])
    assert images.shape == (10, 784) and images.min() >= 0 and images.max() <= 1
    torch.manual_seed(5)
    for parameter in model.network.encoder.parameters():
        nn.init.constant_(parameter, torch.nan)
    assert torch.equal(generate(model, LABELS[:10]), images)


def test_reconstructions_sample_z_with_the_same_noise_each_time(small_test):
    model, split = small_vae(), small_test[:5]
    first = reconstruct(model, split)
    assert first.shape == (5, 784) and torch.equal(reconstruct(model, split), first)
    mu, _ = model.encode(to_batch(split, model.device))
    assert not torch.allclose(model.mean(mu), first, atol=1e-4)


def test_labels_reach_the_decoder(small_test):
    model, labels = show_labels(small_vae()), small_test.labels[:5]
    for images in (generate(model, labels), reconstruct(model, small_test[:5])):
        assert torch.equal(images, torch.sigmoid(labels.float()).unsqueeze(1).expand(5, 784))


def test_a_grid_of_a_conditional_model_has_one_row_per_class():
    labels = rows_of_labels(small_vae(num_classes=3), LABELS)
    assert torch.equal(labels.view(3, 16), torch.arange(3).unsqueeze(1).expand(3, 16))
    assert rows_of_labels(small_vae(), LABELS) is LABELS
