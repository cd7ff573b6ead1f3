"""Sections 3.1 and 3.2 of arXiv:1903.10829, with the variance of the authors' code."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import CHANNEL, Variant


def style_recalibration(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    B, C, H, W = x.shape
    z = torch.empty(B, C, 1, 1, dtype=x.dtype)
    for b in range(B):
        for c in range(C):
            mean = x[b, c].sum() / (H * W)
            variance = ((x[b, c] - mean) ** 2).sum() / max(H * W - 1, 1)
            z[b, c] = weights["cfc"][c, 0] * mean + weights["cfc"][c, 1] * (variance + 1e-5) ** 0.5
    z = batch_norm(z, weights, "bn", training=bool(options.get("training", False)))
    gate = 1 / (1 + (-z).exp())
    return x * (1 + weights.get("strength", 1) * (gate - 1))


VARIANTS = [Variant("srm", style_recalibration, CHANNEL, lambda channels: 4 * channels)]
