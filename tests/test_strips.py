"""Strips, large kernels and parallel blocks: what timm has, starts, and known mistakes."""

import pytest
import torch
from timm.layers.cbam import CbamModule, LightCbamModule
from timm.layers.coord_attn import CoordAttn, EfficientLocalAttn, SimpleCoordAttn, StripAttn
from torch import Tensor, nn

import foveate
from cases import CASES, Case
from references.parallel_network import parnet
from references.strip_pooling import strip_pooling
from tolerances import assert_close


def case_of(key: str, **options: object) -> Case:
    return next(case for case in CASES if case.key == key and case.options == options)


def random_map(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


def fill(theirs: nn.Module, ours: nn.Module, names: dict[str, str], **changes: Tensor) -> nn.Module:
    """timm's module with our weights under its names, and ``changes`` where given."""
    weights = ours.state_dict()
    state = {new: weights[old] for old, new in names.items()} | changes
    missing = theirs.double().eval().load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    return theirs


def batch_norm(old: str, new: str) -> dict[str, str]:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{old}.{kind}": f"{new}.{kind}" for kind in kinds}


# CBAM


@pytest.mark.parametrize("channels", [16, 48])
def test_cbam_equals_timms_with_maximum_and_mean_exchanged(channels: int) -> None:
    ours, x = case_of("cbam").randomised(channels), random_map(2, channels, 7, 5)
    theirs = CbamModule(channels, mlp_bias=True)
    names = {
        f"channel_gate.fc{i}.{kind}": f"channel.fc{i}.{kind}"
        for i in (1, 2)
        for kind in ("weight", "bias")
    }
    names |= batch_norm("spatial_gate.bn", "spatial.conv.bn")
    kernel = ours.state_dict()["spatial_gate.conv.weight"]
    fill(theirs, ours, names, **{"spatial.conv.conv.weight": kernel.flip(1)})
    assert_close(ours(x), theirs(x))
    theirs.spatial.conv.conv.weight.data = kernel
    assert differ(ours(x), theirs(x))


def test_cbam_of_blended_pools_equals_timms_light_form() -> None:
    ours, x = case_of("cbam", pooling="blend").randomised(32), random_map(2, 32, 7, 5)
    names = {
        f"channel_gate.fc{i}.{kind}": f"channel.fc{i}.{kind}"
        for i in (1, 2)
        for kind in ("weight", "bias")
    }
    names |= batch_norm("spatial_gate.bn", "spatial.conv.bn")
    names["spatial_gate.conv.weight"] = "spatial.conv.conv.weight"
    assert_close(ours(x), fill(LightCbamModule(32, mlp_bias=True), ours, names)(x))


def test_cbam_of_a_copy_adds_its_input_twice() -> None:
    module, x = case_of("cbam").randomised(16), random_map(2, 16, 8, 8)
    with torch.no_grad():
        module.channel_gate.fc2.bias.fill_(-100)  # all gates are closed
    assert_close(module(x), torch.zeros_like(x))  # a copy would let the input through


# Coordinate attention


def coordinate_names(first: str, height: str, width: str) -> dict[str, str]:
    new = {"conv1": first, "conv_h": height, "conv_w": width}
    return {f"{o}.{kind}": f"{n}.{kind}" for o, n in new.items() for kind in ("weight", "bias")}


def test_coordinate_attention_equals_timms_with_its_width_and_biases() -> None:
    ours, x = case_of("coord").randomised(256), random_map(2, 256, 7, 5)
    theirs = CoordAttn(256, rd_channels=8, bias=True)
    names = coordinate_names("conv1", "conv_h", "conv_w") | batch_norm("bn1", "bn1")
    assert_close(ours(x), fill(theirs, ours, names)(x))


def test_timms_coordinate_attention_has_another_width_and_no_biases() -> None:
    theirs = CoordAttn(512)
    assert sum(p.numel() for p in theirs.parameters()) == 36_912
    assert sum(p.numel() for p in foveate.create("coord", 512).parameters()) == 25_648


def test_coordinate_attention_of_one_gate_equals_timms_simple_form_with_an_h_swish() -> None:
    ours, x = case_of("coord", norm=False, merge="sum").randomised(256), random_map(2, 256, 7, 5)
    for act_layer in (nn.Hardswish, nn.SiLU):
        theirs = SimpleCoordAttn(256, rd_channels=8, act_layer=act_layer).double()
        weights = ours.state_dict()
        flat = {
            new: weights[old].flatten(1) if old.endswith("weight") else weights[old]
            for old, new in coordinate_names("fc1", "fc_h", "fc_w").items()
        }
        theirs.load_state_dict(flat)
        assert differ(ours(x), theirs(x)) == (act_layer is nn.SiLU)
        if act_layer is nn.Hardswish:
            assert_close(ours(x), theirs(x))


def test_coordinate_attention_squashes_its_gates() -> None:
    module, x = case_of("coord").randomised(16), random_map(2, 16, 8, 8)
    H, W = x.shape[2:]
    z = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT], dim=2)
    z = module.bn1(module.conv1(z))
    rows, columns = nn.functional.hardswish(z).split([H, W], dim=2)
    right = x * module.conv_h(rows).sigmoid() * module.conv_w(columns.mT).sigmoid()
    assert_close(module(x), right)
    assert differ(right, x * module.conv_h(rows) * module.conv_w(columns.mT))  # no sigmoid
    rows, columns = z.relu().split([H, W], dim=2)  # ReLU for the h-swish
    assert differ(right, x * module.conv_h(rows).sigmoid() * module.conv_w(columns.mT).sigmoid())


