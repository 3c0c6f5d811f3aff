import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.models import small_vae
from PIL import Image

from pipeline.data.datasets import Split
from pipeline.evaluation.bounds import encode
from pipeline.evaluation.latent_walks import draw_walks
from pipeline.evaluation.plots import draw_codes, draw_kl, draw_rows, project


@pytest.mark.parametrize(
    ("z_dim", "image_shape", "num_classes"),
    [(1, (28, 28), 10), (2, (20, 30), 13), (5, (20, 30), 1)],
)
def test_figures_of_any_image_shape_and_number_of_classes(
    tmp_path, z_dim, image_shape, num_classes
):
    model = small_vae(z_dim=z_dim, image_shape=image_shape)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, math.prod(image_shape)), generator=draw, dtype=torch.uint8)
    split = Split(images, torch.arange(60, dtype=torch.uint8) % num_classes, image_shape)
    mu, kl = encode(model, split).mu, pd.DataFrame({"kl": np.linspace(2, 0, z_dim)})
    kl = kl.assign(rank=kl.index + 1, dimension=kl.index, active=1 * (kl.kl > 1))
    draw_kl(kl, tmp_path / "kl_per_dimension.png")
    draw_codes(mu, split.labels, tmp_path / "posterior_means.png")
    draw_walks(model, split, mu, kl, tmp_path)
    names = {path.stem for path in tmp_path.iterdir()}
    expected = {"interpolations", "kl_per_dimension", "posterior_means", "traversals"}
    assert names == expected | ({"manifold"} if z_dim == 2 else set())
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
            assert pixels.std() > 10 and min(pixels.shape) > 100
            assert {"Software", "Creation Time"}.isdisjoint(image.info)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_collapsed_posterior_is_drawn_in_its_first_dimensions(rank):
    """All codes are equal, or lie on a line: no plane separates the classes."""
    mu = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    mu[:, rank:] = 0
    points, _, y_label = project(mu, torch.arange(100, dtype=torch.uint8) % 10)
    assert torch.equal(points, mu[:, :2]) and y_label == "μ of dimension 1"


def test_rows_are_drawn_in_their_cells(tmp_path):
    """White cells on the diagonal of black ones."""
    images = torch.eye(3).unsqueeze(-1).expand(3, 3, 784)
    draw_rows(images, (28, 28), tmp_path / "rows.png", title="", x_label="")
    with Image.open(tmp_path / "rows.png") as image:
        black = np.asarray(image.convert("L")) < 80
    columns, rows = np.flatnonzero(black.any(axis=0)), np.flatnonzero(black.any(axis=1))
    grid = black[rows[0] : rows[-1], columns[0] : columns[-1]]
    centers = [[int(size * (2 * i + 1) / 6) for i in range(3)] for size in grid.shape]
    assert grid[np.ix_(*centers)].tolist() == [[r != c for c in range(3)] for r in range(3)]
