"""Attention of each position to its own row and column."""

import torch
from torch import Tensor


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r"""For each position the mean of the values in its row and column, weighted by likeness.

    .. math:: y_i = \sum_{j \in R_i \cup C_i} \mathrm{softmax}_j(q_i^\top k_j)\,v_j

    One softmax spans row and column, :math:`H + W - 1` positions: the vertical scores of the
    position itself are masked, as it is already in its row. Holds ``HW (H + W)`` scores.

    Args:
        query: Map ``(B, D, H, W)``.
        key: Map ``(B, D, H, W)``.
        value: Map ``(B, V, H, W)``.

    Returns:
        Map ``(B, V, H, W)``.
    """
    H, W = query.shape[2:]
    vertical = torch.einsum("bdhw,bdgw->bhwg", query, key)  # (B, H, W, H)
    horizontal = torch.einsum("bdhw,bdhg->bhwg", query, key)  # (B, H, W, W)
    itself = torch.eye(H, dtype=torch.bool, device=query.device).unsqueeze(1)  # (H, 1, H)
    scores = torch.cat([vertical.masked_fill(itself, -torch.inf), horizontal], dim=3)
    vertical, horizontal = scores.softmax(3).to(value.dtype).split([H, W], dim=3)
    from_column = torch.einsum("bhwg,bvgw->bvhw", vertical, value)
    from_row = torch.einsum("bhwg,bvhg->bvhw", horizontal, value)
    return from_column + from_row