@pytest.mark.parametrize("channels", [1, 8, 15])
def test_coordinate_attention_of_few_channels_has_eight_hidden(channels: int) -> None:
    assert foveate.create("coord", channels).conv1.out_channels == 8  # not channels // 32


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("merge", ["product", "sum"])
def test_coordinate_attention_trains_on_one_image_of_one_position(norm: bool, merge: str) -> None:
    module = foveate.create("coord", 16, norm=norm, merge=merge).train()
    x = torch.ones(1, 16, 1, 1, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert all(g.isfinite().all() for g in (x.grad, *(p.grad for p in module.parameters())))


# Efficient local attention


def test_efficient_local_attention_shares_its_layers_where_timm_has_two_of_each() -> None:
    ours, x = case_of("ela", kernel_size=3, num_groups=1).randomised(16), random_map(2, 16, 7, 5)
    theirs = EfficientLocalAttn(16, kernel_size=3, bias=False, act_layer=nn.Identity).double()
    kernel = ours.conv.weight.data
    theirs.load_state_dict(
        {
            "conv_h.weight": kernel.unsqueeze(3),
            "conv_w.weight": kernel.unsqueeze(2),
            **{
                f"norm_{side}.{kind}": getattr(ours.norm, kind).data
                for side in "hw"
                for kind in ("weight", "bias")
            },
        }
    )
    assert_close(ours(x), theirs(x))
    theirs.act = nn.SiLU()  # its default
    assert differ(ours(x), theirs(x))
    ours = foveate.create("ela", 64)
    counts = [sum(p.numel() for p in m.parameters()) for m in (ours, EfficientLocalAttn(64))]
    assert counts == [64 * 7 + 2 * 64, 2 * (64 * 7 + 2 * 64)]


@pytest.mark.parametrize(
    ("variant", "kernel_size", "groups", "num_groups"),
    [("T", 5, 64, 32), ("B", 7, 64, 16), ("S", 5, 8, 16), ("L", 7, 8, 16)],
)
def test_sizes_of_efficient_local_attention(
    variant: str, kernel_size: int, groups: int, num_groups: int
) -> None:
    options = foveate.get_mechanism("ela").variants[variant]
    module = foveate.create("ela", 64, **options)
    assert (module.conv.kernel_size, module.conv.groups) == ((kernel_size,), groups)
    assert module.norm.num_groups == num_groups


# Strip pooling


def test_strip_pooling_is_another_operator_than_timms() -> None:
    x = random_map(2, 16, 7, 5)
    assert sum(p.numel() for p in StripAttn(16).parameters()) == 2 * 3 * 16
    assert sum(p.numel() for p in foveate.create("strip", 16).parameters()) == 7 * 16**2 + 5 * 16
    ours, theirs = case_of("strip").randomised(16), StripAttn(16).double()
    assert differ(ours(x), theirs(x))


def test_strip_pooling_returns_the_gated_map_and_its_maps_the_gate() -> None:
    module, x = case_of("strip").randomised(16), random_map(2, 16, 7, 5)
    gate = module.maps(x)["element"]
    assert ((gate > 0) & (gate < 1)).all()
    assert_close(module(x), x * gate)
    assert differ(module(x), gate)  # what the official block returns


def test_strip_pooling_adds_its_strips_before_the_relu() -> None:
    module, x = case_of("strip").randomised(16), random_map(2, 16, 7, 5)
    rows = module.conv_h(x.mean(3, keepdim=True))
    columns = module.conv_w(x.mean(2, keepdim=True))
    early = x * module.conv(rows.relu() + columns.relu()).sigmoid()
    assert_close(module(x), strip_pooling(x, module.state_dict()))
    assert differ(module(x), early)


def test_strip_pooling_starts_as_in_the_authors_network() -> None:
    module = foveate.create("strip", 256)
    for conv, taps in ((module.conv_h[0], 3), (module.conv_w[0], 3), (module.conv, 1)):
        assert conv.weight.std().item() == pytest.approx((2 / (taps * 256)) ** 0.5, rel=0.02)
        assert (conv.weight.abs() > 3 * conv.weight.std()).any()  # normal, not uniform


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (20, 12), (64, 3)], ids=str)
def test_mixed_pooling_takes_maps_below_and_above_its_cells(size: tuple[int, int]) -> None:
    case = case_of("mixed_pooling")
    module, x = case.randomised(4), random_map(1, 4, *size)
    assert_close(module(x), case.reference(x, module.state_dict()))
    assert (module(x) >= 0).all()


