"""Section 3 of arXiv:1909.11519: embedding, normalisation and gating of the channels."""

import math

import torch
from torch import Tensor

from references.variant import CHANNEL, Variant


def gated_channel_transformation(
    x: Tensor, weights: dict[str, Tensor], **options: object
) -> Tensor:
    alpha, gamma, beta = (weights[name].flatten() for name in ("alpha", "gamma", "beta"))
    B, C, _, _ = x.shape
    out = torch.empty_like(x)
    for b in range(B):
        if options.get("norm", "l2") == "l2":
            e = [float(alpha[c]) * math.sqrt(float((x[b, c] ** 2).sum()) + 1e-5) for c in range(C)]
            size = math.sqrt(sum(value**2 for value in e) / C + 1e-5)
        else:
            e = [float(alpha[c]) * float(x[b, c].abs().sum()) for c in range(C)]
            size = sum(abs(value) for value in e) / C + 1e-5
        for c in range(C):
            gate = 1 + math.tanh(float(gamma[c]) * e[c] / size + float(beta[c]))
            out[b, c] = x[b, c] * gate
    return out


VARIANTS = [
    Variant(
        "gct", gated_channel_transformation, CHANNEL, lambda channels, **_: 3 * channels, options
    )
    for options in ({}, {"norm": "l1"})
]
