import torch
from helpers.models import show_labels, small_vae

from pipeline.evaluation.bounds import encode
from pipeline.evaluation.latent_walks import decode, interpolate, manifold, traverse

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
