"""Figure 4 and equation 3 of arXiv:2206.02680, with the layers of the authors' code."""

import torch
import torch.nn.functional as F
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import OUTPUT, Variant, transpose


def mobilevit2(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    training, d = bool(options.get("training", False)), int(options.get("dilation", 1))
    kernel = weights["local_conv.weight"]
    z = F.conv2d(x, kernel, padding=d, dilation=d, groups=x.shape[1])
    z = batch_norm(z, weights, "local_norm", training=training)
    z = torch.einsum("dc,bchw->bdhw", weights["project.weight"].flatten(1), z / (1 + (-z).exp()))
    H, W = z.shape[2:]
    z = resized(z, H + H % 2, W + W % 2)
    rows = z.shape[2] // 2
    places = [(i, j) for i in (0, 1) for j in (0, 1)]
    sets = torch.stack([z[:, :, i::2, j::2].flatten(2) for i, j in places], dim=2)  # (B, D, P, N)
    for layer in range(int(options.get("depth", 2))):
        sets = separable(sets, weights, f"layers.{layer}")
    sets = normalised(sets, weights, "norm")
    out = torch.empty_like(z)
    for place, (i, j) in enumerate(places):
        out[:, :, i::2, j::2] = sets[:, :, place].unflatten(2, (rows, -1))
    back = weights["return_conv.weight"].flatten(1)
    y = torch.einsum("cd,bdhw->bchw", back, resized(out, H, W))
    y = batch_norm(y, weights, "return_norm", training=training)
    return x + weights["scale"] * y if "scale" in weights else y


def separable(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    D = x.shape[1]
    z = pointwise(normalised(x, weights, f"{name}.norm1"), weights, f"{name}.qkv_proj")
    scores, key, value = z[:, :1].exp(), z[:, 1 : 1 + D], z[:, 1 + D :]
    context = (scores / scores.sum(3, keepdim=True) * key).sum(3, keepdim=True)
    x = x + pointwise(value * (value > 0) * context, weights, f"{name}.out_proj")
    z = pointwise(normalised(x, weights, f"{name}.norm2"), weights, f"{name}.fc1")
    return x + pointwise(z / (1 + (-z).exp()), weights, f"{name}.fc2")


def normalised(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """All values of an image have one mean and one variance."""
    flat = x.flatten(1)
    mean = flat.sum(1)[:, None, None, None] / flat.shape[1]
    variance = ((x - mean) ** 2).flatten(1).sum(1)[:, None, None, None] / flat.shape[1]
    z = (x - mean) / (variance + 1e-5).sqrt()
    return z * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]


def pointwise(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    y = torch.einsum("oc,bchw->bohw", weights[f"{name}.weight"].flatten(1), x)
    return y + weights[f"{name}.bias"][:, None, None]


def resized(z: Tensor, height: int, width: int) -> Tensor:
    return torch.einsum(
        "is,bcst,jt->bcij", spread(z.shape[2], height), z, spread(z.shape[3], width)
    )


def spread(old: int, new: int) -> Tensor:
    """Linear interpolation that keeps the first and the last pixel in place."""
    out = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        at = i * (old - 1) / (new - 1) if new > 1 else 0.0
        low = min(int(at), old - 1)
        out[i, low] += 1 - (at - low)
        out[i, min(low + 1, old - 1)] += at - low
    return out


def parameters(channels: int, dim: int | None = None, depth: int = 2, expansion: int = 2) -> int:
    C, D = channels, dim or channels
    attention = D * (1 + 2 * D) + 1 + 2 * D + D**2 + D
    layer = 4 * D + attention + 2 * expansion * D**2 + expansion * D + D
    return 9 * C + 2 * C + C * D + depth * layer + 2 * D + D * C + 2 * C


VARIANTS = [
    Variant(
        "mobilevit2",
        mobilevit2,
        OUTPUT,
        parameters,
        options,
        transposed=transpose("local_conv.weight"),
        constant_in_training=("norm.bias",),
        all_pairs=True,
    )
    for options in ({}, {"dim": 24, "depth": 1}, {"expansion": 1, "depth": 3})
]
