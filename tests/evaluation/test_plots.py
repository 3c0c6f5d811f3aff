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
from pipeline.evaluation.plots import draw_bound, draw_codes, draw_kl, draw_rows, project


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


def pixels(path, color: tuple[int, int, int]) -> np.ndarray:
    """(row, column) of each pixel of that color."""
    with Image.open(path) as image:
        return np.argwhere((np.asarray(image.convert("RGB")) == color).all(axis=-1))


BLUE, ORANGE, GRAY = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x99, 0x99, 0x99)


def test_dimensions_that_are_not_active_are_gray(tmp_path):
    kl = pd.DataFrame({"rank": [1, 2], "kl": [2.0, 1.0], "active": [1, 0]})
    draw_kl(kl, tmp_path / "kl.png")
    active, inactive = (pixels(tmp_path / "kl.png", color) for color in (BLUE, GRAY))
    assert np.median(active[:, 1]) < np.median(inactive[:, 1])


def test_each_bound_is_drawn_at_its_values(tmp_path):
    """In the plot on the right, which has no legend: the plain bound above the widened one."""
    table = pd.DataFrame({"k": [1, 10], "widened": 1.0, "plain": 2.0, "prior": 3.0})
    table = table.assign(**{f"{name}_se": 0.1 for name in table.columns[1:]})
    draw_bound(table, dict.fromkeys(("widened", "plain", "prior"), "z"), tmp_path / "bound.png")
    widened, plain = (pixels(tmp_path / "bound.png", color) for color in (BLUE, ORANGE))
    widened, plain = (found[found[:, 1] > 550][:, 0] for found in (widened, plain))
    assert plain.max() < widened.min()


def test_codes_are_projected_to_the_plane_that_separates_the_classes():
    labels = torch.arange(300) % 3
    mu = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    mu[:, 3] += 20.0 * (labels == 1)
    mu[:, 4] += 20.0 * (labels == 2)
    points, _, _ = project(mu, labels)
    for label in range(3):
        own = points[labels == label]
        assert (own - own.mean(dim=0)).norm(dim=1).max() < 6
        assert (points[labels != label] - own.mean(dim=0)).norm(dim=1).min() > 9
