"""Section 3.3 of arXiv:1911.06667: one layer, and relu6(t + 3) / 6 for a sigmoid."""

import torch
from torch import Tensor

from references.variant import CHANNEL, Variant


def effective_squeeze_excitation(
    x: Tensor, weights: dict[str, Tensor], **options: object
) -> Tensor:
    """``weights`` are those of ``fc``."""
    z = x.flatten(2).sum(2) / x[0, 0].numel()
    t = torch.einsum("oc,bc->bo", weights["fc.weight"].flatten(1), z) + weights["fc.bias"]
    gate = (t + 3).clamp(0, 6)[:, :, None, None] / 6
    return x * (1 + weights.get("strength", 1) * (gate - 1))


VARIANTS = [
    Variant(
        "ese",
        effective_squeeze_excitation,
        CHANNEL,
        lambda channels: channels**2 + channels,
    )
]
