"""Section 3.2 of arXiv:1812.01243, with all pairs of positions; heads as in the authors' code."""

import torch
from torch import Tensor

from references.variant import ADDED, Variant


def efficient_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys are ``queries``, ``keys``, ``values`` and ``reprojection``."""
    num_heads = int(str(options.get("num_heads", 1)))
    q, k, v = (
        project(x, weights, name).flatten(2).chunk(num_heads, dim=1)
        for name in ("queries", "keys", "values")
    )
    attended = [
        torch.einsum("bij,bdj->bdi", affinity(q[head], k[head]), v[head])
        for head in range(num_heads)
    ]
    z = torch.cat(attended, dim=1).unflatten(2, x.shape[2:])
    return x + weights.get("scale", 1) * project(z, weights, "reprojection")


def affinity(q: Tensor, k: Tensor) -> Tensor:
    """The share that each position, ``(B, N, N)``, takes of each other."""
    over_features = q.exp() / q.exp().sum(1, keepdim=True)
    over_positions = k.exp() / k.exp().sum(2, keepdim=True)
    return torch.einsum("bdi,bdj->bij", over_features, over_positions)


def project(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"]
    return torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]


def parameters(channels: int, reduction: int = 2, num_heads: int = 1) -> int:
    key, value = max(1, channels // reduction), channels
    return 2 * (channels * key + key) + (channels * value + value) + (value * channels + channels)


VARIANTS = [
    Variant(
        "efficient",
        efficient_attention,
        ADDED,
        parameters,
        options,
        multiple=multiple,
        constant=("keys.bias",),
        all_pairs=True,
    )
    for options, multiple in (
        ({}, 1),
        ({"num_heads": 4}, 8),
        ({"reduction": 1, "num_heads": 2}, 2),
        ({"reduction": 4}, 1),
    )
]
