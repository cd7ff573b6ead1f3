"""Section 3 of arXiv:1807.06514, with the normalisations where the authors' code has them."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import Variant, transpose


def bottleneck_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys begin with ``channel_branch.`` and ``spatial_branch.``."""
    training = bool(options.get("training", False))
    dilation = int(options.get("dilation", 4))  # type: ignore[call-overload]
    channel = channel_logits(x, weights, training=training)  # (B, C)
    spatial = spatial_logits(x, weights, dilation, training=training)  # (B, H, W)
    channel, spatial = channel[:, :, None, None], spatial[:, None]
    logits = channel * spatial if options.get("combine") == "mul" else channel + spatial
    return x + weights.get("strength", 1) * x / (1 + (-logits).exp())


def channel_logits(x: Tensor, weights: dict[str, Tensor], *, training: bool) -> Tensor:
    mean = x.flatten(2).sum(2) / x[0, 0].numel()
    hidden = linear(mean[:, :, None, None], weights, "channel_branch.fc1")
    hidden = batch_norm(hidden, weights, "channel_branch.bn", training=training)
    return linear(hidden * (hidden > 0), weights, "channel_branch.fc2")[:, :, 0, 0]


def spatial_logits(
    x: Tensor, weights: dict[str, Tensor], dilation: int, *, training: bool
) -> Tensor:
    z = linear(x, weights, "spatial_branch.conv1")
    z = batch_norm(z, weights, "spatial_branch.bn1", training=training)
    z = z * (z > 0)
    for i in (2, 3):
        z = dilated(z, weights, f"spatial_branch.conv{i}", dilation)
        z = batch_norm(z, weights, f"spatial_branch.bn{i}", training=training)
        z = z * (z > 0)
    return linear(z, weights, "spatial_branch.conv4")[:, 0]


def linear(z: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    matrix, bias = weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"]
    return torch.einsum("oc,bchw->bohw", matrix, z) + bias[:, None, None]


def dilated(z: Tensor, weights: dict[str, Tensor], name: str, dilation: int) -> Tensor:
    """A 3 x 3 convolution whose taps are ``dilation`` apart, zeros around."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    B, C, H, W = z.shape
    padded = torch.zeros(B, C, H + 2 * dilation, W + 2 * dilation, dtype=z.dtype)
    padded[:, :, dilation : dilation + H, dilation : dilation + W] = z
    out = bias[:, None, None].expand(B, -1, H, W)
    for i in range(3):
        for j in range(3):
            seen = padded[:, :, i * dilation : i * dilation + H, j * dilation : j * dilation + W]
            out = out + torch.einsum("oc,bchw->bohw", kernel[:, :, i, j], seen)
    return out


def parameters(channels: int, reduction: int = 16, **options: object) -> int:
    m = max(1, channels // reduction)
    channel = channels * m + m + 2 * m + m * channels + channels
    return channel + (channels * m + m) + 2 * m + 2 * (9 * m * m + m + 2 * m) + (m + 1)


VARIANTS = [
    Variant(
        "bam",
        bottleneck_attention,
        {"attention": "BCHW"},
        parameters,
        options,
        constant_in_training=(
            "channel_branch.fc1.bias",
            "spatial_branch.conv1.bias",
            "spatial_branch.conv2.bias",
            "spatial_branch.conv3.bias",
        ),
        transposed=transpose("spatial_branch.conv2.weight", "spatial_branch.conv3.weight"),
    )
    for options in ({}, {"combine": "mul"}, {"reduction": 4, "dilation": 2})
]
