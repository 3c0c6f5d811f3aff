"""Grids of images as PNG files. The same pixels give the same bytes."""

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.runtime.files import write_output

GAP = 0.35  # gray of the lines between cells: visible beside black and white

COLUMNS = 16

Shape = tuple[int, int]  # height, width


def save_grid(images: Tensor, shape: Shape, path: Path, columns: int = COLUMNS) -> None:
    """Write images [N, D] in [0, 1] as a grid, row by row."""
    grid = tile(images.view(-1, *shape), columns)
    content = io.BytesIO()
    Image.fromarray(grid.mul(255).round().byte().numpy()).save(content, "PNG")
    write_output(path, content.getvalue())


def save_pairs(left: Tensor, right: Tensor, shape: Shape, path: Path, columns: int = 8) -> None:
    """Write pairs as a grid, such as each image left of its reconstruction; [N, D] in [0, 1]."""
    pairs = torch.cat([left.view(-1, *shape), right.view(-1, *shape)], dim=2)
    save_grid(pairs, (shape[0], 2 * shape[1]), path, columns)


def tile(cells: Tensor, columns: int) -> Tensor:
    """Cells [N, h, w] as one image, with a line of one pixel around each.

    Equal to torchvision's make_grid; torchvision takes more than a second to import.
    """
    columns = min(columns, len(cells))
    missing = -len(cells) % columns
    bordered = F.pad(cells, (1, 0, 1, 0, 0, missing), value=GAP)  # left, right, top, bottom, cells
    rows = bordered.unflatten(0, (-1, columns)).transpose(1, 2)  # [R, h + 1, C, w + 1]
    grid = rows.flatten(2, 3).flatten(0, 1)
    return F.pad(grid, (0, 1, 0, 1), value=GAP)
