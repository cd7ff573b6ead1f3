"""Section 3 of arXiv:1709.01507: equations 2 (squeeze), 3 (excitation) and 4 (scale)."""

import math

import torch
from torch import Tensor

from references.variant import CHANNEL, Variant


def squeeze_excitation(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """``weights`` are ``fc1`` and ``fc2`` ``.weight`` and, where there is one, ``.bias``."""
    w1, w2 = weights["fc1.weight"].flatten(1), weights["fc2.weight"].flatten(1)
    b1 = weights.get("fc1.bias", torch.zeros(len(w1), dtype=x.dtype))
    b2 = weights.get("fc2.bias", torch.zeros(len(w2), dtype=x.dtype))
    strength = float(weights.get("strength", 1.0))
    out = torch.empty_like(x)
    B, C, H, W = x.shape
    for b in range(B):
        z = [
            sum(float(x[b, c, i, j]) for i in range(H) for j in range(W)) / (H * W)
            for c in range(C)
        ]
        hidden = [
            max(0.0, sum(float(w1[h, c]) * z[c] for c in range(C)) + float(b1[h]))
            for h in range(len(w1))
        ]
        for c in range(C):
            t = sum(float(w2[c, h]) * hidden[h] for h in range(len(hidden))) + float(b2[c])
            gate = 1.0 / (1.0 + math.exp(-t))
            out[b, c] = x[b, c] * (1.0 + strength * (gate - 1.0))
    return out


def parameters(channels: int, reduction: int = 16, bias: bool = True) -> int:
    hidden = max(1, channels // reduction)
    return 2 * channels * hidden + (channels + hidden) * bias


VARIANTS = [
    Variant("se", squeeze_excitation, CHANNEL, parameters, options)
    for options in ({}, {"bias": False}, {"reduction": 4})
]
