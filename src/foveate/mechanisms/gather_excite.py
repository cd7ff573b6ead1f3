"""Gather-Excite: Exploiting Feature Context, Hu et al., NeurIPS 2018 (arXiv:1810.12348)."""

import math
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidValueError, check_choice, check_positive
from foveate.mechanisms.base import Gate, bottleneck, pointwise
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

GATHERS = ("mean", "conv")
EXTENTS = (0, 2, 4, 8)


class MapConv(nn.Conv2d):
    """Depthwise convolution whose kernel is as large as the map, so that one value is left.

    On a map of another size the kernel is resized bilinearly, and its weights shrink or grow with
    the number of positions: what it makes of a constant map stays about the same.

    Args:
        channels: Channels of the feature map.
        size: Height and width of the kernel.

    Shape:
        ``(B, C, H, W)`` to ``(B, C, 1, 1)``
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__(channels, channels, size, groups=channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        H, W = input.shape[2:]
        weight = F.interpolate(self.weight, (H, W), mode="bilinear")  # (C, 1, H, W)
        weight = weight * (math.prod(self.kernel_size) / (H * W))
        return (input * weight.squeeze(1)).sum((2, 3), keepdim=True)  # (B, C, 1, 1)


@register_mechanism("ge")
class GatherExcite(Gate):
    r"""Weighs each element by what its channel holds around it.

    .. math:: y = x \cdot \sigma(\mathrm{excite}(\mathrm{gather}(x)))

    ``gather`` reads each channel on its own: its mean over windows of :math:`2e - 1` rows and
    columns at every :math:`e`-th position, with :math:`e` the ``extent``, or a normalised depthwise
    convolution in place of the mean. ``excite`` is nothing, or a bottleneck across the channels.
    The result is resized to the map by nearest neighbours. Means alone have no parameters.

    Args:
        channels: Channels of the feature map.
        gather: ``"mean"``, or ``"conv"``: with extent 0 one kernel as large as the map, else one
            convolution of 3 x 3 and stride 2 for each halving of the map.
        excite: Pass what was gathered through a bottleneck.
        extent: 2, 4 or 8; or 0 for the whole map.
        reduction: Ratio of the bottleneck.
        size: Height and width (or both in one number) of the kernel as large as the map, which is
            resized to maps of another size; nothing else depends on it.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``context``: ``(B, C, 1, 1)`` with extent 0, else ``(B, C, H, W)``

    Raises:
        ValueError: If ``gather`` or ``extent`` has none of the values above, or ``reduction`` or
            ``size`` is below 1.

    Note:
        timm's default has the excite but no gather with parameters: with extent 0, squeeze and
        excitation. It leaves out the ReLU between a convolution and the excite, and in version
        1.0.31 cannot be built with either. Exported with dynamic sizes, an ``extent`` other than 0
        takes only maps with more rows and columns than that, as any strided convolution does.

    Example:
        >>> GatherExcite(64, extent=4)
        GatherExcite(64, gather='mean', excite=False, extent=4, reduction=16, size=14)
    """

    sized = True
    mean_only = True
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "theta-": {},
        "theta": {"gather": "conv"},
        "theta+": {"gather": "conv", "excite": True},
    }
    timm: ClassVar[dict[str, dict[str, Any]]] = {"ge": {"excite": True}}

    def __init__(
        self,
        channels: int,
        *,
        gather: str = "mean",
        excite: bool = False,
        extent: int = 0,
        reduction: int = 16,
        size: int | tuple[int, int] = 14,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        if extent not in EXTENTS:
            raise InvalidValueError(f"extent must be 0, 2, 4 or 8, but got extent={extent!r}")
        height, width = (size, size) if isinstance(size, int) else size
        check_positive(size=min(height, width))
        hidden = bottleneck(channels, reduction)
        self.gather, self.excite = check_choice("gather", gather, GATHERS), excite
        self.extent, self.reduction, self.size = extent, reduction, size
        self.fused = not extent  # else the gate is as large as the map
        if gather == "conv":
            layers = _strided(channels, extent) if extent else [MapConv(channels, (height, width))]
            self.convs = nn.Sequential(*layers, GateNorm(channels))
        if excite:
            self.fc1 = nn.Conv2d(channels, hidden, 1)
            self.fc2 = nn.Conv2d(hidden, channels, 1)
            self._reset_excite()

    def _reset_excite(self) -> None:
        for name, parameter in self.named_parameters():
            if name in ("fc1.bias", "fc2.bias"):
                nn.init.zeros_(parameter)
            elif name in ("fc1.weight", "fc2.weight"):
                nn.init.normal_(parameter, std=0.01)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        z = self._gathered(x)  # (B, C, H', W')
        if self.excite:
            z = z.relu() if self.gather == "conv" else z
            z = self._excited(z)
        return {"context": z.sigmoid()}  # (B, C, H', W')

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        return {"context": self._spread(self.factors(x)["context"], x)}

    def _spread(self, gate: Tensor, x: Tensor) -> Tensor:
        if not self.extent:
            return gate
        return F.interpolate(gate, x.shape[2:], mode="nearest")  # (B, C, H, W)

    def weigh(self, x: Tensor, gates: dict[str, Tensor]) -> Tensor:
        return ops.scale(x, self._spread(self.temper(gates["context"]), x))

    def _weighed(self, x: Tensor, gate: Tensor) -> Tensor:
        return ops.scale(x, self._spread(gate, x))

    def forward(self, x: Tensor) -> Tensor:
        if not self.extent:
            return super().forward(x)
        return ops.recomputed(self._weighed, x, self.factors(x)["context"])

    def _excited(self, z: Tensor) -> Tensor:
        if self.extent:
            return self.fc2(self.fc1(z).relu())
        return pointwise(self.fc2, pointwise(self.fc1, z).relu())  # (B, C, 1, 1)

    def _gathered(self, x: Tensor) -> Tensor:
        if self.gather == "conv":
            return self.convs(x)
        if not self.extent:
            return ops.spatial_pool(x, "mean")[0]  # (B, C, 1, 1)
        e = self.extent
        return F.avg_pool2d(x, 2 * e - 1, stride=e, padding=e - 1, count_include_pad=False)


def _strided(channels: int, extent: int) -> list[nn.Module]:
    """One convolution for each halving of the map, with a normalisation and a ReLU between two."""
    layers: list[nn.Module] = []
    for _ in range(int(math.log2(extent))):
        conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
        layers += [GateNorm(channels), nn.ReLU(), conv]
    return layers[2:]
