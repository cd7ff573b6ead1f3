"""Section 3.2 of arXiv:1706.03762 over the positions of a map; additive scores of 1409.0473."""

import torch
from torch import Tensor

from references.variant import ADDED, Variant


def self_attention(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """``qkv`` holds queries, keys and values of all heads, in this order; then ``out``."""
    C, H, W = x.shape[1:]
    num_heads = int(str(options.get("num_heads") or max(h for h in (1, 2, 4, 8) if C % h == 0)))
    d = C // num_heads
    tokens = x.flatten(2)  # (B, C, N)
    projected = linear(tokens, weights, "qkv")  # (B, 3C, N)
    heads = []
    for head in range(num_heads):
        q, k, v = (projected[:, part * C + head * d : part * C + head * d + d] for part in range(3))
        f = scores(q, k, weights, head, str(options.get("score", "scaled_dot"))).exp()
        affinity = f / f.sum(2, keepdim=True)
        heads.append(torch.einsum("bij,bdj->bdi", affinity, v))
    out = linear(torch.cat(heads, dim=1), weights, "out")
    return x + weights.get("scale", 1) * out.unflatten(2, (H, W))


def scores(q: Tensor, k: Tensor, weights: dict[str, Tensor], head: int, score: str) -> Tensor:
    if score == "additive":
        pairs = (q[:, :, :, None] + k[:, :, None, :]).tanh()
        return torch.einsum("d,bdij->bij", weights["score_weight"][head], pairs)
    products = torch.einsum("bdi,bdj->bij", q, k)
    return products / q.shape[1] ** 0.5 if score == "scaled_dot" else products


def linear(tokens: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    out = torch.einsum("oc,bcn->bon", weights[f"{name}.weight"].flatten(1), tokens)
    return out + weights[f"{name}.bias"][:, None] if f"{name}.bias" in weights else out


def parameters(channels: int, bias: bool = True, **options: object) -> int:
    additive = channels * (options.get("score") == "additive")
    return 4 * (channels**2 + channels * bias) + additive


VARIANTS = [
    Variant("mhsa", self_attention, ADDED, parameters, options, all_pairs=True)
    for options in (
        {},
        {"num_heads": 1},
        {"score": "dot"},
        {"score": "additive"},
        {"bias": False},
    )
]
