"""Section 3.2 of arXiv:2403.01123: strips, a convolution along them, group normalisation."""

import torch
from torch import Tensor

from references.variant import Variant


def efficient_local_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    groups, a = int(options.get("num_groups", 16)), weights.get("strength", 1)
    height = gate(x.sum(3) / x.shape[3], weights, groups)
    width = gate(x.sum(2) / x.shape[2], weights, groups)
    return x * (1 + a * (height[:, :, :, None] - 1)) * (1 + a * (width[:, :, None] - 1))


def gate(z: Tensor, weights: dict[str, Tensor], groups: int) -> Tensor:
    kernel = weights["conv.weight"]  # (C, group width, k)
    B, C, L = z.shape
    size, k = kernel.shape[1:]
    t = torch.zeros_like(z)
    for c in range(C):
        first = c // size * size
        for place in range(L):
            for tap in range(k):
                at = place + tap - k // 2
                if 0 <= at < L:
                    t[:, c, place] += z[:, first : first + size, at] @ kernel[c, :, tap]
    t = t.view(B, groups, -1)
    mean = t.sum(2, keepdim=True) / t.shape[2]
    variance = ((t - mean) ** 2).sum(2, keepdim=True) / t.shape[2]
    t = ((t - mean) / (variance + 1e-5).sqrt()).view(B, C, L)
    t = t * weights["norm.weight"][:, None] + weights["norm.bias"][:, None]
    return 1 / (1 + (-t).exp())


def parameters(
    channels: int, kernel_size: int = 7, group_width: int = 1, num_groups: int = 16
) -> int:
    return channels * group_width * kernel_size + 2 * channels


VARIANTS = [
    Variant(
        "ela",
        efficient_local_attention,
        {"height": "BCH1", "width": "BC1W"},
        parameters,
        options,
        multiple=max(options.get("group_width", 1), options.get("num_groups", 16)),
    )
    for options in (
        {},
        {"kernel_size": 5, "num_groups": 32},
        {"kernel_size": 5, "group_width": 8},
        {"group_width": 8},
        {"kernel_size": 3, "num_groups": 1},
    )
]
