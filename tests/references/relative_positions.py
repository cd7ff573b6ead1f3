"""Tables of displacements, read pair by pair."""

import torch
from torch import Tensor


def resized(table: Tensor, length: int) -> Tensor:
    """The table of another length, by linear interpolation that keeps its middle in the middle."""
    old, new = len(table), 2 * length - 1
    rows = []
    for i in range(new):
        at = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        low = int(at)
        high = min(low + 1, old - 1)
        rows.append((1 - (at - low)) * table[low] + (at - low) * table[high])
    return torch.stack(rows)


def attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, *, height: int, width: int
) -> Tensor:
    """One head, ``(B, H * W, D)`` each; a softmax over all pairs, one displacement at a time."""
    q = q / q.shape[2] ** 0.5
    rel_h, rel_w = resized(rel_h, height), resized(rel_w, width)
    logits = torch.einsum("bid,bjd->bij", q, k)
    for i in range(height * width):
        for j in range(height * width):
            down, right = j // width - i // width, j % width - i % width
            embedding = rel_h[down + height - 1] + rel_w[right + width - 1]
            logits[:, i, j] += q[:, i] @ embedding
    f = (logits - logits.max()).exp()
    return torch.einsum("bij,bjd->bid", f / f.sum(2, keepdim=True), v)
