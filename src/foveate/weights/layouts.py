"""How others name the tensors of each mechanism, and where they mean something else by them."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Fix = Callable[[Tensor, Any], Tensor]
Needs = Callable[[Set[str], Any], dict[str, Any]]


def _nothing(names: Set[str], module: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Layout:
    """The names of one implementation of one mechanism.

    A name is that of a module or of a tensor, relative to the module that holds the attention.
    """

    names: Mapping[str, str]
    """Theirs, with ours for each; several of theirs may stand for one of ours."""
    fixes: Mapping[str, Fix] = field(default_factory=dict)
    """What makes one of their tensors ours, from it and our module, by our name."""
    zeros: tuple[str, ...] = ()
    """Ours that they do not have, and which do the same as theirs when they are zero."""
    needs: Needs = _nothing
    """Options that no tensor shows, from their names that were met and our module."""
    host: tuple[tuple[str, str], ...] = ()
    """Patterns for the names of their host, with those of torchvision's that computes the same."""


def _mean_first(weight: Tensor, module: Any) -> Tensor:
    """For a convolution of [max; mean], from one of [mean; max]."""
    return weight.flip(1)


def _narrower(theta: Tensor, module: Any) -> Tensor:
    """For scores scaled by the width of the embeddings, from those of the input, twice as wide."""
    return theta * 0.5**0.5


def _one_of_each(filters: Tensor, module: Any) -> Tensor:
    """The filters of the groups of channels, from those of all channels, if they agree."""
    size = module.channels // len(module.basis)
    chosen = filters[::size]
    return chosen if torch.equal(chosen.repeat_interleave(size, 0), filters) else filters


def _raw_scores(names: Set[str], module: Any) -> dict[str, Any]:
    """Softmax forms of the non-local block without a scale, pooled after the embeddings."""
    softmax = module.form in ("gaussian", "embedded_gaussian")
    return {**_pooled_after(names, module), **({"scaled": False} if softmax else {})}


def _pooled_after(names: Set[str], module: Any) -> dict[str, Any]:
    pooled = "g.0" in names or "g.0.conv" in names
    return {"sub_sample": True, "pool_position": "after"} if pooled else {"sub_sample": False}


def _scaled_embeddings(names: Set[str], module: Any) -> dict[str, Any]:
    if module.form == "gaussian":
        return {**_pooled_after(names, module), "scaled": False}
    softmax = module.form == "embedded_gaussian"
    return {**_pooled_after(names, module), **({"scaled": True} if softmax else {})}


def _scaled(names: Set[str], module: Any) -> dict[str, Any]:
    return {"scaled": True} if module.form == "embedded_gaussian" else {}


def _scaled_whole(names: Set[str], module: Any) -> dict[str, Any]:
    return {"form": "embedded_gaussian", "scaled": True, "sub_sample": False}


def _with_norm(names: Mapping[str, str]) -> dict[str, str]:
    """Names of convolutions with their normalisation, from those of the modules around them."""
    return {
        f"{theirs}.{name}": f"{ours}.{name}"
        for theirs, ours in names.items()
        for name in ("conv", "bn")
    }


_SE_FC = {"fc.0": "fc1", "fc.2": "fc2"}
_MBV2 = r"^(features\.(?!0\.|1\.)\d+\.conv)"
# MobileNetV2 with the layers of each block in one sequence, as many trained it.
_FLAT_MOBILENET = (
    (_MBV2 + r"\.([01])\.", r"\1.0.\2."),
    (_MBV2 + r"\.3\.", r"\1.1.0."),
    (_MBV2 + r"\.4\.", r"\1.1.1."),
    (_MBV2 + r"\.6\.", r"\1.2."),
    (_MBV2 + r"\.7\.", r"\1.3."),
    (r"^features\.1\.conv\.([01])\.", r"features.1.conv.0.\1."),
    (r"^features\.1\.conv\.3\.", "features.1.conv.1."),
    (r"^features\.1\.conv\.4\.", "features.1.conv.2."),
    (r"^conv\.([01])\.", r"features.18.\1."),
)
_POSITION = {
    "query_conv": "query_conv",
    "key_conv": "key_conv",
    "value_conv": "value_conv",
    "gamma": "scale",
}
_WIDTH, _HEIGHT, _PLANE = "width_gate", "height_gate", "spatial_gate"
_BAM_CHANNEL = "channel_att.gate_c.gate_c_"
_BAM_SPATIAL = "spatial_att.gate_s.gate_s_"

