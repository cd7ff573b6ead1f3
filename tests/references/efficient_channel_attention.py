"""Equations 9 and 12 of arXiv:1910.03151: a shared kernel over neighbouring channels."""

import math

import torch
from torch import Tensor

from references.variant import CHANNEL, Variant


def efficient_channel_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """``weights`` is ``conv.weight``, ``(1, 1, k)``; channels beyond the ends count as zero."""
    kernel = [float(w) for w in weights["conv.weight"].flatten()]
    strength = float(weights.get("strength", 1.0))
    out = torch.empty_like(x)
    B, C, H, W = x.shape
    for b in range(B):
        means = [float(x[b, c].sum()) / (H * W) for c in range(C)]
        for c in range(C):
            t = 0.0
            for offset, w in enumerate(kernel):
                neighbour = c + offset - len(kernel) // 2
                if 0 <= neighbour < C:
                    t += w * means[neighbour]
            gate = 1.0 / (1.0 + math.exp(-t))
            out[b, c] = x[b, c] * (1.0 + strength * (gate - 1.0))
    return out


def kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    """The odd number nearest below or at the next integer, as ``models/eca_module.py`` computes."""
    t = int(abs((math.log(channels, 2) + b) / gamma))
    return t if t % 2 else t + 1


def parameters(channels: int, **options: int) -> int:
    return options.get("kernel_size") or kernel_size(channels, **options)


VARIANTS = [
    Variant("eca", efficient_channel_attention, CHANNEL, parameters, options)
    for options in ({}, {"kernel_size": 5}, {"gamma": 1, "b": 2})
]
