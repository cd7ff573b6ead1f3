"""Selective kernels, split attention, CoT, involution, MobileViT: timm, starts, known mistakes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, SelectiveKernel, SplitAttn
from timm.models.byobnet import LayerFn
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from torch import Tensor, nn

import foveate
from cases import CASES, Case
from foveate import ops
from tolerances import assert_close


def case_of(key: str, **options: object) -> Case:
    return next(case for case in CASES if case.key == key and case.options == options)


def random_map(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


def fill(theirs: nn.Module, ours: nn.Module, renamed: dict[str, str]) -> nn.Module:
    """timm's module with our weights, whose names begin as the table says."""
    state = {}
    for name, weight in ours.state_dict().items():
        start = max((old for old in renamed if name.startswith(f"{old}.")), key=len)
        state[renamed[start] + name.removeprefix(start)] = weight
    theirs.double().eval().load_state_dict(state)
    return theirs


# Selective kernels

SK_NAMES = {
    "branches.0.0": "paths.0.conv",
    "branches.0.1": "paths.0.bn",
    "branches.1.0": "paths.1.conv",
    "branches.1.1": "paths.1.bn",
    "fc1": "attn.fc_reduce",
    "norm": "attn.bn",
    "fc2": "attn.fc_select",
}


@pytest.mark.parametrize("stride", [1, 2])
def test_selective_kernels_equal_timms_without_its_split_of_the_input(stride: int) -> None:
    ours, x = case_of("sk").randomised(32, stride=stride), random_map(2, 32, 7, 5)
    theirs = SelectiveKernel(32, stride=stride, groups=32, rd_divisor=32, split_input=False)
    assert_close(ours(x), fill(theirs, ours, SK_NAMES)(x))


def test_timms_selective_kernels_split_the_input_and_have_a_narrower_bottleneck() -> None:
    theirs = SelectiveKernel(64)
    assert theirs.paths[0].conv.in_channels == 32
    assert theirs.attn.fc_reduce.out_channels == 8
    ours = foveate.create("sk", 64)
    assert ours.branches[0][0].in_channels == 64
    assert ours.fc1.out_channels == 32


def test_selective_kernels_are_dilated_and_not_wider() -> None:
    ours = foveate.create("sk", 64, dilation=2)
    convs = [branch[0] for branch in ours.branches]
    assert [conv.kernel_size for conv in convs] == [(3, 3), (3, 3)]
    assert [conv.dilation for conv in convs] == [(2, 2), (4, 4)]
    assert ours.fc1.bias is None
    assert ours.fc2.bias is None


@pytest.mark.parametrize(
    ("channels", "hidden"), [(128, 32), (256, 32), (512, 32), (1024, 64), (32, 32)]
)
def test_bottleneck_of_selective_kernels(channels: int, hidden: int) -> None:
    module = foveate.create("sk", channels)
    assert module.fc1.out_channels == hidden
    torch.testing.assert_close(module.fc2.weight.std().item(), 0.01, rtol=0.1, atol=0)


def test_selective_kernels_normalise_between_their_two_projections() -> None:
    module, x = case_of("sk").randomised(32), random_map(2, 32, 7, 5)
    features = [branch(x) for branch in module.branches]
    z = sum(features).mean((2, 3), keepdim=True)
    right = module.fc2(module.norm(module.fc1(z)).relu()).unflatten(1, (2, 32)).softmax(1)
    plain = module.fc2(module.fc1(z)).unflatten(1, (2, 32)).softmax(1)
    assert_close(module(x), features[0] * right[:, 0] + features[1] * right[:, 1])
    assert differ(module(x), features[0] * plain[:, 0] + features[1] * plain[:, 1])


@pytest.mark.parametrize(("key", "names"), [("sk", "branch"), ("splat", "split"), ("cot", "")])
def test_weights_of_branches_add_up_to_one(key: str, names: str) -> None:
    module, x = case_of(key).randomised(32), random_map(2, 32, 7, 5)
    maps = module.maps(x)
    assert all(name.startswith(names) for name in maps)
    torch.testing.assert_close(sum(maps.values()), torch.ones(2, 32, 1, 1, dtype=torch.float64))


# Split attention


