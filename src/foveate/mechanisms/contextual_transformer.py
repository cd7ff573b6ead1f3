"""CoT: Contextual Transformer Networks, Li, Yao, Pan and Mei, 2021 (arXiv:2107.12292)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidValueError
from foveate.mechanisms.base import Published, Replacement, check_divides
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

KERNEL_SIZE = 3
SHARED = 8
"""Channels that share a weight; the distance between them is an eighth of all channels."""


@register_mechanism("cot")
class ContextualTransformer(Replacement):
    r"""Weighs its static context, a convolution, against a dynamic one with kernels made from it.

    .. math::
        y = a_1 \cdot \mathrm{silu}(\mathrm{BN}(\sum_u w_{i, u}\,v_{i + u})) + a_2 \cdot k, \quad
        k = \mathrm{relu}(\mathrm{BN}(\mathrm{conv}_3(x))), \quad
        w = \mathrm{GN}(W_2\,\mathrm{relu}(\mathrm{BN}(W_1 [x; k])))

    with :math:`v = \mathrm{BN}(W_v x)`, and :math:`a` a softmax over the two contexts for each
    channel, computed from the mean of their sum. A stride averages 3x3 windows first.

    Args:
        channels: Channels of the input, a multiple of 8.
        out_channels: None, or as many as ``channels``.
        stride: 1 or 2.
        dilation: Distance between the places of both windows.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input: ``(B, C, H, W)``; output ``(B, C, H_out, W_out)``
        - ``dynamic``, ``static``: ``(B, C, 1, 1)``, which add up to 1

    Raises:
        ValueError: If ``channels`` is no multiple of 8, ``out_channels`` differs from it, or
            ``stride`` is above 2.

    Note:
        The weights of a window are not normalised by a softmax over it. A popular copy is another
        operator: it averages the nine weights and takes a softmax over all positions.

    Example:
        >>> import torch
        >>> ContextualTransformer(32, stride=2)(torch.rand(2, 32, 8, 8)).shape
        torch.Size([2, 32, 4, 4])
    """

    results: ClassVar[tuple[Published, ...]] = (
        Published(
            "CoTNet-50, 350 epochs", "ImageNet top-1 accuracy %", "81.3", "", "CoTNet repository"
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        if self.out_channels != channels:
            raise InvalidValueError(
                f"out_channels must equal channels, but got {out_channels=} and {channels=}"
            )
        if stride > 2:
            raise InvalidValueError(f"stride must be 1 or 2, but got {stride=}")
        check_divides(shared=SHARED, channels=channels)
        self.key_conv = nn.Conv2d(
            channels,
            channels,
            KERNEL_SIZE,
            padding=dilation,
            dilation=dilation,
            groups=4,
            bias=False,
        )
        self.key_norm = GateNorm(channels)
        hidden, places = channels // 2, KERNEL_SIZE**2
        self.weight_conv1 = nn.Conv2d(2 * channels, hidden, 1, bias=False)
        self.weight_norm = GateNorm(hidden)
        self.weight_conv2 = nn.Conv2d(hidden, places * channels // SHARED, 1)
        self.group_norm = nn.GroupNorm(channels // SHARED, places * channels // SHARED)
        self.value_conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.value_norm = GateNorm(channels)
        self.norm = GateNorm(channels)
        squeezed = max(channels // 2, 32)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc_norm = GateNorm(squeezed)
        self.fc2 = nn.Conv2d(squeezed, 2 * channels, 1)

    def _contexts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.stride > 1:
            x = F.avg_pool2d(x, 3, self.stride, padding=1)  # (B, C, H_out, W_out)
        static = self.key_norm(self.key_conv(x)).relu()
        z = self.weight_norm(self.weight_conv1(torch.cat([x, static], dim=1))).relu()
        weights = self.group_norm(self.weight_conv2(z))  # (B, 9C/8, H_out, W_out)
        weights = weights.unflatten(1, (1, -1, KERNEL_SIZE**2))  # (B, 1, C/8, 9, H_out, W_out)
        values = self.value_norm(self.value_conv(x)).unflatten(1, (SHARED, -1))  # (B, 8, C/8, ...)
        dynamic = ops.local_aggregation(
            values, weights, kernel_size=KERNEL_SIZE, dilation=self.dilation
        ).flatten(1, 2)  # (B, C, H_out, W_out)
        return F.silu(self.norm(dynamic)), static

    def _weigh(self, dynamic: Tensor, static: Tensor) -> Tensor:
        z = (dynamic + static).mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        logits = self.fc2(self.fc_norm(self.fc1(z)).relu())  # (B, 2C, 1, 1)
        return logits.unflatten(1, (-1, 2)).softmax(2)  # (B, C, 2, 1, 1)

    def branch(self, x: Tensor) -> Tensor:
        dynamic, static = self._contexts(x)
        weights = self._weigh(dynamic, static)
        return dynamic * weights[:, :, 0] + static * weights[:, :, 1]

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        weights = self._weigh(*self._contexts(x))
        return {"dynamic": weights[:, :, 0], "static": weights[:, :, 1]}
