"""How much each channel of a feature map varies between positions."""

from torch import Tensor


def spatial_variance(x: Tensor) -> Tensor:
    """The unbiased variance over the positions, and zero where there is only one.

    Args:
        x: The map, ``(B, C, H, W)``.

    Returns:
        Variances, ``(B, C, 1, 1)``.
    """
    n = x.shape[2] * x.shape[3]
    freedom = n - 1 + 1 // n  # max(n - 1, 1), in arithmetic that every exporter follows
    return x.var((2, 3), correction=0, keepdim=True) * (n / freedom)
