"""Equations 4 to 6 of arXiv:2103.06255: a kernel for each position and group of channels."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import Variant


def involution(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    K, width = int(options.get("kernel_size", 7)), int(options.get("group_width", 16))
    s, d = int(options.get("stride", 1)), int(options.get("dilation", 1))
    B, C, H, W = x.shape
    rows, columns = (H - 1) // s + 1, (W - 1) // s + 1
    pooled = torch.empty(B, C, rows, columns, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, i * s : i * s + s, j * s : j * s + s].flatten(2)
            pooled[:, :, i, j] = window.sum(2) / window.shape[2]
    z = torch.einsum("dc,bchw->bdhw", weights["reduce.weight"].flatten(1), pooled)
    z = batch_norm(z, weights, "norm", training=bool(options.get("training", False)))
    z = torch.einsum("kd,bdhw->bkhw", weights["span.weight"].flatten(1), z * (z > 0))
    kernels = (z + weights["span.bias"][:, None, None]).view(B, C // width, K * K, rows, columns)
    y = torch.zeros(B, C, rows, columns, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            for place in range(K * K):
                u = i * s + d * (place // K - K // 2)
                v = j * s + d * (place % K - K // 2)
                if 0 <= u < H and 0 <= v < W:
                    kernel = kernels[:, :, place, i, j].repeat_interleave(width, dim=1)
                    y[:, :, i, j] += kernel * x[:, :, u, v]
    return x + weights["scale"] * y if "scale" in weights else y


def parameters(
    channels: int, kernel_size: int = 7, group_width: int = 16, reduction: int = 4
) -> int:
    hidden = max(1, channels // reduction)
    span = kernel_size**2 * (channels // group_width)
    return channels * hidden + 2 * hidden + hidden * span + span


def transposed(kernel_size: int):
    """The places of each kernel, column by column instead of row by row."""

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        out = dict(weights)
        for name in ("span.weight", "span.bias"):
            places = weights[name].unflatten(0, (-1, kernel_size, kernel_size))
            out[name] = places.transpose(1, 2).flatten(0, 2)
        return out

    return change


VARIANTS = [
    Variant(
        "involution",
        involution,
        {"kernel": "B1HW"},
        parameters,
        options,
        multiple=options.get("group_width", 16),
        transposed=transposed(options.get("kernel_size", 7)),
    )
    for options in (
        {},
        {"kernel_size": 3, "group_width": 4},
        {"kernel_size": 5, "group_width": 1, "reduction": 1},
    )
]
