import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid

from pipeline.figures.grids import GAP, save_grid, save_pairs


def test_a_pair_has_the_original_on_the_left(tmp_path):
    save_pairs(torch.ones(2, 12), torch.zeros(2, 12), (3, 4), tmp_path / "pairs.png", columns=2)
    picture = np.asarray(Image.open(tmp_path / "pairs.png"))
    assert picture.shape == (3 + 2, 2 * (8 + 1) + 1)
    assert (picture[1:4, 1:5] == 255).all() and (picture[1:4, 5:9] == 0).all()


@pytest.mark.parametrize("image_shape", [(28, 28), (5, 9)])
@pytest.mark.parametrize(("n", "columns"), [(2, 1), (5, 8), (16, 16), (17, 16), (128, 16)])
def test_a_grid_equals_that_of_torchvision(tmp_path, n, columns, image_shape):
    height, width = image_shape
    images = torch.rand(n, height * width, generator=torch.Generator().manual_seed(n))
    save_grid(images, image_shape, tmp_path / "grid.png", columns=columns)
    cells = images.view(n, 1, height, width)
    expected = make_grid(cells, nrow=columns, padding=1, pad_value=GAP)[0].mul(255).round().byte()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), expected.numpy())
