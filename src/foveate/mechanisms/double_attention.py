"""A^2-Nets: Double Attention Networks, Chen et al., NeurIPS 2018 (arXiv:1810.11579)."""

from torch import Tensor, nn

from foveate import ops
from foveate.mechanisms.base import Mixer, bottleneck
from foveate.registry import register_mechanism


@register_mechanism("a2")
class DoubleAttention(Mixer):
    r"""Gathers a few global descriptors and gives each position its own mixture of them.

    .. math:: y_i = x_i + W_o \sum_k \mathrm{softmax}_k(V x_i)_k
        \sum_j \mathrm{softmax}_j(B x_j)_k\,A x_j

    The first softmax runs over the :math:`C/r` descriptors :math:`k` of one position, the second
    over the positions :math:`j` that a descriptor gathers from.

    Args:
        channels: Channels of the feature map.
        reduction: Ratio :math:`r` of channels to the number of descriptors and to the width of
            each, both at least 1.
        init: Plain sum, or identity (see :class:`~foveate.mechanisms.base.Mixer`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``added``: ``(B, 1, H, W)``

    Raises:
        ValueError: If ``channels`` or ``reduction`` is below 1.

    Note:
        Some copies leave the dimension of the softmaxes open and so normalise over the batch, or
        leave the sum with the input out. With one image such copies weigh everything by 1.

    Example:
        >>> import torch
        >>> DoubleAttention(64)(torch.rand(2, 64, 8, 6)).shape
        torch.Size([2, 64, 8, 6])
    """

    place = "post"

    def __init__(self, channels: int, *, reduction: int = 4, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        self.reduction = reduction
        hidden = bottleneck(channels, reduction)
        self.feature = nn.Conv2d(channels, hidden, 1)
        self.gather = nn.Conv2d(channels, hidden, 1)
        self.distribute = nn.Conv2d(channels, hidden, 1)
        self.out = nn.Conv2d(hidden, channels, 1)

    def affinity(self, x: Tensor) -> ops.Affinity:
        gather, distribute = self._maps(x)
        return ops.product_affinity(
            distribute.mT.unsqueeze(1), gather.unsqueeze(1), size=x.shape[2:]
        )

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gather = self.gather(x).flatten(2).softmax(2)  # (B, C/r, HW), each row sums to 1
        distribute = self.distribute(x).flatten(2).softmax(1)  # (B, C/r, HW), each column does
        return gather, distribute

    def mix(self, x: Tensor) -> Tensor:
        gather, distribute = self._maps(x)
        features = self.feature(x).flatten(2)  # (B, C/r, HW)
        descriptors = features @ gather.mT  # (B, C/r, C/r)
        mixed = descriptors @ distribute  # (B, C/r, HW)
        return self.out(mixed.unflatten(2, x.shape[2:]))  # (B, C, H, W)
