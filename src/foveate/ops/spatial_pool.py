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
            values; ``"variance"``, unbiased, and zero where there is only one position; and
            ``"length"``, the Euclidean norm, in at least float32, as it grows with the map.

    Returns:
        One ``(B, C, 1, 1)`` for each, in order.
    """
    options = ("max" in statistics, "variance" in statistics or "length" in statistics)
    found = read(_op, x, SpatialPool(*options), options=options)
    if found is None:
        return tuple(_DEFINITIONS[name](x) for name in statistics)
    peak, spread = options
    named = {"mean": found[0]}
    if peak:
        named["max"] = found[1]
    if spread:
        named |= _spreads(found[0], found[-1], x.shape[2] * x.shape[3])
    return tuple(
        named[name] if name == "length" else named[name].to(x.dtype) for name in statistics
    )


def _spreads(mean: Tensor, spread: Tensor, n: int) -> dict[str, Tensor]:
    square = spread + n * mean.square()
    # The slope of the root at zero is taken as zero, not as infinite.
    length = torch.where(square > 0, square, 1).sqrt() * (square > 0)
    return {"variance": spread / (n - 1 + 1 // n), "length": length}


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _max(x: Tensor) -> Tensor:
    return x.flatten(2).max(2).values.unflatten(1, (-1, 1, 1))


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(wide(x), dim=(2, 3), keepdim=True)


_DEFINITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _mean,
    "max": _max,
    "variance": spatial_variance,
    "length": _length,
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

    def gradient(self, x: Tensor, small: Tensors, read: Tensors, grads: Tensors) -> Tensors:
        H, W = x.shape[2:]
        gx = (grads[0] / (H * W)).expand(x.shape)
        if self.peak:
            positions = torch.arange(H * W, device=x.device).view(H, W)
            gx = gx + (positions == read[2]) * grads[1]
        if self.spread:
            gx = gx + 2 * grads[-1] * (wide(x) - wide(x).mean((2, 3), keepdim=True))
        return (gx.to(x.dtype),)

    def enter(
        self, ledger: Ledger, x: Tensor, small: Tensors, read: Tensors, grads: Tensors
    ) -> Tensors:
        add = grads[0] / (x.shape[2] * x.shape[3])
        if self.peak:
            ledger.enter(at=read[2], peak=ledger.small(grads[1]))
        if self.spread:
            linear = 2 * grads[-1]
            ledger.enter(linear=ledger.small(linear))
            add = add - linear * read[0]
        ledger.enter(add=ledger.small(add))
        return ()


_op = register("spatial_pool", SpatialPool, ", bool peak, bool spread")
