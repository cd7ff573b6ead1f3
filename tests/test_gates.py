"""Gates with a twist: how each starts, what it counts, and what popular copies get wrong."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ConvMlp, create_attn
from timm.layers import GatherExcite as TimmGatherExcite
from torch import Tensor, nn

import foveate
from cases import CASES, Case
from foveate.mechanisms.frequency_channel_attention import CHOICES
from foveate.ops import strip_pool
from references.bottleneck_attention import bottleneck_attention, channel_logits, spatial_logits
from references.frequency_channel_attention import cosines
from references.gather_excite import gather_excite
from references.squeeze_excitation import squeeze_excitation
from references.triplet_attention import triplet_attention


def case_of(key: str) -> Case:
    return next(case for case in CASES if case.key == key and not case.options)


def random_map(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


def count(key: str, channels: int, **options: object) -> int:
    with torch.device("meta"):
        module = foveate.create(key, channels, **options)
    return sum(parameter.numel() for parameter in module.parameters())


RESNET18 = 11_689_512
RESNET50 = 25_557_032
RESNET50_BLOCKS = {256: 3, 512: 4, 1024: 6, 2048: 3}  # blocks by width


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("bam", {"combine": "sum"}, "unknown combine 'sum'; Accepted: add, mul"),
        ("bam", {"dilation": 0}, "dilation must be at least 1, but got dilation=0"),
        ("bam", {"reduction": 0}, "reduction must be at least 1"),
        ("triplet", {"kernel_size": 2}, "kernel_size must be odd, but got kernel_size=2"),
        ("ge", {"gather": "max"}, "unknown gather 'max'; Accepted: conv, mean"),
        ("ge", {"extent": 3}, "extent must be 0, 2, 4 or 8, but got extent=3"),
        ("ge", {"size": (7, 0)}, "size must be at least 1, but got size=0"),
        ("ge", {"reduction": 0}, "reduction must be at least 1"),
        ("sge", {"num_groups": 5}, "num_groups must divide channels, but got num_groups=5 and"),
        ("ema", {"num_groups": 0}, "num_groups must be at least 1"),
        ("fca", {"frequencies": "top3"}, "unknown frequencies 'top3'; did you mean 'top"),
        ("fca", {"frequencies": "low32"}, "frequencies must divide channels, but got frequencies="),
        ("fca", {"size": 0}, "size must be at least 1, but got size=0"),
    ],
)
def test_a_bad_option_is_named(key: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foveate.create(key, 16, **options)


@pytest.mark.parametrize(("key", "divisor"), [("sge", 64), ("ema", 32), ("fca", 16)])
def test_channels_that_the_paper_cannot_split_are_refused(key: str, divisor: int) -> None:
    with pytest.raises(ValueError, match=f"must divide channels, but got .*={divisor} and .*=72"):
        foveate.create(key, 72)


# Bottleneck attention: a sum, maps that are no squares, a dilation that is padded.


def test_bottleneck_attention_counts() -> None:
    counts = [count("bam", channels) for channels in (256, 512, 1024)]
    assert counts == [17_361, 68_513, 272_193]
    assert RESNET50 + sum(counts) == 25_915_099
    assert count("bam", 256, combine="mul") == 17_361


@pytest.mark.parametrize("combine", ["add", "mul"])
def test_bottleneck_attention_adds_its_logits_unless_told(combine: str) -> None:
    module, x = case_of("bam").randomised(64, combine=combine), random_map(2, 64, 7, 5)
    weights = module.state_dict()
    channel = channel_logits(x, weights, training=False)[:, :, None, None]
    spatial = spatial_logits(x, weights, 4, training=False)[:, None]
    attended = {"add": x + x * (channel + spatial).sigmoid()}
    attended["mul"] = x + x * (channel * spatial).sigmoid()
    torch.testing.assert_close(module(x), attended.pop(combine))
    (other,) = attended.values()
    assert differ(module(x), other)
    assert foveate.create("bam", 64).combine == "add"


def test_bottleneck_attention_sees_the_whole_of_a_map_that_is_no_square() -> None:
    module, x = case_of("bam").randomised(64), random_map(2, 64, 4, 9)
    z = F.avg_pool2d(x, x.shape[2], stride=x.shape[2])  # one kernel side for both axes
    assert z.shape == (2, 64, 1, 2)  # and the official code takes the first of the two squares
    module.spatial_branch.conv4.weight.data.zero_()
    square = copy.deepcopy(module)(x[..., :4].contiguous())
    assert differ(module(x)[..., :4], square)
    torch.testing.assert_close(module(x), bottleneck_attention(x, module.state_dict()))


def test_bottleneck_attention_pads_its_dilated_convolutions() -> None:
    branch = foveate.create("bam", 64, dilation=2).spatial_branch
    x = torch.zeros(1, 64, 14, 14)
    assert branch(x).shape == (1, 1, 14, 14)
    z = branch.conv1(x)
    for _ in range(
        3
    ):  # three convolutions where the paper has two, padded by 1 for a dilation of 2
        z = nn.Conv2d(4, 4, 3, padding=1, dilation=2)(z)
    assert z.shape == (1, 4, 8, 8)
    dilated = [c for c in branch.modules() if isinstance(c, nn.Conv2d) and c.dilation == (2, 2)]
    assert len(dilated) == 2


def test_bottleneck_attention_trains_on_one_image() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm1d(4)(torch.zeros(1, 4))
    module = foveate.create("bam", 64).train()
    x = random_map(1, 64, 5, 5).float()
    assert module(x).isfinite().all()
    assert module.channel_branch.bn.num_batches_tracked == 0
    assert module.spatial_branch.bn1.num_batches_tracked == 1


def test_bottleneck_attention_starts_as_in_the_official_code() -> None:
    torch.manual_seed(0)
    module = foveate.create("bam", 512)
    assert all((p == 0).all() for n, p in module.named_parameters() if n.endswith("bias"))
    for conv in (module.spatial_branch.conv1, module.spatial_branch.conv2):
        fan_out = conv.out_channels * conv.weight[0, 0].numel()
        std = conv.weight.std().item()
        torch.testing.assert_close(std, (2 / fan_out) ** 0.5, rtol=0.05, atol=0)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 4
    assert all((norm.weight == 1).all() for norm in norms)


# Triplet attention: no ReLU before the sigmoid, the maximum first, no bias.


def test_triplet_counts() -> None:
    assert [count("triplet", channels) for channels in (3, 64, 2048)] == [300] * 3
    assert count("triplet", 64, spatial=False) == 200
    assert RESNET18 + 8 * count("triplet", 64) == 11_691_912
    assert RESNET50 + 16 * count("triplet", 64) == 25_561_832


def test_triplet_gates_go_below_one_half() -> None:
    module, x = case_of("triplet").randomised(16), random_map(2, 16, 7, 5)
    rectified = copy.deepcopy(module)
    for name in ("width_gate", "height_gate", "spatial_gate"):
        bn = rectified.get_submodule(name).bn
        bn.register_forward_hook(lambda _, inputs, z: z.relu())
    assert all((gate >= 0.5).all() for gate in rectified.gate(x).values())
    assert all((gate < 0.5).any() for gate in module.gate(x).values())
    assert differ(module(x), rectified(x))


def test_triplet_takes_the_maximum_before_the_mean() -> None:
    module, x = case_of("triplet").randomised(16), random_map(2, 16, 7, 5)
    weights = module.state_dict()
    swapped = {n: w.flip(1) if n.endswith("conv.weight") else w for n, w in weights.items()}
    assert differ(module(x), triplet_attention(x, swapped))
    module.load_state_dict(swapped)
    torch.testing.assert_close(module(x), triplet_attention(x, swapped))
    assert all(conv.bias is None for conv in module.modules() if isinstance(conv, nn.Conv2d))


def test_triplet_starts_as_in_the_official_code() -> None:
    module, x = foveate.create("triplet", 16), random_map(2, 16, 7, 5).float()
    gates = module.gate(x)
    assert (gates["spatial"] == 0.5).all()
    assert (gates["channel_width"] != 0.5).any()
    assert (gates["channel_height"] != 0.5).any()
    identity = foveate.create("triplet", 16, init="identity")
    assert identity.spatial_gate.bn.weight == 1


def test_triplet_averages_as_many_gates_as_it_has() -> None:
    x = random_map(2, 16, 7, 5)
    for options, parts in (({}, 3), ({"spatial": False}, 2)):
        module = case_of("triplet").randomised(16, **options)
        gates = module.gate(x).values()
        assert len(gates) == parts
        torch.testing.assert_close(module(x), sum(x * gate for gate in gates) / parts)


# Spatial group-wise enhancement: a bias of one, the unbiased deviation, maps without any.


def published_sge(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The formula as printed, with a standard deviation that needs two positions."""
    groups = x.unflatten(1, (len(w), -1))
    t = (groups * groups.mean((3, 4), keepdim=True)).sum(2)
    mean, std = t.mean((2, 3), keepdim=True), t.std((2, 3), keepdim=True)
    logits = (t - mean) / (std + 1e-5) * w[:, None, None] + b[:, None, None]
    return (groups * logits.sigmoid().unsqueeze(2)).flatten(1, 2)


