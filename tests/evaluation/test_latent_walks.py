from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.models import show_labels, small_vae

from pipeline.data.datasets import to_unit
from pipeline.evaluation import latent_walks
from pipeline.evaluation.bounds import encode
from pipeline.evaluation.latent_walks import decode, draw_walks, interpolate, manifold, traverse

ZERO = torch.zeros(30, dtype=torch.uint8)


def test_an_interpolation_is_straight_between_codes(small_train):
    model = small_vae(z_dim=3)
    mu = encode(model, small_train).mu
    rows = interpolate(model, mu[:2], mu[2:4], 5, ZERO[:2])
    assert rows.shape == (2, 5, 784)
    for step in range(5):
        z = mu[:2] + step / 4 * (mu[2:4] - mu[:2])
        torch.testing.assert_close(rows[:, step], model.mean(z).detach())


def test_a_traversal_changes_one_dimension():
    model, code, values = small_vae(z_dim=3), torch.randn(3), torch.tensor([-3.0, 0.5, 3.0])
    rows = traverse(model, code, torch.tensor([2, 0]), values, ZERO[0])
    assert rows.shape == (2, 3, 784)
    for row, dimension in enumerate((2, 0)):
        for column, value in enumerate(values):
            z = code.clone()
            z[dimension] = value
            torch.testing.assert_close(rows[row, column], model.mean(z).detach())


def test_the_manifold_has_cells_of_equal_probability():
    model = small_vae(z_dim=2)
    plane = manifold(model, 4, ZERO[0])
    low, high = torch.distributions.Normal(0, 1).icdf(torch.tensor([0.125, 0.875]))
    # z_1 grows to the right, z_2 upwards.
    for row, column, z in ((0, 3, (high, high)), (3, 0, (low, low)), (0, 0, (low, high))):
        torch.testing.assert_close(plane[row, column], model.mean(torch.stack(z)).detach())


def test_labels_reach_the_decoder():
    images = decode(show_labels(small_vae()), torch.zeros(2, 3, 4), torch.tensor([0, 5]))
    expected = torch.tensor([0.0, 5.0]).sigmoid().view(2, 1, 1).expand(2, 3, 784)
    torch.testing.assert_close(images, expected)


@pytest.fixture
def drawn(monkeypatch) -> dict[str, torch.Tensor]:
    """The images of each figure, by its name."""
    rows = {}
    monkeypatch.setattr(
        latent_walks, "draw_rows", lambda images, _, path, **__: rows.update({path.stem: images})
    )
    return rows


def walks(model, split, dimensions) -> torch.Tensor:
    """Draw the walks; returns the codes."""
    mu = encode(model, split).mu
    draw_walks(model, split, mu, pd.DataFrame({"dimension": dimensions, "kl": 1.0}), Path())
    return mu


def test_walks_are_between_images_and_along_the_dimensions_of_largest_kl(drawn, small_test):
    model, split = small_vae(z_dim=3), small_test
    mu = walks(model, split, [2, 0])
    starts = torch.tensor([split.labels.tolist().index(label) for label in range(10)])
    ends, x = starts.roll(-1), to_unit(split.images)
    for column, expected in ((0, x[starts]), (-1, x[ends]), (1, mu[starts]), (-2, mu[ends])):
        expected = expected if expected.shape[1] == 784 else model.mean(expected).detach()
        torch.testing.assert_close(drawn["interpolations"][:, column], expected)
    z = mu[0].repeat(2, 1)
    z[0, 2] = z[1, 0] = -3
    torch.testing.assert_close(drawn["traversals"][:, 0], model.mean(z).detach())


def test_walks_of_a_conditional_model_keep_the_label(drawn, small_test):
    split, labels = small_test[5:], torch.arange(10)
    walks(show_labels(small_vae(num_classes=10)), split, [0, 1])
    assert split.labels[0] == 1
    shown = drawn["traversals"], torch.tensor(1.0).sigmoid().expand(2, 9, 784)
    torch.testing.assert_close(*shown)
    expected = labels.sigmoid().view(10, 1, 1).expand(10, 9, 784)
    torch.testing.assert_close(drawn["interpolations"][:, 1:-1], expected)
    last = 194 - torch.tensor([split.labels.flip(0).tolist().index(label) for label in labels])
    assert torch.equal(drawn["interpolations"][:, -1], to_unit(split.images[last]))


@pytest.mark.parametrize(("prior", "is_drawn"), [("normal", True), ("mixture", False)])
def test_the_plane_is_drawn_only_if_its_cells_are_equally_probable(
    drawn, small_test, prior, is_drawn
):
    walks(small_vae(z_dim=2, prior=prior), small_test, [0, 1])
    assert ("manifold" in drawn) is is_drawn
