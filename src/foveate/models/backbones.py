"""Backbones: the features of a host at several strides, for detection and segmentation."""

import difflib
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidTypeError, InvalidValueError, check_positive
from foveate.hosts import build_host, is_host, list_hosts
from foveate.models.named import create, list_models
from foveate.models.stages import Stage, Stages, zeros_for
from foveate.modes import in_mode

OUTPUT_STRIDES = (8, 16, 32)


class Backbone(nn.Module):
    """A host that returns its features at several strides and ends with the last of them.

    They are caught as each stage returns them, so attention that acts there, also what is
    inserted later, is in them. :func:`backbone` builds it.

    Args:
        host: A network; its own output is not used.
        ends: The module whose output is the feature map, by the key of that map.
        strides: Step of each map in pixels of the image.
        channels: Channels of each map.

    Shape:
        - Input: ``(B, in_channels, H, W)``
        - Output: a dict of ``(B, channels[i], ~H / strides[i], ~W / strides[i])``, in their order

    Attributes:
        host: The network, for :func:`foveate.insert` and weights.
        strides: As above.
        channels: As above; the ``in_channels_list`` of torchvision's feature pyramid.
    """

    def __init__(
        self,
        host: nn.Module,
        ends: dict[str, str],
        strides: tuple[int, ...],
        channels: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.host, self.ends = host, ends
        self.strides, self.channels = strides, channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        last = next(reversed(self.ends))
        # Registered last, they see what attention has made of an output.
        handles = [
            self.host.get_submodule(name).register_forward_hook(
                partial(_keep, found, key, key == last)
            )
            for key, name in self.ends.items()
        ]
        try:
            self.host(x)
        finally:
            for handle in handles:
                handle.remove()
        return OrderedDict((key, found[key]) for key in self.ends)


def _keep(
    found: dict[str, Tensor],
    key: str,
    last: bool,
    module: nn.Module,
    args: Any,
    output: Tensor,
) -> None:
    # What is left of the host after its last stage may act in place, as the ReLU of DenseNet does.
    found[key] = output.clone() if last else output


def backbone(
    name: str,
    *,
    strides: tuple[int, ...] = (8, 16, 32),
    pretrained_host: bool | str | Path = False,
    init: str | None = None,
    image_size: int = 224,
    output_stride: int = 32,
    in_channels: int = 3,
    **options: Any,
) -> Backbone:
    """The features of a named model or a bare host at several strides.

    The layers are found by the size of what they return, in one run of the host. What it has
    after the last of them is left out.

    Args:
        name: One of :func:`foveate.models.list_models`, such as ``"cbam_resnet18"``, or a host
            as ``foveate train`` takes it, such as ``"resnet18"`` or
            ``"mobilenetv2_100?pad_type=same"``.
        strides: Of the stages of the host, ascending. The keys of the features are these numbers
            as text: ``"8"``, ``"16"``, ``"32"``.
        pretrained_host: As in :func:`foveate.models.create`.
        init: As in :func:`foveate.models.create`; of attention alone.
        image_size: Side of the images for attention that depends on it; others work too.
        output_stride: 8 or 16 to dilate the convolutions beyond it instead of reducing the map:
            the features keep their keys, and ``strides`` of the result says how fine they are.
        in_channels: Channels of the images.
        options: Keyword arguments of the mechanism of a named model.

    Raises:
        ValueError: If a name or an option is unknown, the host has no features at a stride, or it
            cannot be dilated.
        TypeError: If options are given for a bare host or unknown to the mechanism.

    Example:
        >>> features = backbone("resnet18", output_stride=8)
        >>> features.strides, features.channels
        ((8, 8, 8), (128, 256, 512))
    """
    _check(strides, image_size, output_stride)
    size = -(-max(image_size, 64) // 32) * 32  # at least two positions at every stride
    host = _host(name, pretrained_host, init, size, in_channels, options)
    size = max(size, _pooled_from(host))
    stages = Stages(host, name, in_channels=in_channels, size=size)
    chosen = stages.take(strides)
    if output_stride < 32:
        stages.dilate(output_stride)
    stages.cut(chosen[-1])
    built = Backbone(
        host,
        {str(stride): stage.call.name for stride, stage in zip(strides, chosen, strict=True)},
        tuple(min(stride, output_stride) for stride in strides),
        tuple(stage.node.shape[1] for stage in chosen),
    )
    _check_sizes(built, name, chosen, size, in_channels, output_stride)
    return built


def _pooled_from(host: nn.Module) -> int:
    """The least size whose deepest map the pooling before a classifier makes smaller.

    At others, what it returns would be taken for the end of the last stage.
    """
    pools = [m.output_size for m in host.modules() if isinstance(m, nn.AdaptiveAvgPool2d)]
    sides = [side if isinstance(side, tuple) else (side,) for side in pools]
    return 32 * (1 + max((side or 1 for both in sides for side in both), default=1))


def _host(
    name: str,
    pretrained_host: bool | str | Path,
    init: str | None,
    image_size: int,
    in_channels: int,
    options: dict[str, Any],
) -> nn.Module:
    if name in list_models():
        return create(
            name,
            pretrained_host=pretrained_host,
            init=init,
            image_size=image_size,
            in_channels=in_channels,
            **options,
        )
    if not is_host(name):
        raise _unknown(name)
    if options:
        raise InvalidTypeError(
            f"'{name}' has no attention that could take {options}; options of a host follow its "
            "name: 'mobilenetv2_100?pad_type=same'"
        )
    pretrained = "DEFAULT" if pretrained_host is True else pretrained_host or None
    return build_host(
        name,
        num_classes=1000,
        in_channels=in_channels,
        image_size=image_size,
        pretrained=pretrained,
    )


def _unknown(name: str) -> InvalidValueError:
    near = difflib.get_close_matches(name, [*list_models(), *list_hosts()], n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return InvalidValueError(
        f"unknown backbone '{name}'; {hint}Accepted: a named model, such as 'cbam_resnet18' "
        "(foveate.models.list_models()), or a host: compact_cnn, resnet20, any torchvision or timm "
        "name, module:function"
    )


def _check(strides: tuple[int, ...], image_size: int, output_stride: int) -> None:
    check_positive(image_size=image_size, **{f"strides[{i}]": s for i, s in enumerate(strides)})
    if not strides or list(strides) != sorted(set(strides)):
        raise InvalidValueError(f"strides must ascend, such as (8, 16, 32), but got {strides=}")
    if output_stride not in OUTPUT_STRIDES:
        raise InvalidValueError(f"output_stride must be 8, 16 or 32, but got {output_stride=}")


def _check_sizes(
    built: Backbone,
    name: str,
    chosen: list[Stage],
    size: int,
    in_channels: int,
    output_stride: int,
) -> None:
    """Refuse a host that does not run when cut or dilated, or does not give what it should."""
    try:
        with in_mode(built, training=False), torch.random.fork_rng(), torch.no_grad():
            features = built(zeros_for(built.host, in_channels, size))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, KeyError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise _unfit(name, output_stride, reason) from error
    finest = size // output_stride
    for (key, map_), stage in zip(features.items(), chosen, strict=True):
        side = max(stage.node.shape[2], finest)
        expected = (1, stage.node.shape[1], side, side)
        if tuple(map_.shape) != expected:
            reason = f"its features '{key}' are {tuple(map_.shape)}, not {expected}"
            raise _unfit(name, output_stride, reason)


def _unfit(name: str, output_stride: int, reason: str) -> InvalidValueError:
    if output_stride < 32:
        return InvalidValueError(f"'{name}' cannot be dilated: {reason}; take output_stride=32")
    return InvalidValueError(f"'{name}' does not run as a backbone: {reason}")
