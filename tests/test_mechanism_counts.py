"""Parameters, to the unit: the closed formulas of the papers and the totals of their models."""

import pytest
import torch
from torch import nn

import foveate
from cases import DEFAULTS

WIDTHS = [1, 3, 16, 40, 64, 512]


def count(key: str, channels: int, **options: object) -> int:
    with torch.device("meta"):
        module = foveate.create(key, channels, **options)
    return sum(parameter.numel() for parameter in module.parameters())


def expected(channels: int) -> dict[str, int]:
    C, m, c, d = channels, max(1, channels // 16), max(8, channels // 32), max(1, channels // 8)
    i = max(1, channels // 2)
    position = 2 * (C * d + d) + C * C + C + 1
    return {
        "se": 2 * C * m + C + m,
        "spatial": 2 * 7 * 7 + 2,
        "cbam": 2 * C * m + C + m + 2 * 7 * 7 + 2,
        "coord": C * c + c + 2 * c + 2 * (c * C + C),
        "nl": 3 * (C * i + i) + i * C + C + 2 * C,
        "mhsa": 4 * (C * C + C),
        "danet_position": position,
        "danet_channel": 1,
        "danet": position + 1,
        "criss_cross": position,
        "static": C,
    }


@pytest.mark.parametrize("channels", WIDTHS)
def test_formulas(channels: int) -> None:
    counts = expected(channels)
    assert {*counts, "eca"} == {case.key for case in DEFAULTS}
    assert counts == {key: count(key, channels) for key in counts}


@pytest.mark.parametrize("channels", WIDTHS)
def test_formulas_of_variants(channels: int) -> None:
    C, i, m = channels, max(1, channels // 2), max(1, channels // 16)
    assert count("se", C, bias=False) == 2 * C * m
    assert count("nl", C, form="gaussian") == C * i + i + i * C + C + 2 * C
    assert count("nl", C, form="concatenation") == expected(C)["nl"] + 2 * i
    assert count("nl", C, norm=False) == expected(C)["nl"] - 2 * C
    assert count("cbam", C, kernel_size=3, norm=False) == expected(C)["cbam"] - 80 - 2
    assert count("cbam", C, order="parallel_sum") == expected(C)["cbam"] + 2
    assert count("static", C, shape="both", size=5) == C + 25
    assert count("criss_cross", C, recurrence=3) == expected(C)["criss_cross"]


def test_coordinate_attention_as_counted_in_its_repository() -> None:
    assert [count("coord", c) for c in (16, 64, 256, 512)] == [440, 1688, 6680, 25648]


@pytest.mark.parametrize(
    ("channels", "kernel_size"),
    [(2, 1), (4, 1), (8, 3), (64, 3), (96, 3), (128, 5), (256, 5), (1024, 5), (2048, 7)],
)
def test_adaptive_kernel_size(channels: int, kernel_size: int) -> None:
    assert foveate.create("eca", channels).kernel_size == kernel_size


RESNET50 = 25_557_032
RESNET50_BLOCKS = {256: 3, 512: 4, 1024: 6, 2048: 3}  # blocks by width


@pytest.mark.parametrize(("reduction", "parameters"), [(4, 35_635_688), (32, 26_830_080)])
def test_se_resnet_50_at_other_reductions(reduction: int, parameters: int) -> None:
    added = (n * count("se", c, reduction=reduction) for c, n in RESNET50_BLOCKS.items())
    assert RESNET50 + sum(added) == parameters


def test_one_non_local_block_in_resnet_50() -> None:
    assert RESNET50 + count("nl", 1024) == 27_658_792


def test_multi_head_attention_has_the_parameters_of_torch() -> None:
    theirs = nn.MultiheadAttention(64, 8)
    assert count("mhsa", 64) == sum(parameter.numel() for parameter in theirs.parameters())
