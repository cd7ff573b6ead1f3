"""Queries, keys and values of a map by one convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.mechanisms.base import weights


def project(
    x: Tensor, query: nn.Conv2d, key: nn.Conv2d, value: nn.Conv2d, scale: Tensor | None
) -> Tensor:
    """What three 1x1 convolutions give, one after the other, the last times a scale.

    Args:
        x: Map ``(B, C, H, W)``.
        query: From ``C`` to ``D`` channels.
        key: From ``C`` to ``D`` channels.
        value: From ``C`` to ``V`` channels.
        scale: Of no dimension; None for 1.

    Returns:
        Map ``(B, D + D + V, H, W)``.
    """
    return F.conv2d(x, *stacked(x, query, key, value, scale))


def stacked(
    x: Tensor, query: nn.Conv2d, key: nn.Conv2d, value: nn.Conv2d, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of the one convolution.

    The scale is taken into them. So no map is multiplied by it, and none kept for it.
    """
    weight_and_bias = [weights(layer, x) for layer in (query, key, value)]
    if scale is not None:
        weight, bias = weight_and_bias[2]
        weight_and_bias[2] = (weight * scale, None if bias is None else bias * scale)
    weight = torch.cat([weight for weight, _ in weight_and_bias])
    if all(bias is None for _, bias in weight_and_bias):
        return weight, None
    biases = [w.new_zeros(len(w)) if bias is None else bias for w, bias in weight_and_bias]
    return weight, torch.cat(biases)
