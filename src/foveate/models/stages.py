"""Where the resolutions of a host end, found by running it, and the host cut and dilated there."""

from typing import NamedTuple

import torch
from torch import nn

from foveate.errors import InvalidValueError
from foveate.insertion.places import CONVOLUTIONS, Anatomy
from foveate.insertion.trace import Call, Node, ancestry, trace


class Stage(NamedTuple):
    """The outermost module that returns the last map of one resolution, and that map."""

    call: Call
    node: Node


class Stages:
    """The stages of a host by the stride of what they return.

    The deepest one ends before a pointwise convolution that only widens the map for a classifier,
    as the last one of MobileNets does.

    Args:
        host: A classifier; it is run once on zeros, and changed by :meth:`dilate` and :meth:`cut`.
        name: What errors call it.
        in_channels: Channels of the images.
        size: Side of the images to run it on, a multiple of the strides.
    """

    def __init__(self, host: nn.Module, name: str, *, in_channels: int, size: int) -> None:
        self._host, self._name, self._size = host, name, size
        anatomy = Anatomy(trace(host, zeros_for(host, in_channels, size)))
        self._calls = anatomy.calls
        ends = {self._stride(node): node for node in anatomy.resolutions().values()}
        if ends:
            ends[max(ends)] = _before_widening(ends[max(ends)])
        found = {stride: self._outermost(node) for stride, node in ends.items()}
        self._found = {stride: stage for stride, stage in found.items() if stage is not None}

    def take(self, strides: tuple[int, ...]) -> list[Stage]:
        """The stages of these strides.

        Raises:
            ValueError: If the host has no features at one of them.
        """
        for stride in strides:
            if stride not in self._found:
                known = ", ".join(str(one) for one in sorted(self._found)) or "none"
                raise InvalidValueError(
                    f"'{self._name}' has no features at stride {stride}, only at: {known}"
                )
        return [self._found[stride] for stride in strides]

    def dilate(self, output_stride: int) -> None:
        """Stay at the resolution of ``output_stride`` to the end, with the receptive fields kept.

        A convolution that would reduce it further gets a stride of 1, and those after it read
        positions that are farther apart by as much.
        """
        for conv, call in {call.module: call for call in self._calls}.items():
            into, out = call.input, call.output
            if not isinstance(conv, nn.Conv2d) or into is None or out is None or not into.is_map:
                continue
            apart = max(1, self._stride(into) // output_stride)
            if self._stride(out) > output_stride:
                conv.stride = (1, 1)
            conv.dilation = tuple(apart * step for step in conv.dilation)
            if not isinstance(conv.padding, str):
                conv.padding = tuple(apart * side for side in conv.padding)

    def cut(self, last: Stage) -> None:
        """Leave out what the host runs after a stage: the rest of its layers, its classifier."""
        after = [
            call
            for call in self._calls
            if call.input is not None
            and call.input.index >= last.node.index
            and last.call not in ancestry(call)
        ]
        kept = {call.module for call in self._calls if call not in after}
        for call in after:
            inside = any(outer in after for outer in ancestry(call.parent))
            if not inside and call.module not in kept:
                self._host.set_submodule(call.name, nn.Identity())

    def _stride(self, node: Node) -> int:
        return self._size // node.shape[2]

    def _outermost(self, node: Node) -> Stage | None:
        """Elementwise functions after it, as in DenseNets, are stepped over towards the input."""
        made = [call for call in self._calls if call.output is node]
        if made:
            return Stage(made[-1], node)
        only = node.parents[0] if len(node.parents) == 1 else None
        return self._outermost(only) if only is not None and only.shape == node.shape else None


def zeros_for(host: nn.Module, in_channels: int, size: int) -> torch.Tensor:
    """One image for a host, on its device and in its dtype."""
    like = next(host.parameters())
    return torch.zeros(1, in_channels, size, size, dtype=like.dtype, device=like.device)


def _before_widening(node: Node) -> Node:
    """The input of the pointwise convolution to more channels whose layer alone makes ``node``."""
    at = node
    while at.function not in CONVOLUTIONS:
        if len(at.parents) != 1 or at.parents[0].shape != at.shape:
            return node
        at = at.parents[0]
    conv, into = at.call.module if at.call else None, at.parents[0]
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1) or into.area != at.area:
        return node
    return into if conv.out_channels > conv.in_channels else node
