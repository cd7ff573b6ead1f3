"""LambdaNetworks: Modeling Long-Range Interactions, Bello, ICLR 2021 (arXiv:2102.08602)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import check_positive
from foveate.mechanisms.base import Published, Replacement, check_divides, check_odd
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism


@register_mechanism("lambda")
class Lambda(Replacement):
    r"""Sums contents and surroundings up in linear maps, and applies them to the queries.

    .. math:: y_i = (\lambda^c + \lambda^p_i)^\top q_i, \quad
        \lambda^c = \sum_m \mathrm{softmax}_m(k_m)\,v_m^\top, \quad
        \lambda^p_i = \sum_{m \in N(i)} e_{m - i}\,v_m^\top

    Queries have several heads, keys and values one; no position attends to another. A stride
    averages windows of the result.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output; None for as many.
        stride: Step of the output.
        dilation: Distance between the positions of a surrounding.
        num_heads: Heads of the queries, a divisor of ``out_channels``.
        key_dim: Width of queries and keys.
        kernel_size: Odd side of the surroundings :math:`N`.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input: ``(B, C, H, W)``; output ``(B, C_out, H_out, W_out)``
        - ``output``: ``(B, 1, H_out, W_out)``

    Raises:
        ValueError: If ``num_heads`` does not divide ``out_channels``, or ``kernel_size`` is even.

    Note:
        Queries and values are normalised by batch, keys by the softmax over positions; a popular
        copy normalises the keys by batch and the values not at all. The paper's embeddings start
        with unit variance, those of the identity form so that :math:`\lambda^p` does. timm gives
        the embeddings a bias, a deviation of 0.25, and a side of 9 unless told otherwise. A
        stride of 2 averages 2 x 2 as there; other copies average 3 x 3.

    Example:
        >>> import torch
        >>> Lambda(64)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    timm: ClassVar[dict[str, dict[str, Any]]] = {"lambda": {"kernel_size": 9}}
    results: ClassVar[tuple[Published, ...]] = (
        Published(
            "LambdaResNet-50",
            "ImageNet top-1 accuracy %",
            "78.2",
            "",
            "d-li14/lambda.pytorch README",
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        num_heads: int = 4,
        key_dim: int = 16,
        kernel_size: int = 23,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        check_odd(kernel_size=kernel_size)
        check_positive(key_dim=key_dim)
        check_divides(num_heads=num_heads, out_channels=self.out_channels)
        self.num_heads, self.key_dim, self.kernel_size = num_heads, key_dim, kernel_size
        self.value_dim = self.out_channels // num_heads
        self.to_q = nn.Conv2d(channels, num_heads * key_dim, 1, bias=False)
        self.to_k = nn.Conv2d(channels, key_dim, 1, bias=False)
        self.to_v = nn.Conv2d(channels, self.value_dim, 1, bias=False)
        self.norm_q = GateNorm(num_heads * key_dim)
        self.norm_v = GateNorm(self.value_dim)
        self.embedding = nn.Conv2d(
            1,
            key_dim,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=False,
        )
        self._init()

    def _init(self) -> None:
        for projection in (self.to_q, self.to_k, self.to_v):
            nn.init.normal_(projection.weight, std=self.channels**-0.5)
        spread = 1.0 if self.init == "paper" else 1 / self.kernel_size  # r^2 of them are summed
        nn.init.normal_(self.embedding.weight, std=spread)

    def branch(self, x: Tensor) -> Tensor:
        q = self.norm_q(self.to_q(x)).unflatten(1, (self.num_heads, -1))  # (B, heads, K, H, W)
        v = self.norm_v(self.to_v(x))  # (B, V, H, W)
        k = self.to_k(x).flatten(2).softmax(2)  # (B, K, HW)
        content = torch.einsum("bkn,bvn->bvk", k, v.flatten(2))  # (B, V, K)
        position = self.embedding(v.flatten(0, 1).unsqueeze(1))  # (B V, K, H, W)
        maps = position.unflatten(0, (-1, self.value_dim)) + content[..., None, None]
        y = torch.einsum("bnkhw,bvkhw->bnvhw", q, maps).flatten(1, 2)  # (B, C_out, H, W)
        return F.avg_pool2d(y, self.stride, ceil_mode=True) if self.stride > 1 else y
