"""Efficient Attention: Attention with Linear Complexities, Shen et al., WACV 2021 (1812.01243)."""

from typing import Any, ClassVar

from torch import Tensor, nn

from foveate import ops
from foveate.mechanisms.base import Mixer, bottleneck, check_divides
from foveate.registry import register_mechanism


@register_mechanism("efficient")
class EfficientAttention(Mixer):
    r"""Adds to each position a mixture of global context vectors, one for each feature of its key.

    .. math:: y_i = x_i + W_o \sum_k \mathrm{softmax}_k(W_q x_i)_k
        \sum_j \mathrm{softmax}_j(W_k x_j)_k\,W_v x_j

    The queries are normalised over their features, the keys over the positions. Their product
    would be an affinity whose rows sum to 1; it is never formed.

    Args:
        channels: Channels of the feature map, and of the values.
        reduction: Ratio of channels to the width of queries and keys, at least 1.
        num_heads: Heads, a divisor of ``channels`` and of the width of queries and keys; the
            queries are normalised within each.
        init: Plain sum, or identity (see :class:`~foveate.mechanisms.base.Mixer`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``added``: ``(B, 1, H, W)``

    Raises:
        ValueError: If ``num_heads`` does not divide ``channels`` and ``channels // reduction``.

    Note:
        Heads are an addition of the authors' code; the paper has one.

    Example:
        >>> import torch
        >>> EfficientAttention(64, num_heads=4)(torch.rand(2, 64, 8, 6)).shape
        torch.Size([2, 64, 8, 6])
    """

    place = "post"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"multi_head": {"num_heads": 4}}

    def __init__(
        self, channels: int, *, reduction: int = 2, num_heads: int = 1, init: str = "paper"
    ) -> None:
        super().__init__(channels, init=init)
        self.reduction, self.num_heads = reduction, num_heads
        hidden = bottleneck(channels, reduction)
        check_divides(num_heads=num_heads, channels=channels)
        check_divides(num_heads=num_heads, key_channels=hidden)
        self.queries = nn.Conv2d(channels, hidden, 1)
        self.keys = nn.Conv2d(channels, hidden, 1)
        self.values = nn.Conv2d(channels, channels, 1)
        self.reprojection = nn.Conv2d(channels, channels, 1)

    def affinity(self, x: Tensor) -> ops.Affinity:
        queries, keys, _ = self._tokens(x)
        return ops.product_affinity(queries.softmax(3), keys.softmax(2).mT, size=x.shape[2:])

    def _tokens(self, x: Tensor) -> list[Tensor]:
        """Queries and keys ``(B, heads, HW, C/r/heads)``, values ``(B, heads, HW, C/heads)``."""
        projections = (self.queries, self.keys, self.values)
        return [ops.to_tokens(project(x), self.num_heads) for project in projections]

    def mix(self, x: Tensor) -> Tensor:
        queries, keys, values = self._tokens(x)
        context = keys.softmax(2).mT @ values  # (B, heads, C/r/heads, C/heads)
        tokens = queries.softmax(3) @ context  # (B, heads, HW, C/heads)
        return self.reprojection(ops.from_tokens(tokens, like=x))  # (B, C, H, W)