def test_sge_starts_with_a_gate_above_one_half() -> None:
    module, x = foveate.create("sge", 128), random_map(2, 128, 7, 5).float()
    assert sum(p.numel() for p in module.parameters()) == 2 * 64
    torch.testing.assert_close(module(x), x * torch.ones(()).sigmoid())
    assert differ(module(x), x * 0.5)  # what a bias of zero would give
    assert (module.weight == 0).all()


def test_sge_is_its_formula_and_defined_on_one_position() -> None:
    module = case_of("sge").randomised(128)
    w, b = module.weight.flatten(), module.bias.flatten()
    x = random_map(2, 128, 7, 5)
    torch.testing.assert_close(module(x), published_sge(x, w, b))
    x = random_map(2, 128, 1, 1)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert published_sge(x, w, b).isnan().all()
    gate = b.sigmoid().repeat_interleave(2)[:, None, None]
    torch.testing.assert_close(module(x), x * gate)


def test_sge_does_not_see_a_constant_map() -> None:
    module = case_of("sge").randomised(64)
    x = torch.ones(1, 64, 5, 4, dtype=torch.float64, requires_grad=True)
    y = module(x)
    torch.testing.assert_close(y, module.bias.sigmoid() * x)
    y.sum().backward()
    assert x.grad.isfinite().all()


