import numpy as np
import torch
from helpers.models import show_labels, small_vae
from PIL import Image
from torch import nn

from pipeline.figures import samples
from pipeline.figures.samples import generate, reconstruct, save_samples
from pipeline.model.network import to_batch
from pipeline.runtime.randomness import standard_normal_columns, uniform

LABELS = torch.arange(128) % 10


def test_samples_use_the_same_noise_each_time_and_only_the_decoder():
    model = small_vae()
    images = generate(model, LABELS[:10])
    assert images.shape == (10, 784) and images.min() >= 0 and images.max() <= 1
    torch.manual_seed(5)
    for parameter in model.network.encoder.parameters():
        nn.init.constant_(parameter, torch.nan)
    assert torch.equal(generate(model, LABELS[:10]), images)


def test_many_samples_are_decoded_in_parts(monkeypatch):
    model = show_labels(small_vae())
    expected = generate(model, LABELS)
    monkeypatch.setattr(samples, "BATCH", 50)
    assert torch.equal(generate(model, LABELS), expected)


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


def test_a_grid_of_a_conditional_model_has_one_row_per_class(tmp_path, small_test):
    for num_classes, columns, labels in ((3, 16, [0, 1, 2]), (0, 5, [0])):
        model = show_labels(small_vae(num_classes=num_classes))
        save_samples(model, 5, small_test[:4], tmp_path / "a.png", tmp_path / "b.png")
        with Image.open(tmp_path / "a.png") as image:
            cells = torch.tensor(np.asarray(image)[1::29, 1::29])
        expected = torch.tensor(labels).sigmoid().mul(255).round().byte()
        assert torch.equal(cells, expected.unsqueeze(1).expand(-1, columns))


@torch.no_grad()
def test_all_of_z_is_drawn_by_the_seed():
    """The component of a mixture and the place in it."""
    model = small_vae(prior="mixture")
    eps, u = standard_normal_columns(10, 4, 3, "generate"), uniform(10, 3, "generate")
    expected = model.mean(model.p_z().sample(eps, u))
    torch.testing.assert_close(generate(model, LABELS[:10], seed=3), expected)
    for other in (
        (standard_normal_columns(10, 4, 0, "generate"), u),
        (eps, uniform(10, 0, "generate")),
    ):
        assert not torch.allclose(model.mean(model.p_z().sample(*other)), expected, atol=1e-4)
