"""Softmax attention with additive scores, computed for a few queries at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from foveate.ops.affinity import Affinity, Size

CHUNK_ELEMENTS = 1 << 20
"""Pair features held at once, where even a single query does not need more."""


def additive_attention(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    r"""For each query the mean of the values, weighted by a small network on query and key.

    .. math:: y_i = \sum_j \mathrm{softmax}_j\Big(\sum_d w_d \tanh(q_{id} + k_{jd})\Big)\,v_j

    The pairs are visited in chunks of queries, forward and, computed anew, backward: the memory
    grows with the number of positions, not with its square. Differentiable once.

    Args:
        query: Tokens ``(B, heads, N, D)``.
        key: Tokens ``(B, heads, M, D)``.
        value: Tokens ``(B, heads, M, V)``.
        weight: Weights of the features, ``(heads, D)``.

    Returns:
        Tokens ``(B, heads, N, V)``, in the dtype of ``value``, summed in at least float32.
    """
    return _op(query, key, value, weight)


def additive_affinity(query: Tensor, key: Tensor, weight: Tensor, *, size: Size) -> Affinity:
    """The weights of :func:`additive_attention` between the positions of a map of this size."""
    q, k, w = _widened(query, key, weight)

    def rows(at: Tensor) -> Tensor:
        asking = q[:, :, at]
        found = [_affinity(asking[:, :, chunk], k, w)[0] for chunk in _chunks(asking, k)]
        return torch.cat(found, dim=2).unflatten(3, size)

    return Affinity(size, rows)


def chunked_forward(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The output of :func:`additive_attention`."""
    q, k, v, w = _widened(query, key, value, weight)
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    for rows in _chunks(q, k):
        affinity, _ = _affinity(q[:, :, rows], k, w)
        out[:, :, rows] = affinity @ v
    return out.to(value.dtype)


def chunked_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of all inputs of :func:`additive_attention`, from that of its output."""
    g, q, k, v, w = _widened(grad, query, key, value, weight)
    grad_q, grad_k, grad_v, grad_w = (torch.zeros_like(t) for t in (q, k, v, w))
    for rows in _chunks(q, k):
        affinity, features = _affinity(q[:, :, rows], k, w)
        grad_v += affinity.mT @ g[:, :, rows]
        from_values = g[:, :, rows] @ v.mT  # (B, heads, n, M)
        grad_scores = affinity * (from_values - (affinity * from_values).sum(3, keepdim=True))
        grad_w += torch.einsum("bhnm,bhnmd->hd", grad_scores, features)
        slopes = (1 - features.square()) * w[:, None, None]  # (B, heads, n, M, D)
        grad_sums = grad_scores.unsqueeze(4) * slopes
        grad_q[:, :, rows] = grad_sums.sum(3)
        grad_k += grad_sums.sum(2)
    return (
        grad_q.to(query.dtype),
        grad_k.to(key.dtype),
        grad_v.to(value.dtype),
        grad_w.to(weight.dtype),
    )


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    return tuple(t.to(wide, memory_format=torch.contiguous_format) for t in tensors)


def _chunks(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Slices of queries whose pair features with all keys fit into one chunk."""
    step = max(1, CHUNK_ELEMENTS // key.numel())
    return (slice(start, start + step) for start in range(0, query.shape[2], step))


def _affinity(query: Tensor, key: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Affinities ``(B, heads, n, M)`` and the pair features ``(B, heads, n, M, D)``."""
    features = (query.unsqueeze(3) + key.unsqueeze(2)).tanh()
    scores = torch.einsum("bhnmd,hd->bhnm", features, weight)
    return scores.softmax(3), features


_op = torch.library.custom_op("foveate::additive_attention", chunked_forward, mutates_args=())
_backward_op = torch.library.custom_op(
    "foveate::additive_attention_backward", chunked_backward, mutates_args=()
)


@_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    return value.new_empty((*query.shape[:3], value.shape[3]))


@_backward_op.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, w = (t.new_empty(t.shape) for t in (query, key, value, weight))
    return q, k, v, w


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return _backward_op(grad, *ctx.saved_tensors)


_op.register_autograd(_differentiate, setup_context=_save)
