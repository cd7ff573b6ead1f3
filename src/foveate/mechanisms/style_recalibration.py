"""SRM: A Style-based Recalibration Module, Lee, Kim and Nam, ICCV 2019 (arXiv:1903.10829)."""

import torch
from torch import Tensor, nn

from foveate import ops
from foveate.mechanisms.base import Gate
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

EPS = 1e-5


@register_mechanism("srm")
class StyleRecalibration(Gate):
    r"""Weighs each channel by a gate computed from its own mean and standard deviation.

    .. math::
        y = x \cdot \sigma(\mathrm{BN}(w_1\,\mathrm{mean}_{HW}(x) + w_2\,\mathrm{std}_{HW}(x)))

    The variance is the unbiased one, plus :math:`10^{-5}`; of a 1 x 1 map it is zero.

    Args:
        channels: Channels of the feature map.
        init: Paper's form, whose gates are 0.5 at first, or identity (see
            :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Note:
        The authors start the two weights of each channel at zero and keep weight decay off them.
        A popular copy starts them at random and takes the deviation without its epsilon.

    Example:
        >>> StyleRecalibration(64)
        StyleRecalibration(64)
    """

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        # With zero weights behind a zero strength the norm would not move for two steps.
        start = (
            torch.randn(channels, 2) / 2**0.5 if init == "identity" else torch.zeros(channels, 2)
        )
        self.cfc = nn.Parameter(start)
        self.bn = GateNorm(channels)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        mean = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        std = (ops.spatial_variance(x) + EPS).sqrt()  # (B, C, 1, 1)
        style = torch.cat([mean, std], dim=2)  # (B, C, 2, 1)
        z = (style * self.cfc.unsqueeze(2)).sum(2, keepdim=True)  # (B, C, 1, 1)
        return {"channel": self.bn(z).sigmoid()}