# Efficient multi-scale attention: one of its softmaxes sees nothing of the input.


def test_ema_counts() -> None:
    assert [count("ema", c) for c in (64, 256, 512, 2048)] == [48, 672, 2_624, 41_216]
    assert sum(n * count("ema", c) for c, n in RESNET50_BLOCKS.items()) == 198_368


def test_ema_reads_its_local_branch_with_weights_that_no_input_changes() -> None:
    module = case_of("ema").randomised(256)
    expected = module.gn.bias.softmax(0)
    for x in (random_map(64, 8, 7, 5), 10 * random_map(64, 8, 7, 5) + 1):
        weights = module._strips(x, *strip_pool(x)).mean((2, 3)).softmax(1)
        torch.testing.assert_close(weights, expected.expand(64, -1))
    fresh = foveate.create("ema", 256).double()
    weights = fresh._strips(x, *strip_pool(x)).mean((2, 3)).softmax(1)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 8))


def test_ema_takes_one_image_of_one_position_in_one_group() -> None:
    module, x = case_of("ema").randomised(8, num_groups=1), random_map(1, 8, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module.gn(x)
    assert module(x).isfinite().all()
    x = random_map(2, 8, 3, 2)
    seen = {}
    module.conv1x1.register_forward_hook(lambda _, inputs, z: seen.update(z=z.sigmoid()))
    strips = module._strips(x, *strip_pool(x))
    rows, columns = seen["z"].split([3, 2], dim=2)
    torch.testing.assert_close(strips, module.gn(x * rows * columns.mT))


# Gather-excite: without an excite it is no squeeze-and-excitation.


def timm_gather_excite(channels: int, **options: object) -> nn.Module:
    """timm's module, without the parts that its version 1.0.31 cannot build."""
    return TimmGatherExcite(channels, use_mlp=False, **options).double().eval()


def test_timm_cannot_build_its_gather_excite() -> None:
    with pytest.raises(TypeError, match="multiple values for argument"):
        create_attn("ge", 64)
    with pytest.raises(TypeError, match="multiple values for argument"):
        TimmGatherExcite(64, extra_params=True, extent=2, use_mlp=False)


@pytest.mark.parametrize("extent", [0, 2, 4, 8])
@pytest.mark.parametrize("shape", [(2, 16, 14, 10), (1, 16, 7, 5), (2, 16, 1, 1)], ids=str)
def test_gathering_means_is_that_of_timm(extent: int, shape: tuple[int, ...]) -> None:
    x = random_map(*shape)
    ours = foveate.create("ge", 16, extent=extent)
    assert not list(ours.parameters())
    torch.testing.assert_close(ours(x), timm_gather_excite(16, extent=extent)(x))


@pytest.mark.parametrize("extent", [2, 4, 8])
def test_gathering_by_convolutions_is_that_of_timm(extent: int) -> None:
    ours = case_of("ge").randomised(16, gather="conv", extent=extent)
    theirs = timm_gather_excite(16, extent=extent)
    theirs.gather = copy.deepcopy(ours.convs)
    x = random_map(2, 16, 14, 10)
    torch.testing.assert_close(ours(x), theirs(x))


def test_timm_leaves_out_the_relu_before_the_excite() -> None:
    ours = case_of("ge").randomised(64, gather="conv", extent=2, excite=True)
    theirs = timm_gather_excite(64, extent=2)
    mlp = ConvMlp(64, 4, act_layer=nn.ReLU).double()
    weights = ours.state_dict()
    mlp.load_state_dict({n: w for n, w in weights.items() if n.startswith("fc")})
    x = random_map(2, 64, 14, 10)
    theirs.gather, theirs.mlp = copy.deepcopy(ours.convs), mlp
    assert differ(ours(x), theirs(x))
    theirs.gather.append(nn.ReLU())
    torch.testing.assert_close(ours(x), theirs(x))


def test_timms_default_is_squeeze_and_excitation() -> None:
    (options,) = foveate.get_mechanism("ge").timm.values()
    ours, x = case_of("ge").randomised(64, **options), random_map(2, 64, 5, 4)
    expected = squeeze_excitation(x, ours.state_dict())
    torch.testing.assert_close(ours(x), expected)
    theirs = timm_gather_excite(64)
    theirs.mlp = ConvMlp(64, 4, act_layer=nn.ReLU).double()
    theirs.mlp.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs(x), expected)
    assert differ(foveate.create("ge", 64)(x), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("extent", [4, 8])
@pytest.mark.parametrize("shape", [(2, 32, 14, 10), (1, 32, 7, 5), (3, 32, 1, 9)], ids=str)
def test_wide_extents_equal_the_reference(
    extent: int, shape: tuple[int, ...], training: bool
) -> None:
    x = random_map(*shape)
    for options in ({}, {"gather": "conv"}, {"gather": "conv", "excite": True}):
        options = {**options, "extent": extent}
        module = case_of("ge").randomised(32, **options).train(training)
        weights = copy.deepcopy(module.state_dict())
        expected = gather_excite(x, weights, **options, training=training)
        torch.testing.assert_close(module(x), expected)


def test_kernel_as_large_as_the_map_is_a_convolution() -> None:
    module = case_of("ge").randomised(16, gather="conv", size=(6, 9))
    (conv, bn), x = module.convs, random_map(2, 16, 6, 9)
    assert conv.weight.shape == (16, 1, 6, 9)
    gathered = F.conv2d(x, conv.weight, groups=16)
    torch.testing.assert_close(conv(x), gathered)
    torch.testing.assert_close(module(x), x * bn(gathered).sigmoid())


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (12, 18), (40, 7)])
def test_kernel_as_large_as_the_map_keeps_its_scale_on_other_maps(shape: tuple[int, int]) -> None:
    conv = foveate.create("ge", 1, gather="conv", size=(6, 9)).double().convs[0]
    nn.init.constant_(conv.weight, 0.1)
    x = torch.ones(1, 1, *shape, dtype=torch.float64)
    torch.testing.assert_close(conv(x).item(), 5.4)


