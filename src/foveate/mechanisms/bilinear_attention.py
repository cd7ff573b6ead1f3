"""Non-Local Neural Networks with Grouped Bilinear Attentional Transforms, Chi et al., CVPR 2020."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidValueError, check_positive
from foveate.mechanisms.base import Mixer
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism


class ConvNorm(nn.Module):
    """A 1 x 1 convolution, normalised and rectified."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.bn = GateNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


@register_mechanism("bat")
class BilinearAttention(Mixer):
    r"""Adds a map whose blocks are mixed along the columns, then along the rows, of the map.

    .. math:: y = x + f_4(f_3(P X Q)), \quad X = f_1(x)

    The map :math:`X` is cut into ``block_size`` by ``block_size`` blocks. A row of :math:`P` says
    how much of each row of blocks goes into one of them, a column of :math:`Q` the same for columns
    of blocks. Their entries are sigmoids divided by their sum, computed by a convolution from the
    maxima of :math:`f_2(X)` over each row, or column, of blocks, for each group of channels anew.
    Each :math:`f` is a pointwise convolution with batch normalisation and ReLU.

    Args:
        channels: Channels of the feature map.
        reduction: Ratio of the bottleneck :math:`f_1`.
        num_groups: Groups of channels with their own :math:`P` and :math:`Q`.
        block_size: Blocks along each side.
        init: Plain sum, or identity (see :class:`~foveate.mechanisms.base.Mixer`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``added``: ``(B, 1, H, W)``

    Raises:
        ValueError: If ``reduction * num_groups`` does not divide ``channels``.

    Note:
        The official code needs sides that are multiples of ``block_size``; here others are
        resized to the next multiple and back. It also drops a fifth of the added channels in
        training, which is left out. timm has no biases before its normalisations, ``reduction=4``,
        ``num_groups=2``, and rounds the bottleneck to a multiple of 8.

    Example:
        >>> import torch
        >>> BilinearAttention(64)(torch.rand(2, 64, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
    """

    place = "post"
    timm: ClassVar[dict[str, dict[str, Any]]] = {"bat": {"reduction": 4, "num_groups": 2}}

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        num_groups: int = 4,
        block_size: int = 7,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        check_positive(reduction=reduction, num_groups=num_groups, block_size=block_size)
        self.reduction, self.num_groups, self.block_size = reduction, num_groups, block_size
        if channels % (reduction * num_groups):
            raise InvalidValueError(
                "channels must be a multiple of reduction * num_groups, but got "
                f"channels={channels}, reduction={reduction} and num_groups={num_groups}"
            )
        hidden = channels // reduction
        entries = num_groups * block_size**2
        self.conv1 = ConvNorm(channels, hidden)
        self.summary = ConvNorm(hidden, num_groups)
        self.conv_p = nn.Conv2d(num_groups, entries, (block_size, 1))
        self.conv_q = nn.Conv2d(num_groups, entries, (1, block_size))
        self.conv2 = ConvNorm(hidden, hidden)
        self.conv3 = ConvNorm(hidden, channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def mix(self, x: Tensor) -> Tensor:
        z = self.conv1(x)  # (B, C/r, H, W)
        s = self.block_size
        size = [ops.cells_across(side, s) * s for side in z.shape[2:]]
        z = F.interpolate(z, size, mode="bilinear")  # exact where the size is this already
        p, q = self.matrices(z)
        z = mix_blocks(p, z)
        z = mix_blocks(q.mT, z.mT).mT
        z = F.interpolate(z, x.shape[2:], mode="bilinear")  # (B, C/r, H, W)
        return self.conv3(self.conv2(z))  # (B, C, H, W)

    def matrices(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices P and Q of each group, ``(B, G, s, s)``."""
        s = self.block_size
        blocks = self.summary(z).unflatten(3, (s, -1)).unflatten(2, (s, -1))
        maxima = blocks.amax((3, 5))  # (B, G, s, s)
        p = self.conv_p(maxima.amax(3, keepdim=True))  # (B, Gss, 1, 1)
        q = self.conv_q(maxima.amax(2, keepdim=True))  # (B, Gss, 1, 1)
        shape = (self.num_groups, self.block_size, self.block_size)
        p, q = (t.flatten(1).unflatten(1, shape).sigmoid() for t in (p, q))  # (B, G, s, s)
        return p / p.sum(3, keepdim=True), q / q.sum(2, keepdim=True)


def mix_blocks(matrix: Tensor, z: Tensor) -> Tensor:
    """Rows of blocks of ``(B, C, H, W)``, mixed by a matrix for each group, ``(B, G, s, s)``."""
    groups, blocks = matrix.shape[1:3]
    rows = z.flatten(2).unflatten(2, (blocks, -1))  # (B, C, s, HW/s)
    rows = rows.unflatten(1, (groups, -1))  # (B, G, C/G, s, HW/s)
    mixed = matrix.unsqueeze(2) @ rows
    return mixed.flatten(1, 2).flatten(2).unflatten(2, z.shape[2:])
