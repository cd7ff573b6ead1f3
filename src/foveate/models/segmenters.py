"""Segmentation networks: a backbone with attention, a decoder with slots for it, and their loss."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import InvalidTypeError, InvalidValueError, check_choice, check_positive
from foveate.models.backbones import Backbone, backbone
from foveate.models.decoders import (
    Auxiliary,
    CCNetHead,
    DANetHead,
    DeepLabV3Plus,
    PyramidPooling,
    Slot,
    UNet,
)
from foveate.registry import create, get_mechanism


class Segmenter(nn.Module):
    """Class scores for each pixel of images of any size. :func:`segmenter` builds it.

    Args:
        backbone: Gives the features.
        decoder: Turns them into a dict of score maps, one of them ``"out"``.
        auxiliary: Classifies the features before the last while training; None for nothing.

    Shape:
        - Input: ``(B, in_channels, H, W)``
        - Output: ``(B, num_classes, H, W)``; while training a dict of such, ``"out"`` and what
          else has a loss
    """

    def __init__(self, backbone: Backbone, decoder: nn.Module, auxiliary: nn.Module | None) -> None:
        super().__init__()
        self.backbone, self.decoder, self.auxiliary = backbone, decoder, auxiliary

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        features = self.backbone(x)
        scores = self.decoder(features)
        if self.training and self.auxiliary is not None:
            scores["aux"] = self.auxiliary(list(features.values())[-2])
        full = {
            name: F.interpolate(score, x.shape[-2:], mode="bilinear", align_corners=False)
            for name, score in scores.items()
        }
        return full if self.training else full["out"]


class _Kind(NamedTuple):
    decoder: Callable[..., nn.Module]
    """Takes the backbone, the number of classes and a builder for each of its slots."""
    strides: tuple[int, ...]
    output_stride: int
    auxiliary: bool = False
    own: tuple[str, ...] = ()
    """The mechanisms of its slots, where the paper says which."""


KINDS = {
    "unet": _Kind(UNet, (4, 8, 16, 32), 32),
    "deeplabv3plus": _Kind(DeepLabV3Plus, (4, 16, 32), 16),
    "psp": _Kind(PyramidPooling, (16, 32), 8, auxiliary=True),
    "danet": _Kind(DANetHead, (16, 32), 8, own=("danet_position", "danet_channel")),
    "ccnet": _Kind(CCNetHead, (16, 32), 8, auxiliary=True, own=("criss_cross",)),
}


def segmenter(
    kind: str,
    backbone: str | Backbone = "cbam_resnet18",
    *,
    num_classes: int,
    attention: str | None = None,
    auxiliary: bool | None = None,
    pretrained_host: bool | str | Path = False,
    init: str | None = None,
    image_size: int = 224,
    in_channels: int = 3,
    **options: Any,
) -> Segmenter:
    """A segmentation network on a backbone with attention.

    The backbone is ``segmenter.backbone``. Modules named ``attention`` in ``segmenter.decoder``
    are the slots of the decoder; without ``attention`` they do nothing, and
    ``foveate.insert(model, key, where="after", at="decoder.*attention")`` can fill them later.

    ==================  ==========================================  =================  =========
    kind                slots                                       backbone           auxiliary
    ==================  ==========================================  =================  =========
    ``unet``            after each transposed convolution           stride 32, skips   no
    ``deeplabv3plus``   after the pyramid of dilations              dilated, 16        no
    ``psp``             after the convolution of the pyramid        dilated, 8         yes
    ``danet``           its own: position and channel               dilated, 8         no
    ``ccnet``           its own: criss-cross, two passes            dilated, 8         yes
    ==================  ==========================================  =================  =========

    Args:
        kind: One of those above.
        backbone: A name as :func:`foveate.models.backbone` takes it, or what that returns.
        num_classes: Classes of pixels.
        attention: A mechanism for the slots; None for nothing.
        auxiliary: Whether the features before the last are classified too while training, as
            ``"aux"``; by default as in the paper. DANet always adds ``"position"`` and
            ``"channel"``.
        pretrained_host: As in :func:`foveate.models.create`; only for a name.
        init: ``"paper"`` or ``"identity"``, of all attention; by default the identity on a
            pretrained host and the paper's otherwise.
        image_size: Side of the images for attention that depends on it; others work too.
        in_channels: Channels of the images; only for a name.
        options: Keyword arguments of the mechanism in the slots, such as ``reduction``.

    Raises:
        ValueError: If a name or an option is unknown, a number too small, or the backbone does
            not have what the decoder needs.
        TypeError: If there is nothing that takes the options.

    Example:
        >>> import torch
        >>> model = segmenter("unet", "resnet18", num_classes=12, attention="cbam").eval()
        >>> model(torch.rand(1, 3, 45, 60)).shape
        torch.Size([1, 12, 45, 60])
    """
    chosen = KINDS[check_choice("segmenter", kind, KINDS)]
    check_positive(num_classes=num_classes)
    if attention is not None and chosen.own:
        raise InvalidTypeError(f"'{kind}' has its own attention and takes no {attention=}")
    init = init or ("identity" if pretrained_host else "paper")
    slots = [_slot(key, init, options) for key in chosen.own or (attention,)]
    body = _body(backbone, chosen, pretrained_host, init, image_size, in_channels)
    decoder = chosen.decoder(body, num_classes, *slots)
    wanted = chosen.auxiliary if auxiliary is None else auxiliary
    return Segmenter(body, decoder, _auxiliary(body, num_classes) if wanted else None)


def segmentation_loss(
    outputs: Tensor | Mapping[str, Tensor],
    target: Tensor,
    *,
    void: int | None = None,
    aux_weight: float = 0.4,
) -> Tensor:
    """Mean cross-entropy of the pixels, summed over the outputs.

    Args:
        outputs: Of a :class:`Segmenter`, in either mode.
        target: Classes ``(B, H, W)``.
        void: The class of pixels that do not count; None if all do. Without any that counts the
            loss is zero.
        aux_weight: Weight of ``"aux"``; all others have a weight of 1, as DANet sums them.
    """
    if isinstance(outputs, Tensor):
        outputs = {"out": outputs}
    ignored = -100 if void is None else void
    counted = (target != ignored).sum().clamp(min=1)
    losses = [
        F.cross_entropy(scores, target, ignore_index=ignored, reduction="sum")
        * (aux_weight if name == "aux" else 1.0)
        for name, scores in outputs.items()
    ]
    return sum(losses[1:], start=losses[0]) / counted


def _body(
    given: str | Backbone,
    kind: _Kind,
    pretrained_host: bool | str | Path,
    init: str,
    image_size: int,
    in_channels: int,
) -> Backbone:
    if not isinstance(given, str):
        return given
    return backbone(
        given,
        strides=kind.strides,
        pretrained_host=pretrained_host,
        init=init,
        image_size=image_size,
        output_stride=kind.output_stride,
        in_channels=in_channels,
    )


def _auxiliary(body: Backbone, num_classes: int) -> Auxiliary:
    if len(body.channels) < 2:
        raise InvalidValueError(
            f"auxiliary needs features before the last, but the backbone has {body.strides=} alone"
        )
    return Auxiliary(body.channels[-2], num_classes)


def _slot(key: str | None, init: str, options: dict[str, Any]) -> Slot:
    if key is not None:
        get_mechanism(key)  # an unknown name is refused before the backbone is built
        return lambda channels: create(key, channels, init=init, **options)
    if options:
        raise InvalidTypeError(f"without attention= nothing takes the options {options}")
    return lambda channels: nn.Identity()
