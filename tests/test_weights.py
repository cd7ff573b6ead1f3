"""Checkpoints of others give the outputs that they had where they come from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from timm.layers import NonLocalAttn, SEModule
from timm.layers.cbam import CbamModule
from torch import nn

import foreign
import foveate
from foreign import Net, images, prepared
from foveate.weights import LAYOUTS

EXAMPLE = torch.zeros(1, *foreign.SIZE)


def ours(key: str, init: str = "paper", num_classes: int = 5, **options: Any) -> nn.Module:
    """Our model, with other weights than the foreign one."""
    model = Net(num_classes=num_classes)
    where = options.pop("where", "residual")
    foveate.insert(model, key, where=where, init=init, example=EXAMPLE, **options)
    return prepared(model, seed=2)


@dataclass
class Case:
    """How others put a mechanism into each block, and our options for the same."""

    key: str
    layout: str
    build: Callable[[int], dict[str, nn.Module]]
    options: dict[str, Any]


def case(
    key: str, layout: str, name: str, build: Callable[[int], nn.Module], **options: Any
) -> Any:
    found = Case(key, layout, lambda channels: {name: build(channels)}, options)
    return pytest.param(found, id="-".join([key, layout, *map(str, options.values())]))


NAMES = ("cw", "hc", "hw")
MODEL_NAMES = ("ChannelGateH", "ChannelGateW", "SpatialGate")
POOLED = {"sub_sample": True, "pool_position": "after"}
CASES = [
    case("se", "cadene", "se_module", foreign.SEConv),
    case("se", "timm", "se", lambda c: SEModule(c, rd_channels=c // 16)),
    case("se", "moskomule", "se", foreign.SELinear, bias=False),
    case("eca", "official", "eca", foreign.ECA, kernel_size=3),
    case("cbam", "official", "cbam", foreign.cbam),
    case("cbam", "timm", "se", CbamModule),
    pytest.param(
        Case(
            "cbam",
            "luuuyi",
            lambda c: {
                "ca": foreign.SmallChannelAttention(c),
                "sa": foreign.SmallSpatialAttention(),
            },
            {"norm": False},
        ),
        id="cbam-luuuyi",
    ),
    case("spatial", "official", "SpatialGate", lambda c: foreign.SpatialGate()),
    case("spatial", "luuuyi", "sa", lambda c: foreign.SmallSpatialAttention(), norm=False),
    case("bam", "official", "bam", foreign.BAM, combine="mul"),
    case("triplet", "official", "attention_layer", lambda c: foreign.Triplet(NAMES, "conv")),
    case(
        "triplet",
        "official_models",
        "triplet_attention",
        lambda c: foreign.Triplet(MODEL_NAMES, "spatial"),
    ),
    case("coord", "official", "ca", foreign.Coordinate),
    case("coord", "official_mobilenet", "ca", lambda c: foreign.Coordinate(c, "conv2", "conv3")),
    case("gc", "official", "context_block", lambda c: foreign.Context(c, "add")),
    case("gc", "official", "context_block", lambda c: foreign.Context(c, "mul"), fusion="mul"),
    case("nl", "alexhex7", "nl", lambda c: foreign.nl_alexhex7(c, False, True), scaled=False),
    case(
        "nl",
        "alexhex7",
        "nl",
        lambda c: foreign.nl_alexhex7(c, True, False),
        scaled=False,
        norm=False,
        **POOLED,
    ),
    case("nl", "mmcv", "non_local", lambda c: foreign.nl_mmcv(c, True, True), **POOLED),
    case("nl", "mmcv", "non_local", lambda c: foreign.nl_mmcv(c, False, False), norm=False),
    case("nl", "slowfast", "nonlocal1", lambda c: foreign.nl_slowfast(c, False, "norm")),
    case(
        "nl", "slowfast", "nonlocal1", lambda c: foreign.nl_slowfast(c, True, "bn"), sub_sample=True
    ),
    case("nl", "timm", "se", lambda c: NonLocalAttn(c, rd_ratio=1 / 2)),
    case("danet_position", "official", "sa", foreign.PositionAttention),
    case("danet_channel", "official", "sc", lambda c: foreign.ChannelAttention()),
    case("danet", "official", "head", foreign.Dual),
    case("criss_cross", "official", "cca", lambda c: foreign.CrissCross(c, module=False)),
    case("criss_cross", "mmcv", "cca", lambda c: foreign.CrissCross(c, module=True)),
    case("gct", "official", "gct", foreign.GCT),
    case("sge", "official", "sge", lambda c: foreign.SGE()),
    case("srm", "official", "srm", foreign.SRM),
    case("fca", "official", "att", foreign.Fca, size=7),
]
CASES = [c for c in CASES if c.values[0].key in foveate.list_mechanisms()]


def assert_same(theirs: nn.Module, model: nn.Module) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(model(images()), theirs(images()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("init", ["paper", "identity"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_checkpoint(case: Case, init: str) -> None:
    theirs = prepared(Net(case.build))
    model = ours(case.key, init, **case.options)
    loaded = foveate.load_weights(model, theirs.state_dict())
    assert loaded.layouts == {case.key: case.layout}
    assert [loaded.missing, loaded.unexpected, loaded.skipped] == [(), (), ()]
    assert_same(theirs, model)


def test_every_layout_has_a_case() -> None:
    known = {(key, name) for key, layouts in LAYOUTS.items() for name in layouts}
    tried = {(c.values[0].key, c.values[0].layout) for c in CASES}
    assert known == tried
