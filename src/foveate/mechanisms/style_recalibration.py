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
        y = x \cdot \sigma(\mathrm{BN}(w_1 m + w_2 \sqrt{v + \epsilon})), \quad
        m = \mathrm{mean}_{HW}(x), \quad v = \frac{1}{HW - 1} \sum_{HW} (x - m)^2

    with two weights for each channel, zero at first, so that every gate starts at one half. On a
    1 x 1 map :math:`v = 0`.

    Args:
        channels: Channels of the feature map.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`). In the
            identity form the weights start at one half, since the strength is the zero already.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Raises:
        ValueError: If ``channels`` is below 1.

    Note:
        The official recipe has no weight decay on any of these parameters. Some copies start with
        random weights, or take the deviation without :math:`\epsilon`; most give NaN on 1 x 1 maps.

    Example:
        >>> import torch
        >>> StyleRecalibration(64).maps(torch.rand(2, 64, 8, 8))["channel"].unique()
        tensor([0.5000], grad_fn=<Unique2Backward0>)
    """

    fused = True

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        self.cfc = nn.Parameter(torch.full((channels, 2), 0.5 if init == "identity" else 0.0))
        self.bn = GateNorm(channels)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        mean, variance = ops.spatial_pool(x, "mean", "variance")  # (B, C, 1, 1)
        style = torch.cat([mean, (variance + EPS).sqrt()], dim=2)  # (B, C, 2, 1)
        z = (style * self.cfc.unsqueeze(2)).sum(2, keepdim=True)  # (B, C, 1, 1)
        return {"channel": self.bn(z).sigmoid()}
