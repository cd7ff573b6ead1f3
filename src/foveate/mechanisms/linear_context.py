"""LCT: Linear Context Transform Block, Ruan et al., AAAI 2020 (arXiv:1909.03834)."""

import torch
from torch import Tensor, nn

from foveate.mechanisms.base import Gate, check_divides
from foveate.registry import register_mechanism


@register_mechanism("lct")
class LinearContextTransform(Gate):
    r"""Weighs each channel by a gate linear in its mean, normalised within a group of channels.

    .. math:: y_c = x_c \cdot \sigma(w_c\,\hat z_c + b_c), \quad z = \mathrm{mean}_{HW}(x)

    where :math:`\hat z` has mean 0 and variance 1 in each group. Starts with :math:`w = 0` and
    :math:`b = 1`.

    Args:
        channels: Channels of the feature map.
        num_groups: Groups, a divisor of ``channels``.
        eps: Added to the variance.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Raises:
        ValueError: If ``num_groups`` does not divide ``channels``.

    Note:
        There is no official code, and copies disagree on the start; some have :math:`w = 1` and
        :math:`b = 0`.

    Example:
        >>> LinearContextTransform(64)
        LinearContextTransform(64, num_groups=16, eps=1e-05)
    """

    def __init__(
        self, channels: int, *, num_groups: int = 16, eps: float = 1e-5, init: str = "paper"
    ) -> None:
        super().__init__(channels, init=init)
        check_divides(num_groups=num_groups, channels=channels)
        self.num_groups, self.eps = num_groups, eps
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.ones(channels))

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        z = x.mean((2, 3)).unflatten(1, (self.num_groups, -1))  # (B, G, C/G)
        var, mean = torch.var_mean(z, 2, correction=0, keepdim=True)  # (B, G, 1)
        z = ((z - mean) * (var + self.eps).rsqrt()).flatten(1)  # (B, C)
        gate = (z * self.weight + self.bias).sigmoid()
        return {"channel": gate[:, :, None, None]}  # (B, C, 1, 1)
