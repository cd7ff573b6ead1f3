"""Equations 9 and 12 of arXiv:1910.03151: a shared kernel over neighbouring channels."""

import math

import torch
from torch import Tensor

from references.variant import CHANNEL, Variant


def efficient_channel_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """``weights`` is ``conv.weight``, ``(1, 1, k)``, or those of two layers, ``conv.0`` and ``.2``.

    Channels beyond the ends count as zero, unless the ends are neighbours.
    """
    last = "conv.2" if "conv.2.weight" in weights else "conv"
    kernel = weights[f"{last}.weight"][0]  # (units, k)
    units, k = kernel.shape
    bias = float(weights.get(f"{last}.bias", 0.0))
    strength = float(weights.get("strength", 1.0))
    out = torch.empty_like(x)
    B, C, H, W = x.shape
    for b in range(B):
        means = [float(x[b, c].sum()) / (H * W) for c in range(C)]
        hidden = [described(mean, weights) for mean in means]
        for c in range(C):
            t = bias
            for offset in range(k):
                neighbour = c + offset - k // 2
                if options.get("circular"):
                    neighbour %= C
                if 0 <= neighbour < C:
                    t += sum(float(kernel[u, offset]) * hidden[neighbour][u] for u in range(units))
            gate = 1.0 / (1.0 + math.exp(-t))
            out[b, c] = x[b, c] * (1.0 + strength * (gate - 1.0))
    return out


def described(mean: float, weights: dict[str, Tensor]) -> list[float]:
    """What the convolution sees of one channel: its mean, or the units of a first layer."""
    if "conv.0.weight" not in weights:
        return [mean]
    w, b = weights["conv.0.weight"].flatten(), weights["conv.0.bias"]
    return [max(0.0, float(w[u]) * mean + float(b[u])) for u in range(len(w))]


def kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    """The odd number nearest below or at the next integer, as ``models/eca_module.py`` computes."""
    t = int(abs((math.log(channels, 2) + b) / gamma))
    return t if t % 2 else t + 1


def parameters(
    channels: int, circular: bool = False, reduction: int | None = None, **options: int
) -> int:
    k = options.get("kernel_size") or kernel_size(channels, **options)
    if reduction is None:
        return k
    hidden = max(1, channels // reduction)
    return 2 * hidden + hidden * k + 1


VARIANTS = [
    Variant("eca", efficient_channel_attention, CHANNEL, parameters, options)
    for options in (
        {},
        {"kernel_size": 3},
        {"kernel_size": 5},
        {"kernel_size": 7},
        {"gamma": 1, "b": 2},
        {"circular": True},
        {"reduction": 8},
        {"circular": True, "reduction": 4},
    )
]
