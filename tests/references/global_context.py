"""Section 3.3 of arXiv:1904.11492; multiplication and the plain mean are in the authors' code."""

import torch
from torch import Tensor

from references.variant import Variant


def global_context(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys are ``conv_mask``, ``fc1``, ``norm`` and ``fc2``."""
    out = torch.empty_like(x)
    for b in range(len(x)):
        positions = x[b].flatten(1).T  # (N, C)
        share = torch.full((len(positions),), 1 / len(positions), dtype=x.dtype)
        if options.get("pooling", "attention") == "attention":
            share = attention(positions, weights)
        context = sum(a * position for a, position in zip(share, positions, strict=True))
        vector = transform(context, weights)[:, None, None]
        if options.get("fusion", "add") == "add":
            out[b] = x[b] + vector
        else:
            gate = 1 / (1 + (-vector).exp())
            out[b] = x[b] * (1 + weights.get("scale", 1) * (gate - 1))
    return out


def attention(positions: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Equation 5: one weight for each position, whichever position asks."""
    scores = positions @ weights["conv_mask.weight"].flatten() + weights["conv_mask.bias"]
    return scores.exp() / scores.exp().sum()


def transform(context: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """A bottleneck, normalised over its units."""
    z = weights["fc1.weight"].flatten(1) @ context + weights["fc1.bias"]
    mean = z.sum() / len(z)
    var = ((z - mean) ** 2).sum() / len(z)
    z = (z - mean) / (var + 1e-5).sqrt()
    z = z * weights["norm.weight"].flatten() + weights["norm.bias"].flatten()
    return weights["fc2.weight"].flatten(1) @ (z * (z > 0)) + weights["fc2.bias"]


def parameters(
    channels: int, reduction: int = 16, pooling: str = "attention", fusion: str = "add"
) -> int:
    hidden = max(1, channels // reduction)
    mask = (channels + 1) * (pooling == "attention")
    return mask + (channels * hidden + hidden) + 2 * hidden + (hidden * channels + channels)


def _variant(options: dict[str, object]) -> Variant:
    attends = options.get("pooling", "attention") == "attention"
    return Variant(
        "gc",
        global_context,
        {**({"attention": "B1HW"} if attends else {}), "channel": "BC11"},
        parameters,
        options,
        constant=("conv_mask.bias",) if attends else (),
    )


VARIANTS = [
    _variant(options)
    for options in (
        {},
        {"reduction": 4},
        {"reduction": 8},
        {"reduction": 8, "fusion": "mul"},
        {"fusion": "mul"},
        {"pooling": "average"},
        {"pooling": "average", "fusion": "mul"},
    )
]
