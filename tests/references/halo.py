"""Section 3 of arXiv:2103.12731: one query at a time, over the window of its block."""

import torch
from torch import Tensor

from references.variant import OUTPUT, Variant, swap


def halo(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    heads, s = int(options.get("num_heads", 8)), int(options.get("stride", 1))
    b, h = int(options.get("block_size", 8)), int(options.get("halo_size", 3))
    B, _, H, W = x.shape
    win = b + 2 * h
    q = torch.einsum("oc,bchw->bohw", weights["q.weight"].flatten(1), x)
    k, v = torch.einsum("oc,bchw->bohw", weights["kv.weight"].flatten(1), x).chunk(2, dim=1)
    out = q.shape[1]
    d = out // heads
    k, v = around(k, win), around(v, win)
    y = torch.empty(B, out, (H - 1) // s + 1, (W - 1) // s + 1, dtype=x.dtype)
    for i in range(0, H, s):
        for j in range(0, W, s):
            top, left = i // b * b - h + win, j // b * b - h + win  # of the window, in k and v
            down = torch.arange(win) - i % b + win - 1
            right = torch.arange(win) - j % b + win - 1
            for head in range(heads):
                one = slice(head * d, head * d + d)
                query = q[:, one, i, j] / d**0.5
                keys = k[:, one, top : top + win, left : left + win]
                logits = torch.einsum("bd,bdrc->brc", query, keys)
                logits = (
                    logits + torch.einsum("bd,rd->br", query, weights["rel_h"][down])[:, :, None]
                )
                logits = logits + torch.einsum("bd,cd->bc", query, weights["rel_w"][right])[:, None]
                f = logits.exp()
                f = f / f.sum((1, 2), keepdim=True)
                values = v[:, one, top : top + win, left : left + win]
                y[:, one, i // s, j // s] = torch.einsum("brc,bdrc->bd", f, values)
    return x + weights["scale"] * y if "scale" in weights else y


def around(z: Tensor, border: int) -> Tensor:
    B, C, H, W = z.shape
    out = torch.zeros(B, C, H + 2 * border, W + 2 * border, dtype=z.dtype)
    out[:, :, border : border + H, border : border + W] = z
    return out


def parameters(channels: int, num_heads: int = 8, block_size: int = 8, halo_size: int = 3) -> int:
    window = block_size + 2 * halo_size
    return 3 * channels**2 + 2 * (2 * window - 1) * (channels // num_heads)


VARIANTS = [
    Variant(
        "halo",
        halo,
        OUTPUT,
        parameters,
        options,
        multiple=options.get("num_heads", 8),
        transposed=swap(rel_h="rel_w"),
        least=options.get("block_size", 8),
    )
    for options in (
        {},
        {"num_heads": 1, "block_size": 4, "halo_size": 1},
        {"num_heads": 2, "block_size": 2, "halo_size": 2},
    )
]
