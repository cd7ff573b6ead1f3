"""Channel gates: how each starts, what it counts, timm's counterparts, and mistakes of copies."""

import pytest
import timm.layers
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import create_attn
from torch import Tensor, nn

import foveate
from cases import CASES, Case
from foveate import models, ops
from foveate.mechanisms import EfficientChannelAttention
from references.concurrent_squeeze_excitation import concurrent_squeeze_excitation
from references.gated_channel_transformation import gated_channel_transformation
from references.simam import simam


def case_of(key: str, **options: object) -> Case:
    return next(case for case in CASES if case.key == key and case.options == options)


def random_map(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


def count(key: str, channels: int, **options: object) -> int:
    with torch.device("meta"):
        module = foveate.create(key, channels, **options)
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("scse", {"merge": "sum"}, "unknown merge 'sum'; Accepted: add, concat, max, mul"),
        ("scse", {"reduction": 0}, "reduction must be at least 1, but got reduction=0"),
        ("cse", {"reduction": 0}, "reduction must be at least 1"),
        ("gct", {"norm": "l3"}, "unknown norm 'l3'"),
        ("lct", {"num_groups": 5}, "num_groups must divide channels, but got num_groups=5 and"),
        ("lct", {"num_groups": 0}, "num_groups must be at least 1"),
        (
            "simam",
            {"regularization": 0},
            "regularization must be above 0, but got regularization=0",
        ),
        ("simam", {"regularization": float("nan")}, "regularization must be above 0"),
        ("eca", {"reduction": 0}, "reduction must be at least 1, but got reduction=0"),
        ("eca", {"circular": True, "kernel_size": 35}, "kernel_size must go round the circle at"),
    ],
)
def test_a_bad_option_is_named(key: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foveate.create(key, 16, **options)


# Where training starts.


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_gated_channel_transformation_starts_as_the_identity(norm: str) -> None:
    paper, identity = (foveate.create("gct", 16, norm=norm, init=i) for i in ("paper", "identity"))
    assert paper.state_dict().keys() == identity.state_dict().keys()
    for module in (paper, identity):
        assert (module.alpha == 1).all()
        assert (module.gamma == 0).all()
        assert (module.beta == 0).all()
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = random_map(2, 16, 6, 5).to(dtype)
            assert torch.equal(module.to(dtype)(x), x)


@pytest.mark.parametrize("training", [False, True])
def test_style_recalibration_starts_with_gates_of_one_half(training: bool) -> None:
    module, x = foveate.create("srm", 16).train(training), random_map(3, 16, 6, 5).float()
    assert torch.equal(module(x), x / 2)
    assert (module.cfc == 0).all()
    # Its identity form must not: behind a zero strength, zero weights would never move.
    assert (foveate.create("srm", 16, init="identity").cfc != 0).all()


def test_linear_context_transform_starts_blind_to_its_input() -> None:
    x = random_map(2, 32, 6, 5).float()
    gate = foveate.create("lct", 32).maps(x)["channel"]
    torch.testing.assert_close(gate, torch.full_like(gate, 1.0).sigmoid(), rtol=0, atol=0)


# Counts that the papers and their repositories print.


def test_parameters_of_one_module() -> None:
    assert count("ese", 256) == 256**2 + 256
    assert count("cse", 256) == 2 * 256 * 128 + 256 + 128
    assert count("sse", 256) == 257
    assert count("scse", 256) == count("cse", 256) + count("sse", 256)
    assert (count("gct", 256), count("srm", 256), count("lct", 256)) == (768, 1024, 512)
    assert count("simam", 256) == 0


def test_resnet50_has_53_gated_channel_transformations() -> None:
    with torch.device("meta"):
        host = torchvision.models.resnet50()
        plan = foveate.plan(host, "gct", example=torch.empty(1, 3, 64, 64), init="paper")
    assert len(plan.sites) == 53
    assert plan.sites[0].channels == 3
    assert sum(count("gct", site.channels) for site in plan.sites) == 67_593


# Degenerate inputs, of which copies make no number.


@pytest.mark.parametrize("size", [(1, 2), (4, 4), (7, 5)])
def test_variance_over_positions_is_unbiased(size: tuple[int, int]) -> None:
    x = random_map(2, 3, *size)
    torch.testing.assert_close(ops.spatial_variance(x), x.var((2, 3), keepdim=True))


@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
@pytest.mark.parametrize("key", ["simam", "srm"])
def test_a_single_position_does_not_vary(key: str) -> None:
    x = random_map(2, 16, 1, 1).requires_grad_()
    assert x.var((2, 3)).isnan().all()  # what copies compute
    module = case_of(key).randomised(16)
    if key == "simam":
        expected = torch.full_like(x, 0.5).sigmoid()
    else:
        weights = module.cfc[:, :, None, None]  # (C, 2, 1, 1)
        expected = module.bn(x * weights[:, 0] + 1e-5**0.5 * weights[:, 1]).sigmoid()
    y = module(x)
    torch.testing.assert_close(y, x * expected)
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("key", ["simam", "srm", "gct"])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_maps_have_finite_gradients(key: str, value: float) -> None:
    x = torch.full((2, 16, 4, 5), value, requires_grad=True)
    module = case_of(key).randomised(16, dtype=torch.float32)
    y = module(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_a_group_of_one_channel_has_the_gate_of_its_bias() -> None:
    module, x = case_of("lct").randomised(16), random_map(2, 16, 4, 5)
    expected = module.bias.sigmoid().view(1, 16, 1, 1).expand(2, -1, -1, -1)
    torch.testing.assert_close(module.maps(x)["channel"], expected)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_sums_over_a_large_map_do_not_overflow(norm: str) -> None:
    x = 8 * random_map(1, 16, 96, 96)
    assert x.square().sum((2, 3)).min() > torch.finfo(torch.float16).max
    assert x.abs().sum((2, 3)).max() > 5e4
    options = {"norm": norm} if norm != "l2" else {}
    module = case_of("gct", **options).randomised(16)
    expected = module(x)
    torch.testing.assert_close(module.half()(x.half()).double(), expected, rtol=1e-2, atol=1e-2)


def test_squares_of_deviations_do_not_overflow() -> None:
    x = 150 * random_map(1, 4, 16, 16)
    assert (x - x.mean((2, 3), keepdim=True)).square().max() > torch.finfo(torch.float16).max
    module = foveate.create("simam", 4)
    torch.testing.assert_close(module(x.half()).double(), module(x), rtol=1e-2, atol=1e-2)


# Invariances.


@pytest.mark.parametrize("key", ["se", "ese", "cse", "eca", "gct", "lct"])
def test_gates_of_means_do_not_see_the_resolution(key: str) -> None:
    module, x = case_of(key).randomised(16), random_map(2, 16, 6, 5)
    double = F.interpolate(x, scale_factor=2, mode="nearest")
    gates, doubled = module.maps(x)["channel"], module.maps(double)["channel"]
    torch.testing.assert_close(doubled, gates, rtol=1e-5, atol=1e-6)  # but for epsilon


def test_unbiased_variances_see_the_resolution() -> None:
    module, x = foveate.create("simam", 16), random_map(2, 16, 6, 5)
    double = F.interpolate(x, scale_factor=2, mode="nearest")
    assert differ(module.maps(double)["element"][:, :, ::2, ::2], module.maps(x)["element"])


def test_a_circle_of_channels_has_no_ends() -> None:
    x = random_map(2, 16, 6, 5)
    for circular in (True, False):
        module = foveate.create("eca", 16, kernel_size=5, circular=circular).double()
        rolled = module(x.roll(3, 1)).roll(-3, 1)
        assert torch.allclose(rolled, module(x)) == circular


def test_gates_of_the_gated_channel_transformation_are_relative() -> None:
    """Channels that double together keep their gates; one that doubles alone does not."""
    module, x = case_of("gct").randomised(16), random_map(2, 16, 6, 5)
    gates = module.maps(x)["channel"]
    torch.testing.assert_close(module.maps(2 * x)["channel"], gates, rtol=1e-5, atol=1e-6)
    alone = torch.cat([2 * x[:, :1], x[:, 1:]], dim=1)
    assert differ(module.maps(alone)["channel"], gates)


# timm, under the names of its own weights.


def renamed(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    for theirs, ours in names.items():
        weights = {name.replace(theirs, ours): weight for name, weight in weights.items()}
    return weights


HIDDEN = {"conv2.": "conv.2.", "conv.w": "conv.0.w", "conv.b": "conv.0.b"}


@pytest.mark.parametrize(
    ("name", "key", "channels", "names"),
    [
        ("se", "se", 128, {}),
        ("se", "se", 256, {}),
        ("ese", "ese", 24, {}),
        ("eca", "eca", 64, {}),
        ("eca", "eca", 256, {}),
        ("ceca", "eca", 64, {}),
        ("ceca", "eca", 256, {}),
        ("ecam", "eca", 64, HIDDEN),
        ("ecam", "eca", 256, HIDDEN),
    ],
)
def test_equals_timm(name: str, key: str, channels: int, names: dict[str, str]) -> None:
    torch.manual_seed(0)
    theirs = create_attn(name, channels).double()
    ours = foveate.create(key, channels, **foveate.get_mechanism(key).timm[name]).double()
    ours.load_state_dict(renamed(theirs.state_dict(), names))
    x = random_map(2, channels, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("channels", [8, 24, 64, 144])
def test_timm_rounds_the_bottleneck_of_squeeze_and_excitation(channels: int) -> None:
    theirs = create_attn("se", channels).fc1.weight
    ours = foveate.create("se", channels).fc1.weight
    assert ours.shape[0] == max(1, channels // 16)
    assert theirs.shape[0] % 8 == 0 != ours.shape[0] % 8


@pytest.mark.parametrize("channels", [8, 40, 100])
def test_timm_rounds_the_hidden_layer_of_its_channel_attention(channels: int) -> None:
    theirs = create_attn("ecam", channels).conv.weight
    ours = foveate.create("eca", channels, reduction=8).conv[0].weight
    assert ours.shape[0] == channels // 8
    assert theirs.shape[0] % 8 == 0 != ours.shape[0] % 8


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_timm_raises_the_least_kernel(channels: int) -> None:
    assert timm.layers.EcaModule(channels).conv.kernel_size == (3,)
    assert foveate.create("eca", channels).kernel_size == 1


# Efficient channel attention: one kernel everywhere, or the rule taken for the released models.


def test_released_kernels_are_not_those_of_the_rule() -> None:
    outputs, planes = ([width << i for i in range(4)] for width in (256, 64))
    by_rule = [foveate.create("eca", channels).kernel_size for channels in outputs]
    assert by_rule == [5, 5, 5, 7]
    assert [foveate.create("eca", channels).kernel_size for channels in planes] == [3, 5, 5, 5]
    with torch.device("meta"):
        model = models.create("eca_resnet50")
    gates = [m for m in model.modules() if isinstance(m, EfficientChannelAttention)]
    assert len(gates) == 16
    assert {(m.channels, m.kernel_size) for m in gates} == set(
        zip(outputs, (3, 5, 5, 7), strict=True)
    )


def test_efficient_channel_attention_has_no_bias() -> None:
    module, x = case_of("eca").randomised(64), random_map(2, 64, 6, 5)
    mistaken = nn.Conv1d(1, 1, 3, padding=1).double()  # the default has a bias
    mistaken.weight.data.copy_(module.conv.weight)
    mistaken.bias.data.fill_(0.3)
    assert count("eca", 64) == 3
    means = x.mean((2, 3)).unsqueeze(1)
    gate = module.maps(x)["channel"]
    assert differ(gate.flatten(1), mistaken(means).squeeze(1).sigmoid())
    mistaken.bias.data.zero_()
    torch.testing.assert_close(gate.flatten(1), mistaken(means).squeeze(1).sigmoid())


# Squeeze-and-excitation: both published forms, at four places.


def test_squeeze_and_excitation_with_zero_biases_is_that_without() -> None:
    caffe, journal = (case_of("se", **o).randomised(64) for o in ({}, {"bias": False}))
    x = random_map(2, 64, 6, 5)
    weights = {n: w for n, w in caffe.state_dict().items() if n.endswith("weight")}
    journal.load_state_dict(weights)
    assert differ(caffe(x), journal(x))
    for layer in (caffe.fc1, caffe.fc2):
        layer.bias.data.zero_()
    torch.testing.assert_close(caffe(x), journal(x))
    assert count("se", 64) - count("se", 64, bias=False) == 64 + 4


@pytest.mark.parametrize(
    ("where", "first"),
    [
        ("residual", "layer1.0.bn2"),
        ("pre", "layer1.0.conv1"),
        ("post", "layer1.0"),
        ("shortcut", "layer1.0"),
    ],
)
def test_squeeze_and_excitation_at_the_places_of_the_paper(where: str, first: str) -> None:
    with torch.device("meta"):
        host = torchvision.models.resnet18()
        plan = foveate.plan(host, "se", where=where, example=torch.empty(1, 3, 64, 64))
    assert len(plan.sites) == 8
    assert plan.sites[0].name == first


# Concurrent squeeze-and-excitation: the sum for the maximum, and the ratio of another paper.


def test_concurrent_excitation_takes_the_larger_value() -> None:
    module, x = case_of("scse").randomised(16), random_map(2, 16, 6, 5)
    weights = module.state_dict()
    c, s = module.maps(x).values()
    torch.testing.assert_close(module(x), torch.maximum(x * c, x * s))
    assert differ(module(x), concurrent_squeeze_excitation(x, weights, merge="add"))
    assert differ(module(x), x * torch.maximum(c, s))  # the larger gate is not the larger value
    gate = torch.where(x > 0, torch.maximum(c, s), torch.minimum(c, s))
    torch.testing.assert_close(module(x), x * gate)


@pytest.mark.parametrize(
    ("merge", "merged"), [("add", torch.add), ("mul", torch.mul), ("max", torch.maximum)]
)
def test_concurrent_excitation_merges_the_two_of_which_it_is_made(merge: str, merged) -> None:
    options = {} if merge == "max" else {"merge": merge}
    module, x = case_of("scse", **options).randomised(16), random_map(2, 16, 6, 5)
    cse, sse = (foveate.create(key, 16).double() for key in ("cse", "sse"))
    weights = module.state_dict()
    for part in (cse, sse):
        part.load_state_dict({n: w for n, w in weights.items() if n in part.state_dict()})
    torch.testing.assert_close(module(x), merged(cse(x), sse(x)))


@pytest.mark.parametrize("key", ["cse", "scse"])
def test_concurrent_excitation_has_a_wide_bottleneck(key: str) -> None:
    assert foveate.create(key, 64).channel_excitation.fc1.out_channels == 32
    copied = foveate.create(key, 64, reduction=16)  # of squeeze-and-excitation
    assert copied.channel_excitation.fc1.out_channels == 4


def test_spatial_excitation_is_one_gate_for_all_channels() -> None:
    module, x = case_of("sse").randomised(16), random_map(2, 16, 6, 5)
    own = nn.Conv2d(16, 16, 1).double()  # as in copies that give each channel its own
    assert module.maps(x)["spatial"].shape == (2, 1, 6, 5)
    assert count("sse", 16) == 17 != sum(p.numel() for p in own.parameters())
    ratio = module(x) / x
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(x))


# Style-based recalibration: no epsilon, a biased variance, a random start.


def test_style_recalibration_has_an_epsilon_and_no_bias_of_variance() -> None:
    module, x = case_of("srm").randomised(16), 0.1 * random_map(2, 16, 2, 2)

    def gate(deviation: Tensor) -> Tensor:
        z = x.mean((2, 3)) * module.cfc[:, 0] + deviation * module.cfc[:, 1]
        return module.bn(z[:, :, None, None]).sigmoid()

    right = gate((x.var((2, 3)) + 1e-5).sqrt())
    torch.testing.assert_close(module.maps(x)["channel"], right)
    assert differ(right, gate((x.var((2, 3), correction=0) + 1e-5).sqrt()))


def test_a_channel_without_deviation_has_that_of_epsilon() -> None:
    module, x = case_of("srm").randomised(16), torch.ones(2, 16, 4, 5, dtype=torch.float64)
    module.cfc.data[:, 1] = 10.0
    mean, deviation = module.cfc.T
    gate = module.maps(x)["channel"][0, :, 0, 0]

    def expected(z: Tensor) -> Tensor:
        return module.bn(z.view(1, 16, 1, 1)).sigmoid().flatten()

    torch.testing.assert_close(gate, expected(mean + deviation * 1e-5**0.5))
    assert differ(gate, expected(mean))  # what copies compute


# Gated channel transformation: epsilon inside both roots.


def test_gated_channel_transformation_of_an_empty_channel() -> None:
    module, x = case_of("gct").randomised(16), torch.zeros(1, 16, 4, 5, dtype=torch.float64)
    e = module.alpha * 1e-5**0.5
    expected = 1 + (module.gamma * e / ((e**2).mean() + 1e-5).sqrt() + module.beta).tanh()
    torch.testing.assert_close(module.maps(x)["channel"], expected)
    assert differ(expected, 1 + module.beta.tanh())  # without the one inside the embedding


def test_two_norms_of_the_gated_channel_transformation() -> None:
    module, x = case_of("gct").randomised(16), random_map(2, 16, 6, 5)
    other = case_of("gct", norm="l1").randomised(16)
    other.load_state_dict(module.state_dict())
    weights = module.state_dict()
    torch.testing.assert_close(module(x), gated_channel_transformation(x, weights))
    assert differ(module(x), other(x))


# SimAM: another regularisation, a biased variance, the end of the block.


def test_simam_has_three_official_regularisations() -> None:
    x = random_map(2, 16, 6, 5)
    paper = foveate.create("simam", 16)
    imagenet = foveate.create("simam", 16, **foveate.get_mechanism("simam").variants["imagenet"])
    torch.testing.assert_close(paper(x), simam(x, {}, regularization=1e-4))
    torch.testing.assert_close(imagenet(x), simam(x, {}, regularization=0.1))
    assert differ(paper(x), imagenet(x))
    assert differ(imagenet(x), simam(x, {}, regularization=4.0))  # of the command line


def test_simam_divides_by_one_less_than_the_positions() -> None:
    x = random_map(2, 16, 3, 2)
    d = (x - x.mean((2, 3), keepdim=True)).square()
    module = foveate.create("simam", 16)
    right, biased = (d.sum((2, 3), keepdim=True) / n for n in (5, 6))
    torch.testing.assert_close(module(x), x * (d / (4 * (right + 1e-4)) + 0.5).sigmoid())
    assert differ(module(x), x * (d / (4 * (biased + 1e-4)) + 0.5).sigmoid())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_simam_sits_before_the_normalisation_of_the_spatial_convolution(name: str) -> None:
    with torch.device("meta"):
        host = torchvision.models.get_model(name)
        plan = foveate.plan(host, "simam", example=torch.empty(1, 3, 64, 64))
        usual = foveate.plan(host, "simam", where="residual", example=torch.empty(1, 3, 64, 64))
    assert {site.name.rpartition(".")[2] for site in plan.sites} == {"conv2"}
    assert {site.name.rpartition(".")[2] for site in usual.sites} <= {"bn2", "bn3"}
    assert len(plan.sites) == len(usual.sites)


def test_places_of_the_papers() -> None:
    places = {key: foveate.get_mechanism(key).place for key in ("gct", "simam", "lct", "srm")}
    assert places == {"gct": "conv", "simam": "conv3x3", "lct": "residual", "srm": "residual"}
