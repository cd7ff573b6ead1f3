"""Sums over the channels of a map, each weighted."""

import torch.nn.functional as F
from torch import Tensor

from foveate.ops.ledger import Ledger
from foveate.ops.reading import Reading, Tensors, read, register, wide


def channel_dot(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1
) -> Tensor:
    """The weighted sum over the channels of a map, at each position.

    Args:
        x: The map, ``(B, C, H, W)``.
        weight: ``(1, C, 1, 1)``, as of a 1x1 convolution, or ``(B, C, 1, 1)``.
        bias: ``(groups,)``, added to the sums.
        groups: Groups of adjacent channels to sum over separately.

    Returns:
        The sums, ``(B, groups, H, W)``.
    """
    B, C = x.shape[:2]
    found = read(_op, x, ChannelDot(groups), weight.expand(B, C, 1, 1), options=(groups,))
    if found is None and groups == 1 and weight.shape[0] == 1:
        return F.conv2d(x, weight, bias)
    if found is None:
        sums = (x * weight.to(x.dtype)).unflatten(1, (groups, -1)).sum(2)
    else:
        sums = found[0].to(x.dtype)
    return sums if bias is None else sums + bias.view(-1, 1, 1)


class ChannelDot(Reading):
    """The sums over the channels of each group."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def run(self, ledger: Ledger, x: Tensor, *small: Tensor) -> Tensors:
        to = ledger.room(x, x.shape[0], self.groups, *x.shape[2:])
        ledger.kernels.channel_dot(x, None, ledger.small(small[0]), self.groups, to)
        return (to,)

    def define(self, x: Tensor, *small: Tensor) -> Tensors:
        return ((wide(x) * small[0]).unflatten(1, (self.groups, -1)).sum(2),)

    def gradient(self, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors) -> Tensors:
        each = grads[0].repeat_interleave(x.shape[1] // self.groups, dim=1)
        weight = (each * x).sum((2, 3), keepdim=True)
        return (each * small[0]).to(x.dtype), weight.to(small[0].dtype)

    def enter(
        self, ledger: Ledger, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors
    ) -> Tensors:
        grad = ledger.small(grads[0])
        ledger.enter(self.groups, map=grad, weight=ledger.small(small[0]))
        to = ledger.room(x, *x.shape[:2], 1, 1)
        ledger.kernels.spatial_dot(x, None, grad, None, self.groups, to)
        return (to.to(small[0].dtype),)


_op = register("channel_dot", ChannelDot, ", int groups")
