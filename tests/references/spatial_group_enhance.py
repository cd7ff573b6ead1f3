"""Section 3 of arXiv:1905.09646, with the unbiased deviation of the authors' code."""

import torch
from torch import Tensor

from references.variant import Variant


def spatial_group_enhance(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """``weights`` are ``weight`` and ``bias``, one number for each group."""
    num_groups = weights["weight"].numel()
    w, b = weights["weight"].flatten(), weights["bias"].flatten()
    strength = weights.get("strength", 1)
    B, C, H, W = x.shape
    size, n = C // num_groups, H * W
    out = torch.empty_like(x)
    for g in range(num_groups):
        group = x[:, g * size : (g + 1) * size].reshape(B, size, n)
        mean = group.sum(2) / n
        t = torch.einsum("bc,bcn->bn", mean, group)
        t = t - t.sum(1, keepdim=True) / n
        deviation = ((t**2).sum(1, keepdim=True) / max(n - 1, 1)).sqrt()
        t = t / (deviation + 1e-5)
        gate = 1 / (1 + (-(w[g] * t + b[g])).exp())
        gated = group * (1 + strength * (gate - 1))[:, None]
        out[:, g * size : (g + 1) * size] = gated.view(B, size, H, W)
    return out


def parameters(channels: int, num_groups: int = 64) -> int:
    return 2 * num_groups


VARIANTS = [
    Variant(
        "sge", spatial_group_enhance, {"position": "BCHW"}, parameters, options, multiple=multiple
    )
    for options, multiple in (({}, 64), ({"num_groups": 8}, 8), ({"num_groups": 1}, 1))
]
