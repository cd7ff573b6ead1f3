"""Attention of torchvision and timm: where its gates appear while it runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from foveate import ops

Reading = Callable[[Tensor], Tensor]
"""From what a module inside gives to the gate, of as many dimensions as a map."""


def _as_it_is(gate: Tensor) -> Tensor:
    return gate


def _of_channels(gate: Tensor) -> Tensor:
    """``(B, C, 1, 1)`` of whatever holds one number for each channel."""
    return gate.flatten(1)[:, :, None, None]


def _weights_of_positions(logits: Tensor) -> Tensor:
    return logits.flatten(2).softmax(2).unflatten(2, logits.shape[2:])


@dataclass(frozen=True)
class Tap:
    """A module inside, and what its calls give, one after the other."""

    path: str
    names: Sequence[str]
    read: Reading = _as_it_is


@dataclass(frozen=True)
class Foreign:
    """How a class of another library is read."""

    key: str
    """Of the mechanism here that it is a form of."""
    taps: Sequence[Tap] = ()
    affinity: Callable[[nn.Module, Tensor], ops.Affinity] | None = None
    added: bool = False
    """Whether all it does is add to its input what it gathers."""

    @property
    def product(self) -> bool:
        """Whether its output is its input times what its taps give."""
        return not self.added and self.key != "gc"


def _non_local(module: Any, x: Tensor) -> ops.Affinity:
    query, key = module.t(x), module.p(x)
    return ops.softmax_affinity(
        ops.to_tokens(query), ops.to_tokens(key), scale=module.scale, size=query.shape[2:]
    )


_CHANNEL = Tap("gate", ["channel"], _of_channels)
_STRIPS = Tap("gate", ["height", "width"])

CLASSES: Mapping[str, Foreign] = {
    "torchvision.ops.misc.SqueezeExcitation": Foreign(
        "se", [Tap("scale_activation", ["channel"], _of_channels)]
    ),
    "timm.layers.squeeze_excite.SEModule": Foreign("se", [_CHANNEL]),
    "timm.models._efficientnet_blocks.SqueezeExcite": Foreign("se", [_CHANNEL]),
    "timm.layers.squeeze_excite.EffectiveSEModule": Foreign("ese", [_CHANNEL]),
    "timm.layers.eca.EcaModule": Foreign("eca", [_CHANNEL]),
    "timm.layers.eca.CecaModule": Foreign("eca", [_CHANNEL]),
    "timm.layers.cbam.CbamModule": Foreign(
        "cbam",
        [Tap("channel.gate", ["channel"], _of_channels), Tap("spatial.gate", ["spatial"])],
    ),
    "timm.layers.cbam.LightCbamModule": Foreign(
        "cbam",
        [Tap("channel.fc2", ["channel"], Tensor.sigmoid), Tap("spatial.gate", ["spatial"])],
    ),
    "timm.layers.global_context.GlobalContext": Foreign(
        "gc",
        [
            Tap("conv_attn", ["attention"], _weights_of_positions),
            Tap("gate", ["channel"], _of_channels),
            Tap("mlp_add", ["shift"], _of_channels),
        ],
    ),
    "timm.layers.gather_excite.GatherExcite": Foreign("ge", [Tap("gate", ["context"])]),
    "timm.layers.coord_attn.CoordAttn": Foreign("coord", [_STRIPS]),
    "timm.layers.coord_attn.SimpleCoordAttn": Foreign("coord", [Tap("gate", ["element"])]),
    "timm.layers.coord_attn.EfficientLocalAttn": Foreign("ela", [_STRIPS]),
    "timm.layers.coord_attn.StripAttn": Foreign("strip", [Tap("gate", ["element"])]),
    "timm.layers.non_local_attn.NonLocalAttn": Foreign("nl", affinity=_non_local, added=True),
    "timm.layers.non_local_attn.BatNonLocalAttn": Foreign("bat", added=True),
}


def recognise(module: nn.Module) -> Foreign | None:
    """How to read a module; None for one that is not known, by name so that nothing is imported."""
    for cls in type(module).__mro__:
        found = CLASSES.get(f"{cls.__module__}.{cls.__qualname__}")
        if found is not None:
            return found
    return None
