"""What the registry knows of a mechanism, read from its class and counted from its modules."""

import functools
import inspect
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foveate.cost import meta_cost
from foveate.describe.docstrings import Docstring, parse
from foveate.describe.formulas import plain
from foveate.mechanisms.base import Attention, Gate, Mixer, Published, Replacement
from foveate.registry import create, get_mechanism

SHAPE = (256, 56, 56)
"""Channels, height and width of the map that costs are given for."""


@dataclass(frozen=True)
class Option:
    """A keyword argument; ``meaning`` still has its markup."""

    name: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class Facts:
    """All that is said of one mechanism."""

    key: str
    cls: type[Attention]
    citation: str
    doc: Docstring
    options: tuple[Option, ...]
    parameters: int
    flops: int
    identity: str

    @property
    def place(self) -> str:
        return self.cls.place

    @property
    def results(self) -> tuple[Published, ...]:
        return self.cls.results


@functools.cache
def facts(key: str) -> Facts:
    """All that is known of the mechanism registered as ``key``."""
    cls, doc = get_mechanism(key), parse(get_mechanism(key))
    assert issubclass(cls, Attention)
    parameters, flops = cost(key, *SHAPE)
    return Facts(
        key, cls, citation(key), doc, _options(cls, doc), parameters, flops, _identity(key)
    )


def built(key: str, channels: int, height: int, width: int, **options: Any) -> nn.Module:
    """The mechanism for a map of this size."""
    if getattr(get_mechanism(key), "sized", False):
        options = {"size": (height, width), **options}
    return create(key, channels, **options)


def cost(key: str, channels: int, height: int, width: int) -> tuple[int, int]:
    """Parameters and multiply-adds on one map of this size."""
    return meta_cost(lambda: built(key, channels, height, width), (1, channels, height, width))


def summary(key: str) -> str:
    """The one sentence that opens the docstring of the class."""
    return plain(parse(get_mechanism(key)).summary)


def citation(key: str) -> str:
    """The paper: the first paragraph of the docstring of the module."""
    return parse(sys.modules[get_mechanism(key).__module__]).summary


def as_keywords(options: dict[str, Any]) -> str:
    """Options as they are written in a call.

    Example:
        >>> as_keywords({"reduction": 4, "fusion": "mul"}), as_keywords({})
        ("reduction=4, fusion='mul'", 'the defaults')
    """
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "the defaults"


def _options(cls: type[Attention], doc: Docstring) -> tuple[Option, ...]:
    meanings = doc.entries("Args")
    return tuple(
        Option(name, parameter.default, meanings.get(name, ""))
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    )


def _identity(key: str) -> str:
    """How the identity form differs from the paper's, told by what it learns in addition."""
    paper, identity = (_scalars(key, init) for init in ("paper", "identity"))
    cls = get_mechanism(key)
    if issubclass(cls, Replacement):
        return (
            "the convolution stays; what stands in for it is added with a learned scale, 0 at first"
        )
    if "strength" in identity and cls.forward is not Gate.forward:
        return "a learned strength, 0 at first, that leads from the input to the paper's form at 1"
    if "strength" in identity:
        return "a learned strength a, 0 at first: each factor g acts as 1 + a (g - 1)"
    if "scale" not in identity:
        return "the paper's own initialisation is the identity"
    if "scale" not in paper:
        return "a learned scale of what the mechanism changes, 0 at first"
    if issubclass(cls, Mixer) and cls.published_scale:
        return f"the paper's learned scale starts at 0 instead of {cls.published_scale:g}"
    return "the paper's own initialisation is the identity: its learned scale is 0 at first"


def _scalars(key: str, init: str) -> set[str]:
    with torch.device("meta"):
        module = built(key, *SHAPE, init=init)
    return {name for name, parameter in module.named_parameters() if parameter.ndim == 0}
