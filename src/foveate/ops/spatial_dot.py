"""Sums over the positions of a map, each weighted."""

from torch import Tensor

from foveate.ops.ledger import Ledger
from foveate.ops.reading import Reading, Tensors, read, register, wide


def spatial_dot(x: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum over the positions of a map, for each channel.

    Args:
        x: The map, ``(B, C, H, W)``.
        weight: ``(B, 1, H, W)``.

    Returns:
        The sums, ``(B, C, 1, 1)``.
    """
    found = read(_op, x, _READING, weight)
    if found is not None:
        return found[0].to(x.dtype)
    return (x.flatten(2) @ weight.to(x.dtype).flatten(2).mT).unsqueeze(3)


class SpatialDot(Reading):
    """The sums over the positions."""

    def run(self, ledger: Ledger, x: Tensor, *small: Tensor) -> Tensors:
        to = ledger.room(x, *x.shape[:2], 1, 1)
        ledger.kernels.spatial_dot(x, None, ledger.small(small[0]), None, 1, to)
        return (to,)

    def define(self, x: Tensor, *small: Tensor) -> Tensors:
        return ((wide(x) * small[0]).sum((2, 3), keepdim=True),)

    def gradient(self, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors) -> Tensors:
        weight = (grads[0] * x).sum(1, keepdim=True)
        return (grads[0] * small[0]).to(x.dtype), weight.to(small[0].dtype)

    def enter(
        self, ledger: Ledger, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors
    ) -> Tensors:
        grad = ledger.small(grads[0])
        ledger.enter(map=ledger.small(small[0]), weight=grad)
        to = ledger.room(x, x.shape[0], 1, *x.shape[2:])
        ledger.kernels.channel_dot(x, None, grad, 1, to)
        return (to.to(small[0].dtype),)


_READING = SpatialDot()
_op = register("spatial_dot", SpatialDot)
