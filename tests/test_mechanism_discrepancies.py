"""Mistakes of popular copies, built here and shown to differ from what foveate computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import foveate
from cases import CASES, Case
from references import criss_cross as criss_cross_reference
from references.cbam import cbam
from references.danet import channel as channel_reference
from references.non_local import affinity, conv, non_local


def case_of(key: str) -> Case:
    return next(case for case in CASES if case.key == key and not case.options)


def random_map(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


# CBAM: mean before maximum, and no normalisation after the 7 x 7 convolution.


def test_cbam_takes_the_maximum_before_the_mean() -> None:
    module, x = case_of("cbam").randomised(16), random_map(2, 16, 8, 8)
    weights = module.state_dict()
    key = "spatial_gate.conv.weight"
    swapped = {**weights, key: weights[key].flip(1)}
    assert differ(module(x), cbam(x, swapped))
    module.load_state_dict(swapped)
    torch.testing.assert_close(module(x), cbam(x, swapped))


def test_cbam_normalises_its_spatial_convolution() -> None:
    module, x = case_of("cbam").randomised(16), random_map(2, 16, 8, 8)
    weights = module.state_dict()
    without = {name: weight for name, weight in weights.items() if ".bn." not in name}
    assert differ(module(x), cbam(x, without))


def test_cbam_has_no_residual_of_its_own() -> None:
    module, x = foveate.create("cbam", 16), random_map(2, 16, 8, 8).float()
    assert (module(x).abs() <= x.abs()).all()


def test_spatial_padding_is_no_stride() -> None:
    x = random_map(1, 16, 14, 14).float()
    mistaken = nn.Conv2d(2, 1, 7, 3, bias=False)  # the padding, landed in the stride
    assert mistaken(torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)).shape[2] != 14
    for key in ("spatial", "cbam"):
        for kernel_size in (1, 3, 7, 9):
            maps = foveate.create(key, 16, kernel_size=kernel_size).maps(x)
            assert maps["spatial"].shape == (1, 1, 14, 14)


def test_cbam_lse_is_a_sum_not_a_mean_of_exponentials() -> None:
    module = foveate.create("cbam", 16, pooling="lse")
    x = torch.zeros(1, 16, 4, 4)
    pool = module.channel_gate.pool
    torch.testing.assert_close(pool(x)[0].flatten(), torch.full((16,), 16.0).log())
    assert pool(x + 1000)[0].isfinite().all()


# Squeeze-and-excitation: timm rounds the bottleneck.


@pytest.mark.parametrize(
    ("channels", "hidden", "rounded"),
    [(8, 1, 8), (24, 1, 8), (64, 4, 8), (144, 9, 8), (512, 32, 32)],
)
def test_squeeze_excitation_does_not_round_its_bottleneck(
    channels: int, hidden: int, rounded: int
) -> None:
    assert foveate.create("se", channels).fc1.weight.shape == (hidden, channels, 1, 1)
    assert max(8, int(channels / 16 + 4) // 8 * 8) == rounded


# DANet: the subtraction from the maximum turns likeness into unlikeness.


def test_danet_channel_weighs_by_unlikeness() -> None:
    x = random_map(2, 6, 4, 4) / 3
    tokens = x.flatten(2)
    energy = tokens @ tokens.mT
    unlike = ((-energy).softmax(2) @ tokens).view_as(x)
    like = (energy.softmax(2) @ tokens).view_as(x)
    mixed = foveate.create("danet_channel", 6).mix(x)
    torch.testing.assert_close(mixed, unlike)
    torch.testing.assert_close(mixed, channel_reference(x))
    assert differ(mixed, like)
    assert ((-energy).softmax(2).argmin(2) == torch.arange(6)).all()


def test_danet_channel_does_not_overflow_in_half_precision() -> None:
    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)) * 10
    assert (x.flatten(2) @ x.flatten(2).mT).amax() > torch.finfo(torch.float16).max
    module = foveate.create("danet_channel", 4)
    expected = module.mix(x)
    assert module.mix(x.half()).isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module.mix(x), expected)


def test_danet_position_does_not_scale_its_scores() -> None:
    module, x = case_of("danet_position").randomised(64), random_map(1, 64, 4, 4)
    q, k, v = (
        project(x).flatten(2) for project in (module.query_conv, module.key_conv, module.value_conv)
    )
    scores = q.mT @ k
    assert differ(module.mix(x).flatten(2), v @ (scores / 8**0.5).softmax(2).mT)
    torch.testing.assert_close(module.mix(x).flatten(2), v @ scores.softmax(2).mT)


# Criss-cross attention: two softmaxes, no mask, or a mask on both branches.


def criss_cross_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    vertical = torch.einsum("bdhw,bdgw->bhwg", q, k)
    return vertical, torch.einsum("bdhw,bdhg->bhwg", q, k)


def gathered(vertical: Tensor, horizontal: Tensor, v: Tensor) -> Tensor:
    rows = torch.einsum("bhwg,bchg->bchw", horizontal, v)
    return torch.einsum("bhwg,bcgw->bchw", vertical, v) + rows


def test_criss_cross_has_one_softmax_with_one_mask() -> None:
    module, x = case_of("criss_cross").randomised(16, recurrence=1), random_map(2, 16, 5, 4)
    q, k, v = module.query_conv(x), module.key_conv(x), module.value_conv(x)
    vertical, horizontal = criss_cross_scores(q, k)
    unmasked = torch.cat([vertical, horizontal], 3).softmax(3).split([5, 4], 3)
    itself = torch.eye(5, dtype=torch.bool)[:, None], torch.eye(4, dtype=torch.bool)
    masked = vertical.masked_fill(itself[0], -torch.inf)
    twice = torch.cat([masked, horizontal.masked_fill(itself[1], -torch.inf)], 3).softmax(3)
    separate = masked.softmax(3), horizontal.softmax(3)
    for mistake in (unmasked, separate, twice.split([5, 4], 3)):
        assert differ(module.mix(x), gathered(*mistake, v))
    right = torch.cat([masked, horizontal], 3).softmax(3).split([5, 4], 3)
    torch.testing.assert_close(module.mix(x), gathered(*right, v))


@pytest.mark.parametrize(("recurrence", "reached"), [(1, 9), (2, 25)])
def test_criss_cross_reaches_all_positions_in_two_passes(recurrence: int, reached: int) -> None:
    module = foveate.create("criss_cross", 8, recurrence=recurrence).double()
    nn.init.ones_(module.scale)
    x = random_map(1, 8, 5, 5).requires_grad_()
    module(x)[0, :, 2, 1].sum().backward()
    assert (x.grad.abs().amax(1) > 0).sum() == reached


def test_criss_cross_path_is_the_row_and_the_rest_of_the_column() -> None:
    path = criss_cross_reference.path(1, 2, 4, 6)
    assert len(path) == len(set(path)) == 4 + 6 - 1


# Non-local: pooling before or after the embeddings, and three scales.


def test_non_local_pools_before_the_embeddings_unless_told() -> None:
    case, x = case_of("nl"), random_map(2, 16, 8, 6)
    before = case.randomised(16, sub_sample=True)
    after = case.randomised(16, sub_sample=True, pool_position="after")
    after.load_state_dict(before.state_dict())
    assert differ(before(x), after(x))
    weights = before.state_dict()
    pooled = F.max_pool2d(x, 2)
    pairs = affinity(
        conv(x, weights, "theta").flatten(2),
        conv(pooled, weights, "phi").flatten(2),
        weights,
        form="embedded_gaussian",
        scaled=True,
    )
    assert pairs.shape == (2, 48, 12)
    torch.testing.assert_close(before(x), non_local(x, weights, sub_sample=True))


def test_non_local_scales_by_the_width_of_the_embedding() -> None:
    module, x = case_of("nl").randomised(16), random_map(2, 16, 6, 5)
    weights = module.state_dict()
    theta, phi = (conv(x, weights, name).flatten(2) for name in ("theta", "phi"))
    g = conv(x, weights, "g").flatten(2)
    attended = {}
    for width in (1, 8, 16):  # unscaled; the embedding; the input, as timm has it
        pairs = (theta.mT @ phi / width**0.5).softmax(2)
        attended[width] = (g @ pairs.mT).view(2, 8, 6, 5)
    inside = {}
    module.out.register_forward_pre_hook(lambda _, inputs: inside.update(y=inputs[0]))
    module(x)
    torch.testing.assert_close(inside["y"], attended[8])
    assert differ(inside["y"], attended[1])
    assert differ(inside["y"], attended[16])


@pytest.mark.parametrize("form", ["embedded_gaussian", "gaussian"])
def test_rows_of_affinities_sum_to_one(form: str) -> None:
    theta, phi = random_map(2, 4, 12), random_map(2, 4, 7)
    rows = affinity(theta, phi, {}, form=form, scaled=True).sum(2)
    torch.testing.assert_close(rows, torch.ones_like(rows))


# Coordinate attention: ReLU for h-swish, or no sigmoid, or no least width.


def test_coordinate_attention_is_a_gate_with_hardswish() -> None:
    module, x = case_of("coord").randomised(16), random_map(2, 16, 6, 5)
    gates = module.gate(x)
    assert all(((gate > 0) & (gate < 1)).all() for gate in gates.values())
    rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT
    z = module.bn1(module.conv1(torch.cat([rows, columns], 2)))
    mistaken = module.conv_h(z.relu()[:, :, :6]).sigmoid()
    assert differ(gates["height"], mistaken)
    assert foveate.create("coord", 16).conv1.out_channels == 8


# Multi-head self-attention against PyTorch's own.


@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_self_attention_is_that_of_torch(num_heads: int) -> None:
    module = case_of("mhsa").randomised(16, num_heads=num_heads)
    theirs = nn.MultiheadAttention(16, num_heads, batch_first=True).double()
    weights = {name: weight.squeeze() for name, weight in module.state_dict().items()}
    theirs.load_state_dict(
        {
            "in_proj_weight": weights["qkv.weight"],
            "in_proj_bias": weights["qkv.bias"],
            "out_proj.weight": weights["out.weight"],
            "out_proj.bias": weights["out.bias"],
        }
    )
    x = random_map(2, 16, 6, 5)
    tokens = x.flatten(2).mT
    attended, _ = theirs(tokens, tokens, tokens)
    torch.testing.assert_close(module.mix(x), attended.mT.view_as(x))
