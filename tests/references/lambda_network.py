"""Equations 1 and 2 of arXiv:2102.08602, one position and one head at a time."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.bottleneck_transformer import cells
from references.variant import OUTPUT, Variant, transpose


def lambda_network(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    heads, r = int(options.get("num_heads", 4)), int(options.get("kernel_size", 23))
    d, training = int(options.get("dilation", 1)), bool(options.get("training", False))

    def project(name: str) -> Tensor:
        return torch.einsum("oc,bchw->bohw", weights[f"{name}.weight"].flatten(1), x)

    q = batch_norm(project("to_q"), weights, "norm_q", training=training)
    v = batch_norm(project("to_v"), weights, "norm_v", training=training)
    k = project("to_k").exp()
    k = k / k.sum((2, 3), keepdim=True)
    content = torch.einsum("bkhw,bvhw->bkv", k, v)
    E = weights["embedding.weight"][:, 0]  # (K, r, r)
    K, V = len(E), v.shape[1]
    H, W = x.shape[2:]
    y = torch.empty(len(x), heads * V, H, W, dtype=x.dtype)
    for i in range(H):
        for j in range(W):
            rows = [m for m in range(r) if 0 <= i + d * (m - r // 2) < H]
            columns = [m for m in range(r) if 0 <= j + d * (m - r // 2) < W]
            seen = v[:, :, [i + d * (m - r // 2) for m in rows]]
            seen = seen[:, :, :, [j + d * (m - r // 2) for m in columns]]
            around = torch.einsum("krc,bvrc->bkv", E[:, rows][:, :, columns], seen)
            for head in range(heads):
                query = q[:, head * K : head * K + K, i, j]
                y[:, head * V : head * V + V, i, j] = torch.einsum(
                    "bk,bkv->bv", query, content + around
                )
    y = cells(y, int(options.get("stride", 1)))
    return x + weights["scale"] * y if "scale" in weights else y


def parameters(channels: int, num_heads: int = 4, key_dim: int = 16, kernel_size: int = 23) -> int:
    value_dim = channels // num_heads
    projections = channels * (num_heads * key_dim + key_dim + value_dim)
    return projections + 2 * (num_heads * key_dim + value_dim) + key_dim * kernel_size**2


VARIANTS = [
    Variant(
        "lambda",
        lambda_network,
        OUTPUT,
        parameters,
        options,
        multiple=options.get("num_heads", 4),
        transposed=transpose("embedding.weight"),
        cancels=True,
    )
    for options in ({}, {"kernel_size": 9}, {"num_heads": 1, "key_dim": 3, "kernel_size": 5})
]
