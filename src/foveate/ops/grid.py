"""Maps cut into cells, in forms that also hold for maps whose size is open."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cell_means(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Means over the cells of a grid, as of adaptive pooling: cells may overlap in a row or column.

    An exported program has them as two products of matrices: adaptive pooling itself would hold for
    the size of the map alone that it was exported with.

    Args:
        x: The map, ``(B, C, H, W)``.
        size: Rows and columns of the grid.

    Returns:
        ``(B, C, *size)``.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, size)
    return exported_cell_means(x, size)


def exported_cell_means(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The same, as exported programs have it."""
    rows, columns = (_shares(side, cells, x) for side, cells in zip(x.shape[2:], size, strict=True))
    return rows @ x @ columns.mT


def cells_across(length: int, side: int) -> int:
    """How many cells of a side cover a length.

    The division is of positive numbers: that of negative ones is rounded differently elsewhere.

    Example:
        >>> cells_across(21, 2), cells_across(22, 2)
        (11, 11)
    """
    return (length + side - 1) // side


def _shares(length: int, cells: int, like: Tensor) -> Tensor:
    """The weight of each of ``length`` places in the mean of each cell, ``(cells, length)``."""
    cell = torch.arange(cells, device=like.device).unsqueeze(1)  # (cells, 1)
    first = cell * length // cells
    end = ((cell + 1) * length + cells - 1) // cells
    place = torch.arange(length, device=like.device)
    inside = ((place >= first) & (place < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
