"""Batch normalisation, arXiv:1502.03167, algorithm 1, as attention uses it."""

import torch
from torch import Tensor


def batch_norm(z: Tensor, weights: dict[str, Tensor], name: str, *, training: bool) -> Tensor:
    """Statistics of the batch in training, unless it is one value; else the running ones."""
    B, C, H, W = z.shape
    out = torch.empty_like(z)
    for c in range(C):
        mean, var = weights[f"{name}.running_mean"][c], weights[f"{name}.running_var"][c]
        if training and B * H * W > 1:
            mean = z[:, c].sum() / (B * H * W)
            var = ((z[:, c] - mean) ** 2).sum() / (B * H * W)
        standard = (z[:, c] - mean) / (var + 1e-5).sqrt()
        out[:, c] = standard * weights[f"{name}.weight"][c] + weights[f"{name}.bias"][c]
    return out
