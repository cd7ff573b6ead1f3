"""Softmax attention between positions, in memory that grows with their number alone."""

import torch.nn.functional as F
from torch import Tensor


def position_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    r"""For each query the mean of the values, weighted by its likeness to their keys.

    .. math:: y_i = \sum_j \mathrm{softmax}_j(s\,q_i^\top k_j)\,v_j

    The memory-saving kernels want queries, keys and values of one width, with adjacent features;
    anything else silently takes a path that holds all pairs. Hence the zeros added here, which
    change no product, and no width of 1, whose stride says nothing.

    Args:
        query: Tokens ``(B, heads, N, D)``.
        key: Tokens ``(B, heads, M, D)``.
        value: Tokens ``(B, heads, M, V)``.
        scale: Factor :math:`s` of the scores.

    Returns:
        Tokens ``(B, heads, N, V)``.
    """
    dim, value_dim = query.shape[-1], value.shape[-1]
    width = max(dim, value_dim, 2)
    query, key = (F.pad(t, (0, width - dim)).contiguous() for t in (query, key))
    value = F.pad(value, (0, width - value_dim)).contiguous()
    out = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return out[..., :value_dim]
