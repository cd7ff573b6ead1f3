"""Softmax attention between positions that also know how far apart they are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.ops.position_attention import position_attention


def relative_attention(
    query: Tensor, key: Tensor, value: Tensor, *, row_logits: Tensor, column_logits: Tensor
) -> Tensor:
    r"""For each query the mean of the values, weighted by likeness and by displacement.

    .. math:: y_i = \sum_j \mathrm{softmax}_j(q_i^\top k_j + a_{i, r(j)} + b_{i, c(j)})\,v_j

    with :math:`r(j)` and :math:`c(j)` row and column of key :math:`j`. The position logits join the
    queries as further features, against keys that tell their row and column; so no pair of
    positions is held, and memory grows with positions times rows plus columns.

    Args:
        query: Scaled tokens ``(B, heads, N, D)``.
        key: Tokens ``(B, heads, rows * columns, D)``.
        value: Tokens ``(B, heads, rows * columns, V)``.
        row_logits: :math:`a`, ``(B, heads, N, rows)``.
        column_logits: :math:`b`, ``(B, heads, N, columns)``.

    Returns:
        Tokens ``(B, heads, N, V)``.
    """
    query, key = with_places(query, key, row_logits=row_logits, column_logits=column_logits)
    return position_attention(query, key, value, scale=1.0)


def with_places(
    query: Tensor, key: Tensor, *, row_logits: Tensor, column_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries and keys of :func:`relative_attention` whose products are the whole scores."""
    rows, columns = row_logits.shape[3], column_logits.shape[3]
    at = torch.arange(rows * columns, device=key.device).unsqueeze(1)  # (rows * columns, 1)
    row = at // columns  # and not %, which ONNX has not for an open number of columns
    column = at - row * columns
    place = torch.cat(
        [
            row == torch.arange(rows, device=key.device),
            column == torch.arange(columns, device=key.device),
        ],
        dim=1,
    )  # (rows * columns, rows + columns)
    place = place.to(key.dtype).expand(*key.shape[:2], -1, -1)
    query = torch.cat([query, row_logits.to(query.dtype), column_logits.to(query.dtype)], dim=3)
    return query, torch.cat([key, place], dim=3)


def displacement_logits(query: Tensor, table: Tensor, keys: int, *, step: int = 1) -> Tensor:
    r"""The product of each query with the embedding of its displacement to each key, on one axis.

    Args:
        query: Scaled queries ``(B, heads, ..., Q, D)`` by their place on the axis.
        table: Embeddings ``(2 * keys - 1, D)`` of the displacements from ``1 - keys`` on.
        keys: Places of the keys, which begin where the queries do.
        step: Places between one query and the next.

    Returns:
        ``(B, heads, ..., Q, keys)``.
    """
    places = torch.arange(query.shape[-2], device=query.device) * step
    shift = torch.arange(keys, device=query.device) - places[:, None] + keys - 1  # (Q, keys)
    return torch.einsum("...qd,qkd->...qk", query, table[shift])


def resized_table(table: Tensor, length: int) -> Tensor:
    """Embeddings ``(2 * L - 1, D)`` of displacements on another length, by linear interpolation."""
    return F.interpolate(table.T.unsqueeze(0), size=2 * length - 1, mode="linear").squeeze(0).T


def displacement_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor, *, size: torch.Size
) -> Tensor:
    r"""Attention over a map whose displacements have embeddings, one table for each axis.

    .. math:: y_i = \sum_j \mathrm{softmax}_j\Big(
        \frac{q_i^\top (k_j + r^h_{\Delta h} + r^w_{\Delta w})}{\sqrt{D}}\Big)\,v_j

    Args:
        query: Tokens ``(B, heads, H * W, D)``.
        key: Tokens ``(B, heads, H * W, D)``.
        value: Tokens ``(B, heads, H * W, V)``.
        rows: Embeddings ``(L, D)`` of displacements between rows, resized to ``2 * H - 1``.
        columns: The same between columns.
        size: Height and width of the map.

    Returns:
        Tokens ``(B, heads, H * W, V)``.
    """
    query, key = displaced(query, key, rows, columns, size=size)
    return position_attention(query, key, value, scale=1.0)


def displaced(
    query: Tensor, key: Tensor, rows: Tensor, columns: Tensor, *, size: torch.Size
) -> tuple[Tensor, Tensor]:
    """Queries and keys of :func:`displacement_attention` whose products are the whole scores."""
    query = query * query.shape[3] ** -0.5
    height, width = size
    by_place = query.unflatten(2, (height, width))  # (B, heads, H, W, D)
    column_logits = displacement_logits(by_place, resized_table(columns, width), width)
    row_logits = displacement_logits(by_place.transpose(2, 3), resized_table(rows, height), height)
    return with_places(
        query,
        key,
        row_logits=row_logits.transpose(2, 3).flatten(2, 3),
        column_logits=column_logits.flatten(2, 3),
    )
