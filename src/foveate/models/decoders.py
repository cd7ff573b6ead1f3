"""Decoders of segmentation networks: from the features of a backbone to maps of class scores.

Each is built for a backbone and takes the features of that. It returns a dict of score maps
``(B, num_classes, h, w)``: ``"out"`` and, while training, those of its own that its paper trains
too.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from foveate import ops
from foveate.mechanisms.norm import GateNorm
from foveate.models.backbones import Backbone

Slot = Callable[[int], nn.Module]
"""Builds what acts in a slot for attention, from a number of channels."""

# Convolution, batch norm (that also trains on one position of one image), ReLU.
_layer = partial(Conv2dNormActivation, norm_layer=GateNorm)


def _classifier(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))


class Auxiliary(nn.Module):
    """Scores from features before the last, whose loss trains the backbone more directly.

    Args:
        in_channels: Channels of the features.
        num_classes: Channels of the output.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = _layer(in_channels, in_channels // 4)
        self.classifier = _classifier(in_channels // 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layer(x))


class UpStage(nn.Module):
    """Twice the resolution: transposed convolution, attention, skip, two 3x3 convolutions.

    Args:
        in_channels: Channels of the coarser map.
        skip_channels: Channels of the features that are concatenated; 0 for none.
        out_channels: Channels of the output.
        slot: Builds the attention.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, slot: Slot) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.attention = slot(out_channels)
        self.layers = nn.Sequential(
            _layer(out_channels + skip_channels, out_channels), _layer(out_channels, out_channels)
        )

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = self.attention(self.up(x))  # (B, out_channels, 2h, 2w)
        if skip is not None:
            # A side that was odd has one position less than twice the half of it.
            x = torch.cat([F.interpolate(x, skip.shape[-2:]), skip], 1)
        return self.layers(x)


class UNet(nn.Module):
    """Up-sampling stages of 256, 128 and 64 channels, with skips of their strides.

    After U-Net, Ronneberger et al., MICCAI 2015 (arXiv:1505.04597), with attention where the
    resolution grows.

    Args:
        body: The backbone; its last features are upsampled, those of other strides are skips.
        num_classes: Channels of the output.
        slot: Builds the attention of a stage.
    """

    widths = (256, 128, 64)

    def __init__(self, body: Backbone, num_classes: int, slot: Slot) -> None:
        super().__init__()
        self.last, into = list(body.ends)[-1], body.channels[-1]
        channels = dict(zip(body.ends, body.channels, strict=True))
        strides = [int(self.last) // 2**number for number in (1, 2, 3)]
        self.skips = [str(stride) for stride in strides if stride >= 1]
        self.stages = nn.ModuleList()
        for skip, width in zip(self.skips, self.widths, strict=False):
            self.stages.append(UpStage(into, channels.get(skip, 0), width, slot))
            into = width
        self.classifier = nn.Conv2d(into, num_classes, 1)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        x = features[self.last]
        for skip, stage in zip(self.skips, self.stages, strict=True):
            x = stage(x, features.get(skip))
        return {"out": self.classifier(x)}


class DeepLabV3Plus(nn.Module):
    """Atrous spatial pyramid pooling, then a decoder with the finest features.

    Chen et al., ECCV 2018 (arXiv:1802.02611), with plain convolutions.

    Args:
        body: The backbone; its first and last features are used. The rates are 6, 12 and 18 where
            the last have a stride of 16, and twice as much at 8.
        num_classes: Channels of the output.
        slot: Builds the attention, which follows the pyramid.
    """

    def __init__(self, body: Backbone, num_classes: int, slot: Slot) -> None:
        super().__init__()
        keys = list(body.ends)
        self.low, self.high, low, high = keys[0], keys[-1], body.channels[0], body.channels[-1]
        rates = [max(1, rate * 16 // body.strides[-1]) for rate in (6, 12, 18)]
        self.branches = nn.ModuleList(
            [_layer(high, 256, 1), *(_layer(high, 256, dilation=rate) for rate in rates)]
        )
        self.pooled = _layer(high, 256, 1)
        self.project = nn.Sequential(_layer(5 * 256, 256, 1), nn.Dropout2d(0.1))
        self.attention = slot(256)
        self.reduce = _layer(low, 48, 1)
        self.layers = nn.Sequential(_layer(256 + 48, 256), _layer(256, 256))
        self.classifier = _classifier(256, num_classes)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        x, fine = features[self.high], self.reduce(features[self.low])
        mean = self.pooled(x.mean((2, 3), keepdim=True))  # (B, 256, 1, 1)
        parts = [branch(x) for branch in self.branches]
        x = torch.cat([*parts, mean.expand_as(parts[0])], 1)  # (B, 1280, h, w)
        x = _resized(self.attention(self.project(x)), fine)  # (B, 256, ...), of the finest map
        return {"out": self.classifier(self.layers(torch.cat([x, fine], 1)))}


class PyramidPooling(nn.Module):
    """Means over 1, 2 x 2, 3 x 3 and 6 x 6 parts of the map, beside it.

    Zhao et al., CVPR 2017 (arXiv:1612.01105).

    Args:
        body: The backbone; its last features are used.
        num_classes: Channels of the output.
        slot: Builds the attention, which follows the convolution over all parts.
    """

    bins = (1, 2, 3, 6)

    def __init__(self, body: Backbone, num_classes: int, slot: Slot) -> None:
        super().__init__()
        self.last, into = list(body.ends)[-1], body.channels[-1]
        quarter = into // 4
        self.parts = nn.ModuleList(_layer(into, quarter, 1) for _ in self.bins)
        self.layer = _layer(into + len(self.bins) * quarter, quarter)
        self.attention = slot(quarter)
        self.classifier = _classifier(quarter, num_classes)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        x = features[self.last]
        parts = [
            _resized(part(ops.cell_means(x, (bins, bins))), x)
            for bins, part in zip(self.bins, self.parts, strict=True)
        ]
        x = self.attention(self.layer(torch.cat([x, *parts], 1)))  # (B, C / 4, h, w)
        return {"out": self.classifier(x)}


class AttentionBranch(nn.Module):
    """A convolution layer, attention, and another convolution layer.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the rest.
        attention: What acts between the two.
    """

    def __init__(self, in_channels: int, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.before = _layer(in_channels, channels)
        self.attention = attention
        self.after = _layer(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.attention(self.before(x)))


class DANetHead(nn.Module):
    """Attention to positions and attention to channels in two branches, and their sum.

    Fu et al., CVPR 2019 (arXiv:1809.02983). While training, each branch is classified too, as
    ``"position"`` and ``"channel"``.

    Args:
        body: The backbone; its last features are used.
        num_classes: Channels of the output.
        position: Builds the attention of one branch.
        channel: Builds that of the other.
    """

    def __init__(self, body: Backbone, num_classes: int, position: Slot, channel: Slot) -> None:
        super().__init__()
        self.last, into = list(body.ends)[-1], body.channels[-1]
        width = into // 4
        self.position = AttentionBranch(into, width, position(width))
        self.channel = AttentionBranch(into, width, channel(width))
        self.position_classifier = _classifier(width, num_classes)
        self.channel_classifier = _classifier(width, num_classes)
        self.classifier = _classifier(width, num_classes)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        x = features[self.last]
        position, channel = self.position(x), self.channel(x)  # (B, C / 4, h, w) each
        found = {"out": self.classifier(position + channel)}
        if self.training:
            found["position"] = self.position_classifier(position)
            found["channel"] = self.channel_classifier(channel)
        return found


class CCNetHead(nn.Module):
    """Recurrent criss-cross attention beside the features that it came from.

    Huang et al., ICCV 2019 (arXiv:1811.11721).

    Args:
        body: The backbone; its last features are used.
        num_classes: Channels of the output.
        slot: Builds the attention.
    """

    def __init__(self, body: Backbone, num_classes: int, slot: Slot) -> None:
        super().__init__()
        self.last, into = list(body.ends)[-1], body.channels[-1]
        width = into // 4
        self.branch = AttentionBranch(into, width, slot(width))
        self.layer = _layer(into + width, width)
        self.classifier = _classifier(width, num_classes)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        x = features[self.last]
        x = self.layer(torch.cat([x, self.branch(x)], 1))  # (B, C / 4, h, w)
        return {"out": self.classifier(x)}


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
