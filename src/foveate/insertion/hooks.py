"""How attention lives in a host: a child module, and one hook that applies it.

Attention acts on one of these sides of a module, its owner:

- ``after`` and ``before``: on its output and on its input;
- ``beside``: it takes the same input, and the output of both is theirs together;
- ``skip``: on the input of a residual block, but not where the block's branch takes it;
- ``instead``: in place of a child of the owner, which it keeps until it is taken out.

On all but the last no key of the host changes. The hooks are module-level functions (so models
pickle), and all that was added can be found again from the model alone.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidTypeError
from foveate.insertion.pending import Pending, can_wait

_SLOTS = {side: f"_foveate_{side}" for side in ("after", "before", "beside", "skip")}
_REPLACED = "_foveate_replaced"
_ENTRY, _HELD = "_foveate_entry", "_foveate_held"
_ENDS = "_foveate_ends_block"


class _Held:
    """The input of a block on its way to the branch, by device: replicas run in threads."""

    def __init__(self) -> None:
        self.inputs: dict[torch.device, Tensor] = {}


def inserted(module: nn.Module, side: str) -> tuple[str, ...]:
    """Names of the children that act on a side of a module; there are none ``instead``."""
    names: tuple[str, ...] = getattr(module, _SLOTS[side], ())
    return names


def follows(owner: nn.Module, child: nn.Module) -> bool:
    """Whether ``child`` makes what the host takes for the output of ``owner``."""
    sides = ("after", "beside")
    return any(getattr(owner, name) is child for side in sides for name in inserted(owner, side))


def stands_in(module: nn.Module) -> bool:
    """Whether a module took the place of one of the host's."""
    return _REPLACED in vars(module)


def _apply_after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    names = inserted(module, "after")
    if hasattr(module, _ENDS) and len(names) == 1:
        attention = getattr(module, names[0])
        if can_wait(module, attention, output):
            return Pending(attention, output)
    for name in names:
        output = getattr(module, name)(output)
    return output


def _apply_beside(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    for name in inserted(module, "beside"):
        output = getattr(module, name)(args[0], output)
    return output


def _apply_before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return _on_input(module, args, "before")


def _apply_skip(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if args:
        getattr(module, _HELD).inputs[args[0].device] = args[0]
    return _on_input(module, args, "skip")


def _enter_branch(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = args
    return (getattr(module, _HELD).inputs.pop(x.device), *rest)


def _on_input(module: nn.Module, args: tuple[Any, ...], side: str) -> tuple[Any, ...]:
    if not args:
        raise InvalidTypeError(
            f"{type(module).__name__} has attention before it and needs its input by position"
        )
    x, *rest = args
    for name in inserted(module, side):
        x = getattr(module, name)(x)
    return (x, *rest)


_HOOKS: dict[str, Callable[..., Any]] = {
    "after": _apply_after,
    "before": _apply_before,
    "beside": _apply_beside,
    "skip": _apply_skip,
}


def attach(
    owner: nn.Module, attention: nn.Module, side: str, target: str = "", *, ends_block: bool = False
) -> str:
    """Make ``attention`` a child of ``owner`` that acts on a side of it; the child's name.

    Args:
        owner: A module of the host.
        attention: What is to act there.
        side: One of the five above.
        target: For ``skip`` the module inside ``owner`` with which the branch begins; for
            ``instead`` the name of the child to replace.
        ends_block: For ``after`` whether a shortcut is added to what comes out, then a ReLU taken.
    """
    if side == "instead":
        replaced = owner.get_submodule(target)
        vars(attention)[_REPLACED] = replaced  # not as a child: the host is without it now
        setattr(owner, target, attention)
        return target
    name = _free_name(owner)
    owner.add_module(name, attention)
    if not inserted(owner, side):
        _register(owner, side)
        if side == "skip":
            _divert(owner, target)
    setattr(owner, _SLOTS[side], (*inserted(owner, side), name))
    if ends_block:
        setattr(owner, _ENDS, True)
    return name


def _register(owner: nn.Module, side: str) -> None:
    if side in ("after", "beside"):
        owner.register_forward_hook(_HOOKS[side])
    else:
        owner.register_forward_pre_hook(_HOOKS[side])


def _divert(owner: nn.Module, target: str) -> None:
    """Let the branch of a residual block begin with the block's own input."""
    entry = owner.get_submodule(target)
    held = _Held()
    setattr(owner, _ENTRY, target)
    setattr(owner, _HELD, held)
    setattr(entry, _HELD, held)
    entry.register_forward_pre_hook(_enter_branch, prepend=True)


def detach(owner: nn.Module, name: str, side: str) -> None:
    """Undo :func:`attach`."""
    if side == "instead":
        attention = owner.get_submodule(name)
        replaced: nn.Module = vars(attention).pop(_REPLACED)
        like = next(chain(attention.parameters(), attention.buffers()), None)
        setattr(owner, name, replaced if like is None else replaced.to(like))
        replaced.train(attention.training)
        return
    delattr(owner, name)
    left = tuple(other for other in inserted(owner, side) if other != name)
    if left:
        setattr(owner, _SLOTS[side], left)
        return
    delattr(owner, _SLOTS[side])
    _unregister(owner, _HOOKS[side])
    if side == "after" and hasattr(owner, _ENDS):
        delattr(owner, _ENDS)
    if side == "skip":
        entry = owner.get_submodule(getattr(owner, _ENTRY))
        _unregister(entry, _enter_branch)
        for module, attribute in ((owner, _ENTRY), (owner, _HELD), (entry, _HELD)):
            delattr(module, attribute)


def _unregister(module: nn.Module, hook: Callable[..., Any]) -> None:
    hooks: dict[int, Any]
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, found in hooks.items() if found is hook]:
            del hooks[key]


def attachments(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Each ``(owner, child name, side)`` that :func:`attach` has left in a model."""
    for module in model.modules():
        for side in _SLOTS:
            for name in inserted(module, side):
                yield module, name, side
        for name, child in module.named_children():
            if stands_in(child):
                yield module, name, "instead"


def _free_name(owner: nn.Module) -> str:
    name, number = "attention", 1
    while hasattr(owner, name):
        number += 1
        name = f"attention_{number}"
    return name
