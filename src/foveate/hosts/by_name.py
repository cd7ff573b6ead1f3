"""Hosts by one name: our own, torchvision's, timm's, or any function's."""

import ast
import difflib
import fnmatch
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from torch import Tensor, nn
from torchvision import models

from foveate.errors import (
    InvalidTypeError,
    InvalidValueError,
    UserError,
    check_positive,
    require,
)
from foveate.hosts.networks import ResNet20, compact_cnn, resnet18_cifar, small_cnn
from foveate.hosts.pretrained import first_convolution, load_into, read_weights

Builder = Callable[..., nn.Module]

OWN: dict[str, Builder] = {
    "small_cnn": small_cnn,
    "compact_cnn": compact_cnn,
    "resnet18_cifar": resnet18_cifar,
    "resnet20": ResNet20,
}
# Their auxiliary classifiers would make the output a tuple while training.
_ONE_OUTPUT = {"aux_logits": False, "init_weights": True}
_EXTRA_ARGUMENTS = {"googlenet": _ONE_OUTPUT, "inception_v3": _ONE_OUTPUT}


class _Entry(NamedTuple):
    build: Builder
    """Takes ``num_classes``, ``in_channels`` and ``image_size``, and the host's own options."""
    weights: Callable[[], Mapping[str, Tensor]] | None = None
    """The publisher's weights."""


def build_host(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    pretrained: str | Path | None = None,
) -> nn.Module:
    """A classifier of ``(B, in_channels, image_size, image_size)`` into ``num_classes``.

    Initial weights come from torch's global random state.

    Args:
        name: ``small_cnn``, ``compact_cnn``, ``resnet18_cifar``, ``resnet20``, a torchvision or
            timm name (``timm:NAME`` where both have it), or ``module:function``. Options of the
            host follow a question mark: ``timm:mobilenetv2_100?pad_type=same&drop_rate=0.2``.
        num_classes: Width of the output.
        in_channels: Channels of the images.
        image_size: Side of the images.
        pretrained: None, ``"DEFAULT"`` for the publisher's weights, or a file of weights. A
            classifier of other classes keeps its fresh weights.

    Raises:
        ValueError: If the name is unknown, an option is refused, or weights cannot be had.
        TypeError: If ``module:function`` does not return a module.

    Example:
        >>> host = build_host("resnet20", num_classes=10, in_channels=3, image_size=32)
        >>> sum(parameter.numel() for parameter in host.parameters())
        272474
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    plain, _, query = name.partition("?")
    options = {key: _literal(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    entry = _find(plain, options)
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    try:
        host = entry.build(**sizes, **options)
    except UserError:
        raise
    except Exception as error:  # each library refuses in its own way
        if not options and names_code(plain):
            raise
        refused = f"refuses {options}" if options else "cannot be built"
        reason = str(error).partition("\n")[0]
        raise InvalidValueError(f"host '{plain}' {refused}: {reason}") from error
    if not isinstance(host, nn.Module):
        raise InvalidTypeError(f"host '{plain}' must be a torch module, but is {type(host)}")
    if pretrained is not None:
        weights = _published(plain, entry) if pretrained == "DEFAULT" else read_weights(pretrained)
        load_into(host, weights, num_classes)
    return host


def names_code(name: str) -> bool:
    """Whether a host is ``module:function``, which is imported and called."""
    plain = name.partition("?")[0]
    return ":" in plain and not plain.startswith("timm:")


def is_host(name: str) -> bool:
    """Whether :func:`build_host` knows a name; options after a question mark are not looked at."""
    try:
        _find(name.partition("?")[0], {})
    except InvalidValueError:
        return False
    return True


def list_hosts(pattern: str = "*") -> list[str]:
    """Our own hosts, torchvision's, and timm's as ``timm:NAME``, that match a shell pattern."""
    names = [*OWN, *models.list_models(module=models)]
    if importlib.util.find_spec("timm"):
        names += [f"timm:{name}" for name in importlib.import_module("timm").list_models()]
    return sorted(fnmatch.filter(names, pattern))


def _find(name: str, options: dict[str, Any]) -> _Entry:
    if name in OWN:
        return _Entry(_accepting(OWN[name]))
    if name in models.list_models(module=models):
        return _torchvision(name)
    if name.startswith("timm:") or (":" not in name and importlib.util.find_spec("timm")):
        timm = require("timm", extra="hosts")
        bare = name.removeprefix("timm:")
        if timm.is_model(bare):
            return _timm(timm, bare, options)
    elif ":" in name:
        return _Entry(_accepting(_imported(name)))
    near = difflib.get_close_matches(name, list_hosts(), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise InvalidValueError(
        f"unknown host '{name}'; {hint}Accepted: {', '.join(OWN)}, any torchvision or timm name, "
        "module:function"
    )


def _accepting(function: Builder) -> Builder:
    """``function``, given only those of the sizes that it has parameters for."""
    parameters = inspect.signature(function).parameters

    def build(*, num_classes: int, in_channels: int, image_size: int, **options: Any) -> nn.Module:
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
        taken = {key: value for key, value in sizes.items() if key in parameters}
        return function(**taken, **options)

    return build


def _torchvision(name: str) -> _Entry:
    extra = _EXTRA_ARGUMENTS.get(name, {})

    def build(*, num_classes: int, in_channels: int, image_size: int, **options: Any) -> nn.Module:
        if name.startswith("vit_"):
            options["image_size"] = image_size
        host: nn.Module = models.get_model(name, num_classes=num_classes, **extra, **options)
        return host if in_channels == 3 else _with_stem(host, in_channels)

    def weights() -> Mapping[str, Tensor]:
        found: Mapping[str, Tensor] = models.get_model_weights(name).DEFAULT.get_state_dict(
            progress=False, check_hash=True
        )
        return found

    return _Entry(build, weights)


def _timm(timm: Any, name: str, options: dict[str, Any]) -> _Entry:
    def build(*, num_classes: int, in_channels: int, image_size: int, **options: Any) -> nn.Module:
        del image_size  # convolutional hosts take any
        host: nn.Module = timm.create_model(
            name, num_classes=num_classes, in_chans=in_channels, **options
        )
        return host

    def weights() -> Mapping[str, Tensor]:
        found: Mapping[str, Tensor] = timm.create_model(
            name, pretrained=True, **options
        ).state_dict()
        return found

    return _Entry(build, weights)


def _with_stem(host: nn.Module, in_channels: int) -> nn.Module:
    """The host with a fresh first convolution for other channels."""
    name = first_convolution(host)
    old = host.get_submodule(name) if name else None
    if not isinstance(old, nn.Conv2d) or old.groups != 1:
        raise InvalidValueError(f"this host has no stem that could take {in_channels=}")
    stem = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        dilation=old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    host.set_submodule(str(name), stem)
    return host


def _imported(name: str) -> Builder:
    """The function of ``module:function``; the module may lie in the working directory."""
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise InvalidValueError(f"host '{name}' cannot be imported: {error}") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise InvalidTypeError(f"host '{name}' must be a function or class, but is {type(found)}")
    return found


def _published(name: str, entry: _Entry) -> Mapping[str, Tensor]:
    if entry.weights is None:
        raise InvalidValueError(
            f"host '{name}' has no published weights; give a file of weights as pretrained"
        )
    try:
        return entry.weights()
    except Exception as error:  # each publisher's client fails in its own way without a network
        reason = str(error).partition("\n")[0]
        raise InvalidValueError(
            f"the published weights of '{name}' cannot be fetched ({reason}); give a file instead"
        ) from error


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
