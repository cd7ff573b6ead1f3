"""Equations 4 to 9 of arXiv:2103.02907, with the h-swish of the authors' code."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import Variant, swap


def coordinate_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys are ``conv1``, ``bn1``, ``conv_h`` and ``conv_w``."""
    H, W = x.shape[2:]
    rows = torch.stack([x[:, :, i, :].sum(2) / W for i in range(H)], dim=2)  # (B, C, H)
    columns = torch.stack([x[:, :, :, j].sum(2) / H for j in range(W)], dim=2)  # (B, C, W)
    z = conv(torch.cat([rows, columns], dim=2), weights, "conv1")  # (B, m, H + W)
    if options.get("norm", True):
        z = batch_norm(z[..., None], weights, "bn1", training=bool(options.get("training")))[..., 0]
    z = z * (z + 3).clamp(0, 6) / 6
    strength = weights.get("strength", 1)
    t_h, t_w = conv(z[:, :, :H], weights, "conv_h"), conv(z[:, :, H:], weights, "conv_w")
    out = torch.empty_like(x)
    for i in range(H):
        for j in range(W):
            if options.get("merge") == "sum":
                logits = [t_h[:, :, i] + t_w[:, :, j]]
            else:
                logits = [t_h[:, :, i], t_w[:, :, j]]
            out[:, :, i, j] = x[:, :, i, j]
            for t in logits:
                out[:, :, i, j] *= 1 + strength * (1 / (1 + (-t).exp()) - 1)
    return out


def conv(z: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"]
    return torch.einsum("oc,bcn->bon", weight, z) + bias[:, None]


def parameters(
    channels: int, reduction: int = 32, norm: bool = True, merge: str = "product"
) -> int:
    hidden = max(8, channels // reduction)
    return channels * hidden + hidden + 2 * hidden * norm + 2 * (hidden * channels + channels)


def _variant(options: dict[str, object]) -> Variant:
    both = {"height": "BCH1", "width": "BC1W"}
    return Variant(
        "coord",
        coordinate_attention,
        {"element": "BCHW"} if options.get("merge") == "sum" else both,
        parameters,
        options,
        constant_in_training=("conv1.bias",) if options.get("norm", True) else (),
        transposed=swap(conv_h="conv_w"),
    )


VARIANTS = [
    _variant(options)
    for options in ({}, {"reduction": 1}, {"norm": False, "merge": "sum"}, {"merge": "sum"})
]
