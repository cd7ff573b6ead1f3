"""GCNet: Global context, Cao, Xu, Lin, Wei and Hu, ICCV Workshops 2019 (arXiv:1904.11492)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_choice
from foveate.mechanisms.base import Mixer, Published, bare, bottleneck, pointwise, weights
from foveate.registry import register_mechanism

POOLINGS = ("attention", "average")
FUSIONS = ("add", "mul")


@register_mechanism("gc")
class GlobalContext(Mixer):
    r"""Adds to every position the same vector, computed from a weighted mean of all positions.

    .. math:: y_i = x_i + W_2\,\mathrm{relu}\Big(\mathrm{LN}\Big(W_1 \sum_j
        \mathrm{softmax}_j(w^\top x_j)\,x_j\Big)\Big)

    With ``fusion="mul"`` the vector is no summand: its sigmoid multiplies the input instead.

    Args:
        channels: Channels of the feature map.
        reduction: Ratio of the bottleneck, whose width is ``channels // reduction``, at least 1.
        pooling: ``"attention"`` for the weighted mean, ``"average"`` for the plain one.
        fusion: ``"add"`` or ``"mul"``.
        init: Paper's form or identity, with ``"add"`` the same: :math:`W_2` and its bias start at
            zero. With ``"mul"`` the paper's gate starts at one half; the identity form draws the
            gate towards 1 by a learned scale that starts at zero.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``attention``: ``(B, 1, H, W)``, weights that sum to 1; not with the plain mean
        - ``channel``: ``(B, C, 1, 1)``, the summand or the gate

    Raises:
        ValueError: If ``pooling`` or ``fusion`` has none of the values above.

    Note:
        timm multiplies by default (its ``gca`` adds), has ``reduction=8``, rounds the bottleneck to
        the nearest width and not down, and with ``gca`` starts the weight of :math:`W_2` at zero
        but not its bias. Some copies define the softmax and never apply it. Normalised over its
        units, a bottleneck of one unit forgets its input: ``channels`` should be more.

    Example:
        >>> import torch
        >>> x = torch.rand(2, 64, 8, 8)
        >>> torch.equal(GlobalContext(64)(x), x)
        True
    """

    fused = True
    identity_scale = None
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "r4": {"reduction": 4},
        "average": {"pooling": "average"},
        "multiply": {"fusion": "mul"},
    }
    timm: ClassVar[dict[str, dict[str, Any]]] = {
        "gc": {"reduction": 8, "fusion": "mul"},
        "gca": {"reduction": 8},
    }
    results: ClassVar[tuple[Published, ...]] = tuple(
        Published(f"Mask R-CNN ResNet-50-FPN, reduction {r}", metric, value, plain, "GCNet README")
        for r, metric, value, plain in (
            (16, "COCO box AP", "38.5", "37.3"),
            (16, "COCO mask AP", "35.1", "34.2"),
            (4, "COCO box AP", "38.9", "37.3"),
            (4, "COCO mask AP", "35.5", "34.2"),
        )
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        pooling: str = "attention",
        fusion: str = "add",
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        self.reduction = reduction
        self.pooling = check_choice("pooling", pooling, POOLINGS)
        self.fusion = check_choice("fusion", fusion, FUSIONS)
        self.uniform = fusion == "add"
        hidden = bottleneck(channels, reduction)
        if pooling == "attention":
            self.conv_mask = nn.Conv2d(channels, 1, 1)
            nn.init.kaiming_normal_(self.conv_mask.weight)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.norm = nn.LayerNorm([hidden, 1, 1])
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        if fusion == "mul" and init == "identity":
            self.scale = nn.Parameter(torch.zeros(()))  # the zero; a second one would never train
        else:
            for parameter in self.fc2.parameters():
                nn.init.zeros_(parameter)

    def attend(self, x: Tensor) -> Tensor:
        """The weight of each position in the mean."""
        logits = ops.channel_dot(x, *weights(self.conv_mask, x))  # (B, 1, H, W)
        return logits.flatten(2).softmax(2).unflatten(2, x.shape[2:])  # (B, 1, H, W)

    def mix(self, x: Tensor) -> Tensor:
        if self.pooling == "attention":
            context = ops.spatial_dot(x, self.attend(x))  # (B, C, 1, 1)
        else:
            (context,) = ops.spatial_pool(x, "mean")  # (B, C, 1, 1)
        hidden = self.norm(pointwise(self.fc1, context)).relu()  # (B, C/r, 1, 1)
        return pointwise(self.fc2, hidden)  # (B, C, 1, 1)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        attention = {"attention": self.attend(x)} if self.pooling == "attention" else {}
        return {**attention, "channel": self.mix(x) if self.fusion == "add" else self._gate(x)}

    def _gate(self, x: Tensor) -> Tensor:
        gate = self.mix(x).sigmoid()  # (B, C, 1, 1)
        return gate if self.scale is None else (gate - 1) * self.scale + 1

    def _whole(self, x: Tensor) -> Tensor | None:
        """The output by one kernel; None where there is none for the form as it is set up."""
        if type(self) is not GlobalContext or self.pooling != "attention":
            return None
        layers = (self.conv_mask, self.fc1, self.fc2)
        norm = self.norm
        if not bare(*layers, norm, also=(nn.LayerNorm,)):
            return None
        (mask, mask_bias), (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in layers)
        weights = ops.ContextWeights(
            mask, mask_bias, w1, b1, norm.weight, norm.bias, w2, b2, self.scale
        )
        return ops.context(x, weights, norm.eps, multiply=self.fusion == "mul")

    def forward(self, x: Tensor) -> Tensor:
        y = self._whole(x)
        if y is not None:
            return y
        x = ops.fuse(x)
        if self.fusion == "add":
            return ops.shift(x, self.added(x))
        return ops.scale(x, self._gate(x))
