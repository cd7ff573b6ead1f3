"""Section 3 of arXiv:1809.02983, with the maximum of the authors' code in the channel module."""

import torch
from torch import Tensor

from references.variant import ADDED, Variant


def danet_position(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    return x + weights["scale"] * position(x, weights)


def danet_channel(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    return x + weights["scale"] * channel(x)


def danet(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    inner = {
        name.removeprefix("position."): weight
        for name, weight in weights.items()
        if name.startswith("position.")
    }
    return x + inner["scale"] * position(x, inner) + weights["channel.scale"] * channel(x)


def position(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Equations 1 and 2, without the input."""
    q, k, v = (
        torch.einsum("oc,bcn->bon", weights[f"{name}_conv.weight"].flatten(1), x.flatten(2))
        + weights[f"{name}_conv.bias"][:, None]
        for name in ("query", "key", "value")
    )
    f = torch.einsum("bdi,bdj->bij", q, k).exp()
    affinity = f / f.sum(2, keepdim=True)
    return torch.einsum("bij,bcj->bci", affinity, v).view_as(x)


def channel(x: Tensor) -> Tensor:
    """Equations 3 and 4, with ``rowmax(E) - E`` for ``E``, without the input."""
    tokens = x.flatten(2)
    out = torch.zeros_like(tokens)
    for b in range(len(x)):
        energy = tokens[b] @ tokens[b].T
        for i, row in enumerate(energy):
            f = (row.max() - row - (row.max() - row).max()).exp()
            out[b, i] = sum(w * token for w, token in zip(f / f.sum(), tokens[b], strict=True))
    return out.view_as(x)


def position_parameters(channels: int) -> int:
    hidden = max(1, channels // 8)
    return 2 * (channels * hidden + hidden) + channels**2 + channels + 1


VARIANTS = [
    Variant(
        "danet_position",
        danet_position,
        ADDED,
        position_parameters,
        constant=("key_conv.bias",),
        all_pairs=True,
    ),
    Variant("danet_channel", danet_channel, ADDED, lambda channels: 1),
    Variant(
        "danet",
        danet,
        {"position": "B1HW", "channel": "B1HW"},
        lambda channels: position_parameters(channels) + 1,
        constant=("position.key_conv.bias",),
        all_pairs=True,
    ),
]
