"""Section 3 of arXiv:1909.03834: means, normalised within groups, each transformed by itself."""

import math

import torch
from torch import Tensor

from references.variant import CHANNEL, Variant, Weights


def linear_context_transform(x: Tensor, weights: Weights, **options: int) -> Tensor:
    """``weights`` are ``weight`` and ``bias``, one number for each channel."""
    num_groups = options.get("num_groups", 16)
    strength = float(weights.get("strength", 1))
    B, C, H, W = x.shape
    size = C // num_groups
    out = torch.empty_like(x)
    for b in range(B):
        z = [float(x[b, c].sum()) / (H * W) for c in range(C)]
        for c in range(C):
            start = c // size * size
            group = z[start : start + size]
            mean = sum(group) / size
            variance = sum((value - mean) ** 2 for value in group) / size
            standard = (z[c] - mean) / math.sqrt(variance + 1e-5)
            t = float(weights["weight"][c]) * standard + float(weights["bias"][c])
            gate = 1 / (1 + math.exp(-t))
            out[b, c] = x[b, c] * (1 + strength * (gate - 1))
    return out


def parameters(channels: int, num_groups: int = 16) -> int:
    return 2 * channels


VARIANTS = [
    Variant("lct", linear_context_transform, CHANNEL, parameters, options, multiple=multiple)
    for options, multiple in (({}, 16), ({"num_groups": 4}, 4), ({"num_groups": 1}, 1))
]
