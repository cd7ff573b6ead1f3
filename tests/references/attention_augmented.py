"""Sections 3.1 and 3.2 of arXiv:1904.09925."""

import torch
import torch.nn.functional as F
from torch import Tensor

from references.bottleneck_transformer import cells
from references.relative_positions import attention
from references.variant import OUTPUT, Variant


def attention_augmented(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    heads, s = int(options.get("num_heads", 8)), int(options.get("stride", 1))
    d = int(options.get("dilation", 1))
    parts = []
    if "conv.weight" in weights:
        parts.append(F.conv2d(x, weights["conv.weight"], stride=s, padding=d, dilation=d))
    pooled = cells(x, s)
    H, W = pooled.shape[2:]
    qkv = torch.einsum("oc,bcn->bno", weights["qkv.weight"].flatten(1), pooled.flatten(2))
    dv = len(weights["out.weight"])
    dk = (qkv.shape[2] - dv) // 2
    none = torch.zeros(1, dk // heads, dtype=x.dtype)
    for head in range(heads):
        k0, v0 = head * (dk // heads), 2 * dk + head * (dv // heads)
        q = qkv[..., k0 : k0 + dk // heads]
        k = qkv[..., dk + k0 : dk + k0 + dk // heads]
        v = qkv[..., v0 : v0 + dv // heads]
        tables = weights.get("rel_h", none), weights.get("rel_w", none)
        y = attention(q, k, v, *tables, height=H, width=W)
        parts.append(y.mT.unflatten(2, (H, W)))
    attended = torch.cat(parts[-heads:], dim=1)
    attended = torch.einsum("oc,bchw->bohw", weights["out.weight"].flatten(1), attended)
    y = torch.cat([*parts[:-heads], attended], dim=1)
    return x + weights["scale"] * y if "scale" in weights else y


def parameters(channels: int, num_heads: int = 8, **options: float) -> int:
    C, size = channels, int(options.get("size", 14))
    key = max(20, int(options.get("key_ratio", 0.2) * C) // num_heads)
    dv = max(1, int(options.get("value_ratio", 0.1) * C) // num_heads) * num_heads
    tables = 2 * (2 * size - 1) * key * options.get("relative", True)
    return (C - dv) * C * 9 + (2 * key * num_heads + dv) * C + dv**2 + int(tables)


def turned(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"rel_h": "rel_w", "rel_w": "rel_h"}
    out = {names.get(name, name): weight for name, weight in weights.items()}
    return {n: w.mT if n == "conv.weight" else w for n, w in out.items()}


VARIANTS = [
    Variant(
        "aa",
        attention_augmented,
        OUTPUT,
        parameters,
        options,
        multiple=options.get("num_heads", 8),
        transposed=turned,
    )
    for options in (
        {},
        {"relative": False},
        {"key_ratio": 1.0, "value_ratio": 1.0},
        {"num_heads": 2, "value_ratio": 0.5, "size": 4},
        {"num_heads": 1, "value_ratio": 1.0, "key_ratio": 1.0},
    )
]
