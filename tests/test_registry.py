"""The registry is complete, and helps where it is asked for something it does not have."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from timm.layers.create_attn import get_attn
from torch import nn

import foveate
from cases import CASES
from foveate import registry

TESTS = Path(__file__).parent
HELPERS = ("__init__", "batch_norm", "relative_positions", "variant")
"""Files of ``references`` that hold no mechanism."""


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_every_mechanism_is_held_against_the_contract() -> None:
    assert {case.key for case in CASES} == set(foveate.list_mechanisms())
    ids = [case.id for case in CASES]
    assert len(ids) == len(set(ids))
    defaults = [case.key for case in CASES if not case.options]
    assert sorted(defaults) == foveate.list_mechanisms()


def test_importing_foveate_imports_every_file_of_mechanisms() -> None:
    folder = Path(foveate.mechanisms.__file__).parent
    files = {f"foveate.mechanisms.{path.stem}" for path in folder.glob("*.py")}
    code = "import sys, foveate; print(*(m for m in sys.modules if m.startswith('foveate.mech')))"
    assert files - {"foveate.mechanisms.__init__"} <= set(run(code).split())


def test_references_are_used_and_do_not_import_foveate() -> None:
    used = {case.reference.__module__ for case in CASES}
    for path in (TESTS / "references").glob("*.py"):
        assert "import foveate" not in path.read_text()
        assert "from foveate" not in path.read_text()
        if path.stem not in HELPERS:
            assert f"references.{path.stem}" in used


@pytest.mark.parametrize("key", foveate.list_mechanisms())
def test_named_variants_are_held_against_the_contract(key: str) -> None:
    cls = foveate.get_mechanism(key)
    held = [case.options for case in CASES if case.key == key]
    for options in (*cls.variants.values(), *cls.timm.values()):
        assert options in held


def test_everything_that_timm_builds_has_a_counterpart() -> None:
    source = inspect.getsource(get_attn)
    theirs = re.findall(r"attn_type == '(\w+)'", source)
    assert len(theirs) >= 18
    ours = [name for key in foveate.list_mechanisms() for name in foveate.get_mechanism(key).timm]
    assert sorted(ours) == sorted(theirs)


def test_list_takes_a_pattern() -> None:
    assert foveate.list_mechanisms("danet*") == ["danet", "danet_channel", "danet_position"]
    assert foveate.list_mechanisms("nothing*") == []


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown mechanism 'cbm'; did you mean 'cbam'\?"):
        foveate.create("cbm", 16)


def test_a_name_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MECHANISMS", dict(registry._MECHANISMS))
    with pytest.raises(ValueError, match="mechanism 'se' is already SqueezeExcitation"):
        registry.register_mechanism("se")(nn.Identity)
    registry.register_mechanism("new")(type("New", (nn.Identity,), {}))
    assert "new" in foveate.list_mechanisms()


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("se", {"reduction": 0}, "reduction must be at least 1, but got reduction=0"),
        ("se", {"reduction": 2.5}, "reduction must be a whole number"),
        ("se", {"init": "zero"}, "unknown init 'zero'; Accepted: identity, paper"),
        ("eca", {"kernel_size": 4}, "kernel_size must be odd, but got kernel_size=4"),
        ("eca", {"kernel_size": -3}, "kernel_size must be at least 1"),
        ("eca", {"gamma": 0}, "gamma must not be zero, but got gamma=0"),
        ("spatial", {"kernel_size": 6}, "kernel_size must be odd, but got kernel_size=6"),
        ("cbam", {"order": "channel"}, "unknown order 'channel'; did you mean 'channel_first'"),
        (
            "cbam",
            {"pooling": "mean"},
            "unknown pooling 'mean'; Accepted: avg, blend, both, lp, lse, max",
        ),
        ("cbam", {"kernel_size": 2}, "kernel_size must be odd"),
        ("cbam", {"reduction": 0}, "reduction must be at least 1"),
        ("coord", {"reduction": -1}, "reduction must be at least 1, but got reduction=-1"),
        ("static", {"shape": "channels"}, "unknown shape 'channels'; did you mean 'channel'"),
        ("static", {"size": 0}, "size must be at least 1, but got size=0"),
        ("nl", {"form": "gauss"}, "unknown form 'gauss'"),
        ("nl", {"pool_position": "none"}, "unknown pool_position 'none'; .*after, before"),
        ("mhsa", {"num_heads": 5}, "num_heads must divide channels, but got num_heads=5 and chann"),
        ("mhsa", {"num_heads": 0}, "num_heads must be at least 1"),
        ("mhsa", {"score": "cosine"}, "unknown score 'cosine'"),
        ("criss_cross", {"recurrence": 0}, "recurrence must be at least 1, but got recurrence=0"),
    ],
)
def test_a_bad_option_is_named(key: str, options: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        foveate.create(key, 16, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", foveate.list_mechanisms())
@pytest.mark.parametrize("channels", [0, -4, 2.0, True])
def test_channels_are_a_positive_whole_number(key: str, channels: object) -> None:
    with pytest.raises((ValueError, TypeError), match="channels must be"):
        foveate.create(key, channels)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="rd_ratio"):
        foveate.create("se", 16, rd_ratio=0.5)
