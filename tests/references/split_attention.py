"""Section 3.1 of arXiv:2004.08955, in the radix-major layout of the authors' code."""

import torch
import torch.nn.functional as F
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import Variant, transpose


def split_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    radix, K = int(options.get("radix", 2)), int(options.get("num_groups", 1))
    training, spread = bool(options.get("training", False)), int(options.get("dilation", 1))
    U = F.conv2d(
        x,
        weights["conv.weight"],
        stride=int(options.get("stride", 1)),
        padding=spread,
        dilation=spread,
        groups=radix * K,
    )
    U = batch_norm(U, weights, "norm", training=training)
    U = U * (U > 0)
    C = U.shape[1] // radix
    splits = [U[:, r * C : r * C + C] for r in range(radix)]
    s = sum(splits).flatten(2).sum(2) / U[0, 0].numel()  # (B, C)
    z = grouped(s, weights["fc1.weight"], K) + weights["fc1.bias"]
    z = batch_norm(z[:, :, None, None], weights, "fc_norm", training=training)[:, :, 0, 0]
    logits = grouped(z * (z > 0), weights["fc2.weight"], K) + weights["fc2.bias"]
    V = torch.zeros_like(splits[0])
    for c in range(C):
        k, inside = c // (C // K), c % (C // K)
        place = [k * radix * (C // K) + r * (C // K) + inside for r in range(radix)]
        total = sum(logits[:, p].exp() for p in place)
        for r in range(radix):
            a = logits[:, place[r]].exp() / total
            V[:, c] += a[:, None, None] * splits[r][:, c]
    return x + weights["scale"] * V if "scale" in weights else V


def grouped(z: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A linear layer in ``groups`` independent parts."""
    parts = zip(z.chunk(groups, dim=1), weight.flatten(1).chunk(groups), strict=True)
    return torch.cat([torch.einsum("oc,bc->bo", w, part) for part, w in parts], dim=1)


def parameters(channels: int, radix: int = 2, num_groups: int = 1, reduction: int = 4) -> int:
    hidden = max(radix * channels // reduction, 32)
    convolution = 9 * channels * channels // num_groups + 2 * radix * channels
    first = channels * hidden // num_groups + hidden + 2 * hidden
    return convolution + first + radix * channels * hidden // num_groups + radix * channels


VARIANTS = [
    Variant(
        "splat",
        split_attention,
        {f"split_{r + 1}": "BC11" for r in range(options.get("radix", 2))},
        parameters,
        options,
        multiple=options.get("radix", 2) * options.get("num_groups", 1),
        constant_in_training=("fc1.bias",),
        transposed=transpose("conv.weight"),
    )
    for options in ({}, {"radix": 3}, {"num_groups": 2, "reduction": 1})
]
