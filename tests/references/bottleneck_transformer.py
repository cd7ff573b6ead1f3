"""Figure 4 of arXiv:2101.11605, with the scaled queries of the authors' code."""

import torch
from torch import Tensor

from references.relative_positions import attention
from references.variant import OUTPUT, Variant, swap


def bottleneck_transformer(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    heads = int(options.get("num_heads", 4))
    H, W = x.shape[2:]
    qkv = torch.einsum("oc,bcn->bno", weights["qkv.weight"].flatten(1), x.flatten(2))
    q, k, v = qkv.chunk(3, dim=2)
    d = q.shape[2] // heads
    parts = []
    for head in range(heads):
        one = slice(head * d, head * d + d)
        parts.append(
            attention(
                q[..., one],
                k[..., one],
                v[..., one],
                weights["rel_h"],
                weights["rel_w"],
                height=H,
                width=W,
            )
        )
    y = torch.cat(parts, dim=2).mT.unflatten(2, (H, W))
    y = cells(y, int(options.get("stride", 1)))
    return x + weights["scale"] * y if "scale" in weights else y


def cells(x: Tensor, side: int) -> Tensor:
    """Means of cells, those at the far borders over what is there of them."""
    rows = []
    for i in range(0, x.shape[2], side):
        row = [x[:, :, i : i + side, j : j + side] for j in range(0, x.shape[3], side)]
        rows.append(torch.stack([c.flatten(2).sum(2) / c[0, 0].numel() for c in row], dim=2))
    return torch.stack(rows, dim=2)


def parameters(channels: int, num_heads: int = 4, size: int = 14) -> int:
    return 3 * channels**2 + 2 * (2 * size - 1) * (channels // num_heads)


VARIANTS = [
    Variant(
        "bot",
        bottleneck_transformer,
        OUTPUT,
        parameters,
        options,
        multiple=options.get("num_heads", 4),
        transposed=swap(rel_h="rel_w"),
    )
    for options in ({}, {"num_heads": 1, "size": 5}, {"num_heads": 2, "size": 2})
]
