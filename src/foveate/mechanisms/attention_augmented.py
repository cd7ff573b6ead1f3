"""AANet: Attention Augmented Convolutional Networks, Bello et al., ICCV 2019 (arXiv:1904.09925)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidValueError, check_positive
from foveate.mechanisms.base import Replacement, check_divides
from foveate.registry import register_mechanism

MIN_KEY_DIM = 20
"""The least width of queries and keys in a head."""


@register_mechanism("aa")
class AttentionAugmented(Replacement):
    r"""Computes some output channels by attention to all positions, the others by convolution.

    .. math:: y = [\mathrm{conv}_3(x); W_o\,\mathrm{MHA}(x)]

    Positions are compared by contents and displacement, as in ``bot``. Of the output channels
    a share of ``value_ratio`` is attention, rounded down to equal heads of at least one channel;
    queries and keys have a share of ``key_ratio``, rounded so too, and at least 20 for each head.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output; None for as many.
        stride: Step of the output; attention sees means of so many pixels.
        dilation: Dilation of the convolution.
        num_heads: Heads, a divisor of ``out_channels``.
        key_ratio: Width of queries and keys by ``out_channels``.
        value_ratio: Attended channels by ``out_channels``, above 0 and at most 1.
        relative: Give displacements embeddings.
        size: Height and width, or both, of the input maps that the embeddings are made for; on
            others they are resized linearly. ``insert`` passes those of the site.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input: ``(B, C, H, W)``; output ``(B, C_out, H_out, W_out)``
        - ``output``: ``(B, 1, H_out, W_out)``

    Raises:
        ValueError: If ``num_heads`` does not divide ``out_channels``, or a ratio is not within its
            limits.

    Note:
        Queries, keys and values come from a pointwise convolution. A popular port takes them from a
        3x3 one, reads its heads back without the transposition that they need, and in one version
        draws its embeddings anew in each pass, so that they never learn.

    Example:
        >>> import torch
        >>> AttentionAugmented(64, stride=2)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 64, 4, 4])
    """

    sized = True
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "contents": {"relative": False},
        "fully_attentional": {"key_ratio": 1.0, "value_ratio": 1.0},
    }

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        num_heads: int = 8,
        key_ratio: float = 0.2,
        value_ratio: float = 0.1,
        relative: bool = True,
        size: int | tuple[int, int] = 14,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        out = self.out_channels
        check_divides(num_heads=num_heads, out_channels=out)
        for name, ratio in (("key_ratio", key_ratio), ("value_ratio", value_ratio)):
            if not 0 < ratio <= 1:
                raise InvalidValueError(f"{name} must be above 0 and at most 1, but got {ratio}")
        height, width = (size, size) if isinstance(size, int) else size
        check_positive(height=height, width=width)
        self.num_heads, self.key_ratio, self.value_ratio = num_heads, key_ratio, value_ratio
        self.relative, self.size = relative, size
        self.key_dim = max(MIN_KEY_DIM, int(key_ratio * out) // num_heads) * num_heads
        self.value_dim = max(1, int(value_ratio * out) // num_heads) * num_heads
        self.conv: nn.Conv2d | None = None
        if out > self.value_dim:
            self.conv = nn.Conv2d(
                channels,
                out - self.value_dim,
                3,
                stride=stride,
                padding=dilation,
                dilation=dilation,
                bias=False,
            )
        self.qkv = nn.Conv2d(channels, 2 * self.key_dim + self.value_dim, 1, bias=False)
        self.out = nn.Conv2d(self.value_dim, self.value_dim, 1, bias=False)
        if relative:
            dim = self.key_dim // num_heads
            rows, columns = ((side - 1) // stride for side in (height, width))
            self.rel_h = nn.Parameter(torch.randn(2 * rows + 1, dim) * dim**-0.5)
            self.rel_w = nn.Parameter(torch.randn(2 * columns + 1, dim) * dim**-0.5)

    def affinity(self, x: Tensor) -> ops.Affinity:
        x = self._strided(x)
        q, k, _ = self._tokens(x)
        if not self.relative:
            return ops.softmax_affinity(q, k, scale=q.shape[3] ** -0.5, size=x.shape[2:])
        q, k = ops.displaced(q, k, self.rel_h, self.rel_w, size=x.shape[2:])
        return ops.softmax_affinity(q, k, scale=1.0, size=x.shape[2:])

    def _strided(self, x: Tensor) -> Tensor:
        """The map that attends, ``(B, C, H_out, W_out)``."""
        return F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x

    def _tokens(self, x: Tensor) -> list[Tensor]:
        parts = self.qkv(x).split([self.key_dim, self.key_dim, self.value_dim], dim=1)
        return [ops.to_tokens(part, self.num_heads) for part in parts]

    def _attend(self, x: Tensor) -> Tensor:
        x = self._strided(x)
        q, k, v = self._tokens(x)
        if self.relative:
            y = ops.displacement_attention(q, k, v, self.rel_h, self.rel_w, size=x.shape[2:])
        else:
            y = ops.position_attention(q, k, v, scale=q.shape[3] ** -0.5)
        return self.out(ops.from_tokens(y, like=x))  # (B, value_dim, H_out, W_out)

    def branch(self, x: Tensor) -> Tensor:
        attended = self._attend(x)
        return attended if self.conv is None else torch.cat([self.conv(x), attended], dim=1)
