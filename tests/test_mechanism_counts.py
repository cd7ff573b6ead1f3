"""Parameters, to the unit, as the papers and their repositories print them."""

import pytest
import torch
from torch import nn

import foveate
from foveate.hosts.networks import ResNet20


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


def test_one_global_context_block_in_resnet_50() -> None:
    assert RESNET50 + count("gc", 1024) == 25_690_345


CIFAR_RESNET50 = 23_705_252  # a 3x3 stem, 100 classes


@pytest.mark.parametrize(
    ("key", "parameters"), [("se", 26_236_244), ("cbam", 26_237_844), ("bam", 24_063_319)]
)
def test_resnet_50_for_cifar_100(key: str, parameters: int) -> None:
    blocks = {256: 1, 512: 1, 1024: 1} if key == "bam" else RESNET50_BLOCKS
    assert CIFAR_RESNET50 + sum(n * count(key, c) for c, n in blocks.items()) == parameters


def test_resnet_50_for_cifar_100_with_released_kernels() -> None:
    kernels = zip((3, 5, 5, 7), RESNET50_BLOCKS.items(), strict=True)
    added = sum(n * count("eca", c, kernel_size=k) for k, (c, n) in kernels)
    assert CIFAR_RESNET50 + added == 23_705_332


def test_squeeze_excitation_in_resnet_20() -> None:
    host = ResNet20(num_classes=10, in_channels=3)
    foveate.insert(host, "se", init="paper", example=torch.zeros(1, 3, 32, 32))
    assert sum(parameter.numel() for parameter in host.parameters()) == 274_847


def test_efficient_multiscale_attention_as_counted_in_its_repository() -> None:
    assert [count("ema", c) for c in (64, 256, 512, 2048)] == [48, 672, 2624, 41216]


def test_bottleneck_attention_as_counted_in_its_repository() -> None:
    assert [count("bam", c) for c in (256, 512, 1024)] == [17361, 68513, 272193]


def test_dual_attention_as_counted_in_its_repository() -> None:
    assert count("danet_position", 512) == 328_321
