"""CBAM: Convolutional Block Attention Module, Woo et al., ECCV 2018 (arXiv:1807.06521)."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_choice
from foveate.mechanisms.base import (
    Gate,
    Published,
    bare,
    bottleneck,
    check_odd,
    pointwise,
    weights,
)
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

ORDERS = ("channel_first", "spatial_first", "parallel_sum", "parallel_product")


def _avg(x: Tensor) -> tuple[Tensor, ...]:
    return ops.spatial_pool(x, "mean")


def _max(x: Tensor) -> tuple[Tensor, ...]:
    return ops.spatial_pool(x, "max")


def _lp(x: Tensor) -> tuple[Tensor, ...]:
    return (ops.spatial_length(x).to(x.dtype),)


def _both(x: Tensor) -> tuple[Tensor, ...]:
    return ops.spatial_pool(x, "mean", "max")


def _lse(x: Tensor) -> tuple[Tensor, ...]:
    return (x.logsumexp((2, 3), keepdim=True),)


def _blend(x: Tensor) -> tuple[Tensor, ...]:
    average, largest = _both(x)
    return ((average + largest) / 2,)


POOLINGS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "avg": _avg,
    "max": _max,
    "both": _both,
    "lse": _lse,
    "lp": _lp,
    "blend": _blend,
}


class ChannelGate(nn.Module):
    """One gate for each channel, from pooled maps through a shared bottleneck.

    Args:
        channels: Channels of the feature map.
        reduction: Ratio of the bottleneck.
        pooling: A key of ``POOLINGS``.

    Shape:
        ``(B, C, H, W)`` to ``(B, C, 1, 1)``
    """

    def __init__(self, channels: int, *, reduction: int, pooling: str) -> None:
        super().__init__()
        self.pool = POOLINGS[check_choice("pooling", pooling, POOLINGS)]
        hidden = bottleneck(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        pools = self.pool(x)
        z = torch.cat(pools)  # (P B, C, 1, 1)
        z = pointwise(self.fc2, pointwise(self.fc1, z).relu())  # (P B, C, 1, 1)
        return z.unflatten(0, (len(pools), -1)).sum(0).sigmoid()  # (B, C, 1, 1)


class SpatialGate(nn.Module):
    """One gate for each position, from the maximum and the mean over the channels.

    Args:
        kernel_size: Odd width of the convolution.
        norm: Normalise its output.
        norm_weight: Start of the weight of that normalisation.
        blend: See one map, the mean of maximum and mean.

    Shape:
        ``(B, C, H, W)`` to ``(B, 1, H, W)``
    """

    def __init__(
        self, *, kernel_size: int, norm: bool, norm_weight: float, blend: bool = False
    ) -> None:
        super().__init__()
        check_odd(kernel_size=kernel_size)
        self.blend = blend
        planes = 1 if blend else 2
        self.conv = nn.Conv2d(planes, 1, kernel_size, padding=kernel_size // 2, bias=False)
        bn = GateNorm(1, momentum=0.01)
        self.bn = bn if norm else nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.constant_(bn.weight, norm_weight)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.weigh(*ops.channel_pool(x, gate))

    def weigh(self, largest: Tensor, mean: Tensor) -> Tensor:
        """The gate from the two statistics, ``(B, 1, H, W)`` each."""
        z = torch.cat([largest, mean], dim=1)  # (B, 2, H, W)
        if self.blend:
            z = z.mean(1, keepdim=True)  # (B, 1, H, W)
        z = self.bn(ops.stencil(z, weights(self.conv, z)[0]))  # (B, 1, H, W)
        return z.sigmoid()


def _norm_weight(init: str) -> float:
    """Zero as published; one in the identity form, where the strength is the zero already.

    With both at zero the convolution would have no gradient for two optimiser steps.
    """
    return 1.0 if init == "identity" else 0.0


@register_mechanism("spatial")
class SpatialAttention(Gate):
    r"""Weighs each position by a gate computed from the maxima and means of its surroundings.

    .. math:: y = x \cdot \sigma(\mathrm{BN}(\mathrm{conv}_k([\max_C(x); \mathrm{mean}_C(x)])))

    Args:
        channels: Channels of the feature map.
        kernel_size: Odd width of the convolution.
        norm: Normalise the output of the convolution, as the official code does.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``spatial``: ``(B, 1, H, W)``

    Raises:
        ValueError: If ``kernel_size`` is even or below 1.

    Note:
        As for :class:`CBAM`.

    Example:
        >>> SpatialAttention(64)
        SpatialAttention(64, kernel_size=7, norm=True)
    """

    fused = True

    def __init__(
        self, channels: int, *, kernel_size: int = 7, norm: bool = True, init: str = "paper"
    ) -> None:
        super().__init__(channels, init=init)
        self.kernel_size, self.norm = kernel_size, norm
        self.spatial_gate = SpatialGate(
            kernel_size=kernel_size, norm=norm, norm_weight=_norm_weight(init)
        )

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        return {"spatial": self.spatial_gate(x)}  # (B, 1, H, W)


@register_mechanism("cbam")
class CBAM(Gate):
    r"""Weighs channels, then positions of what is left.

    .. math::
        x' = x \cdot \sigma(M(\mathrm{mean}_{HW}(x)) + M(\max_{HW}(x))), \quad
        y = x' \cdot \sigma(\mathrm{BN}(\mathrm{conv}_k([\max_C(x'); \mathrm{mean}_C(x')])))

    Args:
        channels: Channels of the feature map.
        reduction: Ratio of the bottleneck in :math:`M`.
        kernel_size: Odd width of the spatial convolution.
        pooling: What the channel gate sees: ``"avg"``, ``"max"``, ``"both"``, ``"lse"`` (the
            logarithm of the sum of exponentials) or ``"lp"`` (the Euclidean norm). With ``"blend"``
            both gates see one map, the mean of maximum and average.
        order: ``"channel_first"``; ``"spatial_first"``; ``"parallel_product"``, where both gates
            see the input; or ``"parallel_sum"``, where in addition the two gated maps are averaged
            with learned convex weights, the softmax of two logits.
        norm: Normalise the output of the spatial convolution, as the official code does.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``
        - ``spatial``: ``(B, 1, H, W)``

    Raises:
        ValueError: If an option has none of the values above.

    Note:
        The official code starts the weight of the normalisation at zero, so that the spatial gate
        is 0.5 at first; so does the paper's form. The identity form starts it at one.
        Popular copies swap maximum and mean, or leave the normalisation or the biases out; timm
        swaps the two and has no biases unless told.

    Example:
        >>> import torch
        >>> maps = CBAM(64).maps(torch.rand(2, 64, 8, 8))
        >>> {name: tuple(gate.shape) for name, gate in maps.items()}
        {'channel': (2, 64, 1, 1), 'spatial': (2, 1, 8, 8)}
    """

    ends_blocks = True
    timm: ClassVar[dict[str, dict[str, Any]]] = {"cbam": {}, "lcbam": {"pooling": "blend"}}
    results: ClassVar[tuple[Published, ...]] = (
        Published(
            "ResNet-50", "ImageNet top-1 accuracy %", "77.622", "", "attention-module README"
        ),
        Published(
            "ResNet-50, one recipe",
            "ImageNet top-1 accuracy %",
            "77.63",
            "76.38",
            "PytorchInsight README",
        ),
        Published(
            "ResNet-101, one recipe",
            "ImageNet top-1 accuracy %",
            "78.35",
            "78.20",
            "PytorchInsight README",
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        kernel_size: int = 7,
        pooling: str = "both",
        order: str = "channel_first",
        norm: bool = True,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        self.reduction, self.kernel_size, self.pooling = reduction, kernel_size, pooling
        self.order, self.norm = check_choice("order", order, ORDERS), norm
        # The others weigh a map before they read it, or by a gate of its size.
        self.fused = order in ("channel_first", "parallel_product")
        self.channel_gate = ChannelGate(channels, reduction=reduction, pooling=pooling)
        self.spatial_gate = SpatialGate(
            kernel_size=kernel_size,
            norm=norm,
            norm_weight=_norm_weight(init),
            blend=pooling == "blend",
        )
        if order == "parallel_sum":
            self.weight_logits = nn.Parameter(torch.zeros(2))

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        if self.order == "channel_first":
            channel = self.channel_gate(x)
            spatial = self.spatial_gate(x, self.temper(channel))
        elif self.order == "spatial_first":
            spatial = self.spatial_gate(x)
            channel = self.channel_gate(ops.scale(x, self.temper(spatial)))
        else:
            channel, spatial = self.channel_gate(x), self.spatial_gate(x)
        return {"channel": channel, "spatial": spatial}  # (B, C, 1, 1), (B, 1, H, W)

    def whole(
        self, x: Tensor, shortcut: Tensor | None = None, *, in_place: bool = False
    ) -> Tensor | None:
        channel, spatial = self.channel_gate, self.spatial_gate
        fc1, fc2, bn = channel.fc1, channel.fc2, spatial.bn
        kinds = (ChannelGate, SpatialGate, GateNorm, nn.Identity)
        if (type(self), self.order, self.pooling) != (CBAM, "channel_first", "both"):
            return None
        if not bare(channel, spatial, fc1, fc2, spatial.conv, bn, also=kinds):
            return None
        scale = shift = running = None
        eps = 0.0
        if isinstance(bn, GateNorm):
            if bn.running_mean is None or bn.momentum is None:
                return None
            if bn.training and (ops.again() or x.numel() == self.channels):
                return None
            scale, shift, running, eps = bn.weight, bn.bias, bn.running(), bn.eps
        layers = (fc1.weight, fc1.bias, fc2.weight, fc2.bias, spatial.conv.weight)
        weights = ops.CBAMWeights(*layers, scale, shift, self.strength)
        found = ops.cbam(x, weights, running, eps, shortcut, in_place=in_place)
        if found is None:
            return None
        y, statistics = found
        if statistics is not None and isinstance(bn, GateNorm):
            bn.update(statistics[0], statistics[2])
        return y

    def weigh(self, x: Tensor, gates: dict[str, Tensor]) -> Tensor:
        if self.order != "parallel_sum":
            return super().weigh(x, gates)
        channel, spatial = self.temper(gates["channel"]), self.temper(gates["spatial"])
        weight = self.weight_logits.softmax(0)[1].to(spatial.dtype)
        # lerp, unlike a weighted sum, is exact where both gates are 1.
        return ops.scale(x, torch.lerp(channel, spatial, weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.weigh(x, self.gate(x)) if self.order == "parallel_sum" else super().forward(x)
