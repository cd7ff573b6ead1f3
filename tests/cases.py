"""Every mechanism in every variant that the contract is held against, with its reference."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import foveate
from references.cbam import cbam, spatial_attention
from references.coordinate_attention import coordinate_attention
from references.criss_cross import criss_cross
from references.danet import danet, danet_channel, danet_position
from references.efficient_channel_attention import efficient_channel_attention
from references.non_local import non_local
from references.self_attention import self_attention
from references.squeeze_excitation import squeeze_excitation
from references.static import static

Weights = dict[str, Tensor]

ADDED = {"added": "B1HW"}
CHANNEL = {"channel": "BC11"}
SPATIAL = {"spatial": "B1HW"}


@dataclass(frozen=True)
class Case:
    """One mechanism with one choice of options, and what is known of it beforehand."""

    key: str
    reference: Callable[..., Tensor]
    maps: dict[str, str]
    """Names and shapes of the maps, in the letters B, C, H, W and 1."""
    options: dict[str, Any] = field(default_factory=dict)
    constant: tuple[str, ...] = ()
    """Parameters that the output provably does not depend on."""
    constant_in_training: tuple[str, ...] = ()
    """Those that it does not depend on where batch statistics are taken."""
    transposed: Callable[[Weights], Weights] = dict
    """Weights with which rows and columns change their parts."""
    all_pairs: bool = False
    """Attends from every position to every other."""

    @property
    def id(self) -> str:
        return "-".join([self.key, *(f"{name}={value}" for name, value in self.options.items())])

    def create(self, channels: int, **options: Any) -> nn.Module:
        """The mechanism as a user gets it."""
        return foveate.create(self.key, channels, **self.options, **options)

    def randomised(self, channels: int, *, dtype: torch.dtype = torch.float64, **options: Any):
        """The mechanism with random parameters and buffers, none of them near zero for sure."""
        module = self.create(channels, **options).to(torch.float64)
        generator = torch.Generator().manual_seed(channels)
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(random_weight(name, tensor, generator))
        return module.to(dtype).eval()


def random_weight(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Values of the size that training gives: fan-in scaled weights, positive variances."""
    value = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    if name.endswith("running_var") or like.ndim == 0:  # variances, strengths and scales
        return 0.5 + value.abs()
    if like.ndim > 1:
        return value * like[0].numel() ** -0.5
    return 1 + 0.3 * value if name.endswith("weight") else 0.3 * value


def swap_directions(weights: Weights) -> Weights:
    swap = {"conv_h": "conv_w", "conv_w": "conv_h"}
    return {
        ".".join(swap.get(part, part) for part in name.split(".")): weight
        for name, weight in weights.items()
    }


def transpose(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {n: w.mT if n in names else w for n, w in weights.items()}


def _cases(key: str, reference: Callable[..., Tensor], *variants: dict[str, Any], **facts: Any):
    return [Case(key, reference, options=options, **facts) for options in ({}, *variants)]


def _non_local() -> list[Case]:
    cases = []
    for options in (
        {},
        {"form": "gaussian"},
        {"form": "dot_product"},
        {"form": "concatenation"},
        {"scaled": False},
        {"norm": False},
        {"sub_sample": True},
        {"sub_sample": True, "pool_position": "after"},
        {"form": "gaussian", "sub_sample": True},
        {"form": "dot_product", "sub_sample": True, "pool_position": "after"},
        {"form": "concatenation", "sub_sample": True, "norm": False},
    ):
        form = options.get("form", "embedded_gaussian")
        softmax = "gaussian" in form
        constant = ("phi.bias",) if form == "embedded_gaussian" else ()
        in_training = ("out.bias", "g.bias") if softmax else ("out.bias",)
        cases.append(
            Case(
                "nl",
                non_local,
                ADDED,
                options,
                constant=constant,
                constant_in_training=in_training if options.get("norm", True) else (),
                all_pairs=True,
            )
        )
    return cases


CASES = [
    *_cases("se", squeeze_excitation, {"bias": False}, {"reduction": 4}, maps=CHANNEL),
    *_cases(
        "eca",
        efficient_channel_attention,
        {"kernel_size": 5},
        {"gamma": 1, "b": 2},
        maps=CHANNEL,
    ),
    *_cases(
        "spatial",
        spatial_attention,
        {"kernel_size": 3},
        {"norm": False},
        maps=SPATIAL,
        transposed=transpose("spatial_gate.conv.weight"),
    ),
    *_cases(
        "cbam",
        cbam,
        {"order": "spatial_first"},
        {"order": "parallel_sum"},
        {"order": "parallel_product"},
        {"pooling": "avg"},
        {"pooling": "max"},
        {"pooling": "lse"},
        {"pooling": "lp"},
        {"kernel_size": 3, "norm": False},
        {"reduction": 2},
        maps={**CHANNEL, **SPATIAL},
        transposed=transpose("spatial_gate.conv.weight"),
    ),
    *_cases(
        "coord",
        coordinate_attention,
        {"reduction": 1},
        maps={"height": "BCH1", "width": "BC1W"},
        constant_in_training=("conv1.bias",),
        transposed=swap_directions,
    ),
    Case("static", static, {"channel": "1C11"}),
    Case(
        "static",
        static,
        {"spatial": "11HW"},
        {"shape": "spatial", "size": 3},
        transposed=transpose("spatial_logits"),
    ),
    Case(
        "static",
        static,
        {"channel": "1C11", "spatial": "11HW"},
        {"shape": "both"},
        transposed=transpose("spatial_logits"),
    ),
    *_non_local(),
    *_cases(
        "mhsa",
        self_attention,
        {"num_heads": 1},
        {"score": "dot"},
        {"score": "additive"},
        {"bias": False},
        maps=ADDED,
        all_pairs=True,
    ),
    *_cases(
        "danet_position",
        danet_position,
        maps=ADDED,
        constant=("key_conv.bias",),
        all_pairs=True,
    ),
    *_cases("danet_channel", danet_channel, maps=ADDED),
    *_cases(
        "danet",
        danet,
        maps={"position": "B1HW", "channel": "B1HW"},
        constant=("position.key_conv.bias",),
        all_pairs=True,
    ),
    *_cases(
        "criss_cross",
        criss_cross,
        {"recurrence": 1},
        {"recurrence": 3},
        maps=ADDED,
        constant=("key_conv.bias",),
    ),
]

DEFAULTS = [case for case in CASES if not case.options]
