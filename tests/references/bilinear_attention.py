"""Section 3 of Chi et al., CVPR 2020, as in the authors' code, on maps of any size."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import ADDED, Variant, Weights


def bilinear_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys begin with ``conv1``, ``summary``, ``conv_p``, ``conv_q``, ``conv2`` and ``conv3``."""
    training = bool(options.get("training"))
    s = int(str(options.get("block_size", 7)))
    H, W = x.shape[2:]
    tall, wide = -(-H // s) * s, -(-W // s) * s
    z = conv_norm(x, weights, "conv1", training=training)
    z = torch.einsum("hi,bcij,wj->bchw", resampling(H, tall), z, resampling(W, wide))
    z = transform(z, weights, s, training=training)
    z = torch.einsum("hi,bcij,wj->bchw", resampling(tall, H), z, resampling(wide, W))
    z = conv_norm(z, weights, "conv2", training=training)
    return x + weights.get("scale", 1) * conv_norm(z, weights, "conv3", training=training)


def transform(z: Tensor, weights: dict[str, Tensor], s: int, *, training: bool) -> Tensor:
    """Multiplication from the left and right by matrices with a multiple of 1 in each block."""
    B, C, H, W = z.shape
    summary = conv_norm(z, weights, "summary", training=training)
    groups = summary.shape[1]
    out = torch.empty_like(z)
    for b in range(B):
        rows = torch.stack([part.amax((1, 2)) for part in summary[b].chunk(s, dim=1)], dim=1)
        columns = torch.stack([part.amax((1, 2)) for part in summary[b].chunk(s, dim=2)], dim=1)
        p, q = matrix(rows, weights, "conv_p"), matrix(columns, weights, "conv_q")
        for c in range(C):
            g = c * groups // C
            left = torch.kron(p[g] / p[g].sum(1, keepdim=True), torch.eye(H // s, dtype=z.dtype))
            right = torch.kron(q[g] / q[g].sum(0, keepdim=True), torch.eye(W // s, dtype=z.dtype))
            out[b, c] = left @ z[b, c] @ right
    return out


def matrix(maxima: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """The entries of all groups, ``(G, s, s)``, from the maxima of all, ``(G, s)``."""
    weight, bias = weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"]
    entries = weight @ maxima.flatten() + bias
    return (1 / (1 + (-entries).exp())).view(*maxima.shape, maxima.shape[1])


def conv_norm(x: Tensor, weights: dict[str, Tensor], name: str, *, training: bool) -> Tensor:
    weight, bias = weights[f"{name}.conv.weight"].flatten(1), weights[f"{name}.conv.bias"]
    z = torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]
    z = batch_norm(z, weights, f"{name}.bn", training=training)
    return z * (z > 0)


def resampling(size: int, new: int) -> Tensor:
    """Linear interpolation between the centres of pixels, as a matrix ``(new, size)``."""
    matrix = torch.zeros(new, size, dtype=torch.float64)
    for i in range(new):
        place = max(0.0, (i + 0.5) * size / new - 0.5)
        low = min(int(place), size - 1)
        matrix[i, low] += 1 - (place - low)
        matrix[i, min(low + 1, size - 1)] += place - low
    return matrix


def parameters(channels: int, reduction: int = 2, num_groups: int = 4, block_size: int = 7) -> int:
    hidden = channels // reduction
    entries = num_groups * block_size**2
    matrices = 2 * (entries * num_groups * block_size + entries)
    widths = [(channels, hidden), (hidden, num_groups), (hidden, hidden), (hidden, channels)]
    return matrices + sum(before * after + 3 * after for before, after in widths)


def transposed(weights: Weights) -> Weights:
    """P of the transposed map is the transpose of Q, and the reverse."""
    swapped = dict(weights)
    groups = weights["conv_p.weight"].shape[1]
    for name, other in (("conv_p", "conv_q"), ("conv_q", "conv_p")):
        weight, bias = weights[f"{other}.weight"], weights[f"{other}.bias"]
        s = max(weight.shape[2:])
        weight = weight.mT.unflatten(0, (groups, s, s)).transpose(1, 2)
        swapped[f"{name}.weight"] = weight.flatten(0, 2)
        swapped[f"{name}.bias"] = bias.view(groups, s, s).mT.flatten()
    return swapped


VARIANTS = [
    Variant(
        "bat",
        bilinear_attention,
        ADDED,
        parameters,
        options,
        least=8,  # maps of more than one block on each side
        multiple=int(options.get("reduction", 2) * options.get("num_groups", 4)),
        constant_in_training=tuple(
            f"{name}.conv.bias" for name in ("conv1", "summary", "conv2", "conv3")
        ),
        transposed=transposed,
        all_pairs=True,
    )
    for options in (
        {},
        {"reduction": 4, "num_groups": 2},
        {"block_size": 4},
        {"block_size": 3, "reduction": 1, "num_groups": 2},
    )
]
