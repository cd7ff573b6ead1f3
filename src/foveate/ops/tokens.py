"""Between feature maps and the tokens that position attention works on."""

from torch import Tensor


def to_tokens(x: Tensor, num_heads: int = 1) -> Tensor:
    """One token for each position: ``(B, C, H, W)`` to ``(B, num_heads, HW, C / num_heads)``."""
    return x.flatten(2).unflatten(1, (num_heads, -1)).transpose(2, 3)


def from_tokens(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse: ``(B, num_heads, HW, D)`` to ``(B, C, H, W)`` of the size of ``like``."""
    return tokens.transpose(2, 3).flatten(1, 2).unflatten(2, like.shape[2:])
