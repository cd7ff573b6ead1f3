"""Application of gates to a feature map."""

from torch import Tensor


def scale(x: Tensor, *gates: Tensor) -> Tensor:
    """Multiply a feature map by gates, each broadcast to it.

    Args:
        x: The map, ``(B, C, H, W)``.
        gates: Factors of shapes that broadcast to that of ``x``.

    Returns:
        The gated map, in the dtype of ``x`` also where autocast made the gates narrower.
    """
    for gate in gates:
        x = x * gate.to(x.dtype)
    return x
