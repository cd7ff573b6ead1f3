"""Attention at the end of a residual block, taken together with the sum and the ReLU after it.

What attention makes of a residual branch is in most blocks added to the shortcut, and the sum goes
through a ReLU: three passes over a map, each of which writes it. Where a host does so, attention
hands on a tensor that is not computed yet; it waits for the other two, and is then one pass.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from foveate import kernels
from foveate.mechanisms.base import Gate, bare

_SUMS = (Tensor.__add__, Tensor.__radd__, Tensor.add, torch.add)
_SUMS_IN_PLACE = (Tensor.__iadd__, Tensor.add_)
_RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_RELUS_IN_PLACE = (torch.relu_, Tensor.relu_)
_QUESTIONS = (
    *(Tensor.size, Tensor.dim, Tensor.numel),
    # Descriptors, of which each access makes another wrapper; they compare equal.
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")),
)
"""What the map itself can answer."""


def can_wait(owner: nn.Module, attention: nn.Module, x: Tensor) -> bool:
    """Whether attention on the output of a module may wait for what ends the block.

    Not where someone would see that it does: hooks, transformations, autocast.

    Args:
        owner: The module.
        attention: What is to act on its output.
        x: The output.
    """
    return (
        kernels.pick(x) is not None
        and isinstance(attention, Gate)
        and attention.ends_blocks
        and not torch.is_autocast_enabled(x.device.type)
        and torch._C._len_torch_function_stack() == 0
        and len(owner._forward_hooks) == 1
        and not owner._backward_hooks
        and not owner._backward_pre_hooks
        and bare(attention, also=(type(attention),))
    )


class Pending(Tensor):
    """What attention makes of a map, to be computed when it is known what becomes of it.

    Whatever is done with it but to add a map, and then to take the ReLU, computes it first, as it
    would have been where it was made: with gradients or without.

    Args:
        attention: A gate that ends blocks.
        x: The map, ``(B, C, H, W)``.
        shortcut: A map that was added already.
    """

    attention: Gate
    x: Tensor
    shortcut: Tensor | None
    value: Tensor | None
    modes: tuple[bool, bool, bool]
    versions: tuple[int, ...]

    @staticmethod
    def __new__(cls, attention: Gate, x: Tensor, shortcut: Tensor | None = None) -> "Pending":
        made: Pending = Tensor._make_wrapper_subclass(
            cls, x.shape, strides=x.stride(), dtype=x.dtype, device=x.device
        )
        made.attention, made.x, made.value = attention, x, None
        made.modes = _modes(x)
        made.add_shortcut(shortcut)
        return made

    def add_shortcut(self, shortcut: Tensor | None) -> None:
        """Add a shortcut."""
        self.shortcut = shortcut
        self.versions = self._now()

    def _now(self) -> tuple[int, ...]:
        """How often each of the maps has been changed in place; unknown in inference mode."""
        maps = (self.x,) if self.shortcut is None else (self.x, self.shortcut)
        return tuple(0 if t.is_inference() else t._version for t in maps)

    def _check(self) -> None:
        if self._now() != self.versions:
            raise RuntimeError(
                f"the map that {self.attention} weighs, or the shortcut added to it, was changed "
                "in place before the block ended"
            )

    def waits_here(self) -> bool:
        """Whether what happens now is done as it was where this was made."""
        return self.modes == _modes(self.x)

    @contextmanager
    def _as_made(self) -> Iterator[None]:
        grad, inference, autocast = self.modes
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(grad),
            torch.autocast(self.x.device.type, enabled=autocast),
        ):
            yield

    def computed(self) -> Tensor:
        """What it stands for."""
        if self.value is None:
            self._check()
            with self._as_made():
                y = self.attention(self.x)
                self.value = y if self.shortcut is None else y + self.shortcut
        return self.value

    def ended(self, *, in_place: bool) -> Tensor | None:
        """The ReLU of it, in one pass with all before; None where no kernel does that.

        Args:
            in_place: Whether the ReLU takes the place of what it is of. Without gradients it may
                then be written over the map, if nobody else holds that.
        """
        if self.value is not None or self.shortcut is None or not self.waits_here():
            return None
        self._check()
        over = in_place and not torch.is_grad_enabled() and sys.getrefcount(self.x) <= 2
        y = self.attention.whole(self.x, self.shortcut, in_place=over and _alone(self.x))
        if in_place:
            self.value = y
        return y

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _QUESTIONS:
            args, kwargs = tree_map(_map, (args, kwargs))
            return func(*args, **kwargs)
        served: Tensor | None = None
        if func in _SUMS or func in _SUMS_IN_PLACE:
            served = _add(func, args, kwargs)
        elif func in _RELUS:
            served = _end(func, args, kwargs)
        if served is not None:
            return served
        args, kwargs = tree_map(_computed, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # Only what passes by the functions of torch comes here, and by autograd with them.
        raise RuntimeError(f"{func} cannot take what attention has not computed yet")


def _modes(x: Tensor) -> tuple[bool, bool, bool]:
    """Gradients, inference mode, autocast: whether each is on."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(x.device.type),
    )


def _alone(x: Tensor) -> bool:
    """Whether nothing but one Python object refers to a tensor, and nothing else to its memory."""
    storage = x.untyped_storage()
    own = 2  # of the tensor, and of the line above
    return x._use_count() == 1 and torch._C._storage_Use_Count(storage._cdata) == own


def _map(value: Any) -> Any:
    return value.x if isinstance(value, Pending) else value


def _computed(value: Any) -> Any:
    return value.computed() if isinstance(value, Pending) else value


def _add(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pending | None:
    """A sum that waits for the ReLU; None for one that does not look like a block's."""
    if kwargs or len(args) != 2:
        return None
    in_place = func in _SUMS_IN_PLACE
    pending, other = args if isinstance(args[0], Pending) or in_place else args[::-1]
    if not isinstance(pending, Pending) or type(other) is not Tensor:
        return None
    if pending.value is not None or pending.shortcut is not None or not pending.waits_here():
        return None
    x = pending.x
    if (other.shape, other.dtype, other.device) != (x.shape, x.dtype, x.device):
        return None
    if not in_place:
        return Pending(pending.attention, x, other)
    pending.add_shortcut(other)
    return pending


def _end(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The ReLU of a sum that waits; None for anything else."""
    if not args or not isinstance(args[0], Pending):
        return None
    return args[0].ended(in_place=kwargs.get("inplace", False) or func in _RELUS_IN_PLACE)
