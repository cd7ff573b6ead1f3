"""Where programs and elements are."""

import triton
import triton.language as tl


@triton.jit
def index(b, c, n, C, N, LAST: tl.constexpr):
    """Place in memory of channel c of C and position n of N in image b, a 64-bit number."""
    return (b * N + n) * C + c if LAST else (b * C + c) * N + n


@triton.jit
def locate(kept, reduced, chunk, KEPT: tl.constexpr):
    """What a program works on: matrix, indices that are kept, number and ends of its chunk."""
    program = tl.program_id(0)
    chunks = tl.cdiv(reduced, chunk)
    blocks = tl.cdiv(kept, KEPT)
    part = program % chunks
    outer = (program // (chunks * blocks)).to(tl.int64)
    k = program // chunks % blocks * KEPT + tl.arange(0, KEPT)
    return outer, k, part, part * chunk, tl.minimum((part + 1) * chunk, reduced)


@triton.jit
def locate_in_map(C, N, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr):
    """What a program works on: image, channels and positions."""
    program = tl.program_id(0)
    across = tl.cdiv(N, POSITIONS)
    down = tl.cdiv(C, CHANNELS)
    n = program % across * POSITIONS + tl.arange(0, POSITIONS)
    c = program // across % down * CHANNELS + tl.arange(0, CHANNELS)
    return (program // (across * down)).to(tl.int64), c, n
