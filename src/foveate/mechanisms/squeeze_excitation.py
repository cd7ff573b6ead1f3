"""Squeeze-and-Excitation Networks, Hu, Shen and Sun, CVPR 2018 (arXiv:1709.01507)."""

from typing import Any, ClassVar

from torch import Tensor, nn

from foveate import ops
from foveate.mechanisms.base import Gate, Published, bare, bottleneck, pointwise
from foveate.registry import register_mechanism


@register_mechanism("se")
class SqueezeExcitation(Gate):
    r"""Weighs each channel by a gate computed from the means of all channels.

    .. math:: y = x \cdot \sigma(W_2\,\mathrm{relu}(W_1\,\mathrm{mean}_{HW}(x)))

    The paper puts it at the end of a residual branch, and compares three other places: before the
    branch (SE-PRE, ``where="pre"``), after the addition (SE-POST, ``"post"``) and on the skip
    (SE-Identity, ``"shortcut"``).

    Args:
        channels: Channels of the feature map.
        reduction: Ratio of the bottleneck, whose width is ``channels // reduction``, at least 1.
        bias: Give both projections a bias.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Raises:
        ValueError: If ``channels`` or ``reduction`` is below 1.

    Note:
        The released Caffe models have both biases, the journal text has none: both are faithful.
        timm rounds the bottleneck to a multiple of 8, the paper does not: its ``se`` is the same
        only where ``channels`` is a multiple of ``8 * reduction``.

    Example:
        >>> import torch
        >>> SqueezeExcitation(64)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    fused = True
    mean_only = True
    ends_blocks = True
    variants: ClassVar[dict[str, dict[str, Any]]] = {"no_bias": {"bias": False}}
    timm: ClassVar[dict[str, dict[str, Any]]] = {"se": {}}
    results: ClassVar[tuple[Published, ...]] = tuple(
        Published(model, f"ImageNet top-1 {metric} %", value, baseline, source)
        for model, metric, value, baseline, source in (
            ("ResNet-50", "accuracy", "77.18", "76.38", "PytorchInsight README"),
            ("ResNet-101", "accuracy", "78.47", "78.20", "PytorchInsight README"),
            ("ResNet-50, retrained", "error", "22.37", "", "SENet README"),
            ("ResNet-101, retrained", "error", "21.75", "", "SENet README"),
        )
    )

    def __init__(
        self, channels: int, *, reduction: int = 16, bias: bool = True, init: str = "paper"
    ) -> None:
        super().__init__(channels, init=init)
        self.reduction, self.bias = reduction, bias
        hidden = bottleneck(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        (z,) = ops.spatial_pool(x, "mean")  # (B, C, 1, 1)
        z = pointwise(self.fc1, z).relu()  # (B, C/r, 1, 1)
        return {"channel": pointwise(self.fc2, z).sigmoid()}  # (B, C, 1, 1)

    def whole(
        self, x: Tensor, shortcut: Tensor | None = None, *, in_place: bool = False
    ) -> Tensor | None:
        fc1, fc2 = self.fc1, self.fc2
        if type(self) is not SqueezeExcitation or not bare(fc1, fc2):
            return None
        layers = (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        return ops.squeeze(x, *layers, self.strength, shortcut, in_place=in_place)
