"""Figure 1b of arXiv:2110.02178, with the layers and resizing of the authors' code."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import OUTPUT, Variant, transpose


def mobilevit(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    training, d = bool(options.get("training", False)), int(options.get("dilation", 1))
    heads = int(options.get("num_heads", 4))

    def unit(z: Tensor, name: str, d: int = 1) -> Tensor:
        kernel = weights[f"{name}_conv.weight"]
        z = F.conv2d(z, kernel, padding=d * (kernel.shape[2] // 2), dilation=d)
        z = batch_norm(z, weights, f"{name}_norm", training=training)
        return z / (1 + (-z).exp())

    z = torch.einsum("dc,bchw->bdhw", weights["project.weight"].flatten(1), unit(x, "local", d))
    H, W = z.shape[2:]
    z = resized(z, H + H % 2, W + W % 2)
    out = torch.empty_like(z)
    for i in (0, 1):
        for j in (0, 1):
            tokens = z[:, :, i::2, j::2].flatten(2).mT  # (B, N, D)
            for layer in range(int(options.get("depth", 2))):
                tokens = transformer(tokens, weights, f"layers.{layer}", heads)
            tokens = layer_norm(tokens, weights, "norm")
            out[:, :, i::2, j::2] = tokens.mT.unflatten(2, (out.shape[2] // 2, -1))
    y = unit(resized(out, H, W), "return")
    y = unit(torch.cat([x, y], dim=1), "fusion")
    return x + weights["scale"] * y if "scale" in weights else y


def transformer(tokens: Tensor, weights: dict[str, Tensor], name: str, heads: int) -> Tensor:
    q, k, v = linear(layer_norm(tokens, weights, f"{name}.norm1"), weights, f"{name}.qkv").chunk(
        3, dim=2
    )
    d = q.shape[2] // heads
    parts = []
    for head in range(heads):
        one = slice(head * d, head * d + d)
        f = (torch.einsum("bnd,bmd->bnm", q[..., one], k[..., one]) / math.sqrt(d)).exp()
        parts.append(torch.einsum("bnm,bmd->bnd", f / f.sum(2, keepdim=True), v[..., one]))
    tokens = tokens + linear(torch.cat(parts, dim=2), weights, f"{name}.out")
    z = linear(layer_norm(tokens, weights, f"{name}.norm2"), weights, f"{name}.fc1")
    return tokens + linear(z / (1 + (-z).exp()), weights, f"{name}.fc2")


def layer_norm(tokens: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    mean = tokens.sum(2, keepdim=True) / tokens.shape[2]
    variance = ((tokens - mean) ** 2).sum(2, keepdim=True) / tokens.shape[2]
    z = (tokens - mean) / (variance + 1e-5).sqrt()
    return z * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(tokens: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return torch.einsum("od,bnd->bno", weights[f"{name}.weight"], tokens) + weights[f"{name}.bias"]


def resized(z: Tensor, height: int, width: int) -> Tensor:
    return torch.einsum(
        "is,bcst,jt->bcij", halves(z.shape[2], height), z, halves(z.shape[3], width)
    )


def halves(old: int, new: int) -> Tensor:
    """Linear interpolation between pixel centres, with the border repeated."""
    out = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        at = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        low = min(int(at), old - 1)
        high = min(low + 1, old - 1)
        out[i, low] += 1 - (at - low)
        out[i, high] += at - low
    return out


def parameters(channels: int, dim: int | None = None, depth: int = 2, **options: int) -> int:
    C, D, e = channels, dim or channels, options.get("expansion", 2)
    layer = 2 * D + 3 * D**2 + 3 * D + D**2 + D + 2 * D + 2 * e * D**2 + e * D + D
    local = 9 * C**2 + 2 * C + C * D
    back = D * C + 2 * C + 18 * C**2 + 2 * C
    return local + depth * layer + 2 * D + back


VARIANTS = [
    Variant(
        "mobilevit",
        mobilevit,
        OUTPUT,
        parameters,
        options,
        multiple=1 if "dim" in options else options.get("num_heads", 4),
        transposed=transpose("local_conv.weight", "fusion_conv.weight"),
        constant_in_training=("norm.bias",),
        all_pairs=True,
    )
    for options in ({}, {"dim": 24, "depth": 1}, {"num_heads": 1, "expansion": 1, "depth": 1})
]
