"""Section 3.2 and 3.3 of arXiv:1811.11721: the affinity of each position to its row and column."""

import torch
from torch import Tensor

from references.variant import ADDED, Variant


def criss_cross(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    for _ in range(int(str(options.get("recurrence", 2)))):
        x = x + weights["scale"] * once(x, weights)
    return x


def once(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    H, W = x.shape[2:]
    q, k, v = (
        torch.einsum("oc,bchw->bohw", weights[f"{name}_conv.weight"].flatten(1), x)
        + weights[f"{name}_conv.bias"][:, None, None]
        for name in ("query", "key", "value")
    )
    out = torch.empty_like(x)
    for i in range(H):
        for j in range(W):
            cross = path(i, j, H, W)
            keys = torch.stack([k[:, :, a, b] for a, b in cross], dim=2)  # (B, D, H + W - 1)
            values = torch.stack([v[:, :, a, b] for a, b in cross], dim=2)
            affinity = torch.einsum("bd,bdp->bp", q[:, :, i, j], keys).softmax(1)
            out[:, :, i, j] = torch.einsum("bp,bcp->bc", affinity, values)
    return out


def path(i: int, j: int, rows: int, columns: int) -> list[tuple[int, int]]:
    """The positions that position ``(i, j)`` attends to: its row, and its column but for itself."""
    return [(i, b) for b in range(columns)] + [(a, j) for a in range(rows) if a != i]


def parameters(channels: int, recurrence: int = 2) -> int:
    hidden = max(1, channels // 8)
    return 2 * (channels * hidden + hidden) + channels**2 + channels + 1


VARIANTS = [
    Variant("criss_cross", criss_cross, ADDED, parameters, options, constant=("key_conv.bias",))
    for options in ({}, {"recurrence": 1}, {"recurrence": 3})
]
