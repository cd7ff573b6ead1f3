"""Section 3 of arXiv:1909.03834: average, normalise in groups, transform, gate."""

import math

import torch
from torch import Tensor

from references.variant import CHANNEL, Variant


def linear_context(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    B, C, H, W = x.shape
    size = C // int(options.get("num_groups", 16))
    out = torch.empty_like(x)
    for b in range(B):
        means = [float(x[b, c].sum()) / (H * W) for c in range(C)]
        for c in range(C):
            group = means[c // size * size : c // size * size + size]
            mean = sum(group) / size
            variance = sum((value - mean) ** 2 for value in group) / size
            z = (means[c] - mean) / math.sqrt(variance + 1e-5)
            t = float(weights["weight"][c]) * z + float(weights["bias"][c])
            gate = 1 / (1 + math.exp(-t))
            out[b, c] = x[b, c] * (1 + float(weights.get("strength", 1)) * (gate - 1))
    return out


VARIANTS = [
    Variant(
        "lct",
        linear_context,
        CHANNEL,
        lambda channels, **_: 2 * channels,
        options,
        multiple=multiple,
    )
    for options, multiple in (({}, 16), ({"num_groups": 4}, 4), ({"num_groups": 1}, 1))
]
