"""Section 3 of arXiv:2305.13563: parallel sub-networks and cross-spatial learning."""

import torch
from torch import Tensor

from references.variant import Variant, transpose


def efficient_multiscale_attention(
    x: Tensor, weights: dict[str, Tensor], **options: object
) -> Tensor:
    """Keys are ``conv1x1``, ``conv3x3`` and ``gn``; each group of channels goes its own way."""
    num_groups = int(options.get("num_groups", 32))  # type: ignore[call-overload]
    strength = weights.get("strength", 1)
    parts = []
    for group in x.chunk(num_groups, dim=1):  # (B, c, H, W)
        u, v = strips(group, weights), local(group, weights)
        logits = torch.einsum("bc,bchw->bhw", channel_softmax(u), v)
        logits = logits + torch.einsum("bc,bchw->bhw", channel_softmax(v), u)
        gate = sigmoid(logits)[:, None]
        parts.append(group * (1 + strength * (gate - 1)))
    return torch.cat(parts, dim=1)


def strips(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    H, W = x.shape[2:]
    matrix, bias = weights["conv1x1.weight"].flatten(1), weights["conv1x1.bias"]
    rows = torch.einsum("oc,bchw->boh", matrix, x) / W + bias[:, None]
    columns = torch.einsum("oc,bchw->bow", matrix, x) / H + bias[:, None]
    gated = x * sigmoid(rows)[:, :, :, None] * sigmoid(columns)[:, :, None, :]
    centred = gated - gated.sum((2, 3), keepdim=True) / (H * W)
    variance = (centred**2).sum((2, 3), keepdim=True) / (H * W)
    standard = centred / (variance + 1e-5).sqrt()
    return standard * weights["gn.weight"][:, None, None] + weights["gn.bias"][:, None, None]


def local(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    kernel = weights["conv3x3.weight"]
    B, C, H, W = x.shape
    padded = torch.zeros(B, C, H + 2, W + 2, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    out = weights["conv3x3.bias"][:, None, None].expand(B, -1, H, W)
    for i in range(3):
        for j in range(3):
            seen = padded[:, :, i : i + H, j : j + W]
            out = out + torch.einsum("oc,bchw->bohw", kernel[:, :, i, j], seen)
    return out


def channel_softmax(x: Tensor) -> Tensor:
    """Softmax over the channels of their means over all positions, ``(B, c)``."""
    means = x.sum((2, 3)) / x[0, 0].numel()
    return means.exp() / means.exp().sum(1, keepdim=True)


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + (-z).exp())


def parameters(channels: int, num_groups: int = 32) -> int:
    c = channels // num_groups
    return 10 * c**2 + 4 * c


VARIANTS = [
    Variant(
        "ema",
        efficient_multiscale_attention,
        {"position": "BCHW"},
        parameters,
        options,
        multiple=multiple,
        transposed=transpose("conv3x3.weight"),
    )
    for options, multiple in (({}, 32), ({"num_groups": 8}, 8), ({"num_groups": 1}, 1))
]
