"""The errors that a person's input can cause, and how they are worded."""

import difflib
import importlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

_SHOWN = 80
"""Names that an error lists, and characters of a path; what is left out, a command shows."""


class UserError(Exception):
    """Marks an error that the input caused: the command line prints it in one line."""


class InvalidValueError(UserError, ValueError):
    """A value that cannot be accepted; the message names it and what would be."""


class InvalidTypeError(UserError, TypeError):
    """An object of a type that cannot be accepted."""


class MissingExtraError(UserError, ImportError):
    """An optional dependency that is not installed; the message names the extra."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> InvalidValueError:
    """The error for a name that is none of ``choices``, with the nearest one suggested.

    Example:
        >>> print(unknown("mechanism", "cbm", ["se", "cbam"]))
        unknown mechanism 'cbm'; did you mean 'cbam'? Accepted: cbam, se
    """
    accepted = sorted(choices)
    near = difflib.get_close_matches(name, accepted, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    if len(accepted) > _SHOWN:
        accepted = [*accepted[: _SHOWN - 1], f"and {len(accepted) - _SHOWN + 1} more"]
    return InvalidValueError(f"unknown {kind} '{name}'; {hint}Accepted: {', '.join(accepted)}")


def check_choice(kind: str, name: str, choices: Iterable[str]) -> str:
    """``name`` itself, or the error of :func:`unknown`."""
    accepted = list(choices)
    if name not in accepted:
        raise unknown(kind, name, accepted)
    return name


def check_positive(**values: int) -> None:
    """Refuse any keyword whose value is not a whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidTypeError(f"{name} must be a whole number, but got {name}={value!r}")
        if value < 1:
            raise InvalidValueError(f"{name} must be at least 1, but got {name}={value!r}")


def to_path(name: str | os.PathLike[str]) -> Path:
    """The path that a person names, with ``~`` as their home; there need not be anything.

    Raises:
        ValueError: If nothing can be called that, or it may not be looked at.
    """
    try:
        path = Path(name).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidValueError(
            f"'{os.fspath(name)[:_SHOWN]}' is no usable path: {reason}"
        ) from error
    return path


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{module} is not installed; it comes with: pip install 'foveate[{extra}]'"
        ) from error
