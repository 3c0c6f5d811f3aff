from dataclasses import replace

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


def kl_table(z_dim: int) -> pd.DataFrame:
    table = pd.DataFrame({"kl": np.linspace(2, 0, z_dim)})
    return table.assign(rank=table.index + 1, dimension=table.index, active=1 * (table.kl > 1))


def draw_all(model, split, folder) -> set[str]:
    folder.mkdir()
    mu, kl = encode(model, split).mu, kl_table(model.z_dim)
    draw_kl(kl, folder / "kl_per_dimension.png")
    draw_codes(mu, split.labels, folder / "posterior_means.png")
    draw_walks(model, split, mu, kl, folder)
    return {path.stem for path in folder.iterdir()}


@pytest.mark.parametrize("z_dim", [1, 2, 5])
def test_equal_inputs_give_equal_bytes(small_test, tmp_path, z_dim):
    model = small_vae(z_dim=z_dim)
    names = draw_all(model, small_test, tmp_path / "a")
    assert names == draw_all(model, small_test, tmp_path / "b")
    expected = {"interpolations", "kl_per_dimension", "posterior_means", "traversals"}
    assert names == expected | ({"manifold"} if z_dim == 2 else set())
    for name in names:
        first, second = (tmp_path / folder / f"{name}.png" for folder in "ab")
        assert first.read_bytes() == second.read_bytes()
        with Image.open(first) as image:
            pixels = np.asarray(image.convert("L"))
            assert pixels.std() > 10 and min(pixels.shape) > 100
            assert {"Software", "Creation Time"}.isdisjoint(image.info)


def test_any_image_shape_and_any_number_of_classes(tmp_path):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 20 * 30), generator=draw, dtype=torch.uint8)
    split = Split(images, torch.arange(60, dtype=torch.uint8) % 13, (20, 30))
    assert draw_all(small_vae(z_dim=2, image_shape=(20, 30)), split, tmp_path / "a")
    split = replace(split, labels=torch.zeros(60, dtype=torch.uint8))
    assert draw_all(small_vae(z_dim=3, image_shape=(20, 30)), split, tmp_path / "b")


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


def test_a_bound_is_drawn_from_a_single_k(tmp_path):
    names = {name: name for name in ("widened", "plain", "prior")}
    columns = [*names, *(f"{name}_se" for name in names)]
    table = pd.DataFrame([{"k": 1} | dict.fromkeys(columns, 1.0)])
    draw_bound(table, names, tmp_path / "bound.png")
    assert Image.open(tmp_path / "bound.png").size[0] > 600
