"""SimAM: A Simple, Parameter-Free Attention Module, Yang et al., ICML 2021."""

from typing import Any, ClassVar

from torch import Tensor

from foveate import ops
from foveate.errors import InvalidValueError
from foveate.mechanisms.base import Gate, Published
from foveate.registry import register_mechanism


@register_mechanism("simam")
class SimAM(Gate):
    r"""Weighs each element by how far it stands out from its channel, without parameters.

    .. math::
        y = x \cdot \sigma\Big(\frac{d}{4 (v + \lambda)} + \frac{1}{2}\Big), \quad
        d = (x - \mathrm{mean}_{HW}(x))^2

    with :math:`v` the unbiased variance of the channel. On a 1 x 1 map, which has none, the gate is
    :math:`\sigma(1/2)`.

    Args:
        channels: Channels of the feature map.
        regularization: The :math:`\lambda` of the energy, above 0.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``element``: ``(B, C, H, W)``

    Raises:
        ValueError: If ``regularization`` is not above 0.

    Note:
        The module's default is 1e-4, but the official ImageNet commands set 0.1, and the command
        line's own default is 4. There it acts inside the block, after the 3x3 convolution and
        before its normalisation, where copies put it at the end of the block. Most copies give NaN
        on 1 x 1 maps.

    Example:
        >>> SimAM(64)
        SimAM(64, regularization=0.0001)
    """

    place = "conv3x3"
    fused = True
    variants: ClassVar[dict[str, dict[str, Any]]] = {"imagenet": {"regularization": 0.1}}
    results: ClassVar[tuple[Published, ...]] = tuple(
        Published(model, "ImageNet top-1 accuracy %", value, "", "SimAM README")
        for model, value in (
            ("ResNet-18", "71.31"),
            ("ResNet-50", "77.45"),
            ("ResNet-101", "78.65"),
            ("MobileNetV2", "72.36"),
        )
    )

    def __init__(self, channels: int, *, regularization: float = 1e-4, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        if not regularization > 0:
            raise InvalidValueError(f"regularization must be above 0, but got {regularization=}")
        self.regularization = regularization

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        return {"element": ops.energy(x, self.regularization)}  # (B, C, H, W)

    def forward(self, x: Tensor) -> Tensor:
        return ops.energy_gate(x, self.regularization, self.strength)
