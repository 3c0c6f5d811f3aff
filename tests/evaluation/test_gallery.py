"""Pictures are looked at by people; here it is held that each is there, shows something, and is the same each time."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.evaluation.gallery import draw_gallery
from pipeline.data.mnist import load_images, load_labels
from pipeline.model.vae import VAE
from pipeline.evaluation.plots import draw_bound, draw_rows
from pipeline.runtime.randomness import generator

ALWAYS = {"interpolations", "kl_per_dimension", "posterior_means", "traversals"}


@pytest.mark.parametrize("z_dim", [1, 2, 5])
def test_every_run_has_its_pictures_and_a_plane_its_manifold(small_mnist, tmp_path, z_dim):
    model = VAE(x_dim=784, h_dim=16, z_dim=z_dim, h_layers=1, activation="relu")
    model.reset_parameters(generator(0, "init"))
    images, labels = load_images(small_mnist, "test"), load_labels(small_mnist, "test")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        draw_gallery(model, images, labels, tmp_path / folder)
    drawn = {path.stem: path for path in (tmp_path / "a").iterdir()}
    assert set(drawn) == ALWAYS | ({"manifold"} if z_dim == 2 else set())
    for path in drawn.values():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
            assert pixels.std() > 10 and min(pixels.shape) > 100
            assert {"Software", "Creation Time"}.isdisjoint(image.info)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_posterior_that_has_collapsed_has_its_picture_too(small_mnist, tmp_path, rank):
    """All μ are the same, or lie on a line: no plane tells the digits apart."""
    images, labels = load_images(small_mnist, "test"), load_labels(small_mnist, "test")
    model = VAE(x_dim=784, h_dim=16, z_dim=5, h_layers=1, activation="relu")
    model.reset_parameters(generator(0, "init"))
    layer = model.encoder[-1]
    with torch.no_grad():
        layer.weight[:, rank:] = 0
    draw_gallery(model, images, labels, tmp_path)
    with Image.open(tmp_path / "posterior_means.png") as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_rows_are_drawn_where_they_belong(tmp_path):
    """White cells on the diagonal of black ones."""
    images = torch.eye(3).unsqueeze(-1).expand(3, 3, 784)
    draw_rows(images, tmp_path / "rows.png", labels=["", "", ""], ticks=["", "", ""], title="", x_label="")
    with Image.open(tmp_path / "rows.png") as image:
        pixels = np.asarray(image.convert("L")).astype(float)
    black = pixels < 128
    columns, rows = np.flatnonzero(black.any(axis=0)), np.flatnonzero(black.any(axis=1))
    grid = black[rows[0] : rows[-1], columns[0] : columns[-1]]
    height, width = grid.shape
    cells = [[grid[int(height * (2 * r + 1) / 6), int(width * (2 * c + 1) / 6)] for c in range(3)] for r in range(3)]
    assert cells == [[r != c for c in range(3)] for r in range(3)]


def test_a_bound_is_drawn_from_one_point_too(tmp_path):
    curves = {name: ([100.0], [0.1]) for name in ("a", "b", "c")}
    draw_bound([1], curves, tmp_path / "bound.png")
    assert Image.open(tmp_path / "bound.png").size[0] > 600
