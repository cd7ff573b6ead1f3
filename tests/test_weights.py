"""Checkpoints of others give the outputs that they had where they come from."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from timm.layers import NonLocalAttn, SEModule
from timm.layers.cbam import CbamModule
from timm.models.resnet import BasicBlock, ResNet
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


def test_every_layout_has_a_case_and_is_documented() -> None:
    known = {(key, name) for key, layouts in LAYOUTS.items() for name in layouts}
    tried = {(c.values[0].key, c.values[0].layout) for c in CASES}
    assert known == tried
    page = (Path(__file__).parents[1] / "docs" / "weights.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (`.*) \|$", page, re.MULTILINE)
    assert {(key, name) for key, cell in rows for name in re.findall("`(\\w+)`", cell)} == known


def test_attention_between_blocks_is_met_by_the_block_before_it() -> None:
    theirs = Net()
    for stage, channels in (("layer1", 64), ("layer2", 128)):
        foreign.among_blocks(theirs, stage, 1, foreign.nl_slowfast(channels, False, "bn"))
    assert "layer2.2.conv1.weight" in theirs.state_dict()  # the second block of our model
    model = ours("nl", where="post", at="layer[12].0")
    loaded = foveate.load_weights(model, prepared(theirs).state_dict())
    assert loaded.renamed["layer2.1.conv1.weight"] == "layer2.2.conv1.weight"
    assert loaded.renamed["layer2.0.attention.theta.weight"] == "layer2.1.conv_theta.weight"
    assert_same(theirs, model)


def test_attention_between_stages_is_met_in_order() -> None:
    theirs = prepared(foreign.Staged(foreign.BAM))
    model = ours("bam", where="stage", at="layer1.*", combine="mul")
    foveate.load_weights(model, theirs.state_dict())
    assert_same(theirs, model)


def test_attention_within_a_block_shifts_its_layers() -> None:
    build = partial(torchvision.models.mobilenet_v2, num_classes=5, width_mult=0.25)
    theirs = foreign.FlatMobileNet(build(), lambda c: foreign.Coordinate(c, "conv2", "conv3"))
    model = build()
    at = r"features\.([2-9]|1[0-7])\.conv\.1\.2"
    foveate.insert(model, "coord", where="after", at=at, example=torch.zeros(1, 3, 64, 64))
    loaded = foveate.load_weights(prepared(model, 2), prepared(theirs).state_dict())
    assert loaded.layouts == {"coord": "official_mobilenet"}
    assert_same(theirs, model)


def test_attention_before_each_convolution_is_met_in_order() -> None:
    theirs = prepared(foreign.before_each_convolution())
    assert "layer2.0.downsample.1.weight" in theirs.state_dict()  # a convolution, after attention
    model = ours("gct", where="conv", at="layer*")
    foveate.load_weights(model, theirs.state_dict())
    assert_same(theirs, model)


@pytest.mark.parametrize("key", ["se", "eca", "cbam"])
def test_networks_of_timm(key: str) -> None:
    theirs = prepared(ResNet(BasicBlock, (1, 1, 1, 1), 5, block_args={"attn_layer": key}))
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], 5)
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        # timm rounds the width of its bottleneck to a multiple of eight.
        options = {"reduction": channels // max(8, channels // 16)} if key == "se" else {}
        foveate.insert(model, key, where="residual", at=f"layer{stage}.*", **options)
    loaded = foveate.load_weights(prepared(model, 2), theirs.state_dict())
    assert_same(theirs, model)
    assert loaded.layouts == {key: "official" if key == "eca" else "timm"}


def test_two_mechanisms_are_read_one_by_one() -> None:
    theirs = Net(lambda c: {"se": SEModule(c, rd_channels=c // 16), "sge": foreign.SGE()})
    model = Net()
    foveate.insert(model, "se", where="residual", example=EXAMPLE)
    foveate.insert(model, "sge", where="residual", example=EXAMPLE)
    loaded = foveate.load_weights(prepared(model, 2), prepared(theirs).state_dict())
    assert loaded.layouts == {"se": "timm", "sge": "official"}
    assert_same(theirs, model)


def test_one_module_alone() -> None:
    theirs = prepared(foreign.cbam(64))
    model = prepared(foveate.create("cbam", 64), seed=2)
    foveate.load_weights(model, theirs.state_dict())
    x = torch.rand(2, 64, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("init", ["paper", "identity"])
def test_our_own_checkpoints(init: str) -> None:
    saved, model = prepared(ours("cbam", init)), ours("cbam", init)
    loaded = foveate.load_weights(model, saved.state_dict())
    assert loaded.layouts == {"cbam": "foveate"}
    assert (loaded.filled, loaded.renamed) == ({}, {})
    assert_same(saved, model)


def test_the_paper_form_becomes_the_identity_form_at_full_strength() -> None:
    saved, model = prepared(ours("gc", "paper", fusion="mul")), ours("gc", "identity", fusion="mul")
    loaded = foveate.load_weights(model, saved.state_dict())
    assert set(loaded.filled.values()) == {1.0}
    assert all(name.endswith("attention.scale") for name in loaded.filled)
    assert_same(saved, model)


def test_a_bare_host_keeps_the_attention_of_the_model() -> None:
    bare = prepared(Net())
    model = Net()
    foveate.insert(model, "cbam", example=EXAMPLE)  # the identity, and no more than that
    loaded = foveate.load_weights(model.double().eval(), bare.state_dict())
    assert loaded.missing
    assert all(".attention." in name for name in loaded.missing)
    assert_same(bare, model)


def test_a_part_of_another_mechanism_is_not_taken() -> None:
    """Position attention has a scale of the same name as channel attention, and more."""
    theirs = Net(lambda c: {"sa": foreign.PositionAttention(c)})
    model = ours("danet_channel")
    with pytest.raises(ValueError, match=r"look like 'danet_position'.*: insert it first"):
        foveate.load_weights(model, theirs.state_dict())


def test_names_that_only_look_like_those_of_a_wrapper() -> None:
    saved, model = (nn.ModuleDict({"model": prepared(Net(), seed)}) for seed in (0, 2))
    foveate.load_weights(model, saved.state_dict())
    assert_same(saved["model"], model["model"])
