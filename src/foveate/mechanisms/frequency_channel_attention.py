"""FcaNet: Frequency Channel Attention Networks, Qin et al., ICCV 2021 (arXiv:2012.11879)."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_choice, check_positive
from foveate.mechanisms.base import Gate, Published, bottleneck, check_divides
from foveate.registry import register_mechanism

GRID = 7
"""Sides of the grid of frequencies that the authors ranked, whatever the size of the map."""

# The vertical and the horizontal frequency of each, in two digits.
ORDERS = {
    "top": "00 01 60 05 02 10 12 40 50 16 30 04 06 03 35 22 "
    "46 63 33 53 55 21 61 52 54 32 31 41 23 20 65 13",
    "low": "00 01 10 11 02 20 21 12 22 03 30 40 04 13 31 05 "
    "14 23 32 41 50 06 15 24 33 42 51 60 16 25 34 43",
    "bot": "66 14 34 36 26 43 11 24 44 45 56 15 42 62 25 51 "
    "64 13 65 20 23 41 31 32 54 52 61 21 55 53 33 63",
}
CHOICES = {
    f"{order}{count}": [(int(pair[0]), int(pair[1])) for pair in pairs.split()[:count]]
    for order, pairs in ORDERS.items()
    for count in (1, 2, 4, 8, 16, 32)
}


@register_mechanism("fca")
class FrequencyChannelAttention(Gate):
    r"""Weighs each channel by a gate computed from one frequency of each channel.

    .. math::
        y = x \cdot \sigma(W_2\,\mathrm{relu}(W_1 z)), \quad
        z_c = \sum_{h,w} x_{chw} D_{u_c}(h, H)\,D_{v_c}(w, W), \quad
        D_u(h, H) = \sqrt{(1 + [u > 0]) / H}\,\cos(\pi u (h + 1/2) / H)

    Of as many equal parts of the channels as there are frequencies each has its own frequency. With
    the lowest alone it is squeeze-and-excitation of means times :math:`\sqrt{HW}`.

    Args:
        channels: Channels of the feature map, a multiple of the number of frequencies.
        frequencies: ``"top"``, ``"low"`` or ``"bot"`` (best, lowest or worst, in the order of the
            official code) and 1, 2, 4, 8, 16 or 32: ``"top16"`` are the 16 best.
        reduction: Ratio of the bottleneck, whose width is ``channels // reduction``, at least 1.
        size: Height and width (or both in one number) of the cosines, at least 7; maps of another
            size are averaged to it first. The paper has 56, 28, 14 and 7 in the stages of a ResNet.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Raises:
        ValueError: If the number of frequencies does not divide ``channels``, ``frequencies`` is
            none of these, or ``reduction`` or ``size`` is below 1.

    Note:
        The frequencies are those of a 7 x 7 map, multiplied by ``size // 7``. In the official code
        this makes all of them zero on maps below 7, as those of CIFAR: here such maps are
        enlarged to 7.

    Example:
        >>> FrequencyChannelAttention(64, size=56)
        FrequencyChannelAttention(64, frequencies='top16', reduction=16, size=56)
    """

    sized = True
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "FcaNet-LF": {"frequencies": "low16"},
        "FcaNet-TS": {},
    }
    results: ClassVar[tuple[Published, ...]] = tuple(
        Published(model, "ImageNet top-1 accuracy %", value, "", "FcaNet README")
        for model, value in (
            ("ResNet-34", "75.07"),
            ("ResNet-50", "78.52"),
            ("ResNet-101", "79.64"),
        )
    )
    basis: Tensor

    def __init__(
        self,
        channels: int,
        *,
        frequencies: str = "top16",
        reduction: int = 16,
        size: int | tuple[int, int] = 14,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        chosen = CHOICES[check_choice("frequencies", frequencies, CHOICES)]
        check_divides(frequencies=len(chosen), channels=channels)
        height, width = (size, size) if isinstance(size, int) else size
        check_positive(size=min(height, width))
        self.frequencies, self.reduction, self.size = frequencies, reduction, size
        rows = torch.stack([_cosine(u, max(height, GRID)) for u, _ in chosen])  # (K, H')
        columns = torch.stack([_cosine(v, max(width, GRID)) for _, v in chosen])  # (K, W')
        self.register_buffer("basis", rows.unsqueeze(2) * columns.unsqueeze(1))  # (K, H', W')
        hidden = bottleneck(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        count, height, width = self.basis.shape
        x = ops.cell_means(x, (height, width))  # (B, C, H', W')
        x = x.unflatten(1, (count, -1))  # (B, K, C/K, H', W')
        z = (x * self.basis.unsqueeze(1)).sum((3, 4)).flatten(1)  # (B, C)
        z = self.fc1(z[:, :, None, None]).relu()  # (B, C/r, 1, 1)
        return {"channel": self.fc2(z).sigmoid()}  # (B, C, 1, 1)


def _cosine(frequency: int, length: int) -> Tensor:
    """One row of the orthonormal discrete cosine transform, at a frequency of the 7 x 7 grid."""
    frequency *= length // GRID
    place = torch.arange(length) + 0.5
    return math.sqrt((1 + (frequency > 0)) / length) * (math.pi * frequency * place / length).cos()
