"""Statistics of a map along each of its rows and columns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.ops.ledger import Ledger
from foveate.ops.reading import Reading, Tensors, read, register, wide


def strip_pool(x: Tensor, *, peak: bool = False) -> Tensors:
    """Means, and where asked maxima, along the rows and along the columns of each channel.

    The gradient of a maximum goes to the first of equal values.

    Args:
        x: The map, ``(B, C, H, W)``.
        peak: Whether maxima are wanted.

    Returns:
        Means along the rows, ``(B, C, H, 1)``, and the columns, ``(B, C, 1, W)``; then maxima.
    """
    found = read(_op, x, StripPool(peak), options=(peak,))
    if found is not None:
        means_and_peaks = (*found[:2], found[2], found[4]) if peak else found
        return tuple(t.to(x.dtype) for t in means_and_peaks)
    means = (x.mean(3, keepdim=True), x.mean(2, keepdim=True))
    if not peak:
        return means
    return *means, x.max(3, keepdim=True).values, x.max(2, keepdim=True).values


@dataclass(frozen=True)
class StripPool(Reading):
    """Means of rows and columns; then largest values of rows, their places, those of columns."""

    peak: bool

    def run(self, ledger: Ledger, x: Tensor, *small: Tensor) -> Tensors:
        B, C, H, W = x.shape
        shapes = ((B, C, H, 1), (B, C, 1, W))
        means = tuple(ledger.room(x, *shape) for shape in shapes)
        peaks: Tensors = ()
        for shape in shapes if self.peak else ():
            peaks += (ledger.room(x, *shape), ledger.room(x, *shape, dtype=torch.int32))
        ledger.kernels.strip_pool(x, *means, *(peaks or (None,) * 4))
        return means + peaks

    def define(self, x: Tensor, *small: Tensor) -> Tensors:
        z = wide(x)
        found = [z.mean(3, keepdim=True), z.mean(2, keepdim=True)]
        for dim in (3, 2) if self.peak else ():
            peak, at = z.max(dim, keepdim=True)
            found += [peak, at.to(torch.int32)]
        return tuple(t.contiguous() for t in found)

    def gradient(self, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors) -> Tensors:
        H, W = x.shape[2:]
        gx = grads[0] / W + grads[1] / H
        if self.peak:
            rows, columns = (torch.arange(side, device=x.device) for side in (H, W))
            gx = gx + (columns == kept[0]) * grads[2]
            gx = gx + (rows.unsqueeze(1) == kept[1]) * grads[4]
        return (gx.to(x.dtype),)

    def enter(
        self, ledger: Ledger, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors
    ) -> Tensors:
        H, W = x.shape[2:]
        ledger.enter(add_rows=ledger.small(grads[0] / W))
        ledger.enter(add_columns=ledger.small(grads[1] / H))
        if self.peak:
            ledger.enter(rows_at=kept[0], rows_peak=ledger.small(grads[2]))
            ledger.enter(columns_at=kept[1], columns_peak=ledger.small(grads[4]))
        return ()


_op = register("strip_pool", StripPool, ", bool peak")
