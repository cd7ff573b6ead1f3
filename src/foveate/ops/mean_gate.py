"""Gates of channels from nothing but their means, whole: one kernel for each of the two passes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.ops.partial import partial_gradients
from foveate.ops.whole import dense, like, shared_out, whole


def squeeze(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    strength: Tensor | None,
    shortcut: Tensor | None = None,
    *,
    in_place: bool = False,
) -> Tensor | None:
    """A map weighed by gates from its means through two layers, where kernels do that.

    Args:
        x: The map, ``(B, C, H, W)``.
        w1: Weight of the first layer, of a 1x1 convolution, before a ReLU.
        b1: Its bias.
        w2: Weight of the second layer.
        b2: Its bias.
        strength: 0 for the map itself, 1 and None for the gates themselves; a scalar.
        shortcut: A map to add before a ReLU, as residual blocks end; None for the weighed map.
        in_place: Without gradients, write over the map, which nobody else may hold then.

    Returns:
        The weighed map, or the end of the block; None where no kernel stands for the whole.
    """
    width, channels = w2.shape[1], w2.shape[0]
    sizes = (w1.numel(), width, w2.numel(), channels, 1)
    kind = _Kind("squeeze", _squeezed, width, sizes)
    return _weighed(x, shortcut, in_place, kind, w1, b1, w2, b2, strength)


def neighbours(
    x: Tensor,
    kernel: Tensor,
    strength: Tensor | None,
    shortcut: Tensor | None = None,
    *,
    in_place: bool = False,
) -> Tensor | None:
    """The same with gates from the means of neighbouring channels.

    Args:
        x: The map, ``(B, C, H, W)``.
        kernel: ``(1, 1, k)``, of a convolution along the channels.
        strength: See :func:`squeeze`.
        shortcut: See :func:`squeeze`.
        in_place: See :func:`squeeze`.

    Returns:
        See :func:`squeeze`.
    """
    kind = _Kind("neighbours", _neighboured, 0, (kernel.numel(), 1))
    return _weighed(x, shortcut, in_place, kind, kernel, strength)


def _squeezed(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    strength: Tensor | None,
) -> Tensor:
    hidden = F.linear(x.mean((2, 3)), w1.flatten(1), b1).relu()
    return _product(x, F.linear(hidden, w2.flatten(1), b2), strength)


def _neighboured(x: Tensor, kernel: Tensor, strength: Tensor | None) -> Tensor:
    means = x.mean((2, 3)).unsqueeze(1)  # (B, 1, C)
    return _product(x, F.conv1d(means, kernel, padding=kernel.shape[2] // 2)[:, 0], strength)


def _product(x: Tensor, logits: Tensor, strength: Tensor | None) -> Tensor:
    gate = logits.sigmoid()[:, :, None, None]
    return x * (gate if strength is None else (gate - 1) * strength + 1)


@dataclass(frozen=True)
class _Kind:
    """One way from the means of channels to their gates."""

    name: str
    definition: Callable[..., Tensor]
    width: int
    """Of what the layers keep for the backward pass."""
    sizes: tuple[int, ...]
    """Places for the gradients of the parameters, also of those that are not there."""


def _weighed(
    x: Tensor, shortcut: Tensor | None, in_place: bool, kind: _Kind, *given: Tensor | None
) -> Tensor | None:
    backend = whole(x, kind.name, *given, shortcut)
    if backend is None:
        return None
    x = dense(x)
    shortcut = None if shortcut is None else like(shortcut, x)
    if torch.is_grad_enabled():
        served: Tensor = _MeanGate.apply(x, shortcut, backend, kind, *given)
        return served
    y = x if in_place else torch.empty_like(x)
    getattr(backend, kind.name)(x, *given, shortcut, y, None)
    return y


class _MeanGate(torch.autograd.Function):
    """Saves the map, a few numbers for each channel, and what a block ends in."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, backend: Any, kind: _Kind, *given: Any
    ) -> Tensor:
        B, C = x.shape[:2]
        wide = torch.promote_types(x.dtype, torch.float32)
        values = x.new_empty(B * (2 * C + kind.width), dtype=wide)
        y = torch.empty_like(x)
        getattr(backend, kind.name)(x, *given, shortcut, y, values)
        ctx.save_for_backward(x, values, None if shortcut is None else y, *given)
        ctx.backend, ctx.kind = backend, kind
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values, y, *given = ctx.saved_tensors
        kind: _Kind = ctx.kind
        grad = like(grad, x)
        if torch.is_grad_enabled():
            through = grad if y is None else grad.masked_fill(y <= 0, 0)
            gx, *grads = partial_gradients(kind.definition, (x, *given), through)
            return gx, None if y is None else through, None, None, *grads
        gx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        branch = None if y is None else torch.empty_like(x)
        *layers, strength = given
        weights = [t for t in layers if t is not None and t.dim() > 1]
        found = values.new_empty(sum(kind.sizes))
        kernel = getattr(ctx.backend, f"{kind.name}_backward")
        kernel(x, grad, values, *weights, strength, y, branch, gx, found)
        grads = shared_out(found, kind.sizes, given, ctx.needs_input_grad[4:])
        return gx, branch, None, None, *grads