@pytest.mark.parametrize("num_groups", [1, 2])
def test_split_attention_equals_timms(num_groups: int) -> None:
    ours = case_of("splat").randomised(64, num_groups=num_groups, reduction=4)
    x = random_map(2, 64, 7, 5)
    theirs = SplitAttn(64, groups=num_groups, norm_layer=nn.BatchNorm2d)
    names = {"conv": "conv", "norm": "bn0", "fc1": "fc1", "fc_norm": "bn1", "fc2": "fc2"}
    assert_close(ours(x), fill(theirs, ours, names)(x))


def test_timms_split_attention_has_no_normalisation_unless_told() -> None:
    assert isinstance(SplitAttn(64).bn0, nn.Identity)
    assert isinstance(foveate.create("splat", 64).norm, nn.BatchNorm2d)


def test_split_attention_needs_two_splits() -> None:
    with pytest.raises(ValueError, match="radix must be at least 2, but got radix=1"):
        foveate.create("splat", 64, radix=1)


# The contextual transformer


def test_contextual_transformer_takes_no_softmax_over_its_window() -> None:
    module, x = case_of("cot").randomised(32), random_map(2, 32, 7, 5)
    static = module.key_norm(module.key_conv(x)).relu()
    z = module.weight_norm(module.weight_conv1(torch.cat([x, static], 1))).relu()
    weights = module.group_norm(module.weight_conv2(z)).unflatten(1, (1, -1, 9))
    values = module.value_norm(module.value_conv(x))

    def fused(weights: Tensor) -> Tensor:
        shared = values.unflatten(1, (8, -1))
        local = ops.local_aggregation(shared, weights, kernel_size=3).flatten(1, 2)
        dynamic = F.silu(module.norm(local))
        gate = module._weigh(dynamic, static)
        return dynamic * gate[:, :, 0] + static * gate[:, :, 1]

    assert_close(module(x), fused(weights))
    assert differ(module(x), fused(weights.softmax(3)))
    # A popular copy: the mean of the nine, a softmax over all positions, no window at all.
    everywhere = weights.mean(3).flatten(3).softmax(3).unflatten(3, (7, 5)).repeat(1, 8, 1, 1, 1)
    copied = static + everywhere.flatten(1, 2) * values
    assert differ(module(x), copied)


def test_contextual_transformer_shares_weights_between_distant_channels() -> None:
    x = torch.zeros(1, 8, 2, 3, 3)
    x[0, :, 0], x[0, :, 1] = 1.0, 2.0
    weights = torch.zeros(1, 1, 2, 9, 3, 3)
    weights[0, 0, 0, 4], weights[0, 0, 1, 4] = 10.0, 100.0
    y = ops.local_aggregation(x, weights, kernel_size=3).flatten(1, 2)
    assert y[0, :, 1, 1].tolist() == [10.0, 200.0] * 8


# Involution


