"""Pictures of digits. The same pixels give the same PNG bytes."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

GAP = 0.35  # the grey of the lines between cells: seen beside black ground and white strokes alike


def save_grid(images: Tensor, path: Path, columns: int = 16) -> None:
    """Write images [n, 784] in [0, 1] as a grid, row by row."""
    _save(_square(images), path, columns)


def save_pairs(originals: Tensor, reconstructions: Tensor, path: Path, columns: int = 8) -> None:
    """Write pairs as a grid, the original on the left of its reconstruction; both [n, 784] in [0, 1]."""
    _save(torch.cat([_square(originals), _square(reconstructions)], dim=3), path, columns)


def _square(images: Tensor) -> Tensor:
    side = math.isqrt(images.shape[1])
    return images.view(-1, 1, side, side)


def _save(cells: Tensor, path: Path, columns: int) -> None:
    n, _, height, width = cells.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    grid = torch.full((rows * (height + 1) + 1, columns * (width + 1) + 1), GAP)
    for index, cell in enumerate(cells[:, 0]):
        top, left = index // columns * (height + 1) + 1, index % columns * (width + 1) + 1
        grid[top : top + height, left : left + width] = cell
    Image.fromarray(grid.mul(255).round().byte().numpy()).save(path)
