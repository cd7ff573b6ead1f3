"""How attention lives in a host: a child module, and one hook that applies it.

No key of the host changes, the hooks are module-level functions (so models pickle), and all that
was added can be found again from the model alone.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from foveate.errors import InvalidTypeError

_SLOTS = {"after": "_foveate_after", "before": "_foveate_before"}


def inserted(module: nn.Module, side: str) -> tuple[str, ...]:
    """Names of the children that act on a module's output (``after``) or input (``before``)."""
    names: tuple[str, ...] = getattr(module, _SLOTS[side], ())
    return names


def is_inserted(owner: nn.Module, child: nn.Module, *, side: str) -> bool:
    """Whether ``child`` was put after (or before) ``owner``."""
    return any(getattr(owner, name) is child for name in inserted(owner, side))


def _apply_after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    for name in inserted(module, "after"):
        output = getattr(module, name)(output)
    return output


def _apply_before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not args:
        raise InvalidTypeError(
            f"{type(module).__name__} has attention before it and needs its input by position"
        )
    x, *rest = args
    for name in inserted(module, "before"):
        x = getattr(module, name)(x)
    return (x, *rest)


_HOOKS = {"after": _apply_after, "before": _apply_before}


def attach(owner: nn.Module, attention: nn.Module, side: str) -> str:
    """Make ``attention`` a child of ``owner`` that acts on its output or input; its name."""
    name = _free_name(owner)
    owner.add_module(name, attention)
    if not inserted(owner, side):
        if side == "after":
            owner.register_forward_hook(_apply_after)
        else:
            owner.register_forward_pre_hook(_apply_before)
    setattr(owner, _SLOTS[side], (*inserted(owner, side), name))
    return name


def detach(owner: nn.Module, name: str, side: str) -> None:
    """Undo :func:`attach`."""
    delattr(owner, name)
    left = tuple(other for other in inserted(owner, side) if other != name)
    if left:
        setattr(owner, _SLOTS[side], left)
        return
    delattr(owner, _SLOTS[side])
    hooks: dict[int, Any] = owner._forward_hooks if side == "after" else owner._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _HOOKS[side]]:
        del hooks[key]


def attachments(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Each ``(owner, child name, side)`` that :func:`attach` has left in a model."""
    for module in model.modules():
        for side in _SLOTS:
            for name in inserted(module, side):
                yield module, name, side


def _free_name(owner: nn.Module) -> str:
    name, number = "attention", 1
    while hasattr(owner, name):
        number += 1
        name = f"attention_{number}"
    return name
