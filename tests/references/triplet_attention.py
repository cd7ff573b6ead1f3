"""Section 3.2 of arXiv:2010.03045: rotate, Z-pool, convolve, rotate back, average."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import SPATIAL, Variant


def triplet_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys begin with ``width_gate.``, ``height_gate.`` and ``spatial_gate.``."""
    strength = weights.get("strength", 1)
    training = bool(options.get("training", False))
    rotations = {"width_gate": (0, 2, 1, 3), "height_gate": (0, 3, 2, 1)}
    if options.get("spatial", True):
        rotations["spatial_gate"] = (0, 1, 2, 3)
    branches = []
    for name, rotation in rotations.items():
        rotated = x.permute(rotation)
        gate = plane_gate(rotated, weights, name, training=training)
        gated = rotated * (1 + strength * (gate - 1))
        branches.append(gated.permute(rotation))  # each rotation is its own inverse
    return sum(branches) / len(branches)


def plane_gate(x: Tensor, weights: dict[str, Tensor], name: str, *, training: bool) -> Tensor:
    """One gate for each place of the plane of the last two axes, ``(B, 1, P, Q)``."""
    kernel = weights[f"{name}.conv.weight"][0]  # (2, k, k)
    B, depth, P, Q = x.shape
    k = kernel.shape[1]
    padded = torch.zeros(B, 2, P + k - 1, Q + k - 1, dtype=x.dtype)
    padded[:, 0, k // 2 : k // 2 + P, k // 2 : k // 2 + Q] = x.max(1).values
    padded[:, 1, k // 2 : k // 2 + P, k // 2 : k // 2 + Q] = x.sum(1) / depth
    z = torch.zeros(B, 1, P, Q, dtype=x.dtype)
    for pooled in range(2):
        for i in range(k):
            for j in range(k):
                z[:, 0] += kernel[pooled, i, j] * padded[:, pooled, i : i + P, j : j + Q]
    z = batch_norm(z, weights, f"{name}.bn", training=training)
    return 1 / (1 + (-z).exp())


def parameters(channels: int, kernel_size: int = 7, spatial: bool = True) -> int:
    return (2 + spatial) * (2 * kernel_size**2 + 2)


def transposed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gates of the two rotated planes change places, and all three planes are turned."""
    other = {"width_gate": "height_gate", "height_gate": "width_gate"}
    turned = {}
    for name, weight in weights.items():
        first, _, rest = name.partition(".")
        new = ".".join([other.get(first, first), rest]) if rest else name
        turned[new] = weight.mT if weight.ndim == 4 else weight
    return turned


PLANES = {"channel_width": "BC1W", "channel_height": "BCH1"}

VARIANTS = [
    Variant("triplet", triplet_attention, maps, parameters, options, transposed=transposed)
    for maps, options in (
        ({**PLANES, **SPATIAL}, {}),
        ({**PLANES, **SPATIAL}, {"kernel_size": 3}),
        (PLANES, {"spatial": False}),
    )
]
