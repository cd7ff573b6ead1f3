"""How much positions read of each other, asked for a few of them: all pairs are never formed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Size = Sequence[int]


@dataclass(frozen=True)
class Affinity:
    """The weights with which positions of a map read others."""

    size: Size
    """Height and width of the map whose positions read."""
    rows: Callable[[Tensor], Tensor]
    """From indices ``(P,)`` of positions, row by row, to weights ``(B, heads, P, H', W')``.

    The map that is read may be smaller than the one that reads.
    """


def softmax_affinity(
    query: Tensor, key: Tensor, *, scale: float, size: Size, key_size: Size | None = None
) -> Affinity:
    """The weights of :func:`position_attention`.

    Args:
        query: Tokens ``(B, heads, H W, D)``.
        key: Tokens ``(B, heads, H' W', D)``.
        scale: Factor of the scores.
        size: Height and width of the map of the queries.
        key_size: Those of the map of the keys; None for the same.
    """

    def rows(at: Tensor) -> Tensor:
        scores = query[:, :, at] * scale @ key.mT  # (B, heads, P, H' W')
        wide = torch.promote_types(scores.dtype, torch.float32)
        return scores.softmax(3, dtype=wide).unflatten(3, size if key_size is None else key_size)

    return Affinity(size, rows)


def product_affinity(
    left: Tensor, right: Tensor, *, size: Size, key_size: Size | None = None
) -> Affinity:
    """Weights that are products of factors ``(B, heads, HW, D)`` and ``(B, heads, D, H'W')``."""

    def rows(at: Tensor) -> Tensor:
        return (left[:, :, at] @ right).unflatten(3, size if key_size is None else key_size)

    return Affinity(size, rows)
