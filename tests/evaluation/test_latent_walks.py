import pytest
import torch

from pipeline.runtime.device import one_thread
from pipeline.evaluation.latent_walks import decode_grid, encode, interpolate, manifold, traverse
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import generator


def made(z_dim: int) -> VAE:
    model = VAE(x_dim=784, h_dim=16, z_dim=z_dim, h_layers=1, activation="relu")
    model.reset_parameters(generator(0, "init"))
    return model


@torch.no_grad()
def decoded(model: VAE, z: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(model.decode(z))


def test_a_way_between_images_is_straight_between_their_means(small_images):
    model = made(3)
    grid = interpolate(model, small_images[:2], small_images[2:4], steps=5)
    assert grid.shape == (2, 5, 784)
    (first, _), (last, _) = encode(model, small_images[:2]), encode(model, small_images[2:4])
    for step in range(5):
        torch.testing.assert_close(grid[:, step], decoded(model, first + step / 4 * (last - first)))


def test_a_traversal_changes_one_dimension(small_images):
    model = made(3)
    values = torch.tensor([-3.0, 0.5, 3.0])
    grid = traverse(model, small_images[0], torch.tensor([2, 0]), values)
    assert grid.shape == (2, 3, 784)
    mu = encode(model, small_images[:1])[0][0]
    for row, dimension in enumerate((2, 0)):
        for column, value in enumerate(values):
            z = mu.clone()
            z[dimension] = value
            torch.testing.assert_close(grid[row, column], decoded(model, z))


def test_the_plane_is_cut_into_cells_of_equal_probability():
    model = made(2)
    grid = manifold(model, side=4)
    quantiles = torch.distributions.Normal(0, 1).icdf(torch.tensor([0.125, 0.375, 0.625, 0.875]))
    top_right, bottom_left = torch.stack([quantiles[3], quantiles[3]]), torch.stack([quantiles[0], quantiles[0]])
    top_left = torch.stack([quantiles[0], quantiles[3]])  # z_1 to the right, z_2 upwards
    torch.testing.assert_close(grid[0, 3], decoded(model, top_right))
    torch.testing.assert_close(grid[3, 0], decoded(model, bottom_left))
    torch.testing.assert_close(grid[0, 0], decoded(model, top_left))


def test_images_are_encoded_in_batches_and_in_order(small_images, monkeypatch):
    model = made(3)
    whole = encode(model, small_images)
    monkeypatch.setattr("pipeline.evaluation.latent_walks.BATCH", 77)
    for one, other in zip(encode(model, small_images), whole, strict=True):
        assert one.tolist() == [pytest.approx(row, abs=1e-5) for row in other.tolist()]


def test_the_bits_are_the_same_with_any_number_of_threads(small_images):
    """Of sizes whose products come out otherwise, shared by several threads."""
    model = VAE(x_dim=784, h_dim=400, z_dim=20, h_layers=1, activation="relu")
    model.reset_parameters(generator(0, "init"))
    with one_thread():
        codes = encode(model, small_images)
        grid = decode_grid(model, codes[0].view(30, 20, -1))
        for number in (2, 3, 4, 8):
            torch.set_num_threads(number)
            assert all(torch.equal(one, other) for one, other in zip(encode(model, small_images), codes, strict=True))
            assert torch.equal(decode_grid(model, codes[0].view(30, 20, -1)), grid)
