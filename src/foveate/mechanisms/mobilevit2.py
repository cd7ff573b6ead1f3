"""MobileViTv2: Separable Self-attention, Mehta and Rastegari, TMLR 2023 (arXiv:2206.02680)."""

import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidValueError, check_positive
from foveate.mechanisms.base import Replacement
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

PATCH = 2


def _norm(dim: int) -> nn.GroupNorm:
    """One mean and one variance for all that an image has."""
    return nn.GroupNorm(1, dim)


class SeparableLayer(nn.Module):
    """Separable attention and two pointwise layers, normalised first and added: ``(B, D, P, N)``.

    Each set of pixels is summed up in one context vector, a mean of keys weighted by a softmax over
    the set, which scales the activated values of all.
    """

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm1 = _norm(dim)
        self.qkv_proj = nn.Conv2d(dim, 1 + 2 * dim, 1)
        self.out_proj = nn.Conv2d(dim, dim, 1)
        self.norm2 = _norm(dim)
        self.fc1 = nn.Conv2d(dim, expansion * dim, 1)
        self.fc2 = nn.Conv2d(expansion * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv_proj(self.norm1(x)).split([1, self.dim, self.dim], dim=1)
        context = (key * query.softmax(3)).sum(3, keepdim=True)  # (B, D, P, 1)
        x = x + self.out_proj(value.relu() * context)
        return x + self.fc2(F.silu(self.fc1(self.norm2(x))))


@register_mechanism("mobilevit2")
class MobileViT2(Replacement):
    r"""Lets pixels read one context vector of those at their own place in all patches.

    .. math::
        y = W_2\,\mathrm{fold}(T(\mathrm{unfold}(W_1\,\mathrm{dw}_3(x)))), \quad
        T: v_i \mapsto v_i + W_o\,\Big(\mathrm{relu}(W_v v_i) \cdot
        \sum_j \mathrm{softmax}_j(w^\top v_j)\,W_k v_j\Big)

    The cost is linear in the number of pixels. Layers, places and patches are those of
    ``mobilevit``; there is no fusion with the input.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output; None for as many.
        stride: Must be 1.
        dilation: Dilation of the depthwise convolution.
        dim: Width of the layers; None for ``channels``.
        depth: Layers.
        expansion: Ratio of the hidden width of each.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``output``: ``(B, 1, H, W)``

    Raises:
        ValueError: If ``stride`` is not 1, or a number is below 1.

    Note:
        The map is resized to even sides if need be, and the result back. A popular copy is another
        operator: it has four linear layers, no ReLU, and no patches.

    Example:
        >>> import torch
        >>> MobileViT2(32)(torch.rand(2, 32, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """

    place = "stage"

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        dim: int | None = None,
        depth: int = 2,
        expansion: int = 2,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        if stride != 1:
            raise InvalidValueError(f"stride must be 1, but got {stride=}")
        dim = channels if dim is None else dim
        check_positive(dim=dim, depth=depth, expansion=expansion)
        self.dim, self.depth, self.expansion = dim, depth, expansion
        self.local_conv = nn.Conv2d(
            channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False
        )
        self.local_norm = GateNorm(channels)
        self.project = nn.Conv2d(channels, dim, 1, bias=False)
        self.layers = nn.Sequential(*(SeparableLayer(dim, expansion) for _ in range(depth)))
        self.norm = _norm(dim)
        self.return_conv = nn.Conv2d(dim, self.out_channels, 1, bias=False)
        self.return_norm = GateNorm(self.out_channels)

    def branch(self, x: Tensor) -> Tensor:
        local = self.project(F.silu(self.local_norm(self.local_conv(x))))  # (B, D, H, W)
        patches = ops.to_patches(local, PATCH, align_corners=True)  # (B, D, 4, N)
        patches = self.norm(self.layers(patches))
        folded = ops.from_patches(patches, PATCH, x, align_corners=True)  # (B, D, H, W)
        return self.return_norm(self.return_conv(folded))  # (B, C_out, H, W)
