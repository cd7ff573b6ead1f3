"""GCT: Gated Channel Transformation, Yang et al., CVPR 2020 (arXiv:1909.11519)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.errors import check_choice
from foveate.mechanisms.base import Gate, Published
from foveate.registry import register_mechanism

NORMS = ("l2", "l1")


@register_mechanism("gct")
class GatedChannelTransformation(Gate):
    r"""Weighs each channel by its share of the lengths of all channels.

    .. math::
        y_c = x_c \cdot \Big(1 + \tanh\Big(
        \gamma_c \frac{e_c}{\sqrt{\mathrm{mean}_C(e^2) + \epsilon}} + \beta_c\Big)\Big), \quad
        e_c = \alpha_c \sqrt{\sum_{HW} x_c^2 + \epsilon}

    Args:
        channels: Channels of the feature map.
        norm: Length of a channel: ``"l2"`` as above, or ``"l1"``, the sum of absolute values,
            divided by the mean of :math:`|e|`.
        eps: Added to sums of squares and to divisors.
        init: Paper's form or identity, here the same: the gates are 1 at first.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Raises:
        ValueError: If ``norm`` is neither of the two.

    Note:
        The authors keep weight decay off :math:`\beta`. Some collections call another method, the
        Gaussian context transformer, by the same letters.

    Example:
        >>> GatedChannelTransformation(64)
        GatedChannelTransformation(64, norm='l2', eps=1e-05)
    """

    place = "conv"
    published_identity = True
    results: ClassVar[tuple[Published, ...]] = (
        Published("ResNet-50", "ImageNet top-1 accuracy %", "77.3", "", "GCT README"),
        Published(
            "ResNet-50, weight decay on beta", "ImageNet top-1 accuracy %", "77.7", "", "GCT README"
        ),
    )

    def __init__(
        self, channels: int, *, norm: str = "l2", eps: float = 1e-5, init: str = "paper"
    ) -> None:
        super().__init__(channels, init=init)
        self.norm, self.eps = check_choice("norm", norm, NORMS), eps
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # sums over all HW
        if self.norm == "l2":
            length = (wide.square().sum((2, 3), keepdim=True) + self.eps).sqrt()  # (B, C, 1, 1)
            embedding = length * self.alpha
            scale = (embedding.square().mean(1, keepdim=True) + self.eps).rsqrt()  # (B, 1, 1, 1)
        else:
            embedding = wide.abs().sum((2, 3), keepdim=True) * self.alpha  # (B, C, 1, 1)
            scale = 1 / (embedding.abs().mean(1, keepdim=True) + self.eps)  # (B, 1, 1, 1)
        return {"channel": 1 + (embedding * scale * self.gamma + self.beta).tanh()}
