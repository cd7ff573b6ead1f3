"""Attention by plain products, reordered so that no pair of positions is ever held."""

from torch import Tensor


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r"""For each query the mean of the values times their products with it.

    .. math:: y_i = \frac{1}{M} \sum_j (q_i^\top k_j)\,v_j = \frac{1}{M} (\sum_j v_j k_j^\top)\,q_i

    Args:
        query: Tokens ``(B, heads, N, D)``.
        key: Tokens ``(B, heads, M, D)``.
        value: Tokens ``(B, heads, M, V)``.

    Returns:
        Tokens ``(B, heads, N, V)``.
    """
    root = key.shape[2] ** -0.5  # on both factors, so that a sum over many stays inside float16
    context = (key * root).transpose(2, 3) @ (value * root)  # (B, heads, D, V)
    return query @ context
