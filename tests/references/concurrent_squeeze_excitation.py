"""Section 2 of arXiv:1803.02579, and the four ways to merge of its journal version."""

import torch
from torch import Tensor

from references.variant import CHANNEL, SPATIAL, Variant


def channel_gate(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    z = x.flatten(2).sum(2) / x[0, 0].numel()
    w1, w2 = (weights[f"channel_excitation.fc{i}.weight"].flatten(1) for i in (1, 2))
    b1, b2 = (weights[f"channel_excitation.fc{i}.bias"] for i in (1, 2))
    hidden = torch.einsum("hc,bc->bh", w1, z) + b1
    t = torch.einsum("ch,bh->bc", w2, hidden * (hidden > 0)) + b2
    return 1 / (1 + (-t[:, :, None, None]).exp())


def spatial_gate(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    w = weights["spatial_excitation.conv.weight"].flatten()
    t = torch.einsum("c,bchw->bhw", w, x) + weights["spatial_excitation.conv.bias"]
    return 1 / (1 + (-t[:, None]).exp())


def channel_squeeze_excitation(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    return x * (1 + weights.get("strength", 1) * (channel_gate(x, weights) - 1))


def spatial_squeeze_excitation(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    return x * (1 + weights.get("strength", 1) * (spatial_gate(x, weights) - 1))


def concurrent_squeeze_excitation(
    x: Tensor, weights: dict[str, Tensor], **options: object
) -> Tensor:
    first, second = x * channel_gate(x, weights), x * spatial_gate(x, weights)
    merge = options.get("merge", "max")
    if merge == "max":
        y = torch.where(first > second, first, second)
    elif merge == "add":
        y = first + second
    elif merge == "mul":
        y = first * second
    else:
        w = weights["conv.weight"].flatten(1)  # (C, 2C)
        C = x.shape[1]
        y = torch.einsum("oc,bchw->bohw", w[:, :C], first)
        y = y + torch.einsum("oc,bchw->bohw", w[:, C:], second)
        y = y + weights["conv.bias"][:, None, None]
    return x + weights.get("strength", 1) * (y - x)


def channel_parameters(channels: int, reduction: int = 2) -> int:
    hidden = max(1, channels // reduction)
    return 2 * channels * hidden + channels + hidden


def parameters(channels: int, reduction: int = 2, merge: str = "max") -> int:
    concat = (2 * channels**2 + channels) * (merge == "concat")
    return channel_parameters(channels, reduction) + channels + 1 + concat


VARIANTS = [
    *(
        Variant("cse", channel_squeeze_excitation, CHANNEL, channel_parameters, options)
        for options in ({}, {"reduction": 16})
    ),
    Variant("sse", spatial_squeeze_excitation, SPATIAL, lambda channels: channels + 1),
    *(
        Variant("scse", concurrent_squeeze_excitation, {**CHANNEL, **SPATIAL}, parameters, options)
        for options in (
            {},
            {"merge": "add"},
            {"merge": "mul"},
            {"merge": "concat"},
            {"merge": "add", "reduction": 16},
        )
    ),
]
