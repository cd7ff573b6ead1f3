"""What gates that kernels compute themselves have in common."""

import triton
import triton.language as tl


@triton.jit
def logistic(x):
    """The logistic function, 0 and 1 far outside."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def strength_of(strength, WIDE: tl.constexpr):
    """The strength, which is 1 if it is not given."""
    return tl.full((), 1, WIDE) if strength is None else tl.load(strength)