def test_gather_excite_counts() -> None:
    assert count("ge", 256) == count("ge", 256, extent=8) == 0
    assert count("ge", 256, gather="conv", size=56) == 256 * 56**2 + 2 * 256
    added = count("ge", 256, gather="conv", excite=True) - count("ge", 256, gather="conv")
    assert added == count("se", 256)


def test_excite_starts_as_in_the_official_networks() -> None:
    torch.manual_seed(0)
    module = foveate.create("ge", 512, gather="conv", excite=True)
    for fc in (module.fc1, module.fc2):
        torch.testing.assert_close(fc.weight.std().item(), 0.01, rtol=0.05, atol=0)
        assert (fc.bias == 0).all()
    assert (module.convs[1].weight == 1).all()


# Frequency channel attention: the basis itself, the lowest frequency, small maps.


@pytest.mark.parametrize("frequencies", ["top16", "low32", "bot8"])
@pytest.mark.parametrize("size", [7, 14, (7, 16), 10])
def test_basis_is_that_of_the_cosine_transform(
    frequencies: str, size: int | tuple[int, int]
) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    basis = foveate.create("fca", 32, frequencies=frequencies, size=size).basis
    expected = [cosines(u, v, height, width) for u, v in CHOICES[frequencies]]
    torch.testing.assert_close(basis.double(), torch.stack(expected), rtol=0, atol=1e-6)


