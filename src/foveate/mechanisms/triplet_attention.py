"""Triplet attention: Rotate to Attend, Misra et al., WACV 2021 (arXiv:2010.03045)."""

from typing import Any, ClassVar

from torch import Tensor

from foveate import ops
from foveate.mechanisms.base import Gate, Published
from foveate.mechanisms.cbam import SpatialGate
from foveate.registry import register_mechanism


@register_mechanism("triplet")
class TripletAttention(Gate):
    r"""Averages three gates, each over one plane of the map and blind to its third axis.

    .. math::
        y = \frac{1}{3}\,x \cdot (g_{CW} + g_{CH} + g_{HW}), \quad
        g_{CW} = \sigma(\mathrm{BN}(\mathrm{conv}_k([\max_H(x); \mathrm{mean}_H(x)])))

    and likewise :math:`g_{CH}` from maxima and means over :math:`W`, and :math:`g_{HW}` from those
    over :math:`C`. The convolutions slide over the channels as over rows and columns.

    Args:
        channels: Channels of the feature map.
        kernel_size: Odd width of the three convolutions.
        spatial: Use :math:`g_{HW}`; without it the mean is that of the other two.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`). In the
            paper's form :math:`g_{HW}` starts at 0.5, as in the official code.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel_width``: ``(B, C, 1, W)``
        - ``channel_height``: ``(B, C, H, 1)``
        - ``spatial``: ``(B, 1, H, W)``, unless ``spatial=False``

    Raises:
        ValueError: If ``kernel_size`` is even or below 1.

    Note:
        Some copies have a ReLU before the sigmoid, so that no gate falls below 0.5, or give the
        convolution a bias and the mean before the maximum: official weights do not fit those.

    Example:
        >>> TripletAttention(64)
        TripletAttention(64, kernel_size=7, spatial=True)
    """

    fused = True
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "k3": {"kernel_size": 3},
        "no spatial": {"spatial": False},
    }
    results: ClassVar[tuple[Published, ...]] = (
        Published("ResNet-18", "ImageNet top-1 error %", "28.91", "", "triplet-attention README"),
        Published("ResNet-50", "ImageNet top-1 error %", "22.52", "", "triplet-attention README"),
        Published(
            "MobileNetV2, k3", "ImageNet top-1 error %", "27.38", "", "triplet-attention README"
        ),
    )

    def __init__(
        self, channels: int, *, kernel_size: int = 7, spatial: bool = True, init: str = "paper"
    ) -> None:
        super().__init__(channels, init=init)
        self.kernel_size, self.spatial = kernel_size, spatial
        self.width_gate = SpatialGate(kernel_size=kernel_size, norm=True, norm_weight=1.0)
        self.height_gate = SpatialGate(kernel_size=kernel_size, norm=True, norm_weight=1.0)
        if spatial:
            start = 1.0 if init == "identity" else 0.0  # two zeros in a row would never move
            self.spatial_gate = SpatialGate(kernel_size=kernel_size, norm=True, norm_weight=start)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        rows, columns, rows_max, columns_max = ops.strip_pool(x, peak=True)
        # The axis that a gate is blind to takes the place of the channels.
        width = self.width_gate.weigh(columns_max.transpose(1, 2), columns.transpose(1, 2))
        height = self.height_gate.weigh(rows_max.transpose(1, 3), rows.transpose(1, 3))
        gates = {
            "channel_width": width.transpose(1, 2),  # (B, C, 1, W)
            "channel_height": height.transpose(1, 3),  # (B, C, H, 1)
        }
        if self.spatial:
            gates["spatial"] = self.spatial_gate(x)  # (B, 1, H, W)
        return gates

    def forward(self, x: Tensor) -> Tensor:
        # The statistics of three planes, and their places, would add up to a quarter of x.
        return ops.recomputed(self._weighed, ops.fuse(x))

    def weigh(self, x: Tensor, gates: dict[str, Tensor]) -> Tensor:
        return ops.scale_by_mean(x, *(self.temper(gate) for gate in gates.values()))

    def _weighed(self, x: Tensor) -> Tensor:
        return self.weigh(x, self.gate(x))
