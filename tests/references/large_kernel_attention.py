"""Equations 1 and 2 of arXiv:2202.09741, and 3 to 6 of arXiv:2309.01439."""

import torch
from torch import Tensor

from references.variant import Variant, transpose


def large_kernel_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    z = depthwise(x, weights, "conv0", 1)
    z = depthwise(z, weights, "conv_spatial", 3)
    return gated(x, z, weights)


def large_separable_kernel_attention(
    x: Tensor, weights: dict[str, Tensor], **options: object
) -> Tensor:
    dilation = 2 if int(options.get("kernel_size", 23)) < 23 else 3
    z = depthwise(depthwise(x, weights, "conv0h", 1), weights, "conv0v", 1)
    z = depthwise(z, weights, "conv_spatial_h", dilation)
    return gated(x, depthwise(z, weights, "conv_spatial_v", dilation), weights)


def depthwise(x: Tensor, weights: dict[str, Tensor], name: str, dilation: int) -> Tensor:
    kernel = weights[f"{name}.weight"][:, 0]  # (C, rows, columns)
    H, W = x.shape[2:]
    y = torch.zeros_like(x) + weights[f"{name}.bias"][:, None, None]
    for i in range(kernel.shape[1]):
        for j in range(kernel.shape[2]):
            u, v = dilation * (i - kernel.shape[1] // 2), dilation * (j - kernel.shape[2] // 2)
            top, bottom, left, right = max(0, -u), min(H, H - u), max(0, -v), min(W, W - v)
            if top < bottom and left < right:
                seen = x[:, :, top + u : bottom + u, left + v : right + v]
                y[:, :, top:bottom, left:right] += kernel[:, i, j, None, None] * seen
    return y


def gated(x: Tensor, z: Tensor, weights: dict[str, Tensor]) -> Tensor:
    factor = torch.einsum("oc,bchw->bohw", weights["conv1.weight"].flatten(1), z)
    factor = factor + weights["conv1.bias"][:, None, None]
    return x * (1 + weights.get("strength", 1) * (factor - 1))


def lska_parameters(channels: int, kernel_size: int = 23) -> int:
    sizes = {7: (3, 3), 11: (3, 5), 23: (5, 7), 35: (5, 11), 41: (5, 13), 53: (5, 17)}
    first, second = sizes[kernel_size]
    C = channels
    return C * (2 * first + 2) + C * (2 * second + 2) + C**2 + C


def lka_parameters(channels: int) -> int:
    return 25 * channels + 49 * channels + channels**2 + 3 * channels


FACTOR = {"attention": "BCHW"}
VARIANTS = [
    Variant(
        "lka",
        large_kernel_attention,
        FACTOR,
        lka_parameters,
        transposed=transpose("conv0.weight", "conv_spatial.weight"),
    ),
    *(
        Variant(
            "lska",
            large_separable_kernel_attention,
            FACTOR,
            lska_parameters,
            options,
            transposed=None,  # its biases pass through the columns, but not through the rows
        )
        for options in ({}, *({"kernel_size": size} for size in (7, 11, 35, 41, 53)))
    ),
]
