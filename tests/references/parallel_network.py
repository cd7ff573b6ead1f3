"""Section 3.1 of arXiv:2110.07641, with the blocks of the authors' code."""

import torch
import torch.nn.functional as F
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import CHANNEL, Variant, transpose


def parnet(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    s, d = int(options.get("stride", 1)), int(options.get("dilation", 1))

    def norm(z: Tensor, name: str) -> Tensor:
        return batch_norm(z, weights, name, training=bool(options.get("training", False)))

    def gate(z: Tensor) -> Tensor:
        mean = z.flatten(2).sum(2) / z[0, 0].numel()
        t = torch.einsum("oc,bc->bo", weights["fc.weight"].flatten(1), mean)
        return 1 / (1 + (-t[:, :, None, None]).exp())

    kernel = weights["conv3x3.weight"]
    dense = norm(F.conv2d(x, kernel, stride=s, padding=d, dilation=d), "norm3x3")
    narrow = weights["conv1x1.weight"].flatten(1)
    if "skip_norm.weight" in weights:
        z = norm(x, "skip_norm")
        y = dense + norm(torch.einsum("oc,bchw->bohw", narrow, x), "norm1x1") + z * gate(z)
    else:
        pooled = cells(x, s)
        y = dense + norm(torch.einsum("oc,bchw->bohw", narrow, pooled), "norm1x1")
        y = 2 * gate(x) * y
    y = y / (1 + (-y).exp())
    return x + weights["scale"] * y if "scale" in weights else y


def cells(x: Tensor, side: int) -> Tensor:
    """Means of cells, those at the far borders over what is there of them."""
    rows = [x[:, :, i : i + side] for i in range(0, x.shape[2], side)]
    grid = [[row[:, :, :, j : j + side] for j in range(0, x.shape[3], side)] for row in rows]
    return torch.stack(
        [
            torch.stack([cell.flatten(2).sum(2) / cell[0, 0].numel() for cell in row], dim=2)
            for row in grid
        ],
        dim=2,
    )


VARIANTS = [
    Variant(
        "parnet",
        parnet,
        CHANNEL,
        lambda channels: 11 * channels**2 + 6 * channels,
        transposed=transpose("conv3x3.weight"),
    )
]
