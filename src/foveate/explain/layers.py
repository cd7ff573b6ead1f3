"""Which modules of a network give maps, in the order in which they finish, and what they give."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidValueError, unknown
from foveate.explain.acting import mechanisms
from foveate.modes import in_mode


def list_maps(model: nn.Module, images: Tensor) -> list[str]:
    """The names of the modules that give a map of more than one position, the last to finish last.

    Modules inside attention are left out, and so is the network itself.
    """
    names: list[str] = []

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if _is_map(output) and max(output.shape[2:]) > 1:
            names.append(name)

    inside = tuple(f"{name}." for name, _ in mechanisms(model))
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name and not name.startswith(inside):
                hook = module.register_forward_hook(partial(note, name))
                stack.callback(hook.remove)
        with in_mode(model, training=False), torch.no_grad():
            model(images)
    return list(dict.fromkeys(reversed(names)))[::-1]


def last_map(model: nn.Module, images: Tensor) -> str:
    """The module that is the last to give a map of more than one position.

    Raises:
        ValueError: If there is none.
    """
    names = list_maps(model, images)
    if not names:
        raise InvalidValueError(
            f"no module of this {type(model).__name__} gives a map (B, C, H, W)"
        )
    return names[-1]


@contextmanager
def outputs_of(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keeps what modules give inside the block, by name, without gradients.

    Raises:
        ValueError: If a name is unknown.
    """
    modules = dict(model.named_modules())
    kept: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if _is_map(output):
            kept[name] = output.detach().clone()  # the network may change it in place

    with ExitStack() as stack:
        for name in names:
            if name not in modules:
                raise unknown("layer", name, filter(None, modules))
            stack.callback(modules[name].register_forward_hook(partial(keep, name)).remove)
        yield kept


def _is_map(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dim() == 4
