"""Equation 5 of the paper: the inverse of the least energy of each element."""

import torch
from torch import Tensor

from references.variant import Variant


def simam(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    regularization = float(options.get("regularization", 1e-4))
    B, C, H, W = x.shape
    out = torch.empty_like(x)
    for b in range(B):
        for c in range(C):
            d = (x[b, c] - x[b, c].sum() / (H * W)) ** 2
            v = d.sum() / max(H * W - 1, 1)
            inverse_energy = d / (4 * (v + regularization)) + 0.5
            gate = 1 / (1 + (-inverse_energy).exp())
            out[b, c] = x[b, c] * (1 + weights.get("strength", 1) * (gate - 1))
    return out


VARIANTS = [
    Variant("simam", simam, {"element": "BCHW"}, lambda channels, **_: 0, options)
    for options in ({}, {"regularization": 0.1}, {"regularization": 1.0})
]
