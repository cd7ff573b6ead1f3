"""Queries, keys and values of a map by one convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def project(
    x: Tensor, query: nn.Conv2d, key: nn.Conv2d, value: nn.Conv2d, scale: Tensor | None
) -> Tensor:
    """What three 1x1 convolutions give, one after the other, the last times a scale.

    The scale is taken into the weights. So no map is multiplied by it, and none kept for it.

    Args:
        x: Map ``(B, C, H, W)``.
        query: From ``C`` to ``D`` channels.
        key: From ``C`` to ``D`` channels.
        value: From ``C`` to ``V`` channels.
        scale: Of no dimension; None for 1.

    Returns:
        Map ``(B, D + D + V, H, W)``.
    """
    last = (value.weight, value.bias)
    if scale is not None:
        last = (value.weight * scale, None if value.bias is None else value.bias * scale)
    weight = torch.cat([query.weight, key.weight, last[0]])
    if query.bias is None or key.bias is None or last[1] is None:
        return F.conv2d(x, weight)
    return F.conv2d(x, weight, torch.cat([query.bias, key.bias, last[1]]))
