"""Detectors: torchvision's own, on a backbone with attention."""

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from foveate.errors import (
    InvalidTypeError,
    InvalidValueError,
    check_choice,
    check_positive,
    unknown,
)
from foveate.mechanisms.norm import GateNorm
from foveate.models.backbones import Backbone, backbone

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALLEST_IMAGE = 64
_PYRAMID_CHANNELS = 256
_RATIOS = (0.5, 1.0, 2.0)
_EXTRA_CHANNELS = (512, 256, 256, 128)


class Pyramid(nn.Module):
    """A feature pyramid on a backbone (Lin et al., CVPR 2017, arXiv:1612.03144).

    Args:
        body: The backbone.
        extra: Adds coarser levels.
    """

    def __init__(self, body: Backbone, extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.body, self.out_channels = body, _PYRAMID_CHANNELS
        self.fpn = FeaturePyramidNetwork(list(body.channels), self.out_channels, extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(self.body(x))


class ExtraStrides(nn.Module):
    """A backbone and blocks after it that halve its last map, as SSDLite has them.

    Args:
        body: The backbone.
        channels: Of what each block returns.
    """

    def __init__(self, body: Backbone, channels: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        into = (body.channels[-1], *channels[:-1])
        self.extra = nn.ModuleList(_extra_block(i, o) for i, o in zip(into, channels, strict=True))
        self.channels = (*body.channels, *channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = OrderedDict(self.body(x))
        last = next(reversed(found.values()))
        for number, block in enumerate(self.extra):
            last = block(last)
            found[f"extra{number}"] = last
        return found


# One image whose map has become one position cannot train nn.BatchNorm2d.
_norm = partial(GateNorm, eps=0.001, momentum=0.03)


def _extra_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Pointwise, depthwise with stride 2, pointwise: section 6.3 of arXiv:1905.02244."""
    hidden = out_channels // 2
    layer = partial(Conv2dNormActivation, norm_layer=_norm, activation_layer=nn.ReLU6)
    block = nn.Sequential(
        layer(in_channels, hidden, kernel_size=1),
        layer(hidden, hidden, kernel_size=3, stride=2, groups=hidden),
        layer(hidden, out_channels, kernel_size=1),
    )
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.03)
    return block


class _Objects:
    """Labels from 1 to the number of classes, checked before torchvision would mistake them."""

    num_objects: int
    training: bool

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if self.training and targets is not None:
            for target in targets:
                labels = target["labels"]
                if labels.numel() and not 1 <= labels.min() <= labels.max() <= self.num_objects:
                    raise InvalidValueError(
                        f"labels must be from 1 to {self.num_objects}, the number of classes, but "
                        f"got {sorted(set(labels.tolist()))}"
                    )
        return super().forward(images, targets)  # type: ignore[misc]


class RetinaNet(_Objects, detection.RetinaNet):  # type: ignore[misc]
    """torchvision's, with no logit for a background that it does not have."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        found = super().forward(images, targets)
        if not self.training:
            for one in found:
                one["labels"] = one["labels"] + 1
        return found

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: Any, anchors: Any
    ) -> Any:
        targets = [{**target, "labels": target["labels"] - 1} for target in targets]
        return super().compute_loss(targets, head_outputs, anchors)


class FasterRCNN(_Objects, detection.FasterRCNN):  # type: ignore[misc]
    """torchvision's, with labels that are checked."""


class SSDLite(_Objects, detection.ssd.SSD):  # type: ignore[misc]
    """torchvision's, with labels that are checked."""


def detector(
    kind: str,
    backbone: str | Backbone = "cbam_resnet18",
    *,
    num_classes: int,
    image_size: int = 384,
    pretrained_host: bool | str | Path = False,
    init: str | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    **options: Any,
) -> nn.Module:
    """One of torchvision's detectors, called as those are, on a backbone with attention.

    In training mode it takes images and targets and returns a dict of losses; in evaluation mode it
    takes images and returns ``boxes``, ``labels`` and ``scores`` for each. Images are
    ``(3, H, W)`` in [0, 1] and of any size. The backbone is ``detector.backbone.body``; its batch
    norms train, unlike torchvision's, which are frozen on pretrained backbones.

    Anchors are in proportion to ``image_size``: those of the coarsest level have sides of two
    thirds of it, those of each finer level half of that. For RetinaNet at 768 pixels these are the
    published sizes.

    Args:
        kind: ``"retinanet"`` or ``"fasterrcnn"``, with a feature pyramid on the strides 8, 16 and
            32; or ``"ssdlite"``, on the strides 16 and 32 and four further ones.
        backbone: A name as :func:`foveate.models.backbone` takes it, or what that returns.
        num_classes: Classes of objects, without background; labels are from 1 to this number.
        image_size: The longer side of an image is resized to it; for SSDLite, both sides.
        pretrained_host: As in :func:`foveate.models.create`; only for a name.
        init: As in :func:`foveate.models.create`; only for a name.
        mean: Of each channel, taken from images in [0, 1].
        std: What is left is divided by it.
        options: Keyword arguments of torchvision's class, such as ``score_thresh``.

    Raises:
        ValueError: If a name is unknown, a number too small, or a label none of the classes.
        TypeError: If torchvision's class has no such option.

    Example:
        >>> import torch
        >>> model = detector("retinanet", "resnet18", num_classes=1, image_size=64).eval()
        >>> sorted(model([torch.rand(3, 48, 64)])[0])
        ['boxes', 'labels', 'scores']
    """
    build = KINDS[check_choice("detector", kind, KINDS)]
    check_positive(num_classes=num_classes, image_size=image_size)
    if image_size < SMALLEST_IMAGE:
        raise InvalidValueError(f"image_size must be at least {SMALLEST_IMAGE}, got {image_size=}")
    strides = (16, 32) if kind == "ssdlite" else (8, 16, 32)
    body = _body(backbone, strides, pretrained_host, init, image_size)
    transform = {"image_mean": list(mean), "image_std": list(std)}
    model: Any = build(body, num_classes, image_size, transform, options)
    model.num_objects = num_classes
    return cast(nn.Module, model)


def _body(
    given: str | Backbone,
    strides: tuple[int, ...],
    pretrained_host: bool | str | Path,
    init: str | None,
    image_size: int,
) -> Backbone:
    if isinstance(given, str):
        return backbone(
            given,
            strides=strides,
            pretrained_host=pretrained_host,
            init=init,
            image_size=image_size,
        )
    if given.strides != strides:
        raise InvalidValueError(f"the backbone must have {strides=}, but has {given.strides}")
    return given


def _retinanet(
    body: Backbone, num_classes: int, image_size: int, transform: Any, options: dict[str, Any]
) -> RetinaNet:
    octave = [2 ** (third / 3) for third in range(3)]
    sizes = [[side * part for part in octave] for side in _sides(image_size, 5)]
    settings = {
        "min_size": image_size,
        "max_size": image_size,
        "anchor_generator": AnchorGenerator(sizes, [_RATIOS] * 5),
        **transform,
        **_accepted(RetinaNet, options),
    }
    extra = LastLevelP6P7(_PYRAMID_CHANNELS, _PYRAMID_CHANNELS)
    return RetinaNet(Pyramid(body, extra), num_classes, **settings)


def _fasterrcnn(
    body: Backbone, num_classes: int, image_size: int, transform: Any, options: dict[str, Any]
) -> FasterRCNN:
    sizes = [[side] for side in _sides(image_size, 4)]
    levels = [str(stride) for stride in body.strides]
    settings = {
        "min_size": image_size,
        "max_size": image_size,
        "rpn_anchor_generator": AnchorGenerator(sizes, [_RATIOS] * 4),
        "box_roi_pool": MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        **transform,
        **_accepted(FasterRCNN, options),
    }
    return FasterRCNN(Pyramid(body, LastLevelMaxPool()), num_classes + 1, **settings)


def _ssdlite(
    body: Backbone, num_classes: int, image_size: int, transform: Any, options: dict[str, Any]
) -> SSDLite:
    """With the default boxes and thresholds of torchvision's SSDLite."""
    levels = ExtraStrides(body, _EXTRA_CHANNELS)
    channels = list(levels.channels)
    boxes = DefaultBoxGenerator([[2, 3]] * len(channels), min_ratio=0.2, max_ratio=0.95)
    settings = {
        "anchor_generator": boxes,
        "score_thresh": 0.001,
        "nms_thresh": 0.55,
        "detections_per_img": 300,
        "topk_candidates": 300,
        **transform,
        **_accepted(SSDLite, options),
    }
    anchors = settings["anchor_generator"].num_anchors_per_location()
    head = SSDLiteHead(channels, anchors, num_classes + 1, _norm)
    size = (image_size, image_size)
    return SSDLite(levels, size=size, num_classes=num_classes + 1, head=head, **settings)


KINDS = {"fasterrcnn": _fasterrcnn, "retinanet": _retinanet, "ssdlite": _ssdlite}


def _sides(image_size: int, levels: int) -> list[float]:
    """Sides of square anchors, from the finest level to the coarsest."""
    return [image_size * 2 / 3 / 2 ** (levels - 1 - level) for level in range(levels)]


_OURS = (
    *("self", "backbone", "num_classes", "size", "min_size", "max_size"),
    *("image_mean", "image_std", "head", "kwargs"),
)


def _accepted(cls: type[nn.Module], options: dict[str, Any]) -> dict[str, Any]:
    """The options, all of which torchvision's class takes: it ignores those that it does not."""
    accepted = [name for name in inspect.signature(cls.__init__).parameters if name not in _OURS]
    for name in options:
        if name not in accepted:
            raise InvalidTypeError(str(unknown(f"option of {cls.__name__}", name, accepted)))
    return options