# Large kernels


@pytest.mark.parametrize("kernel_size", [7, 11, 23, 35, 41, 53])
def test_separable_kernels_reach_as_far_as_their_name(kernel_size: int) -> None:
    module = foveate.create("lska", 1, kernel_size=kernel_size).double()
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    side = 81
    x = torch.ones(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    (centre,) = torch.autograd.grad(module.gate(x)["attention"][0, 0, side // 2, side // 2], x)
    rows = centre[0, 0].abs().sum(1).nonzero().flatten()
    assert int(rows.max() - rows.min() + 1) == kernel_size
    assert torch.equal(centre[0, 0], centre[0, 0].T)


def test_large_kernel_attention_is_not_squashed() -> None:
    module, x = case_of("lka").randomised(16), random_map(2, 16, 30, 30)
    factor = module.maps(x)["attention"]
    assert factor.min() < 0
    assert factor.max() > 1
    assert differ(module(x), x * factor.sigmoid())


def test_large_kernel_attention_covers_23_pixels() -> None:
    module = foveate.create("lka", 1).double()
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    x = torch.ones(1, 1, 41, 41, dtype=torch.float64, requires_grad=True)
    (centre,) = torch.autograd.grad(module.gate(x)["attention"][0, 0, 20, 20], x)
    rows = centre[0, 0].sum(1).nonzero().flatten()
    assert (rows.min(), rows.max()) == (20 - 11, 20 + 11)  # 5 + 3 * 6 rows, for a kernel of 21x21


@pytest.mark.parametrize("key", ["lka", "lska"])
@pytest.mark.parametrize("init", ["paper", "identity"])
def test_large_kernels_start_as_in_the_authors_network(key: str, init: str) -> None:
    convs = [m for m in foveate.create(key, 256, init=init).modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        fan_out = conv.kernel_size[0] * conv.kernel_size[1] * 256 // conv.groups
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        assert not conv.bias.any()
    assert [conv.groups for conv in convs[:-1]] == [256] * (len(convs) - 1)


# ParNet


def test_parnet_normalises_what_it_squeezes_and_has_no_biases() -> None:
    module, x = case_of("parnet").randomised(16), random_map(2, 16, 7, 5)
    assert not any(
        conv.bias is not None for conv in module.modules() if isinstance(conv, nn.Conv2d)
    )
    plain = module.norm3x3(module.conv3x3(x)) + module.norm1x1(module.conv1x1(x))
    mistaken = nn.functional.silu(plain + x * module.fc(x.mean((2, 3), keepdim=True)).sigmoid())
    assert_close(module(x), parnet(x, module.state_dict()))
    assert differ(module(x), mistaken)


def test_parnet_without_a_skip_is_gated_as_a_whole() -> None:
    case = case_of("parnet")
    module, x = case.randomised(8, stride=2), random_map(2, 8, 7, 5)
    assert not any(name.startswith("skip_norm") for name in module.state_dict())
    with torch.no_grad():
        module.fc.weight.zero_()  # a gate of one half, doubled
    dense = module.norm3x3(module.conv3x3(x))
    pooled = nn.functional.avg_pool2d(x, 2, ceil_mode=True)
    assert_close(module(x), nn.functional.silu(dense + module.norm1x1(module.conv1x1(pooled))))
