"""How the work of a kernel is cut into programs: by shapes alone, so that results repeat."""

from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import torch
import triton
from torch import Tensor

ELEMENTS = 2048
"""Of a tile, which one program holds in registers."""
PROGRAMS = 1024
"""Wanted to keep a large graphics card busy; long sums are cut where there would be fewer."""
_LONGEST = 1024
_WIDEST = 128
_MOST_CHUNKS = 64


def tile(*sizes: int, limits: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Sides of a tile, powers of two, filled up from the first size on.

    Args:
        sizes: Of what is covered; the first is the one along which memory is adjacent.
        limits: Longest sides, for as many of the sizes.
    """
    sides: tuple[int, ...] = ()
    left = ELEMENTS
    for i, size in enumerate(sizes):
        most = min(left, limits[i]) if i < len(limits) else left
        sides += (min(triton.next_power_of_2(size), most),)
        left //= sides[-1]
    return sides


def split(length: int, step: int, programs: int) -> int:
    """Elements of a long sum for each program: a multiple of ``step``.

    Args:
        length: Elements of the sum.
        step: Elements taken at once.
        programs: Those there would be without a cut.
    """
    steps = triton.cdiv(length, step)
    chunks = min(triton.cdiv(PROGRAMS, programs), triton.cdiv(steps, 2), _MOST_CHUNKS)
    return int(triton.cdiv(steps, chunks)) * step


@dataclass(frozen=True)
class Matrices:
    """A map as dense matrices, each reduced along one side and kept along the other."""

    outer: int
    """Matrices."""
    kept: int
    reduced: int
    along: bool
    """Whether memory is adjacent along the reduced side, rather than the one that is kept."""

    @property
    def tile(self) -> tuple[int, int]:
        """Sides of a tile: of what is kept and of what is reduced."""
        if self.along:
            reduced, kept = tile(self.reduced, self.kept, limits=(_LONGEST,))
        else:
            kept, reduced = tile(self.kept, self.reduced, limits=(_WIDEST,))
        return kept, reduced

    @property
    def programs(self) -> int:
        """Tiles side by side, of all matrices."""
        return self.outer * int(triton.cdiv(self.kept, self.tile[0]))

    @property
    def chunk(self) -> int:
        """Elements that a program reduces."""
        return split(self.reduced, self.tile[1], self.programs)

    @property
    def chunks(self) -> int:
        """Programs that share a sum."""
        return int(triton.cdiv(self.reduced, self.chunk))

    @property
    def unit(self) -> int:
        """A divisor of the side along which memory is adjacent."""
        return alignment(self.reduced if self.along else self.kept)


def over_positions(x: Tensor) -> Matrices:
    """For each image its channels, reduced over the positions."""
    B, C, H, W = x.shape
    return Matrices(B, C, H * W, along=x.is_contiguous())


def over_channels(x: Tensor, groups: int = 1) -> Matrices:
    """For each image and group of channels its positions, reduced over the channels.

    In channels_last maps, the groups of all positions of an image are the rows of one matrix.
    """
    B, C, H, W = x.shape
    if x.is_contiguous():
        return Matrices(B * groups, H * W, C // groups, along=False)
    return Matrices(B, H * W * groups, C // groups, along=True)


def alignment(side: int) -> int:
    """The power of two, up to 16, that divides a side: elements that can be loaded as one."""
    return gcd(side, 16)


def map_tile(x: Tensor) -> tuple[int, int]:
    """Channels and positions of a tile of an elementwise kernel."""
    C, N = x.shape[1], prod(x.shape[2:])
    if x.is_contiguous():
        positions, channels = tile(N, C, limits=(256,))
    else:
        channels, positions = tile(C, N, limits=(256,))
    return channels, positions


def map_programs(x: Tensor) -> int:
    """Tiles of a map."""
    channels, positions = map_tile(x)
    down, across = triton.cdiv(x.shape[1], channels), triton.cdiv(prod(x.shape[2:]), positions)
    return x.shape[0] * int(down * across)


def launch(kernel: Any, programs: int, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first tensor, which need not be the current one.

    The grid has one dimension, the only one without a low limit.
    """
    with torch.cuda.device_of(x):
        kernel[(programs,)](x, *arguments, enable_fp_fusion=True, **constants)
