"""Section 3 of arXiv:2105.02358, with the normalisations of the authors' code."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import ADDED, Variant


def external_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys are ``conv1``, ``key_memory``, ``value_memory``, ``conv2`` and ``bn``."""
    scale = weights.get("scale", 1)
    given = options.get("num_heads")
    heads = 1 if given is None else 4 * int(str(given))
    z = conv(x, weights, "conv1").flatten(2)  # (B, D, N)
    attended = torch.cat([attend(head, weights) for head in z.chunk(heads, dim=1)], dim=1)
    out = conv(attended.unflatten(2, x.shape[2:]), weights, "conv2")
    if given is not None:
        return x + scale * out
    y = x + batch_norm(out, weights, "bn", training=bool(options.get("training")))
    return x + scale * (y * (y > 0) - x)


def attend(z: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Algorithm 1: both normalisations, over positions, then over the units of the memory."""
    scores = torch.einsum("sd,bdn->bns", weights["key_memory.weight"], z)
    scores = (scores + weights.get("key_memory.bias", 0)).exp()
    affinity = scores / scores.sum(1, keepdim=True)
    affinity = affinity / (1e-9 + affinity.sum(2, keepdim=True))
    values = torch.einsum("ds,bns->bnd", weights["value_memory.weight"], affinity)
    return (values + weights.get("value_memory.bias", 0)).mT


def conv(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    weight = weights[f"{name}.weight"].flatten(1)
    bias = weights.get(f"{name}.bias", torch.zeros(len(weight), dtype=x.dtype))
    return torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]


def parameters(channels: int, memory_size: int = 64, num_heads: int | None = None) -> int:
    if num_heads is None:
        return channels**2 + channels + 2 * memory_size * channels + channels**2 + 2 * channels
    dim = channels // num_heads
    memory = 2 * memory_size * dim + memory_size + dim
    return (4 * channels**2 + 4 * channels) + memory + (4 * channels**2 + channels)


def _variant(options: dict[str, object], multiple: int) -> Variant:
    multi_head = "num_heads" in options
    return Variant(
        "external",
        external_attention,
        ADDED,
        parameters,
        options,
        multiple=multiple,
        constant=("conv1.bias", "key_memory.bias") if multi_head else ("conv1.bias",),
        all_pairs=not multi_head,  # many heads hold more than the pairs of a small map
    )


VARIANTS = [
    _variant(options, multiple)
    for options, multiple in (
        ({}, 1),
        ({"memory_size": 8}, 1),
        ({"num_heads": 8}, 8),
        ({"num_heads": 2, "memory_size": 16}, 2),
    )
]
