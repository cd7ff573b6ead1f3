"""Section 3 of arXiv:1810.11579: equation 2 (gathering) and equation 3 (distribution)."""

import torch
from torch import Tensor

from references.variant import ADDED, Variant


def double_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys are ``feature``, ``gather``, ``distribute`` and ``out``."""
    features, gather, distribute = (
        project(x, weights, name) for name in ("feature", "gather", "distribute")
    )
    z = torch.zeros_like(features)
    for b in range(len(x)):
        for k in range(gather.shape[1]):
            share = softmax(gather[b, k].flatten()).view_as(gather[b, k])  # over positions
            descriptor = torch.einsum("hw,chw->c", share, features[b])
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    wanted = softmax(distribute[b, :, i, j])[k]  # over descriptors
                    z[b, :, i, j] += wanted * descriptor
    return x + weights.get("scale", 1) * project(z, weights, "out")


def softmax(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum()


def project(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"]
    return torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]


def parameters(channels: int, reduction: int = 4) -> int:
    hidden = max(1, channels // reduction)
    return 3 * (channels * hidden + hidden) + hidden * channels + channels


VARIANTS = [
    Variant(
        "a2",
        double_attention,
        ADDED,
        parameters,
        options,
        constant=("gather.bias",),
        all_pairs=True,
    )
    for options in ({}, {"reduction": 2}, {"reduction": 8})
]
