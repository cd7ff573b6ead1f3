"""The heads of arXiv:1809.02983 (figure 2) and arXiv:1811.11721 (figure 2), evaluated."""

import torch
from torch import Tensor

from references.criss_cross import criss_cross
from references.danet import danet_channel, danet_position

Weights = dict[str, Tensor]


def danet_head(x: Tensor, weights: Weights) -> dict[str, Tensor]:
    """Scores of the sum of both branches, and of each alone."""
    position = layer(x, part(weights, "position.before"))
    position = danet_position(position, part(weights, "position.attention"))
    position = layer(position, part(weights, "position.after"))
    channel = layer(x, part(weights, "channel.before"))
    channel = danet_channel(channel, part(weights, "channel.attention"))
    channel = layer(channel, part(weights, "channel.after"))
    return {
        "out": pointwise(position + channel, part(weights, "classifier.1")),
        "position": pointwise(position, part(weights, "position_classifier.1")),
        "channel": pointwise(channel, part(weights, "channel_classifier.1")),
    }


def ccnet_head(x: Tensor, weights: Weights, recurrence: int = 2) -> Tensor:
    """Scores of the features beside what two passes with the same weights gathered."""
    y = layer(x, part(weights, "branch.before"))
    y = criss_cross(y, part(weights, "branch.attention"), recurrence=recurrence)
    y = layer(y, part(weights, "branch.after"))
    y = layer(torch.cat([x, y], 1), part(weights, "layer"))
    return pointwise(y, part(weights, "classifier.1"))


def part(weights: Weights, prefix: str) -> Weights:
    return {
        name.removeprefix(f"{prefix}."): weight
        for name, weight in weights.items()
        if name.startswith(f"{prefix}.")
    }


def layer(x: Tensor, weights: Weights) -> Tensor:
    """3x3 convolution without bias on a border of zeros, batch norm, ReLU."""
    B, C, H, W = x.shape
    padded = x.new_zeros(B, C, H + 2, W + 2)
    padded[:, :, 1:-1, 1:-1] = x
    y = x.new_zeros(())
    for i in range(3):
        for j in range(3):
            window = padded[:, :, i : i + H, j : j + W]
            y = y + torch.einsum("oc,bchw->bohw", weights["0.weight"][:, :, i, j], window)
    mean, var, weight, bias = (
        weights[f"1.{name}"][:, None, None]
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return ((y - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)


def pointwise(x: Tensor, weights: Weights) -> Tensor:
    y = torch.einsum("oc,bchw->bohw", weights["weight"].flatten(1), x)
    return y + weights["bias"][:, None, None]
