"""Statistics of each channel of a map over its positions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.ops.ledger import Ledger
from foveate.ops.reading import Reading, Tensors, read, register, wide
from foveate.ops.spatial_variance import spatial_variance


def spatial_pool(x: Tensor, *statistics: str) -> Tensors:
    """Statistics over the positions of a map, all from one read where kernels serve it.

    Args:
        x: The map, ``(B, C, H, W)``.
        statistics: Any of ``"mean"``; ``"max"``, whose gradient goes to the first of equal
            values; and ``"variance"``, unbiased, and zero where there is only one position.

    Returns:
        One ``(B, C, 1, 1)`` for each, in order.
    """
    options = ("max" in statistics, "variance" in statistics)
    found = read(_op, x, SpatialPool(*options), options=options)
    if found is None:
        return tuple(_DEFINITIONS[name](x) for name in statistics)
    named = {"mean": found[0]}
    if "max" in statistics:
        named["max"] = found[1]
    if "variance" in statistics:
        n = x.shape[2] * x.shape[3]
        named["variance"] = found[-1] / (n - 1 + 1 // n)
    return tuple(named[name].to(x.dtype) for name in statistics)


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _max(x: Tensor) -> Tensor:
    return x.flatten(2).max(2).values.unflatten(1, (-1, 1, 1))


_DEFINITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _mean,
    "max": _max,
    "variance": spatial_variance,
}


@dataclass(frozen=True)
class SpatialPool(Reading):
    """Mean; then largest value and its place; then sum of squared deviations from the mean."""

    peak: bool
    spread: bool

    def run(self, ledger: Ledger, x: Tensor, *small: Tensor) -> Tensors:
        if not (self.peak or self.spread) and x.is_contiguous():
            return (x.mean((2, 3), keepdim=True, dtype=ledger.wide),)  # nothing is faster
        shape = (*x.shape[:2], 1, 1)
        mean = ledger.room(x, *shape)
        peaks: Tensors = ()
        if self.peak:
            peaks = (ledger.room(x, *shape), ledger.room(x, *shape, dtype=torch.int32))
        spread = (ledger.room(x, *shape),) if self.spread else ()
        ledger.kernels.spatial_pool(x, mean, *(peaks or (None, None)), *(spread or (None,)))
        return mean, *peaks, *spread

    def define(self, x: Tensor, *small: Tensor) -> Tensors:
        z = wide(x).flatten(2)
        mean = z.mean(2, keepdim=True)
        found = [mean]
        if self.peak:
            peak, at = z.max(2, keepdim=True)
            found += [peak, at.to(torch.int32)]
        if self.spread:
            found.append((z - mean).square().sum(2, keepdim=True))
        return tuple(t.unsqueeze(3) for t in found)

    def keep(self, read: Tensors) -> Tensors:
        return (*((read[2],) if self.peak else ()), *((read[0],) if self.spread else ()))

    def gradient(self, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors) -> Tensors:
        H, W = x.shape[2:]
        gx = (grads[0] / (H * W)).expand(x.shape)
        if self.peak:
            positions = torch.arange(H * W, device=x.device).view(H, W)
            gx = gx + (positions == kept[0]) * grads[1]
        if self.spread:
            gx = gx + 2 * grads[-1] * (wide(x) - wide(x).mean((2, 3), keepdim=True))
        return (gx.to(x.dtype),)

    def enter(
        self, ledger: Ledger, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors
    ) -> Tensors:
        add = grads[0] / (x.shape[2] * x.shape[3])
        if self.peak:
            ledger.enter(at=kept[0], peak=ledger.small(grads[1]))
        if self.spread:
            linear = 2 * grads[-1]
            ledger.enter(linear=ledger.small(linear))
            add = add - linear * kept[-1]
        ledger.enter(add=ledger.small(add))
        return ()


_op = register("spatial_pool", SpatialPool, ", bool peak, bool spread")
