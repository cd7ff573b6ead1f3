"""Multi-head self-attention over positions, Vaswani et al., NeurIPS 2017 (arXiv:1706.03762)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_choice
from foveate.mechanisms.base import Mixer, check_divides
from foveate.registry import register_mechanism

SCORES = ("scaled_dot", "dot", "additive")


@register_mechanism("mhsa")
class SelfAttention(Mixer):
    r"""Adds to each position means over all positions, one for each head.

    .. math:: y_i = x_i + W_o\,\Big[\sum_j \mathrm{softmax}_j(s(q_i, k_j))\,v_j\Big]_{\text{heads}}

    With heads of width :math:`d` the ``score`` :math:`s` is

    - ``"scaled_dot"``: :math:`q_i^\top k_j / \sqrt{d}` (Vaswani et al.),
    - ``"dot"``: :math:`q_i^\top k_j` (Luong et al., arXiv:1508.04025),
    - ``"additive"``: :math:`w^\top \tanh(q_i + k_j)` (Bahdanau et al., arXiv:1409.0473).

    None of them holds all pairs in memory. Positions are not encoded: only contents are compared.

    Args:
        channels: Channels of the feature map.
        num_heads: Heads, a divisor of ``channels``; None for the largest of 8, 4, 2 and 1.
        score: How queries and keys are compared.
        bias: Give all projections a bias.
        init: Plain sum, or identity (see :class:`~foveate.mechanisms.base.Mixer`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``added``: ``(B, 1, H, W)``

    Raises:
        ValueError: If ``num_heads`` does not divide ``channels``, or ``score`` is none of these.

    Example:
        >>> SelfAttention(12)
        SelfAttention(12, num_heads=4, score='scaled_dot', bias=True)
    """

    place = "head"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "single_head": {"num_heads": 1},
        "dot": {"score": "dot"},
        "additive": {"score": "additive"},
    }

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int | None = None,
        score: str = "scaled_dot",
        bias: bool = True,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        if num_heads is None:
            num_heads = next(heads for heads in (8, 4, 2, 1) if channels % heads == 0)
        check_divides(num_heads=num_heads, channels=channels)
        self.num_heads, self.bias = num_heads, bias
        self.score = check_choice("score", score, SCORES)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.out = nn.Conv2d(channels, channels, 1, bias=bias)
        if score == "additive":
            dim = channels // num_heads
            self.score_weight = nn.Parameter(torch.randn(num_heads, dim) * dim**-0.5)

    def affinity(self, x: Tensor) -> ops.Affinity:
        q, k, _ = self._tokens(x)
        if self.score == "additive":
            return ops.additive_affinity(q, k, self.score_weight, size=x.shape[2:])
        return ops.softmax_affinity(q, k, scale=self._scale(q), size=x.shape[2:])

    def _tokens(self, x: Tensor) -> list[Tensor]:
        return [ops.to_tokens(t, self.num_heads) for t in self.qkv(x).chunk(3, dim=1)]

    def _scale(self, query: Tensor) -> float:
        return query.shape[3] ** -0.5 if self.score == "scaled_dot" else 1.0

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self._tokens(x)
        if self.score == "additive":
            tokens = ops.additive_attention(q, k, v, self.score_weight)
        else:
            tokens = ops.position_attention(q, k, v, scale=self._scale(q))
        return self.out(ops.from_tokens(tokens, like=x))  # (B, C, H, W)
