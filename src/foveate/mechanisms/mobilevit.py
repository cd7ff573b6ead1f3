"""MobileViT, Mehta and Rastegari, ICLR 2022 (arXiv:2110.02178)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidValueError, check_positive
from foveate.mechanisms.base import Replacement, check_divides
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

PATCH = 2


class TransformerLayer(nn.Module):
    """Self-attention and two linear layers, each normalised first and added: ``(B, N, D)``."""

    def __init__(self, dim: int, num_heads: int, expansion: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, expansion * dim)
        self.fc2 = nn.Linear(expansion * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self._attend(self.norm1(x)))
        return x + self.fc2(F.silu(self.fc1(self.norm2(x))))

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of normalised tokens, ``(B, heads, N, D/heads)``."""
        heads = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # (B, N, 3, heads, D/heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.tokens(x)
        tokens = ops.position_attention(q, k, v, scale=q.shape[3] ** -0.5)
        return tokens.transpose(1, 2).flatten(2)  # (B, N, D)


@register_mechanism("mobilevit")
class MobileViT(Replacement):
    r"""Lets pixels attend to those at their own place in all patches, between convolutions.

    .. math::
        y = \mathrm{conv}_3([x; W_2\,\mathrm{fold}(T(\mathrm{unfold}(W_1\,\mathrm{conv}_3(x))))])

    with :math:`T` some transformer layers over the patches, apart for each of the four places in a
    patch of 2x2, and a normalisation after them. Both 3x3 convolutions and :math:`W_2` are
    normalised and activated.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output; None for as many.
        stride: Must be 1.
        dilation: Dilation of the first convolution.
        dim: Width of the tokens, a multiple of ``num_heads``; None for ``channels``.
        depth: Transformer layers.
        num_heads: Heads of each.
        expansion: Ratio of the hidden width of each.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``output``: ``(B, 1, H, W)``

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``, or ``stride`` is not 1.

    Note:
        A map of odd sides is resized bilinearly to even ones and back, as in the official code.

    Example:
        >>> import torch
        >>> MobileViT(32, dim=48)(torch.rand(2, 32, 8, 8)).shape
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
        num_heads: int = 4,
        expansion: int = 2,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        if stride != 1:
            raise InvalidValueError(f"stride must be 1, but got {stride=}")
        dim = channels if dim is None else dim
        check_divides(num_heads=num_heads, dim=dim)
        check_positive(depth=depth, expansion=expansion)
        self.dim, self.depth, self.num_heads, self.expansion = dim, depth, num_heads, expansion
        self.local_conv = nn.Conv2d(
            channels, channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.local_norm = GateNorm(channels)
        self.project = nn.Conv2d(channels, dim, 1, bias=False)
        self.layers = nn.Sequential(
            *(TransformerLayer(dim, num_heads, expansion) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.return_conv = nn.Conv2d(dim, self.out_channels, 1, bias=False)
        self.return_norm = GateNorm(self.out_channels)
        fused = channels + self.out_channels
        self.fusion_conv = nn.Conv2d(fused, self.out_channels, 3, padding=1, bias=False)
        self.fusion_norm = GateNorm(self.out_channels)

    def affinity(self, x: Tensor) -> ops.Affinity:
        """Of the last layer: a pixel's weights for the patches, for the pixel at its own place."""
        *layers, last = self.layers
        assert isinstance(last, TransformerLayer)
        tokens = self._tokens(x)
        for layer in layers:
            tokens = layer(tokens)
        q, k, _ = (t.unflatten(0, (-1, PATCH**2)) for t in last.tokens(last.norm1(tokens)))
        rows, columns = (ops.cells_across(length, PATCH) for length in x.shape[2:])
        width = columns * PATCH

        def weights(at: Tensor) -> Tensor:
            y, x_ = at // width, at % width
            place = y % PATCH * PATCH + x_ % PATCH
            asking = q[:, place, :, y // PATCH * columns + x_ // PATCH]  # (P, B, heads, D)
            scores = torch.einsum("pbhd,bphkd->bhpk", asking * q.shape[4] ** -0.5, k[:, place])
            return scores.softmax(3).unflatten(3, (rows, columns))

        return ops.Affinity((rows * PATCH, width), weights)

    def _tokens(self, x: Tensor) -> Tensor:
        """Pixels of the local features by place, ``(4B, N, D)``."""
        local = self.project(F.silu(self.local_norm(self.local_conv(x))))  # (B, D, H, W)
        patches = ops.to_patches(local, PATCH, align_corners=False)  # (B, D, 4, N)
        return patches.permute(0, 2, 3, 1).flatten(0, 1)

    def branch(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.layers(self._tokens(x))).unflatten(0, (-1, PATCH**2))
        folded = ops.from_patches(tokens.permute(0, 3, 1, 2), PATCH, x, align_corners=False)
        y = F.silu(self.return_norm(self.return_conv(folded)))  # (B, C_out, H, W)
        return F.silu(self.fusion_norm(self.fusion_conv(torch.cat([x, y], dim=1))))
