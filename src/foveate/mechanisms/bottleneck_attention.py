"""BAM: Bottleneck Attention Module, Park, Woo, Lee and Kweon, BMVC 2018 (arXiv:1807.06514)."""

from typing import Any, ClassVar

from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_choice, check_positive
from foveate.mechanisms.base import Gate, Published, bottleneck, pointwise
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

COMBINATIONS = ("add", "mul")


class ChannelBranch(nn.Module):
    """One logit for each channel, from the means of all channels.

    Args:
        channels: Channels of the feature map.
        hidden: Width of the bottleneck.

    Shape:
        ``(B, C, H, W)`` to ``(B, C, 1, 1)``
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.bn = GateNorm(hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        _zero_biases(self)

    def forward(self, x: Tensor) -> Tensor:
        (z,) = ops.spatial_pool(x, "mean")  # (B, C, 1, 1)
        z = self.bn(pointwise(self.fc1, z)).relu()  # (B, C/r, 1, 1)
        return pointwise(self.fc2, z)  # (B, C, 1, 1)


class SpatialBranch(nn.Module):
    """One logit for each position, from a wide surrounding.

    Args:
        channels: Channels of the feature map.
        hidden: Width of the bottleneck.
        dilation: Distance between the positions that the two 3 x 3 convolutions cover.

    Shape:
        ``(B, C, H, W)`` to ``(B, 1, H, W)``
    """

    def __init__(self, channels: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = GateNorm(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
        self.bn2 = GateNorm(hidden)
        self.conv3 = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
        self.bn3 = GateNorm(hidden)
        self.conv4 = nn.Conv2d(hidden, 1, 1)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        _zero_biases(self)

    def forward(self, x: Tensor) -> Tensor:
        z = self.bn1(self.conv1(x)).relu()  # (B, C/r, H, W)
        z = self.bn2(self.conv2(z)).relu()
        z = self.bn3(self.conv3(z)).relu()
        return self.conv4(z)  # (B, 1, H, W)


def _zero_biases(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)


@register_mechanism("bam")
class BottleneckAttention(Gate):
    r"""Amplifies each element by up to two, by the logit of its channel and that of its position.

    .. math:: y = x \cdot (1 + \sigma(M_c(x) + M_s(x)))

    :math:`M_c` is a bottleneck on the means of the channels, :math:`M_s` one of two dilated 3 x 3
    convolutions over the positions.

    Args:
        channels: Channels of the feature map.
        reduction: Ratio of both bottlenecks, whose width is ``channels // reduction``, at least 1.
        dilation: Distance between the positions that each 3 x 3 convolution covers.
        combine: How the two logits meet: ``"add"`` as in the paper, or ``"mul"`` as in the official
            code, whose released weights are for the product.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``attention``: ``(B, C, H, W)``

    Raises:
        ValueError: If ``reduction`` or ``dilation`` is below 1, or ``combine`` is neither.

    Note:
        The official code sees only the left square of a wide map and refuses a high one. A popular
        copy has padding 1 with dilation 2, which fits no map but 7 x 7, and one convolution more.

    Example:
        >>> BottleneckAttention(64)
        BottleneckAttention(64, reduction=16, dilation=4, combine='add')
    """

    place = "stage"
    fused = True
    variants: ClassVar[dict[str, dict[str, Any]]] = {"product": {"combine": "mul"}}
    results: ClassVar[tuple[Published, ...]] = (
        Published(
            "ResNet-50, product",
            "ImageNet top-1 accuracy %",
            "76.860",
            "",
            "attention-module README",
        ),
        Published(
            "ResNet-50", "ImageNet top-1 accuracy %", "76.90", "76.38", "PytorchInsight README"
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        dilation: int = 4,
        combine: str = "add",
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        check_positive(dilation=dilation)
        self.reduction, self.dilation = reduction, dilation
        self.combine = check_choice("combine", combine, COMBINATIONS)
        hidden = bottleneck(channels, reduction)
        self.channel_branch = ChannelBranch(channels, hidden)
        self.spatial_branch = SpatialBranch(channels, hidden, dilation)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        channel, spatial = self.channel_branch(x), self.spatial_branch(x)
        return {"attention": ops.pair_factor(channel, spatial, self.combine)}  # (B, C, H, W)

    def forward(self, x: Tensor) -> Tensor:
        x = ops.fuse(x)
        channel = self.channel_branch(x)
        spatial = ops.recomputed(self.spatial_branch, x)  # whose maps add up to a third of x
        return ops.scale_by_pair(x, channel, spatial, self.combine, self.strength)