LAYOUTS: dict[str, dict[str, Layout]] = {
    "se": {
        "cadene": Layout({"se_module.fc1": "fc1", "se_module.fc2": "fc2"}),
        "timm": Layout({"fc1": "fc1", "fc2": "fc2"}),
        "moskomule": Layout(_SE_FC),
    },
    "eca": {"official": Layout({"conv": "conv"})},
    "cbam": {
        "official": Layout(
            {
                "ChannelGate.mlp.1": "channel_gate.fc1",
                "ChannelGate.mlp.3": "channel_gate.fc2",
                "SpatialGate.spatial.conv": "spatial_gate.conv",
                "SpatialGate.spatial.bn": "spatial_gate.bn",
            }
        ),
        "luuuyi": Layout(
            {
                "ca.fc.0": "channel_gate.fc1",
                "ca.fc.2": "channel_gate.fc2",
                "ca.fc1": "channel_gate.fc1",
                "ca.fc2": "channel_gate.fc2",
                "sa.conv1": "spatial_gate.conv",
            },
            fixes={"spatial_gate.conv.weight": _mean_first},
            zeros=("channel_gate.fc1.bias", "channel_gate.fc2.bias"),
        ),
        "timm": Layout(
            {
                "channel.fc1": "channel_gate.fc1",
                "channel.fc2": "channel_gate.fc2",
                "spatial.conv.conv": "spatial_gate.conv",
                "spatial.conv.bn": "spatial_gate.bn",
            },
            fixes={"spatial_gate.conv.weight": _mean_first},
            zeros=("channel_gate.fc1.bias", "channel_gate.fc2.bias"),
        ),
    },
    "spatial": {
        "official": Layout(
            {"spatial.conv": "spatial_gate.conv", "spatial.bn": "spatial_gate.bn"},
        ),
        "luuuyi": Layout(
            {"sa.conv1": "spatial_gate.conv"},
            fixes={"spatial_gate.conv.weight": _mean_first},
        ),
    },
    "bam": {
        "official": Layout(
            {
                f"{_BAM_CHANNEL}fc_0": "channel_branch.fc1",
                f"{_BAM_CHANNEL}bn_1": "channel_branch.bn",
                f"{_BAM_CHANNEL}fc_final": "channel_branch.fc2",
                f"{_BAM_SPATIAL}conv_reduce0": "spatial_branch.conv1",
                f"{_BAM_SPATIAL}bn_reduce0": "spatial_branch.bn1",
                f"{_BAM_SPATIAL}conv_di_0": "spatial_branch.conv2",
                f"{_BAM_SPATIAL}bn_di_0": "spatial_branch.bn2",
                f"{_BAM_SPATIAL}conv_di_1": "spatial_branch.conv3",
                f"{_BAM_SPATIAL}bn_di_1": "spatial_branch.bn3",
                f"{_BAM_SPATIAL}conv_final": "spatial_branch.conv4",
            },
            needs=lambda names, module: {"combine": "mul"},
        ),
    },
    "triplet": {
        "official": Layout(_with_norm({"cw.conv": _WIDTH, "hc.conv": _HEIGHT, "hw.conv": _PLANE})),
        "official_models": Layout(
            _with_norm(
                {
                    "ChannelGateH.spatial": _WIDTH,
                    "ChannelGateW.spatial": _HEIGHT,
                    "SpatialGate.spatial": _PLANE,
                }
            )
        ),
    },
    "coord": {
        "official": Layout({name: name for name in ("conv1", "bn1", "conv_h", "conv_w")}),
        "official_mobilenet": Layout(
            {"conv1": "conv1", "bn1": "bn1", "conv2": "conv_h", "conv3": "conv_w"},
            host=_FLAT_MOBILENET,
        ),
    },
    "nl": {
        "alexhex7": Layout(
            {
                **{"g": "g", "g.0": "g", "theta": "theta", "phi": "phi", "phi.0": "phi"},
                **{"W": "out", "W.0": "out", "W.1": "bn"},
                "concat_project.0": "concat_project",
            },
            needs=_raw_scores,
        ),
        "mmcv": Layout(
            {
                **{"g.conv": "g", "g.0.conv": "g", "theta.conv": "theta"},
                **{"phi.conv": "phi", "phi.0.conv": "phi"},
                **{"conv_out.conv": "out", "conv_out.bn": "bn"},
                "concat_project.conv": "concat_project",
            },
            zeros=("out.bias",),
            needs=_scaled_embeddings,
        ),
        "slowfast": Layout(
            {
                **{"conv_theta": "theta", "conv_phi": "phi", "conv_g": "g", "conv_out": "out"},
                **{"norm": "bn", "bn": "bn"},
            },
            needs=_scaled,
        ),
        "timm": Layout(
            {"t": "theta", "p": "phi", "g": "g", "z": "out", "norm": "bn"},
            fixes={"theta.weight": _narrower, "theta.bias": _narrower},
            needs=_scaled_whole,
        ),
    },
    "gc": {
        "official": Layout(
            {
                "conv_mask": "conv_mask",
                **{"channel_add_conv.0": "fc1", "channel_mul_conv.0": "fc1"},
                **{"channel_add_conv.1": "norm", "channel_mul_conv.1": "norm"},
                **{"channel_add_conv.3": "fc2", "channel_mul_conv.3": "fc2"},
            },
            needs=lambda names, module: {
                "fusion": "mul" if "channel_mul_conv.0" in names else "add"
            },
        ),
    },
    "danet_position": {"official": Layout(_POSITION)},
    "danet_channel": {"official": Layout({"gamma": "scale"})},
    "danet": {
        "official": Layout(
            {
                **{f"sa.{theirs}": f"position.{ours}" for theirs, ours in _POSITION.items()},
                "sc.gamma": "channel.scale",
            }
        )
    },
    "criss_cross": {
        "official": Layout(_POSITION),
        "mmcv": Layout(
            {**{name: name for name in _POSITION if name != "gamma"}, "gamma.scale": "scale"}
        ),
    },
    "gct": {"official": Layout({name: name for name in ("alpha", "gamma", "beta")})},
    "srm": {"official": Layout({"cfc": "cfc", "bn": "bn"})},
    "sge": {"official": Layout({"weight": "weight", "bias": "bias"})},
    "fca": {
        "official": Layout({**_SE_FC, "dct_layer.weight": "basis"}, fixes={"basis": _one_of_each})
    },
}
"""By mechanism and by whose implementation it is."""


def layout_names() -> list[str]:
    """All names that ``load_weights`` takes for ``layout``, but for ``"auto"``."""
    return sorted({name for layouts in LAYOUTS.values() for name in layouts})
