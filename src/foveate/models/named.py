"""Named models: a host, and the insertions that its paper describes."""

import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from foveate.errors import InvalidTypeError, InvalidValueError, check_positive, unknown
from foveate.hosts import build_host
from foveate.insertion import insert
from foveate.mechanisms.base import Replacement
from foveate.models.recipes import HOSTS, RESNETS, Insertion, recipe
from foveate.registry import get_mechanism, list_mechanisms


def create(
    name: str,
    *,
    num_classes: int = 1000,
    pretrained_host: bool | str | Path = False,
    init: str | None = None,
    image_size: int = 224,
    stride_in_1x1: bool = False,
    in_channels: int = 3,
    **options: Any,
) -> nn.Module:
    """A classifier of ``(B, in_channels, H, W)`` with attention at the places of its paper.

    Args:
        name: One of :func:`list_models`, such as ``"cbam_resnet50"``.
        num_classes: Width of the output. Where the host's weights are of other classes, the
            classifier is a fresh one.
        pretrained_host: Weights for the host: True for its publisher's, or a file of weights.
        init: ``"paper"`` for the published architecture to the unit, or ``"identity"`` for a model
            that starts as its host; by default the identity on a pretrained host, which it does
            not disturb, and the paper's otherwise.
        image_size: Side of the images, on which position tables and bases of frequencies depend.
        stride_in_1x1: Put the stride of a bottleneck on its first convolution, as the papers of the
            Caffe era do, and not on its 3x3, as torchvision does.
        in_channels: Channels of the images.
        options: Keyword arguments of the mechanism, instead of its paper's.

    Raises:
        ValueError: If a name or option is unknown, or weights cannot be had.
        TypeError: If the mechanism has no such option.

    Example:
        >>> from foveate.models import create
        >>> sum(parameter.numel() for parameter in create("cbam_resnet50").parameters())
        28089624
    """
    check_positive(num_classes=num_classes, image_size=image_size, in_channels=in_channels)
    if name not in _names():
        raise unknown("model", name, _names())
    init = init or ("identity" if pretrained_host else "paper")
    pretrained = "DEFAULT" if pretrained_host is True else pretrained_host or None

    def host(of: str) -> nn.Module:
        return build_host(
            of,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            pretrained=pretrained,
        )

    if name in _THIN:
        if options or stride_in_1x1:
            raise InvalidTypeError(f"{name} is timm's as it is and takes no options: {options}")
        return host(_THIN[name])
    key, base = _split(name)
    model = host(base)
    if stride_in_1x1:
        _move_strides(model)
    example = torch.zeros(1, in_channels, image_size, image_size)
    for one in recipe(key, base, model):
        _insert(model, one, init, example, options)
    if name in _FAMOUS and init == "paper":
        _drop(model, _FAMOUS[name].without)
    return model


def _insert(
    model: nn.Module, one: Insertion, init: str, example: torch.Tensor, options: dict[str, Any]
) -> None:
    insert(
        model,
        one.mechanism,
        where=one.where,
        at=one.at,
        init=init,
        example=example,
        **{**one.options, **options},
    )


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern, sorted.

    Example:
        >>> from foveate.models import list_models
        >>> list_models("se_resnet1*")
        ['se_resnet101', 'se_resnet152', 'se_resnet18']
    """
    return sorted(fnmatch.filter(_names(), pattern))


def turned(name: str) -> str | None:
    """The model meant by ``host_mechanism`` or ``mechanism_host``; None if there is none."""
    known = _names()
    host = next((host for host in HOSTS if name.startswith(f"{host}_")), "")
    other = f"{name.removeprefix(host).lstrip('_')}_{host}"
    return next((one for one in (name, other) if one in known), None)


class _Famous(NamedTuple):
    """A mechanism in place of the spatial convolutions of a host, under a name of its own."""

    mechanism: str
    host: str
    without: tuple[str, ...] = ()
    """Parts of each block that the paper has not after the mechanism."""


_FAMOUS = {
    "botnet50": _Famous("bot", "resnet50"),
    "cotnet50": _Famous("cot", "timm:resnet50", without=("bn2", "act2")),
    # Its ReLU stays, but sees sums of activated maps and is idle.
    "sknet50": _Famous("sk", "resnext50_32x4d", without=("bn2",)),
}
# These differ from any host in more than their attention.
_THIN = {
    "mobilevit_s": "timm:mobilevit_s",
    "mobilevit_xs": "timm:mobilevit_xs",
    "mobilevit_xxs": "timm:mobilevit_xxs",
    "resnest50": "timm:resnest50d",
}


def _names() -> dict[str, None]:
    """The control has no paper, and depthwise convolutions no replacement."""
    keys = [key for key in list_mechanisms() if key != "static"]
    pairs = [
        f"{key}_{host}"
        for key in keys
        for host in HOSTS
        if host in RESNETS or not issubclass(get_mechanism(key), Replacement)
    ]
    return dict.fromkeys([*pairs, *_FAMOUS, *_THIN])


def _split(name: str) -> tuple[str, str]:
    if name in _FAMOUS:
        return _FAMOUS[name][:2]
    host = next(host for host in HOSTS if name.endswith(f"_{host}"))
    return name.removesuffix(f"_{host}"), host


def _move_strides(model: nn.Module) -> None:
    blocks = [block for block in model.modules() if isinstance(block, Bottleneck)]
    if not blocks:
        raise InvalidValueError("stride_in_1x1 needs a host of bottlenecks, such as resnet50")
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def _drop(model: nn.Module, parts: tuple[str, ...]) -> None:
    for block in list(model.modules()):
        for part in parts:
            if hasattr(block, part):
                setattr(block, part, nn.Identity())