def test_involution_with_one_kernel_everywhere_is_a_depthwise_convolution() -> None:
    module, x = case_of("involution").randomised(32), random_map(2, 32, 9, 8)
    module.span.weight.data.zero_()
    kernel = module.span.bias.view(2, 1, 7, 7).repeat_interleave(16, dim=0)
    assert_close(module(x), F.conv2d(x, kernel, padding=3, groups=32))


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_local_aggregation_is_that_of_unfolded_windows(stride: int, dilation: int) -> None:
    x = random_map(2, 6, 9, 8)
    size = [(side - 1) // stride + 1 for side in x.shape[2:]]
    weights = random_map(2, 6, 9, *size)
    windows = F.unfold(x, 3, padding=dilation, dilation=dilation, stride=stride)
    expected = (windows.view(2, 6, 9, *size) * weights).sum(2)
    y = ops.local_aggregation(x, weights, kernel_size=3, stride=stride, dilation=dilation)
    assert_close(y, expected)


@pytest.mark.parametrize("key", ["involution", "cot"])
def test_channels_are_not_changed_by_position_dependent_kernels(key: str) -> None:
    with pytest.raises(ValueError, match="out_channels must equal channels"):
        foveate.create(key, 32, out_channels=64)


# MobileViT


def mobilevit_names(depth: int) -> dict[str, str]:
    names = {
        "local_conv": "conv_kxk.conv",
        "local_norm": "conv_kxk.bn",
        "project": "conv_1x1",
        "norm": "norm",
        "return_conv": "conv_proj.conv",
        "return_norm": "conv_proj.bn",
        "fusion_conv": "conv_fusion.conv",
        "fusion_norm": "conv_fusion.bn",
    }
    for layer in range(depth):
        ours, theirs = f"layers.{layer}", f"transformer.{layer}"
        names |= {
            f"{ours}.norm1": f"{theirs}.norm1",
            f"{ours}.norm2": f"{theirs}.norm2",
            f"{ours}.qkv": f"{theirs}.attn.qkv",
            f"{ours}.out": f"{theirs}.attn.proj",
            f"{ours}.qkv_proj": f"{theirs}.attn.qkv_proj",
            f"{ours}.out_proj": f"{theirs}.attn.out_proj",
            f"{ours}.fc1": f"{theirs}.mlp.fc1",
            f"{ours}.fc2": f"{theirs}.mlp.fc2",
        }
    return names


def layers() -> LayerFn:
    """timm's layers with the activation that its models give them."""
    return LayerFn(conv_norm_act=partial(ConvNormAct, act_layer=nn.SiLU), act=nn.SiLU)


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1)], ids=str)
def test_mobilevit_equals_timms_block(size: tuple[int, int]) -> None:
    ours, x = case_of("mobilevit").randomised(16, dim=24), random_map(2, 16, *size)
    theirs = MobileVitBlock(16, transformer_dim=24, patch_size=2, num_heads=4, layers=layers())
    assert_close(ours(x), fill(theirs, ours, mobilevit_names(2))(x))


def test_mobilevit2_equals_timms_block_on_even_maps() -> None:
    ours, x = case_of("mobilevit2").randomised(16, dim=24), random_map(2, 16, 8, 6)
    theirs = MobileVitV2Block(16, transformer_dim=24, patch_size=2, layers=layers())
    filled = fill(theirs, ours, mobilevit_names(2))
    assert_close(ours(x), filled(x))
    assert filled(random_map(2, 16, 7, 5)).shape == (2, 16, 8, 6)  # it does not resize back
    assert ours(random_map(2, 16, 7, 5)).shape == (2, 16, 7, 5)


def test_mobilevit2_activates_its_values_and_keeps_the_places_of_patches_apart() -> None:
    module, x = case_of("mobilevit2").randomised(16), random_map(2, 16, 8, 6)
    layer = module.layers[0]
    z = random_map(2, 16, 4, 12)
    query, key, value = layer.qkv_proj(layer.norm1(z)).split([1, 16, 16], dim=1)

    def attended(value: Tensor, dims: tuple[int, ...]) -> Tensor:
        weights = query.exp() / query.exp().sum(dims, keepdim=True)
        y = z + layer.out_proj(value * (key * weights).sum(dims, keepdim=True))
        return y + layer.fc2(F.silu(layer.fc1(layer.norm2(y))))

    assert_close(layer(z), attended(value.relu(), (3,)))
    assert differ(layer(z), attended(value, (3,)))  # a copy without the ReLU
    assert differ(layer(z), attended(value.relu(), (2, 3)))  # and one without patches
    assert module(x).shape == x.shape


def test_mobilevit_lets_only_equal_places_of_patches_attend_to_each_other() -> None:
    module = case_of("mobilevit").randomised(8)
    tokens = random_map(1, 8, 4, 4)
    patches = ops.to_patches(tokens, 2, align_corners=False)
    assert torch.equal(patches[0, :, 0], tokens[0, :, ::2, ::2].flatten(1))
    assert torch.equal(patches[0, :, 3], tokens[0, :, 1::2, 1::2].flatten(1))
    assert torch.equal(ops.from_patches(patches, 2, tokens, align_corners=False), tokens)
    assert module.dim == 8


@pytest.mark.parametrize("key", ["mobilevit", "mobilevit2"])
def test_blocks_have_no_stride(key: str) -> None:
    with pytest.raises(ValueError, match="stride must be 1, but got stride=2"):
        foveate.create(key, 16, stride=2)
