"""LCT: Linear Context Transform Block, Ruan, Wen, Zheng and Zheng, AAAI 2020 (arXiv:1909.03834)."""

import torch
from torch import Tensor, nn

from foveate.mechanisms.base import Gate, check_divides
from foveate.registry import register_mechanism

EPS = 1e-5


@register_mechanism("lct")
class LinearContextTransform(Gate):
    r"""Weighs each channel by how its mean stands out from those of its group.

    .. math::
        y = x \cdot \sigma(w\,\hat z + b), \quad
        \hat z = \frac{z - \mathrm{mean}_G(z)}{\sqrt{\mathrm{var}_G(z) + \epsilon}}, \quad
        z = \mathrm{mean}_{HW}(x)

    with one weight and one bias for each channel, 0 and 1 at first. In a group of a single channel
    :math:`\hat z = 0`.

    Args:
        channels: Channels of the feature map.
        num_groups: Groups, a divisor of ``channels``.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Raises:
        ValueError: If ``num_groups`` does not divide ``channels``.

    Note:
        There is no official code, and copies disagree: some start with a weight of 1 and a bias of
        0, and some take fewer groups where the number does not divide the channels.

    Example:
        >>> LinearContextTransform(256)
        LinearContextTransform(256, num_groups=16)
    """

    fused = True
    mean_only = True

    def __init__(self, channels: int, *, num_groups: int = 16, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        check_divides(num_groups=num_groups, channels=channels)
        self.num_groups = num_groups
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.ones(channels))

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        # The means of a group differ by less than bfloat16 resolves.
        wide = torch.promote_types(x.dtype, torch.float32)
        z = x.mean((2, 3), dtype=wide).unflatten(1, (self.num_groups, -1))  # (B, G, C/G)
        z = z - z.mean(2, keepdim=True)
        z = z * (z.square().mean(2, keepdim=True) + EPS).rsqrt()
        gate = torch.sigmoid(self.weight * z.flatten(1) + self.bias)  # (B, C)
        return {"channel": gate[:, :, None, None]}  # (B, C, 1, 1)
