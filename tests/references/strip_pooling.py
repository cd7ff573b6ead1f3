"""Sections 3.1 and 3.2 of arXiv:2003.13328, with the layers of the authors' code."""

import torch
import torch.nn.functional as F
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import ADDED, Variant, swap


def strip_pooling(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    training = bool(options.get("training", False))
    H, W = x.shape[2:]
    rows = layer(x.sum(3, keepdim=True) / W, weights, "conv_h", training)
    columns = layer(x.sum(2, keepdim=True) / H, weights, "conv_w", training)
    z = rows.repeat(1, 1, 1, W) + columns.repeat(1, 1, H, 1)
    t = torch.einsum("oc,bchw->bohw", weights["conv.weight"].flatten(1), z * (z > 0))
    gate = 1 / (1 + (-(t + weights["conv.bias"][:, None, None])).exp())
    return x * (1 + weights.get("strength", 1) * (gate - 1))


def mixed_pooling(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    training = bool(options.get("training", False))
    H, W = x.shape[2:]

    def unit(z: Tensor, name: str) -> Tensor:
        z = layer(z, weights, name, training)
        return z * (z > 0)

    narrow = unit(x, "reduce_short")
    short = layer(narrow, weights, "local", training)
    for index, side in enumerate((20, 12)):
        cells = layer(averaged(narrow, side), weights, f"squares.{index}", training)
        rows, columns = spread(side, H), spread(side, W)
        short = short + torch.einsum("is,bcst,jt->bcij", rows, cells, columns)
    narrow = unit(x, "reduce_long")
    long = layer(narrow.sum(2, keepdim=True) / H, weights, "conv_w", training).repeat(1, 1, H, 1)
    column = layer(narrow.sum(3, keepdim=True) / W, weights, "conv_h", training)
    long = long + column.repeat(1, 1, 1, W)
    both = [unit(short * (short > 0), "short"), unit(long * (long > 0), "long")]
    y = x + layer(torch.cat(both, dim=1), weights, "out", training)
    y = y * (y > 0)
    return x + weights["scale"] * (y - x) if "scale" in weights else y


def layer(z: Tensor, weights: dict[str, Tensor], name: str, training: bool) -> Tensor:
    kernel = weights[f"{name}.0.weight"]
    z = F.conv2d(z, kernel, padding=(kernel.shape[2] // 2, kernel.shape[3] // 2))
    return batch_norm(z, weights, f"{name}.1", training=training)


def averaged(z: Tensor, side: int) -> Tensor:
    """Means over a grid of cells, which overlap where the map is no multiple of it."""
    H, W = z.shape[2:]
    out = torch.empty(*z.shape[:2], side, side, dtype=z.dtype)
    for i in range(side):
        for j in range(side):
            rows = slice(i * H // side, -(-(i + 1) * H // side))
            columns = slice(j * W // side, -(-(j + 1) * W // side))
            cell = z[:, :, rows, columns].flatten(2)
            out[:, :, i, j] = cell.sum(2) / cell.shape[2]
    return out


def spread(side: int, length: int) -> Tensor:
    """Linear interpolation between cells whose first and last are at the borders of the map."""
    out = torch.zeros(length, side, dtype=torch.float64)
    for i in range(length):
        at = i * (side - 1) / (length - 1) if length > 1 else 0.0
        low = min(int(at), side - 2)
        out[i, low] += 1 - (at - low)
        out[i, low + 1] += at - low
    return out


def strip_parameters(channels: int) -> int:
    C = channels
    return 3 * C**2 + 2 * C + 3 * C**2 + 2 * C + C**2 + C


def mixed_parameters(channels: int) -> int:
    C, w = channels, max(1, channels // 4)
    squares = 5 * (9 * w**2 + 2 * w)  # the map, two poolings, and one after each range
    strips = 2 * (3 * w**2 + 2 * w)
    return 2 * (C * w + 2 * w) + squares + strips + 2 * w * C + 2 * C


def turned(*kernels: str):
    """Row and column strips exchanged, their kernels and the square ones transposed."""
    exchange = swap(conv_h="conv_w")

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        lying = {"conv_h.0.weight", "conv_w.0.weight", *(f"{name}.0.weight" for name in kernels)}
        return {n: w.mT if n in lying else w for n, w in exchange(weights).items()}

    return change


VARIANTS = [
    Variant(
        "strip",
        strip_pooling,
        {"element": "BCHW"},
        strip_parameters,
        transposed=turned(),
    ),
    Variant(
        "mixed_pooling",
        mixed_pooling,
        ADDED,
        mixed_parameters,
        transposed=turned("local", "squares.0", "squares.1", "short", "long"),
    ),
]
