"""Section 3 of arXiv:1807.06521, with the batch normalisation of the authors' code."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import CHANNEL, SPATIAL, Variant, transpose


def cbam(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys begin with ``channel_gate.`` and ``spatial_gate.``."""
    strength = weights.get("strength", torch.ones((), dtype=x.dtype))

    def channel(z: Tensor) -> Tensor:
        return 1 + strength * (channel_gate(z, weights, options.get("pooling", "both")) - 1)

    def spatial(z: Tensor) -> Tensor:
        training, blend = bool(options.get("training")), options.get("pooling") == "blend"
        gate = spatial_gate(z, weights, training=training, blend=blend)
        return 1 + strength * (gate - 1)

    order = options.get("order", "channel_first")
    if order == "channel_first":
        x = x * channel(x)
        return x * spatial(x)
    if order == "spatial_first":
        x = x * spatial(x)
        return x * channel(x)
    if order == "parallel_product":
        return x * channel(x) * spatial(x)
    if order == "parallel_sum":
        first, second = weights["weight_logits"].exp() / weights["weight_logits"].exp().sum()
        return first * (x * channel(x)) + second * (x * spatial(x))
    raise NotImplementedError(order)


def spatial_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    gate = spatial_gate(x, weights, training=bool(options.get("training", False)))
    return x * (1 + weights.get("strength", 1) * (gate - 1))


def channel_gate(x: Tensor, weights: dict[str, Tensor], pooling: object) -> Tensor:
    """Equation 2, and the other two pooling types of ``MODELS/cbam.py``."""
    flat = x.flatten(2)  # (B, C, HW)
    pooled = {
        "avg": [flat.sum(2) / flat.shape[2]],
        "max": [flat.max(2).values],
        "both": [flat.sum(2) / flat.shape[2], flat.max(2).values],
        "lse": [flat.exp().sum(2).log()],
        "lp": [(flat**2).sum(2).sqrt()],
        "blend": [(flat.sum(2) / flat.shape[2] + flat.max(2).values) / 2],
    }[str(pooling)]
    w1, w2 = (weights[f"channel_gate.fc{i}.weight"].flatten(1) for i in (1, 2))
    b1, b2 = (weights[f"channel_gate.fc{i}.bias"] for i in (1, 2))
    logits = 0
    for z in pooled:
        hidden = torch.einsum("hc,bc->bh", w1, z) + b1
        logits = logits + torch.einsum("ch,bh->bc", w2, hidden * (hidden > 0)) + b2
    return (1 / (1 + (-logits).exp()))[:, :, None, None]


def spatial_gate(
    x: Tensor, weights: dict[str, Tensor], *, training: bool, blend: bool = False
) -> Tensor:
    """Equation 3: maximum first, then mean, one kernel over both, zeros around."""
    kernel = weights["spatial_gate.conv.weight"][0]  # (2, k, k)
    if blend:  # one kernel over the mean of both
        kernel = torch.cat([kernel / 2, kernel / 2])
    B, C, H, W = x.shape
    k = kernel.shape[1]
    padded = torch.zeros(B, 2, H + k - 1, W + k - 1, dtype=x.dtype)
    padded[:, 0, k // 2 : k // 2 + H, k // 2 : k // 2 + W] = x.max(1).values
    padded[:, 1, k // 2 : k // 2 + H, k // 2 : k // 2 + W] = x.sum(1) / C
    z = torch.zeros(B, 1, H, W, dtype=x.dtype)
    for plane in range(2):
        for i in range(k):
            for j in range(k):
                z[:, 0] += kernel[plane, i, j] * padded[:, plane, i : i + H, j : j + W]
    if "spatial_gate.bn.weight" in weights:
        z = batch_norm(z, weights, "spatial_gate.bn", training=training)
    return 1 / (1 + (-z).exp())


def spatial_parameters(channels: int, kernel_size: int = 7, norm: bool = True) -> int:
    return 2 * kernel_size**2 + 2 * norm


def parameters(channels: int, reduction: int = 16, **options: object) -> int:
    hidden = max(1, channels // reduction)
    shape = {name: options[name] for name in ("kernel_size", "norm") if name in options}
    mixing = 2 * (options.get("order") == "parallel_sum")
    channel = 2 * channels * hidden + channels + hidden
    less = shape.get("kernel_size", 7) ** 2 * (options.get("pooling") == "blend")
    return channel + spatial_parameters(channels, **shape) + mixing - less


VARIANTS = [
    *(
        Variant(
            "spatial",
            spatial_attention,
            SPATIAL,
            spatial_parameters,
            options,
            transposed=transpose("spatial_gate.conv.weight"),
        )
        for options in ({}, {"kernel_size": 3}, {"norm": False})
    ),
    *(
        Variant(
            "cbam",
            cbam,
            {**CHANNEL, **SPATIAL},
            parameters,
            options,
            transposed=transpose("spatial_gate.conv.weight"),
        )
        for options in (
            {},
            {"order": "spatial_first"},
            {"order": "parallel_sum"},
            {"order": "parallel_product"},
            {"pooling": "avg"},
            {"pooling": "max"},
            {"pooling": "lse"},
            {"pooling": "lp"},
            {"pooling": "blend"},
            {"kernel_size": 3, "norm": False},
            {"reduction": 2},
        )
    ),
]
