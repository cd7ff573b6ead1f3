"""External Attention Using Two Linear Layers for Visual Tasks, Guo et al., TPAMI (2105.02358)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_positive
from foveate.mechanisms.base import Mixer, blend, check_divides
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

EXPANSION = 4
"""How much wider the multi-head form makes the map, and how many times more heads it has."""
EPS = 1e-9


@register_mechanism("external")
class ExternalAttention(Mixer):
    r"""Attends from each position to a small learned memory that all images share.

    .. math:: y_i = \mathrm{relu}\Big(x_i + \mathrm{BN}\Big(W_2 \sum_s
        \frac{a_{is}}{\sum_t a_{it}}\,v_s\Big)\Big), \quad
        a_{is} = \mathrm{softmax}_i(k_s^\top W_1 x_i)

    The affinities to each of the units :math:`s` are first normalised over all positions
    :math:`i`, then those of one position over the units.

    With ``num_heads`` it is the form for transformers, :math:`y = x + W_2[\ldots]_{\text{heads}}`
    without normalisation and ReLU: :math:`W_1` makes the map four times as wide, and four times
    ``num_heads`` heads share one memory, whose keys and values have biases.

    Args:
        channels: Channels of the feature map.
        memory_size: Units of the memory.
        num_heads: A divisor of ``channels``; None for the form without heads.
        init: Paper's form, or identity: the output is drawn from the input towards the paper's by
            a learned scale that starts at zero.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``added``: ``(B, 1, H, W)``, the length of the change

    Raises:
        ValueError: If ``memory_size`` is below 1 or ``num_heads`` does not divide ``channels``.

    Note:
        As in the official code keys and values start equal, and learn apart.

    Example:
        >>> import torch
        >>> ExternalAttention(64)(torch.rand(2, 64, 8, 6)).shape
        torch.Size([2, 64, 8, 6])
    """

    place = "head"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"multi_head": {"num_heads": 8}}

    def __init__(
        self,
        channels: int,
        *,
        memory_size: int = 64,
        num_heads: int | None = None,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        check_positive(memory_size=memory_size)
        self.memory_size, self.num_heads = memory_size, num_heads
        multi_head = num_heads is not None
        self.heads, width = 1, channels
        if num_heads is not None:
            check_divides(num_heads=num_heads, channels=channels)
            self.heads, width = num_heads * EXPANSION, channels * EXPANSION
        dim = width // self.heads
        self.conv1 = nn.Conv2d(channels, width, 1)
        self.key_memory = nn.Linear(dim, memory_size, bias=multi_head)
        self.value_memory = nn.Linear(memory_size, dim, bias=multi_head)
        self.conv2 = nn.Conv2d(width, channels, 1, bias=multi_head)
        self.bn = nn.Identity() if multi_head else GateNorm(channels)
        if not multi_head:
            self._reset_weights()

    def _reset_weights(self) -> None:
        for layer in (self.conv1, self.key_memory, self.conv2):
            nn.init.normal_(layer.weight, std=(2 / self.channels) ** 0.5)
        with torch.no_grad():
            self.value_memory.weight.copy_(self.key_memory.weight.mT)

    def mix(self, x: Tensor) -> Tensor:
        tokens = ops.to_tokens(self.conv1(x), self.heads)  # (B, heads, HW, D)
        scores = self.key_memory(tokens)  # (B, heads, HW, S)
        wide = torch.promote_types(scores.dtype, torch.float32)  # a half loses the small sums
        affinity = scores.softmax(2, dtype=wide)
        affinity = affinity / (affinity.sum(3, keepdim=True) + EPS)
        tokens = self.value_memory(affinity.to(scores.dtype))  # (B, heads, HW, D)
        return self.bn(self.conv2(ops.from_tokens(tokens, like=x)))  # (B, C, H, W)

    def forward(self, x: Tensor) -> Tensor:
        if self.num_heads is not None:
            return super().forward(x)
        return blend(x, (x + self.mix(x)).relu(), self.scale)
