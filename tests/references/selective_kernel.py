"""Section 3.1 of arXiv:1903.06586, with the dilated kernels of the authors' network definition."""

import torch
import torch.nn.functional as F
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import Variant, transpose


def selective_kernel(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    number = int(options.get("num_branches", 2))
    training = bool(options.get("training", False))
    step, spread = int(options.get("stride", 1)), int(options.get("dilation", 1))
    features = []
    for m in range(number):
        kernel = weights[f"branches.{m}.0.weight"]
        groups = x.shape[1] // kernel.shape[1]
        d = spread * (m + 1)
        z = F.conv2d(x, kernel, stride=step, padding=d, dilation=d, groups=groups)
        z = batch_norm(z, weights, f"branches.{m}.1", training=training)
        features.append(z * (z > 0))
    U = torch.stack(features)  # (M, B, C, H, W)
    s = U.sum(0).flatten(2).sum(2) / U[0, 0, 0].numel()
    z = torch.einsum("dc,bc->bd", weights["fc1.weight"].flatten(1), s)
    z = batch_norm(z[:, :, None, None], weights, "norm", training=training)[:, :, 0, 0]
    z = z * (z > 0)
    C = U.shape[2]
    A = weights["fc2.weight"].flatten(1)  # (M * C, d)
    logits = torch.stack(
        [torch.einsum("cd,bd->bc", A[m * C : m * C + C], z) for m in range(number)]
    )
    a = logits.exp() / logits.exp().sum(0)
    V = (a[:, :, :, None, None] * U).sum(0)
    return x + weights["scale"] * V if "scale" in weights else V


def parameters(
    channels: int, num_branches: int = 2, num_groups: int = 32, reduction: int = 16
) -> int:
    hidden = max(channels // reduction, 32)
    convolution = 9 * channels**2 // num_groups + 2 * channels
    return num_branches * (convolution + hidden * channels) + channels * hidden + 2 * hidden


VARIANTS = [
    Variant(
        "sk",
        selective_kernel,
        {f"branch_{m + 1}": "BC11" for m in range(options.get("num_branches", 2))},
        parameters,
        options,
        multiple=options.get("num_groups", 32),
        transposed=transpose(*(f"branches.{m}.0.weight" for m in range(3))),
    )
    for options in (
        {},
        {"num_groups": 1},
        {"num_branches": 3, "num_groups": 4},
        {"num_groups": 2, "reduction": 1},
    )
]
