"""Global and relational attention: starts, counts, identities, timm, and mistakes of copies."""

import pytest
import timm.layers
import torch
from torch import Tensor, nn

import foveate
from cases import CASES, Case
from references.global_context import transform

RESNET50 = 25_557_032


def case_of(key: str, **options: object) -> Case:
    return next(case for case in CASES if case.key == key and case.options == options)


def random_map(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


def count(key: str, channels: int, **options: object) -> int:
    with torch.device("meta"):
        module = foveate.create(key, channels, **options)
    return sum(parameter.numel() for parameter in module.parameters())


def input_of(layer: nn.Module, module: nn.Module, x: Tensor) -> Tensor:
    """What ``layer`` gets when ``module`` mixes ``x``."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.mix(x)
    hook.remove()
    (tensor,) = seen
    return tensor


# Where training starts.


@pytest.mark.parametrize("pooling", ["attention", "average"])
def test_global_context_starts_as_in_the_official_code(pooling: str) -> None:
    x = random_map(2, 64, 6, 5).float()
    for init in ("paper", "identity"):
        added = foveate.create("gc", 64, pooling=pooling, init=init)
        assert torch.equal(added(x), x)
        assert all((p == 0).all() for p in added.fc2.parameters())
        assert "scale" not in dict(added.named_parameters())
    multiplied = foveate.create("gc", 64, pooling=pooling, fusion="mul")
    assert torch.equal(multiplied(x), x / 2)
    assert (foveate.create("gc", 64, fusion="mul", init="identity").fc2.weight != 0).all()


def test_global_context_mask_starts_with_the_variance_of_kaiming() -> None:
    torch.manual_seed(0)
    weights = torch.stack([foveate.create("gc", 256).conv_mask.weight for _ in range(20)])
    torch.testing.assert_close(weights.std().item(), (2 / 256) ** 0.5, rtol=0.05, atol=0)


def test_external_attention_starts_as_in_the_official_code() -> None:
    torch.manual_seed(0)
    module = foveate.create("external", 128)
    for layer in (module.conv1, module.key_memory, module.conv2):
        torch.testing.assert_close(layer.weight.std().item(), (2 / 128) ** 0.5, rtol=0.05, atol=0)
    assert torch.equal(module.key_memory.weight, module.value_memory.weight.mT)
    module.key_memory.weight.data.zero_()  # and learn apart
    assert (module.value_memory.weight != 0).any()


def test_bilinear_attention_starts_as_in_the_official_code() -> None:
    torch.manual_seed(0)
    module = foveate.create("bat", 256)
    fans = {"conv1.conv": 128, "conv_p": 4 * 49 * 7, "conv2.conv": 128, "conv3.conv": 256}
    for name, fan_out in fans.items():
        std = module.get_submodule(name).weight.std().item()
        torch.testing.assert_close(std, (2 / fan_out) ** 0.5, rtol=0.05, atol=0)
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    assert [(norm.weight == 1).all().item() for norm in norms] == [True] * 4


# Counts that the papers and their repositories print.


def test_networks_have_the_published_parameters() -> None:
    assert RESNET50 + count("gc", 1024) == 25_690_345
    in_stages = 4 * count("gc", 512) + 6 * count("gc", 1024) + 3 * count("gc", 2048)
    assert RESNET50 + in_stages == 28_078_773
    assert RESNET50 + 2 * count("nl", 512) + 3 * count("nl", 1024) == 32_915_496
    assert count("danet_position", 512) == count("criss_cross", 512) == 328_321
    assert count("danet_channel", 512) == 1
    bat = RESNET50 + 2 * count("bat", 512) + 3 * count("bat", 1024)
    assert round(bat / 1e6, 1) == 30.2


# Degenerate inputs.


def test_attention_to_a_single_position_is_one() -> None:
    module, x = case_of("gc").randomised(16), random_map(2, 16, 1, 1)
    assert (module.maps(x)["attention"] == 1).all()
    torch.testing.assert_close(input_of(module.fc1, module, x), x)


def test_attention_to_equal_positions_is_their_share() -> None:
    module, x = case_of("gc").randomised(16), torch.ones(1, 16, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(module.maps(x)["attention"], torch.full_like(x[:, :1], 1 / 20))


@pytest.mark.parametrize("gap", [17.5, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_external_attention_normalises_the_least_shares(gap: float, dtype: torch.dtype) -> None:
    """A share of exp(-17.5) is 0 in half precision, and 0 / 0 is no number."""
    module = case_of("external").randomised(1, memory_size=1)
    for layer in (module.conv1, module.key_memory):
        layer.weight.data.fill_(1.0)
    x = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    x[0, :, 0, 0] = gap
    expected = module(x)
    narrow, x = module.to(dtype), x.to(dtype).requires_grad_()
    y = narrow(x)
    y.sum().backward()
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-2)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (7, 7), (9, 15)])
def test_bilinear_attention_keeps_constant_maps(size: tuple[int, int]) -> None:
    """Weights that sum to 1 along both sides, and resizing, leave a constant as it is."""
    module = case_of("bat").randomised(16)
    constant = random_map(2, 8, 1, 1).expand(2, 8, *size)
    module.conv1 = nn.Identity()
    torch.testing.assert_close(input_of(module.conv2, module, constant), constant)


# Identities.


@pytest.mark.parametrize(
    ("key", "options", "value", "last"),
    [
        ("a2", {}, "feature", "out"),
        ("efficient", {}, "values", "reprojection"),
        ("efficient", {"num_heads": 4}, "values", "reprojection"),
        ("nl", {}, "g", "out"),
        ("nl", {"form": "gaussian"}, "g", "out"),
        ("danet_position", {}, "value_conv", None),
        ("criss_cross", {}, "value_conv", None),
    ],
)
def test_weights_sum_to_one(
    key: str, options: dict[str, object], value: str, last: str | None
) -> None:
    """What is gathered from values that are 1 everywhere is 1 everywhere."""
    module, x = case_of(key, **options).randomised(16), random_map(2, 16, 6, 5)
    values = module.get_submodule(value)
    values.weight.data.zero_()
    values.bias.data.fill_(1.0)
    gathered = module.mix(x) if last is None else input_of(module.get_submodule(last), module, x)
    torch.testing.assert_close(gathered, torch.ones_like(gathered))


def test_heads_of_self_attention_weigh_by_shares() -> None:
    module, x = case_of("mhsa").randomised(16), random_map(2, 16, 6, 5)
    module.qkv.weight.data[32:].zero_()
    module.qkv.bias.data[32:].fill_(1.0)
    gathered = input_of(module.out, module, x)
    torch.testing.assert_close(gathered, torch.ones_like(gathered))


def test_external_affinities_are_normalised_over_positions_then_over_units() -> None:
    module, x = case_of("external").randomised(16), random_map(2, 16, 6, 5)
    scores = module.key_memory(module.conv1(x).flatten(2).mT)  # (B, N, S)
    shares = scores.softmax(1)
    affinity = input_of(module.value_memory, module, x).squeeze(1)
    torch.testing.assert_close(affinity.sum(2), torch.ones(2, 30, dtype=torch.float64))
    torch.testing.assert_close(affinity, shares / shares.sum(2, keepdim=True))
    assert differ(affinity, scores.softmax(2))


def test_double_attention_is_efficient_attention() -> None:
    a2 = foveate.create("a2", 16, reduction=1).double()
    efficient = foveate.create("efficient", 16, reduction=1).double()
    names = {
        "distribute": "queries",
        "gather": "keys",
        "feature": "values",
        "out": "reprojection",
    }
    for ours, theirs in names.items():
        efficient.get_submodule(theirs).load_state_dict(a2.get_submodule(ours).state_dict())
    x = random_map(2, 16, 6, 5)
    torch.testing.assert_close(a2(x), efficient(x))


def test_efficient_attention_is_attention_with_shares_of_all_pairs() -> None:
    module, x = case_of("efficient").randomised(16), random_map(2, 16, 6, 5)
    q, k, v = (project(x).flatten(2) for project in (module.queries, module.keys, module.values))
    affinity = q.softmax(1).mT @ k.softmax(2)  # (B, N, N)
    assert (affinity > 0).all()
    torch.testing.assert_close(affinity.sum(2), torch.ones(2, 30, dtype=torch.float64))
    gathered = input_of(module.reprojection, module, x)
    torch.testing.assert_close(gathered.flatten(2), v @ affinity.mT)
    both_over_positions = q.softmax(2).mT @ k.softmax(2)
    assert differ(gathered.flatten(2), v @ both_over_positions.mT)


# Mistakes of popular copies.


def test_global_context_applies_its_softmax() -> None:
    module, x = case_of("gc").randomised(64), random_map(2, 64, 6, 5)
    scores = module.conv_mask(x).flatten(2)

    def added(share: Tensor) -> Tensor:
        context = torch.einsum("bcn,bon->bc", x.flatten(2), share)
        weights = module.state_dict()
        return torch.stack([transform(one, weights) for one in context])[:, :, None, None]

    torch.testing.assert_close(module(x), x + added(scores.softmax(2)))
    assert differ(module(x), x + added(scores))


def test_double_attention_normalises_within_an_image() -> None:
    module, x = case_of("a2").randomised(16), random_map(3, 16, 6, 5)
    feature, gather, distribute = (
        project(x).flatten(2) for project in (module.feature, module.gather, module.distribute)
    )

    def mixed(gather: Tensor, distribute: Tensor) -> Tensor:
        return module.out((feature @ gather.mT @ distribute).unflatten(2, (6, 5)))

    torch.testing.assert_close(module.mix(x), mixed(gather.softmax(2), distribute.softmax(1)))
    over_the_batch = mixed(gather.softmax(0), distribute.softmax(0))
    assert differ(module.mix(x), over_the_batch)
    assert (gather[:1].softmax(0) == 1).all()
    assert differ(module.mix(x), mixed(gather.softmax(1), distribute.softmax(2)))


def test_danet_has_narrow_queries_a_scale_and_its_input() -> None:
    """Copies keep all channels, have kernels of 3 and add neither scale nor input."""
    module = foveate.create("danet_position", 64)
    shapes = [tuple(module.get_submodule(f"{n}_conv").weight.shape) for n in ("query", "key")]
    assert shapes == [(8, 64, 1, 1)] * 2
    wide = 3 * (512**2 + 512) + 1
    assert count("danet_position", 512) < wide
    x = random_map(2, 64, 6, 5).float()
    for key in ("danet_position", "danet_channel"):
        module = foveate.create(key, 64)
        assert torch.equal(module(x), x)
        assert differ(module.mix(x), x)


def test_danet_channel_does_not_scale_its_energies() -> None:
    module, x = foveate.create("danet_channel", 6).double(), random_map(2, 6, 4, 4)
    tokens = x.flatten(2)
    scaled = (-(tokens @ tokens.mT) / 16**0.5).softmax(2) @ tokens
    assert differ(module.mix(x).flatten(2), scaled)


def test_criss_cross_passes_share_their_weights() -> None:
    assert len({count("criss_cross", 64, recurrence=n) for n in (1, 2, 3)}) == 1
    twice, x = case_of("criss_cross").randomised(16), random_map(2, 16, 6, 5)
    once = case_of("criss_cross").randomised(16, recurrence=1)
    other = case_of("criss_cross").randomised(16, recurrence=1)
    for parameter in other.parameters():
        parameter.data.copy_(random_map(*parameter.shape, seed=1))
    torch.testing.assert_close(twice(x), once(once(x)))
    assert differ(twice(x), other(once(x)))


# timm.


def timm_global_context(name: str, ours: nn.Module) -> nn.Module:
    """timm's module with the weights of ours."""
    theirs = timm.layers.create_attn(name, ours.channels).double().eval()
    names = {"conv_mask": "conv_attn", "norm": "norm", "fc1": "fc1", "fc2": "fc2"}
    mlp = "mlp_scale" if name == "gc" else "mlp_add"
    weights = {}
    for key, weight in ours.state_dict().items():
        layer, part = key.split(".")
        flat = weight.flatten() if layer == "norm" else weight
        prefix = "" if layer == "conv_mask" else f"{mlp}."
        weights[f"{prefix}{names[layer]}.{part}"] = flat
    theirs.load_state_dict(weights)
    theirs.get_submodule(mlp).norm.eps = ours.norm.eps
    return theirs


@pytest.mark.parametrize("name", ["gc", "gca"])
def test_global_context_is_that_of_timm(name: str) -> None:
    options = foveate.get_mechanism("gc").timm[name]
    ours, x = case_of("gc", **options).randomised(64), random_map(2, 64, 6, 5)
    theirs = timm_global_context(name, ours)
    torch.testing.assert_close(ours(x), theirs(x))


def test_global_context_of_timm_multiplies_rounds_and_starts_elsewhere() -> None:
    torch.manual_seed(0)
    x = random_map(2, 64, 6, 5).float()
    theirs = timm.layers.create_attn("gca", 64)
    assert differ(theirs(x), x)  # the last bias is random
    assert differ(timm.layers.create_attn("gc", 64)(x), x / 2)
    assert timm.layers.create_attn("gc", 12).mlp_scale.fc1.out_channels == 2
    assert foveate.create("gc", 12, reduction=8).fc1.out_channels == 1
    assert theirs.mlp_add.norm.eps == 1e-6
    assert foveate.create("gc", 64).norm.eps == 1e-5


def test_non_local_of_timm_scales_by_the_width_of_the_input() -> None:
    ours, x = case_of("nl").randomised(16), random_map(2, 16, 6, 5)
    theirs = timm.layers.create_attn("nl", 16, rd_channels=8).double().eval()
    names = {"t": "theta", "p": "phi", "g": "g", "z": "out", "norm": "bn"}
    for name, counterpart in names.items():
        theirs.get_submodule(name).load_state_dict(ours.get_submodule(counterpart).state_dict())
    assert theirs.scale == 16**-0.5
    assert differ(theirs(x), ours(x))
    theirs.scale = 8**-0.5
    torch.testing.assert_close(theirs(x), ours(x))
    assert timm.layers.create_attn("nl", 256).t.out_channels == 32
    assert foveate.create("nl", 256).theta.out_channels == 128


def timm_bilinear_attention(ours: nn.Module, **options: object) -> nn.Module:
    """timm's module with the weights of ours, whose convolutions lose their biases."""
    theirs = timm.layers.create_attn("bat", ours.channels, **options).double().eval()
    names = {"conv1": "conv1", "summary": "ba.conv1", "conv2": "ba.conv2", "conv3": "conv2"}
    for name, counterpart in names.items():
        conv_norm = ours.get_submodule(name)
        conv_norm.conv.bias.data.zero_()
        state = {n: w for n, w in conv_norm.state_dict().items() if n != "conv.bias"}
        theirs.get_submodule(counterpart).load_state_dict(state)
    theirs.ba.conv_p.load_state_dict(ours.conv_p.state_dict())
    theirs.ba.conv_q.load_state_dict(ours.conv_q.state_dict())
    return theirs


@pytest.mark.parametrize("size", [(7, 7), (14, 7), (14, 21)])
def test_bilinear_attention_is_that_of_timm(size: tuple[int, int]) -> None:
    options = foveate.get_mechanism("bat").timm["bat"]
    ours, x = case_of("bat", **options).randomised(64), random_map(2, 64, *size)
    theirs = timm_bilinear_attention(ours)
    torch.testing.assert_close(ours(x), theirs(x))


def test_bilinear_attention_of_timm_refuses_sizes_rounds_and_drops() -> None:
    ours = case_of("bat", reduction=4, num_groups=2).randomised(64)
    theirs, x = timm_bilinear_attention(ours), random_map(2, 64, 7, 8)
    with pytest.raises(AssertionError):
        theirs(x)
    assert ours(x).shape == x.shape
    assert timm.layers.create_attn("bat", 48).conv1.conv.out_channels == 16
    assert foveate.create("bat", 48, reduction=4, num_groups=2).conv1.conv.out_channels == 12
    assert theirs.dropout.p == 0.2
