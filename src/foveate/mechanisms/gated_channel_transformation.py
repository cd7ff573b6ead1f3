"""GCT: Gated Channel Transformation, Yang, Zhu, Wu and Yang, CVPR 2020 (arXiv:1909.11519)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_choice
from foveate.mechanisms.base import Gate, Published
from foveate.registry import register_mechanism

EPS = 1e-5
NORMS = ("l2", "l1")


@register_mechanism("gct")
class GatedChannelTransformation(Gate):
    r"""Weighs each channel by its norm among the norms of all channels; starts as the identity.

    .. math::
        y = x \cdot (1 + \tanh(\gamma\,\hat e + \beta)), \quad
        \hat e = \frac{e}{\sqrt{\mathrm{mean}_C(e^2) + \epsilon}}, \quad
        e = \alpha\,\sqrt{\sum_{HW} x^2 + \epsilon}

    Channels compete where :math:`\gamma` is positive, and support one another where it is negative.
    With ``norm="l1"``, :math:`e = \alpha \sum_{HW} |x|` is divided by
    :math:`\mathrm{mean}_C(|e|) + \epsilon`.

    Args:
        channels: Channels of the feature map.
        norm: ``"l2"`` or ``"l1"``.
        init: Paper's form or identity, which are the same: :math:`\alpha` starts at 1, and
            :math:`\gamma` and :math:`\beta` at 0.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``, between 0 and 2

    Raises:
        ValueError: If ``norm`` has none of the values above.

    Note:
        The official place is before every convolution, stem and projections included. The paper
        has no weight decay on :math:`\beta`; the official repository found it better with one for
        ResNet-50. Not to be confused with the Gaussian context transformer of the same initials.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 64, 8, 8)
        >>> torch.equal(GatedChannelTransformation(64)(x), x)
        True
    """

    fused = True
    place = "conv"
    published_identity = True
    variants: ClassVar[dict[str, dict[str, Any]]] = {"l1": {"norm": "l1"}}
    results: ClassVar[tuple[Published, ...]] = tuple(
        Published(model, "ImageNet top-1 accuracy %", value, "", "GCT README")
        for model, value in (
            ("ResNet-50, no weight decay on beta", "77.3"),
            ("ResNet-50, weight decay on beta", "77.7"),
        )
    )

    def __init__(self, channels: int, *, norm: str = "l2", init: str = "paper") -> None:
        super().__init__(channels, init=init)
        self.norm = check_choice("norm", norm, NORMS)
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def plain_inference(self, x: Tensor) -> bool:
        return x.is_contiguous()  # the lengths of contiguous rows are PyTorch's strength

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        embedded = self._l2(x) if self.norm == "l2" else self._l1(x)  # (B, C, 1, 1)
        return {"channel": 1 + torch.tanh(self.gamma * embedded + self.beta)}

    def _l2(self, x: Tensor) -> Tensor:
        length = ops.spatial_length(x)  # (B, C, 1, 1)
        both = torch.stack([length, torch.full_like(length, EPS**0.5)])  # ONNX has no hypot
        e = self.alpha * torch.linalg.vector_norm(both, dim=0)
        return e * (e.square().mean(1, keepdim=True) + EPS).rsqrt()

    def _l1(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)  # the sum grows with the map
        e = self.alpha * x.abs().sum((2, 3), keepdim=True, dtype=wide)
        return e / (e.abs().mean(1, keepdim=True) + EPS)
