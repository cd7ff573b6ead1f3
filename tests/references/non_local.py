"""Equations 1 to 8 of arXiv:1711.07971, with the scale, pooling and norm of the authors' code."""

import torch
from torch import Tensor

from references.batch_norm import batch_norm
from references.variant import ADDED, Variant


def non_local(x: Tensor, weights: dict[str, Tensor], **options: object) -> Tensor:
    """Keys are ``theta``, ``phi``, ``g``, ``out``, ``bn`` and ``concat_project``."""
    H, W = x.shape[2:]
    sub_sample, position = options.get("sub_sample", False), options.get("pool_position", "before")
    form = options.get("form", "embedded_gaussian")
    source = pooled(x) if sub_sample and position == "before" else x
    theta = x if form == "gaussian" else conv(x, weights, "theta")
    phi = source if form == "gaussian" else conv(source, weights, "phi")
    g = conv(source, weights, "g")
    if sub_sample and position == "after":
        phi, g = pooled(phi), pooled(g)
    theta, phi, g = theta.flatten(2), phi.flatten(2), g.flatten(2)  # (B, D, N)
    pairs = affinity(theta, phi, weights, form=form, scaled=bool(options.get("scaled", True)))
    y = torch.einsum("bij,bdj->bdi", pairs, g).unflatten(2, (H, W))
    z = conv(y, weights, "out")
    if "bn.weight" in weights:
        z = batch_norm(z, weights, "bn", training=bool(options.get("training")))
    return x + z


def affinity(
    theta: Tensor, phi: Tensor, weights: dict[str, Tensor], *, form: object, scaled: bool
) -> Tensor:
    """The weights ``f / C`` of all pairs, ``(B, N, M)``."""
    width, M = theta.shape[1], phi.shape[2]
    if form == "concatenation":
        w = weights["concat_project.weight"].flatten()
        left = torch.einsum("d,bdi->bi", w[:width], theta)[:, :, None]
        right = torch.einsum("d,bdj->bj", w[width:], phi)[:, None, :]
        return (left + right).clamp(min=0) / M
    products = torch.einsum("bdi,bdj->bij", theta, phi)
    if form == "dot_product":
        return products / M
    f = (products / (width**0.5 if scaled else 1.0)).exp()
    return f / f.sum(2, keepdim=True)


def conv(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"]
    return torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]


def pooled(x: Tensor) -> Tensor:
    """Maximum over windows of 2 x 2, a last odd row or column dropped; a side of 1 stays."""
    B, C, H, W = x.shape
    h, w = min(2, H), min(2, W)
    out = torch.empty(B, C, H // h, W // w, dtype=x.dtype)
    for i in range(H // h):
        for j in range(W // w):
            out[:, :, i, j] = x[:, :, i * h : i * h + h, j * w : j * w + w].amax((2, 3))
    return out


def parameters(
    channels: int, form: str = "embedded_gaussian", norm: bool = True, **options: object
) -> int:
    inner = max(1, channels // 2)
    projections = 1 if form == "gaussian" else 3
    pairwise = 2 * inner * (form == "concatenation")
    out = inner * channels + channels + 2 * channels * norm
    return projections * (channels * inner + inner) + pairwise + out


def _variant(options: dict[str, object]) -> Variant:
    form = options.get("form", "embedded_gaussian")
    in_training = ("out.bias", "g.bias") if "gaussian" in form else ("out.bias",)
    return Variant(
        "nl",
        non_local,
        ADDED,
        parameters,
        options,
        constant=("phi.bias",) if form == "embedded_gaussian" else (),
        constant_in_training=in_training if options.get("norm", True) else (),
        all_pairs=True,
    )


VARIANTS = [
    _variant(options)
    for options in (
        {},
        {"form": "gaussian"},
        {"form": "dot_product"},
        {"form": "concatenation"},
        {"scaled": False},
        {"norm": False},
        {"sub_sample": True},
        {"sub_sample": True, "pool_position": "after"},
        {"form": "gaussian", "sub_sample": True},
        {"form": "dot_product", "sub_sample": True, "pool_position": "after"},
        {"form": "concatenation", "sub_sample": True, "norm": False},
    )
]
