"""Between feature maps and sets of pixels that have the same place in their patches."""

import torch.nn.functional as F
from torch import Tensor

from foveate.ops.grid import cells_across


def to_patches(x: Tensor, side: int, *, align_corners: bool) -> Tensor:
    """Unfold a map into patches, place by place.

    Args:
        x: The map ``(B, C, H, W)``; a side that is no multiple of ``side`` is resized bilinearly to
            the next one.
        side: Side of the patches.
        align_corners: Whether resizing keeps the corner pixels in place.

    Returns:
        ``(B, C, side ** 2, N)``, one row for each place in a patch, one column for each patch.
    """
    rows, columns = (cells_across(length, side) for length in x.shape[2:])
    size = (rows * side, columns * side)
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
    x = x.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # (B, C, rows, s, columns, s)
    return x.permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(2, 3)


def from_patches(patches: Tensor, side: int, like: Tensor, *, align_corners: bool) -> Tensor:
    """The inverse: ``(B, C, side ** 2, N)`` to ``(B, C, H, W)`` of the size of ``like``."""
    rows, columns = (cells_across(length, side) for length in like.shape[2:])
    x = patches.unflatten(3, (rows, columns)).unflatten(2, (side, side))
    x = x.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)  # (B, C, rows * s, columns * s)
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=align_corners)
