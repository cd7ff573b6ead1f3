"""The table of mechanisms: a name for each class, and nothing else."""

import fnmatch
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from foveate.errors import InvalidTypeError, unknown

_MECHANISMS: dict[str, type[nn.Module]] = {}
_Class = TypeVar("_Class", bound=type[nn.Module])


def register_mechanism(key: str) -> Callable[[_Class], _Class]:
    """Class decorator: make a mechanism known as ``key`` to Python and the command line.

    Raises:
        ValueError: If the key is taken.
    """

    def register(cls: _Class) -> _Class:
        if key in _MECHANISMS:
            raise ValueError(f"mechanism '{key}' is already {_MECHANISMS[key].__qualname__}")
        _MECHANISMS[key] = cls
        cls.key = key  # type: ignore[attr-defined]
        return cls

    return register


def get_mechanism(key: str) -> type[nn.Module]:
    """The class registered as ``key``.

    Raises:
        ValueError: If the key is unknown; the nearest known one is suggested.
    """
    if key not in _MECHANISMS:
        raise unknown("mechanism", key, _MECHANISMS)
    return _MECHANISMS[key]


def create(key: str, channels: int, **options: Any) -> nn.Module:
    """Build a mechanism: a module from ``(B, channels, H, W)`` to the same shape.

    Args:
        key: One of :func:`list_mechanisms`.
        channels: Channels of the feature map.
        options: Keyword arguments of the class, such as ``reduction`` or ``init``.

    Raises:
        ValueError: If the key is unknown or an option has a value that the class refuses.
        TypeError: If the class has no such option.

    Example:
        >>> create("se", 64, reduction=16)
        SqueezeExcitation(64, reduction=16, bias=True)
    """
    chosen = get_mechanism(key)
    accepted = [name for name in inspect.signature(chosen).parameters if name != "channels"]
    for name in options:
        if name not in accepted:
            raise InvalidTypeError(str(unknown(f"option of {key}", name, accepted)))
    return chosen(channels, **options)


def list_mechanisms(pattern: str = "*") -> list[str]:
    """The keys that match a shell pattern, sorted.

    Example:
        >>> list_mechanisms("cb*")
        ['cbam']
    """
    return sorted(fnmatch.filter(_MECHANISMS, pattern))
