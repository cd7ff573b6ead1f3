"""Section 3.2 of arXiv:2107.12292, with the fusion and normalisations of the authors' code."""

import torch
import torch.nn.functional as F
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import Variant


def contextual_transformer(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    training, d = bool(options.get("training", False)), int(options.get("dilation", 1))
    host = x
    if int(options.get("stride", 1)) == 2:
        x = averaged(x)
    B, C, H, W = x.shape

    def norm(z: Tensor, name: str) -> Tensor:
        return batch_norm(z, weights, name, training=training)

    k = norm(F.conv2d(x, weights["key_conv.weight"], padding=d, dilation=d, groups=4), "key_norm")
    k = k * (k > 0)
    z = norm(pointwise(torch.cat([x, k], 1), weights, "weight_conv1"), "weight_norm")
    z = pointwise(z * (z > 0), weights, "weight_conv2")
    w = torch.empty_like(z)
    for g in range(C // 8):  # one group of nine for each weight
        part = z[:, 9 * g : 9 * g + 9].flatten(1)
        mean = part.sum(1, keepdim=True) / part.shape[1]
        variance = ((part - mean) ** 2).sum(1, keepdim=True) / part.shape[1]
        w[:, 9 * g : 9 * g + 9] = ((part - mean) / (variance + 1e-5).sqrt()).view(B, 9, H, W)
    w = w * weights["group_norm.weight"][:, None, None] + weights["group_norm.bias"][:, None, None]
    v = norm(pointwise(x, weights, "value_conv"), "value_norm")
    y = torch.zeros_like(v)
    for i in range(H):
        for j in range(W):
            for place in range(9):
                row, column = i + d * (place // 3 - 1), j + d * (place % 3 - 1)
                if 0 <= row < H and 0 <= column < W:
                    kernel = torch.stack(
                        [w[:, 9 * (c % (C // 8)) + place, i, j] for c in range(C)], 1
                    )
                    y[:, :, i, j] += kernel * v[:, :, row, column]
    y = norm(y, "norm")
    y = y / (1 + (-y).exp())
    mean = (y + k).flatten(2).sum(2)[:, :, None, None] / (H * W)
    z = norm(pointwise(mean, weights, "fc1"), "fc_norm")
    logits = pointwise(z * (z > 0), weights, "fc2").view(B, C, 2, 1, 1)
    a = logits.exp() / logits.exp().sum(2, keepdim=True)
    out = a[:, :, 0] * y + a[:, :, 1] * k
    return host + weights["scale"] * out if "scale" in weights else out


def averaged(x: Tensor) -> Tensor:
    """Means of 3x3 windows at every second position, with zeros around the map counted."""
    B, C, H, W = x.shape
    padded = torch.zeros(B, C, H + 2, W + 2, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    rows = []
    for i in range(0, H, 2):
        windows = [padded[:, :, i : i + 3, j : j + 3].sum((2, 3)) / 9 for j in range(0, W, 2)]
        rows.append(torch.stack(windows, dim=2))
    return torch.stack(rows, dim=2)


def pointwise(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    y = torch.einsum("oc,bchw->bohw", weights[f"{name}.weight"].flatten(1), x)
    return y + weights[f"{name}.bias"][:, None, None] if f"{name}.bias" in weights else y


def parameters(channels: int) -> int:
    C, squeezed, weights = channels, max(channels // 2, 32), 9 * channels // 8
    key = 9 * C * C // 4 + 2 * C
    embed = 2 * C * (C // 2) + 2 * (C // 2) + (C // 2) * weights + weights + 2 * weights
    value = C * C + 2 * C
    fusion = C * squeezed + squeezed + 2 * squeezed + squeezed * 2 * C + 2 * C
    return key + embed + value + 2 * C + fusion


def transposed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {**weights, "key_conv.weight": weights["key_conv.weight"].mT}
    for layer in ("weight_conv2", "group_norm"):
        for kind in ("weight", "bias"):
            places = weights[f"{layer}.{kind}"].unflatten(0, (-1, 3, 3))
            out[f"{layer}.{kind}"] = places.transpose(1, 2).flatten(0, 2)
    return out


VARIANTS = [
    Variant(
        "cot",
        contextual_transformer,
        {"dynamic": "BC11", "static": "BC11"},
        parameters,
        multiple=8,
        cancels=True,
        constant_in_training=("fc1.bias",),
        transposed=transposed,
    )
]