# Vertical frequencies, then horizontal ones, as the authors' code lists them.
LISTS = {
    "top": ("00600114513000324635526553342261", "01052020060463526333511242113053"),
    "low": ("00110221203401301234501234561234", "01012012230043154321065432106543"),
    "bot": ("61332412445146256162243355625536", "64466314456522514350311242115333"),
}


@pytest.mark.parametrize("order", ["top", "low", "bot"])
def test_frequencies_are_those_of_the_authors(order: str) -> None:
    vertical, horizontal = LISTS[order]
    for number in (1, 2, 4, 8, 16, 32):
        pairs = list(zip(map(int, vertical), map(int, horizontal), strict=True))
        assert CHOICES[f"{order}{number}"] == pairs[:number]


@pytest.mark.parametrize("order", ["top", "low", "bot"])
def test_frequencies_are_different_ones_of_a_seven_by_seven_map(order: str) -> None:
    pairs = CHOICES[f"{order}32"]
    assert len(set(pairs)) == 32
    assert all(0 <= u < 7 and 0 <= v < 7 for u, v in pairs)
    planes = foveate.create("fca", 32, frequencies=f"{order}32", size=7).basis.flatten(1)
    torch.testing.assert_close(planes @ planes.mT, torch.eye(32), rtol=0, atol=1e-5)
    assert CHOICES[f"{order}4"] == pairs[:4]


def test_the_lowest_frequency_is_squeeze_and_excitation() -> None:
    module = foveate.create("fca", 64, frequencies="top1", size=14).double()
    squeeze = foveate.create("se", 64, bias=False).double()
    weights = {name: w for name, w in module.state_dict().items() if name != "basis"}
    squeeze.load_state_dict({**weights, "fc1.weight": 14 * weights["fc1.weight"]})
    x = random_map(2, 64, 14, 14)
    torch.testing.assert_close(module(x), squeeze(x), rtol=1e-6, atol=1e-6)
    other = foveate.create("fca", 64, size=14).double()
    other.load_state_dict(weights, strict=False)
    assert differ(other(x), squeeze(x))


@pytest.mark.parametrize("size", [1, 4, 6, 7])
def test_small_maps_keep_their_frequencies(size: int) -> None:
    basis = foveate.create("fca", 16, size=size).basis
    torch.testing.assert_close(basis, foveate.create("fca", 16, size=7).basis)
    assert len({tuple(plane.flatten().tolist()) for plane in basis}) == 16


def test_frequencies_are_read_from_a_map_of_the_size_of_the_basis() -> None:
    module = foveate.create("fca", 16, size=7).double()
    x = random_map(2, 16, 7, 7)
    wide = x.repeat_interleave(3, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(module.gate(wide)["channel"], module.gate(x)["channel"])
    assert differ(module.gate(x)["channel"], module.gate(x.roll(1, 2))["channel"])


def test_frequency_channel_attention_counts() -> None:
    added = sum(n * count("fca", c) for c, n in RESNET50_BLOCKS.items())
    assert RESNET50 + added == 28_071_976
    sizes = {256: 56, 512: 28, 1024: 14, 2048: 7}
    floats = 0
    for channels, blocks in RESNET50_BLOCKS.items():
        basis = foveate.create("fca", channels, size=sizes[channels]).basis
        floats += blocks * basis.numel() * (channels // len(basis))  # a plane for each channel
    assert floats == 5_519_360
