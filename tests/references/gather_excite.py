"""Section 3 of arXiv:1810.12348, with the layers of the authors' published networks."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import Variant


def gather_excite(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys begin with ``convs.``, ``fc1.`` and ``fc2.``."""
    extent, conv = options.get("extent", 0), options.get("gather") == "conv"
    training = bool(options.get("training", False))
    z = convolved(x, weights, extent, training=training) if conv else averaged(x, extent)
    if options.get("excite"):
        z = z * (z > 0) if conv else z
        z = linear(z, weights, "fc1")
        z = linear(z * (z > 0), weights, "fc2")
    gate = 1 / (1 + (-nearest(z, *x.shape[2:])).exp())
    return x * (1 + weights.get("strength", 1) * (gate - 1))


def averaged(x: Tensor, extent: int) -> Tensor:
    """Equation 2: means over the part of each window that is inside the map."""
    H, W = x.shape[2:]
    if extent == 0:
        return (x.sum((2, 3)) / (H * W))[:, :, None, None]
    rows = []
    for i in range(0, H, extent):
        row = []
        for j in range(0, W, extent):
            top, left = max(i - extent + 1, 0), max(j - extent + 1, 0)
            window = x[:, :, top : i + extent, left : j + extent]
            row.append(window.sum((2, 3)) / window[0, 0].numel())
        rows.append(torch.stack(row, dim=2))
    return torch.stack(rows, dim=2)


def convolved(x: Tensor, weights: dict[str, Tensor], extent: int, *, training: bool) -> Tensor:
    if extent == 0:
        return batch_norm(
            weighed(x, weights["convs.0.weight"]), weights, "convs.1", training=training
        )
    depth = {2: 1, 4: 2, 8: 3}[extent]
    for level in range(depth):
        x = halved(x, weights[f"convs.{3 * level}.weight"])
        x = batch_norm(x, weights, f"convs.{3 * level + 1}", training=training)
        x = x if level == depth - 1 else x * (x > 0)
    return x


def weighed(x: Tensor, kernel: Tensor) -> Tensor:
    """Sum under a kernel that is resized to the map, keeping its mean times its positions."""
    H, W = x.shape[2:]
    height, width = kernel.shape[2:]
    kernel = torch.stack([blend(kernel, 2, (i + 0.5) * height / H - 0.5) for i in range(H)], dim=2)
    kernel = torch.stack([blend(kernel, 3, (j + 0.5) * width / W - 0.5) for j in range(W)], dim=3)
    total = torch.einsum("bchw,chw->bc", x, kernel[:, 0])
    return (total * (height * width) / (H * W))[:, :, None, None]


def blend(kernel: Tensor, dim: int, place: float) -> Tensor:
    """What lies at a fractional place between two rows or columns, clamped at the border."""
    place = max(place, 0.0)
    last = kernel.shape[dim] - 1
    low = min(int(place), last)
    share = place - low
    return (1 - share) * kernel.select(dim, low) + share * kernel.select(dim, min(low + 1, last))


def halved(x: Tensor, kernel: Tensor) -> Tensor:
    """A depthwise 3 x 3 convolution at every second position, zeros around."""
    B, C, H, W = x.shape
    padded = torch.zeros(B, C, H + 2, W + 2, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    out = 0
    for i in range(3):
        for j in range(3):
            seen = padded[:, :, i : i + H : 2, j : j + W : 2]
            out = out + kernel[:, 0, i, j, None, None] * seen
    return out


def linear(z: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    matrix, bias = weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"]
    return torch.einsum("oc,bchw->bohw", matrix, z) + bias[:, None, None]


def nearest(z: Tensor, height: int, width: int) -> Tensor:
    rows = [i * z.shape[2] // height for i in range(height)]
    columns = [j * z.shape[3] // width for j in range(width)]
    return z[:, :, rows][:, :, :, columns]


def parameters(
    channels: int,
    gather: str = "mean",
    excite: bool = False,
    extent: int = 0,
    reduction: int = 16,
    size: int = 14,
) -> int:
    hidden = max(1, channels // reduction)
    depthwise = {0: size**2 + 2, 2: 11, 4: 22, 8: 33}[extent]
    bottleneck = 2 * channels * hidden + channels + hidden
    return channels * depthwise * (gather == "conv") + bottleneck * excite


def transposed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: w.mT if n.startswith("convs.") and w.ndim == 4 else w for n, w in weights.items()}


VARIANTS = [
    Variant(
        "ge",
        gather_excite,
        {"context": "BCHW" if "extent" in options else "BC11"},
        parameters,
        options,
        transposed=transposed,
    )
    for options in (
        {},
        {"excite": True},
        {"extent": 2},
        {"gather": "conv"},
        {"gather": "conv", "extent": 2, "reduction": 4, "excite": True},
        {"gather": "conv", "excite": True},
        {"gather": "conv", "size": 5},
    )
]
