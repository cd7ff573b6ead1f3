"""Coordinate Attention for Efficient Mobile Network Design, Hou et al., CVPR 2021 (2103.02907)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.mechanisms.base import Gate, bottleneck
from foveate.registry import register_mechanism


@register_mechanism("coord")
class CoordinateAttention(Gate):
    r"""Weighs each row and each column of each channel by gates from row and column means.

    .. math::
        [f_h; f_w] = \mathrm{hardswish}(\mathrm{BN}(W_1 [\mathrm{mean}_W(x); \mathrm{mean}_H(x)])),
        \quad y = x \cdot \sigma(W_h f_h) \cdot \sigma(W_w f_w)

    Args:
        channels: Channels of the feature map.
        reduction: Ratio of the bottleneck, whose width is ``channels // reduction``, at least 8.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``height``: ``(B, C, H, 1)``
        - ``width``: ``(B, C, 1, W)``

    Raises:
        ValueError: If ``reduction`` is below 1.

    Note:
        The paper's MobileNetV2 has it after the depthwise convolution, on the expanded width.
        timm leaves the biases out and has another width, so official weights do not fit it.

    Example:
        >>> import torch
        >>> CoordinateAttention(64)(torch.rand(2, 64, 8, 6)).shape
        torch.Size([2, 64, 8, 6])
    """

    def __init__(self, channels: int, *, reduction: int = 32, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        self.reduction = reduction
        hidden = max(8, bottleneck(channels, reduction))
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_h = nn.Conv2d(hidden, channels, 1)
        self.conv_w = nn.Conv2d(hidden, channels, 1)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        H, W = x.shape[2:]
        rows = x.mean(3, keepdim=True)  # (B, C, H, 1)
        columns = x.mean(2, keepdim=True).mT  # (B, C, W, 1)
        z = torch.cat([rows, columns], dim=2)  # (B, C, H + W, 1)
        z = F.hardswish(self.bn1(self.conv1(z)))  # (B, hidden, H + W, 1)
        rows, columns = z.split([H, W], dim=2)
        return {
            "height": self.conv_h(rows).sigmoid(),  # (B, C, H, 1)
            "width": self.conv_w(columns.mT).sigmoid(),  # (B, C, 1, W)
        }
