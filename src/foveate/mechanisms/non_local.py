"""Non-local Neural Networks, Wang, Girshick, Gupta and He, CVPR 2018 (arXiv:1711.07971)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_choice
from foveate.mechanisms.base import Mixer, Published
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

FORMS = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
POOL_POSITIONS = ("before", "after")


@register_mechanism("nl")
class NonLocal(Mixer):
    r"""Adds to each position a mean over all positions, weighted by a pairwise function.

    .. math:: y_i = x_i + \mathrm{BN}\Big(W_z \sum_j \frac{f(x_i, x_j)}{\mathcal{C}(x)} g(x_j)\Big)

    With :math:`N` positions :math:`j`, the weights :math:`f / \mathcal{C}` of the ``form`` are

    - ``"embedded_gaussian"``: :math:`\mathrm{softmax}_j(s\,\theta_i^\top \phi_j)`,
    - ``"gaussian"``: :math:`\mathrm{softmax}_j(s\,x_i^\top x_j)`,
    - ``"dot_product"``: :math:`\theta_i^\top \phi_j / N`,
    - ``"concatenation"``: :math:`\mathrm{relu}(w^\top [\theta_i; \phi_j]) / N`.

    None of them holds all pairs in memory. The last layer starts at zero, so that both forms of
    ``init`` are the identity.

    Args:
        channels: Channels of the feature map; the embeddings have half as many, at least 1.
        form: The pairwise function.
        sub_sample: Halve the sides of the map that is attended to, by maximum pooling.
        pool_position: Pool the input ``"before"`` the embeddings, as the official code does, or
            the embeddings ``"after"``, as the paper says.
        scaled: In the gaussian forms :math:`s` is the inverse root of the width of the compared
            vectors, as in the official code; 1 without it, as in the paper.
        norm: Normalise what is added; without it :math:`W_z` starts at zero.
        init: Paper's form or identity, here the same.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``added``: ``(B, 1, H, W)``

    Raises:
        ValueError: If ``form`` or ``pool_position`` has none of the values above.

    Note:
        mmcv pools after the embeddings. timm scales by the width of the input, not of the
        embeddings, which have an eighth of it there, rounded to a multiple of 8.

    Example:
        >>> import torch
        >>> x = torch.rand(2, 64, 8, 8)
        >>> torch.equal(NonLocal(64)(x), x)
        True
    """

    place = "post"
    identity_scale = None
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "gaussian": {"form": "gaussian"},
        "dot_product": {"form": "dot_product"},
        "concatenation": {"form": "concatenation"},
        "unscaled": {"scaled": False},
    }
    timm: ClassVar[dict[str, dict[str, Any]]] = {"nl": {}}
    results: ClassVar[tuple[Published, ...]] = (
        Published(
            "C2D ResNet-50, 8 frames, 5 blocks",
            "Kinetics top-1 accuracy %",
            "74.4",
            "71.9",
            "video-nonlocal-net README",
        ),
        Published(
            "I3D ResNet-50, 8 frames, 5 blocks",
            "Kinetics top-1 accuracy %",
            "74.7",
            "73.4",
            "video-nonlocal-net README",
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        form: str = "embedded_gaussian",
        sub_sample: bool = False,
        pool_position: str = "before",
        scaled: bool = True,
        norm: bool = True,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        self.form, self.sub_sample = check_choice("form", form, FORMS), sub_sample
        self.pool_position = check_choice("pool_position", pool_position, POOL_POSITIONS)
        self.scaled, self.norm = scaled, norm
        inner = max(1, channels // 2)
        if form != "gaussian":
            self.theta = nn.Conv2d(channels, inner, 1)
            self.phi = nn.Conv2d(channels, inner, 1)
        if form == "concatenation":
            self.concat_project = nn.Conv2d(2 * inner, 1, 1, bias=False)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)
        self._reset_convolutions()
        bn = GateNorm(channels)
        self.bn = bn if norm else nn.Identity()
        nn.init.zeros_(bn.weight if norm else self.out.weight)

    def _reset_convolutions(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.01)

    def affinity(self, x: Tensor) -> ops.Affinity:
        query, key, _ = self._projected(x)
        size, key_size = query.shape[2:], key.shape[2:]
        if self.form == "concatenation":
            a, b = self._pair_scores(query, key)
            return _rectified_affinity(a, b, size, key_size)
        q, k = ops.to_tokens(query), ops.to_tokens(key)
        if self.form == "dot_product":
            return ops.product_affinity(q / k.shape[2], k.mT, size=size, key_size=key_size)
        return ops.softmax_affinity(q, k, scale=self._scale(q), size=size, key_size=key_size)

    def mix(self, x: Tensor) -> Tensor:
        return self.bn(self.out(self._attend(*self._projected(x))))  # (B, C, H, W)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of the queries, ``(B, C/2, H, W)``, and of keys and values, ``(B, C/2, H', W')``."""
        before = self.sub_sample and self.pool_position == "before"
        after = self.sub_sample and self.pool_position == "after"
        attended = _halved(x) if before else x
        gaussian = self.form == "gaussian"
        query = x if gaussian else self.theta(x)  # (B, C/2, H, W)
        key = attended if gaussian else self.phi(attended)  # (B, C/2, H', W')
        value = self.g(attended)  # (B, C/2, H', W')
        if after:
            key, value = _halved(key), _halved(value)
        return query, key, value

    def _scale(self, query: Tensor) -> float:
        return query.shape[3] ** -0.5 if self.scaled else 1.0

    def _pair_scores(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """What query and key add to the score of a pair, ``(B, HW)`` and ``(B, H'W')``."""
        query_weight, key_weight = self.concat_project.weight.chunk(2, dim=1)
        return F.conv2d(query, query_weight).flatten(1), F.conv2d(key, key_weight).flatten(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.form == "concatenation":
            tokens = ops.to_tokens(value).squeeze(1)
            tokens = ops.rectified_attention(*self._pair_scores(query, key), tokens).unsqueeze(1)
            return ops.from_tokens(tokens, like=query)
        q, k, v = (ops.to_tokens(t) for t in (query, key, value))
        if self.form == "dot_product":
            return ops.from_tokens(ops.linear_attention(q, k, v), like=query)
        y = ops.position_attention(q, k, v, scale=self._scale(q))
        return ops.from_tokens(y, like=query)


def _rectified_affinity(
    query_score: Tensor, key_score: Tensor, size: torch.Size, key_size: torch.Size
) -> ops.Affinity:
    """The weights of the concatenation form."""

    def rows(at: Tensor) -> Tensor:
        scores = query_score[:, at, None] + key_score[:, None]  # (B, P, H'W')
        return (scores.relu() / key_score.shape[1]).unsqueeze(1).unflatten(3, key_size)

    return ops.Affinity(size, rows)


def _halved(x: Tensor) -> Tensor:
    """Maximum over windows of 2 x 2; a side of 1 stays."""
    return F.max_pool2d(x, [min(2, side) for side in x.shape[2:]])
