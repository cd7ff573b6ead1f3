"""Attention by rectified sums of scores: sorting replaces the comparison of all pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rectified_attention(query_score: Tensor, key_score: Tensor, value: Tensor) -> Tensor:
    r"""For each query the mean of the values times its rectified pair scores.

    .. math:: y_i = \frac{1}{M} \sum_j \mathrm{relu}(a_i + b_j)\,v_j

    Only keys with :math:`b_j > -a_i` count: with keys sorted by falling score these come first,
    and the sum is :math:`a_i \sum v_j + \sum b_j v_j` over them, two prefix sums read at one place.

    Args:
        query_score: Scores ``a`` of the queries, ``(B, N)``.
        key_score: Scores ``b`` of the keys, ``(B, M)``.
        value: Tokens ``(B, M, V)``.

    Returns:
        Tokens ``(B, N, V)``, in the dtype of ``value``, summed in at least float32.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    a = query_score.to(wide).contiguous()
    b, order = key_score.to(wide).sort(dim=1, descending=True)
    v = value.to(wide).gather(1, order.unsqueeze(2).expand_as(value))  # (B, M, V)
    sums = F.pad(v.cumsum(1), (0, 0, 1, 0))  # (B, M + 1, V)
    weighted_sums = F.pad((b.unsqueeze(2) * v).cumsum(1), (0, 0, 1, 0))  # (B, M + 1, V)
    counts = torch.searchsorted((-b).contiguous(), a)  # (B, N)
    index = counts.unsqueeze(2).expand(-1, -1, v.shape[2])  # (B, N, V)
    total = a.unsqueeze(2) * sums.gather(1, index) + weighted_sums.gather(1, index)
    return (total / key_score.shape[1]).to(value.dtype)
