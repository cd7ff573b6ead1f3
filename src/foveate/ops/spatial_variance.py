"""How much each channel of a feature map varies between positions."""

from typing import cast

import torch
from torch import Tensor


def spatial_variance(x: Tensor) -> Tensor:
    """The unbiased variance over the positions, and zero where there is only one.

    Args:
        x: The map, ``(B, C, H, W)``.

    Returns:
        Variances, ``(B, C, 1, 1)``.
    """
    n = x.shape[2] * x.shape[3]
    freedom = cast(int, torch.sym_max(n - 1, 1))
    return x.var((2, 3), correction=0, keepdim=True) * (n / freedom)
