import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid

from pipeline.figures.grids import GAP, save_grid, save_pairs


def test_a_grid_shows_the_images_row_by_row(tmp_path):
    images = torch.arange(6).div(10).view(6, 1).expand(6, 784)
    save_grid(images, tmp_path / "grid.png", columns=3)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 29 + 1, 3 * 29 + 1)
    cells = [grid[1 + 29 * row, 1 + 29 * column] for row in range(2) for column in range(3)]
    assert cells == [round(255 * i / 10) for i in range(6)]


def test_a_pair_has_the_original_on_the_left(tmp_path):
    save_pairs(torch.ones(2, 784), torch.zeros(2, 784), tmp_path / "pairs.png", columns=2)
    picture = np.asarray(Image.open(tmp_path / "pairs.png"))
    assert (picture[1:29, 1:29] == 255).all() and (picture[1:29, 29:57] == 0).all()


def test_the_same_pixels_give_the_same_bytes(tmp_path):
    images = torch.rand(32, 784, generator=torch.Generator().manual_seed(0))
    for name in ("a.png", "b.png"):
        save_grid(images, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(("n", "columns"), [(2, 1), (5, 8), (16, 16), (17, 16), (64, 16), (128, 16)])
def test_a_grid_is_torchvisions(tmp_path, n, columns):
    """Whose `make_grid` takes more than a second to import."""
    images = torch.rand(n, 784, generator=torch.Generator().manual_seed(n))
    save_grid(images, tmp_path / "grid.png", columns)
    expected = make_grid(images.view(n, 1, 28, 28), nrow=columns, padding=1, pad_value=GAP)[0].mul(255).round().byte()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), expected.numpy())
