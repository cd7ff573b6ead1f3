"""The control gate: logits through a sigmoid, those of positions first resized bilinearly."""

import math

import torch
from torch import Tensor

from references.variant import Variant, transpose


def static(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    strength = weights.get("strength", 1)
    out = x.clone()
    if "channel_logits" in weights:
        gate = 1 / (1 + (-weights["channel_logits"]).exp())
        out = out * (1 + strength * (gate - 1))
    if "spatial_logits" in weights:
        H, W = x.shape[2:]
        for i in range(H):
            for j in range(W):
                logit = read(weights["spatial_logits"][0, 0], (i + 0.5) / H, (j + 0.5) / W)
                gate = 1 / (1 + math.exp(-logit))
                out[:, :, i, j] *= 1 + strength * (gate - 1)
    return out


def read(grid: Tensor, u: float, v: float) -> float:
    """Value at the fractions ``u`` of the height and ``v`` of the width of a square grid."""
    size = len(grid)

    def neighbours(fraction: float) -> tuple[int, int, float]:
        place = max(fraction * size - 0.5, 0.0)
        low = min(int(place), size - 1)
        return low, min(low + 1, size - 1), place - low

    top, bottom, down = neighbours(u)
    left, right, along = neighbours(v)
    corners = torch.stack(
        [grid[top, left], grid[top, right], grid[bottom, left], grid[bottom, right]]
    )
    shares = [(1 - down) * (1 - along), (1 - down) * along, down * (1 - along), down * along]
    return sum(float(c) * s for c, s in zip(corners, shares, strict=True))


def parameters(channels: int, shape: str = "channel", size: int = 7) -> int:
    return channels * (shape != "spatial") + size**2 * (shape != "channel")


VARIANTS = [
    Variant("static", static, maps, parameters, options, transposed=transpose("spatial_logits"))
    for maps, options in (
        ({"channel": "1C11"}, {}),
        ({"spatial": "11HW"}, {"shape": "spatial", "size": 3}),
        ({"channel": "1C11", "spatial": "11HW"}, {"shape": "both"}),
    )
]
