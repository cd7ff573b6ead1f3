"""Largest value and mean over the channels of a map."""

import torch
from torch import Tensor

from foveate.ops.ledger import Ledger
from foveate.ops.reading import Reading, Tensors, read, register, wide


def channel_pool(x: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Maximum and mean over the channels of a map, which may be gated on the way.

    The gradient of a maximum goes to the first of equal values.

    Args:
        x: The map, ``(B, C, H, W)``.
        gate: Factors of its channels, ``(B, C, 1, 1)``; None for ones.

    Returns:
        Maximum and mean, ``(B, 1, H, W)`` each.
    """
    small = () if gate is None else (gate.expand(*x.shape[:2], 1, 1),)
    found = read(_op, x, _READING, *small)
    if found is not None:
        return found[0].to(x.dtype), found[1].to(x.dtype)
    if gate is not None:
        x = x * gate.to(x.dtype)
    return x.max(1, keepdim=True).values, x.mean(1, keepdim=True)


class ChannelPool(Reading):
    """Largest value, mean, and place of the largest, of the map times the gate, if one is given."""

    def run(self, ledger: Ledger, x: Tensor, *small: Tensor) -> Tensors:
        shape = (x.shape[0], 1, *x.shape[2:])
        peak, mean = ledger.room(x, *shape), ledger.room(x, *shape)
        at = ledger.room(x, *shape, dtype=torch.int32)
        gate = ledger.small(small[0]) if small else None
        ledger.kernels.channel_pool(x, gate, peak, mean, at)
        return peak, mean, at

    def define(self, x: Tensor, *small: Tensor) -> Tensors:
        z = wide(x) * small[0] if small else wide(x)
        peak, at = z.max(1, keepdim=True)
        return tuple(t.contiguous() for t in (peak, z.mean(1, keepdim=True), at.to(torch.int32)))

    def gradient(self, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors) -> Tensors:
        C = x.shape[1]
        channels = torch.arange(C, device=x.device).view(C, 1, 1)
        gated = (channels == kept[0]) * grads[0] + grads[1] / C
        if not small:
            return (gated.to(x.dtype),)
        gate = (gated * x).sum((2, 3), keepdim=True)
        return (gated * small[0]).to(x.dtype), gate.to(small[0].dtype)

    def enter(
        self, ledger: Ledger, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors
    ) -> Tensors:
        peak, share = ledger.small(grads[0]), ledger.small(grads[1] / x.shape[1])
        gate = ledger.small(small[0]) if small else None
        ones = ledger.room(x, *x.shape[:2], 1, 1).fill_(1) if gate is None else gate
        ledger.enter(map=share, weight=ones)
        ledger.enter(channel_at=kept[0], channel_peak=peak, channel_gate=ones)
        if not small:
            return ()
        to = ledger.room(x, *x.shape[:2], 1, 1)
        ledger.kernels.spatial_dot(x, None, share, None, 1, to)
        ledger.kernels.peak_dot(x, kept[0], peak, to)
        return (to.to(small[0].dtype),)


_READING = ChannelPool()
_op = register("channel_pool", ChannelPool)
