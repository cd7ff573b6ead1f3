"""ParNet: Non-deep Networks, Goyal et al., NeurIPS 2022 (arXiv:2110.07641)."""

import torch.nn.functional as F
from torch import Tensor, nn

from foveate.mechanisms.base import Replacement
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism


@register_mechanism("parnet")
class ParNet(Replacement):
    r"""Adds a 3x3 convolution, a pointwise one and a skip that is squeezed and excited.

    .. math:: y = \mathrm{silu}(\mathrm{BN}(\mathrm{conv}_3(x)) + \mathrm{BN}(\mathrm{conv}_1(x))
        + z \cdot \sigma(W\,\mathrm{mean}_{HW}(z))), \quad z = \mathrm{BN}(x)

    Where stride or channels forbid a skip, the two convolutions are gated instead:

    .. math:: y = \mathrm{silu}(2 \sigma(W\,\mathrm{mean}_{HW}(x)) \cdot
        (\mathrm{BN}(\mathrm{conv}_3(x)) + \mathrm{BN}(\mathrm{conv}_1(\mathrm{pool}(x)))))

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output; None for as many.
        stride: Step of the output.
        dilation: Dilation of the 3x3 convolution.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input: ``(B, C, H, W)``; output ``(B, C_out, H_out, W_out)``
        - ``channel``: ``(B, C_out, 1, 1)``, the gate

    Note:
        The gate is one full layer, without a bottleneck, and its input is normalised first; a
        popular copy leaves the normalisation out and adds biases.

    Example:
        >>> import torch
        >>> ParNet(16, stride=2)(torch.rand(2, 16, 8, 8)).shape
        torch.Size([2, 16, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        out = self.out_channels
        self.conv3x3 = nn.Conv2d(
            channels, out, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.norm3x3 = GateNorm(out)
        self.conv1x1 = nn.Conv2d(channels, out, 1, bias=False)
        self.norm1x1 = GateNorm(out)
        self.has_skip = stride == 1 and out == channels
        if self.has_skip:
            self.skip_norm = GateNorm(channels)
        self.fc = nn.Conv2d(channels, out, 1, bias=False)

    def _gate(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3), keepdim=True)).sigmoid()  # (B, C_out, 1, 1)

    def branch(self, x: Tensor) -> Tensor:
        y = self.norm3x3(self.conv3x3(x))  # (B, C_out, H_out, W_out)
        if self.has_skip:
            z = self.skip_norm(x)
            return F.silu(y + self.norm1x1(self.conv1x1(x)) + z * self._gate(z))
        pooled = F.avg_pool2d(x, self.stride, ceil_mode=True)  # (B, C, H_out, W_out)
        y = y + self.norm1x1(self.conv1x1(pooled))
        return F.silu(y * 2 * self._gate(x))

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        return {"channel": self._gate(self.skip_norm(x) if self.has_skip else x)}
