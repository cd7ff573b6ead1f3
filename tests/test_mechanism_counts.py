"""Parameters, to the unit, as the papers and their repositories print them."""

import pytest
import torch
from torch import nn

import foveate


def count(key: str, channels: int, **options: object) -> int:
    with torch.device("meta"):
        module = foveate.create(key, channels, **options)
    return sum(parameter.numel() for parameter in module.parameters())


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
