"""The parts by which a mechanism acts, call by call, and the network with others in their place."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.explain.foreign import Foreign, recognise
from foveate.explain.untouched import untouched
from foveate.mechanisms.base import Attention, Gate, Mixer, Replacement

Parts = dict[str, Tensor]
"""The raw gates by name; or ``"added"``, what is added to the input or to the host's output."""
See = Callable[[Parts], Parts | None]
"""Is shown the parts of a call, and gives others of their shapes for it, or None to leave it."""
Handle = torch.utils.hooks.RemovableHandle


def mechanisms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each mechanism that is known, by its name in the model, but for those inside another."""
    last = None
    for name, module in model.named_modules():
        if last is not None and (last == "" or name.startswith(f"{last}.")):
            continue
        if isinstance(module, Attention) or recognise(module) is not None:
            last = name
            yield name, module


def key_of(module: nn.Module) -> str:
    """The mechanism in the registry that a module is, or is a form of."""
    foreign = recognise(module)
    if foreign is not None:
        return foreign.key
    key = getattr(module, "key", None)
    return type(module).__name__ if key is None else str(key)


def is_gate(module: nn.Module, part: str, found: Tensor) -> bool:
    """Whether a recorded map weighs features.

    Others are what is added to them, its length, or with which weights positions are gathered.
    """
    foreign = recognise(module)
    if foreign is not None:
        return part not in ("added", "attention", "shift")
    branches = isinstance(module, Replacement) and found.shape[2:] == (1, 1)
    return isinstance(module, Gate) or branches


@contextmanager
def watched(module: nn.Module, see: See) -> Iterator[None]:
    """Show the parts of each call of a mechanism inside the block, and act with those that return.

    Without a scale or a strength of their own parts are what the paper defines: a gate is shown
    before the identity form draws it towards 1.
    """
    with ExitStack() as stack:
        for handle in _hooks(module, see):
            stack.callback(handle.remove)
        yield


def _hooks(module: nn.Module, see: See) -> Iterator[Handle]:
    foreign = recognise(module)
    if isinstance(module, Gate):
        yield module.register_forward_hook(partial(_on_gate, see))
    elif foreign is not None and foreign.product:
        parts: Parts = {}
        yield module.register_forward_hook(partial(_on_product, see, parts))
        yield from tap(module, foreign, lambda: parts)
    else:
        yield module.register_forward_hook(partial(_on_added, see))


def _on_gate(see: See, module: Gate, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    with untouched(module, args[0]):
        parts = module.gate(args[0])
    others = see(parts)
    return None if others is None else module.weigh(args[0], others)


def _on_product(
    see: See, parts: Parts, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor | None:
    others = see(dict(parts))
    parts.clear()
    x = args[0]
    return None if others is None else prod((_spread(g, x) for g in others.values()), start=x)


def _spread(gate: Tensor, x: Tensor) -> Tensor:
    """A gate of a coarser map as large as the map; others broadcast as they are."""
    coarse = min(gate.shape[2:]) > 1 and gate.shape[2:] != x.shape[2:]
    return F.interpolate(gate, x.shape[2:], mode="nearest") if coarse else gate


def _on_added(
    see: See, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor | None:
    base = without(module, args)
    added = output.detach() if base is None else output.detach() - base.detach()
    if isinstance(module, Mixer) and module.uniform:
        added = added[:, :, :1, :1]
    others = see({"added": added})
    if others is None:
        return None
    return others["added"] if base is None else base + others["added"]


def needed(module: nn.Module) -> bool:
    """Whether nothing could stand in for a mechanism: it took the place of a convolution."""
    return isinstance(module, Replacement) and module.init == "paper"


def without(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor | None:
    """What stands where the output does if the mechanism does nothing; None if nothing could."""
    if needed(module):
        return None
    return args[1] if len(args) > 1 else args[0]


@contextmanager
def skipped(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block mechanisms do nothing, but for those in whose place nothing could stand."""

    def skip(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return without(module, args)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(skip).remove)
        yield


def tap(module: nn.Module, foreign: Foreign, call: Callable[[], Parts]) -> Iterator[Handle]:
    """Hooks that write what the inner modules of another library's mechanism give into a call."""
    inner = dict(module.named_modules())
    for one in foreign.taps:
        if one.path not in inner:  # not in this form of it
            continue

        def keep(module: nn.Module, args: Any, output: Tensor, one: Any = one) -> None:
            parts = call()
            name = next(name for name in one.names if name not in parts)
            parts[name] = one.read(output.detach())

        yield inner[one.path].register_forward_hook(keep)
