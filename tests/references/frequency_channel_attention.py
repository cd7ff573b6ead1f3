"""Equations 6 and 11 of arXiv:2012.11879, with the discrete cosine transform as in its code."""

import math

import torch
from torch import Tensor

from references.variant import CHANNEL, Variant, transpose


def frequency_channel_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """``weights`` are ``fc1.weight``, ``fc2.weight`` and ``basis``, one plane a frequency."""
    basis = weights["basis"]
    height, width = basis.shape[1:]
    pooled = averaged(averaged(x, 2, height), 3, width)
    spectrum = [
        (part * plane).sum((2, 3))
        for part, plane in zip(pooled.chunk(len(basis), dim=1), basis, strict=True)
    ]
    z = torch.cat(spectrum, dim=1)  # (B, C)
    hidden = torch.einsum("hc,bc->bh", weights["fc1.weight"].flatten(1), z)
    logits = torch.einsum("ch,bh->bc", weights["fc2.weight"].flatten(1), hidden * (hidden > 0))
    gate = 1 / (1 + (-logits).exp())
    return x * (1 + weights.get("strength", 1) * (gate - 1))[:, :, None, None]


def averaged(x: Tensor, dim: int, length: int) -> Tensor:
    """Means over ``length`` intervals that cover all rows or columns and may overlap."""
    n = x.shape[dim]
    bounds = [(i * n // length, -(-(i + 1) * n // length)) for i in range(length)]
    parts = [x.narrow(dim, start, end - start).sum(dim) / (end - start) for start, end in bounds]
    return torch.stack(parts, dim=dim)


def cosines(u: int, v: int, height: int, width: int) -> Tensor:
    """The plane of the frequencies ``u`` and ``v`` of a 7 x 7 map, on one of another size."""
    plane = torch.empty(height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            plane[i, j] = term(u * (height // 7), i, height) * term(v * (width // 7), j, width)
    return plane


def term(frequency: int, place: int, length: int) -> float:
    value = math.cos(math.pi * frequency * (place + 0.5) / length) / math.sqrt(length)
    return value if frequency == 0 else value * math.sqrt(2)


def parameters(channels: int, reduction: int = 16, **options: object) -> int:
    return 2 * channels * max(1, channels // reduction)


VARIANTS = [
    Variant(
        "fca",
        frequency_channel_attention,
        CHANNEL,
        parameters,
        options,
        multiple=multiple,
        transposed=transpose("basis"),
    )
    for options, multiple in (
        ({}, 16),
        ({"frequencies": "low16"}, 16),
        ({"frequencies": "top1", "reduction": 4}, 1),
        ({"frequencies": "bot32", "size": 7}, 32),
        ({"frequencies": "top4", "size": 3}, 4),
    )
]
