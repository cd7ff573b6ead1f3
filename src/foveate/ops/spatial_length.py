"""Length of each channel of a map, as a vector of all its positions."""

import torch
from torch import Tensor

from foveate.ops.ledger import Ledger
from foveate.ops.reading import Reading, Tensors, read, register, wide


def spatial_length(x: Tensor) -> Tensor:
    """The Euclidean norm over the positions of a map.

    Args:
        x: The map, ``(B, C, H, W)``.

    Returns:
        Lengths ``(B, C, 1, 1)`` in at least float32, as they grow with the map. The gradient at a
        length of zero is zero.
    """
    found = read(_op, x, _READING)
    if found is None:
        return torch.linalg.vector_norm(wide(x), dim=(2, 3), keepdim=True)
    (square,) = found
    return torch.where(square == 0, 1, square).sqrt() * (square != 0)


class SpatialSquare(Reading):
    """The sum of squares over the positions."""

    def run(self, ledger: Ledger, x: Tensor, *small: Tensor) -> Tensors:
        to = ledger.room(x, *x.shape[:2], 1, 1)
        ledger.kernels.spatial_dot(x, x, None, None, 1, to)
        return (to,)

    def define(self, x: Tensor, *small: Tensor) -> Tensors:
        return (wide(x).square().sum((2, 3), keepdim=True),)

    def gradient(self, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors) -> Tensors:
        return ((2 * grads[0] * wide(x)).to(x.dtype),)

    def enter(
        self, ledger: Ledger, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors
    ) -> Tensors:
        ledger.enter(linear=ledger.small(2 * grads[0]))
        return ()


_READING = SpatialSquare()
_op = register("spatial_square", SpatialSquare)
