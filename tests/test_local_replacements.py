"""Halo attention and lambda layers: starts, counts, reach, memory, strides, known mistakes."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers.halo_attn import HaloAttn
from torch import Tensor, nn

import foveate
from cases import CASES, Case
from test_mechanism_memory import LargestTensor
from tolerances import assert_close


def case_of(key: str, **options: object) -> Case:
    return next(case for case in CASES if case.key == key and case.options == options)


def random_map(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


# Halo


def small_halo(channels: int = 4, **options: object) -> nn.Module:
    """Blocks of 4 with a halo of 1: windows of 6."""
    case = case_of("halo", num_heads=1, block_size=4, halo_size=1)
    return case.randomised(channels, **options)


def windows(x: Tensor, side: int = 6, halo: int = 1) -> Tensor:
    """The windows of :func:`small_halo`, ``(B, C, blocks, side ** 2)``."""
    cells = F.unfold(x, side, padding=halo, stride=4)
    return cells.unflatten(1, (x.shape[1], side**2)).transpose(2, 3)


def attended(module: nn.Module, x: Tensor, hidden: Tensor) -> Tensor:
    """Halo attention of width 4 by all its scores; hidden keys as copies hide them."""
    k, v = (windows(t) for t in module.kv(x).chunk(2, dim=1))
    q = windows(module.q(x), side=4, halo=0) / 4**0.5
    shift = torch.arange(6) - torch.arange(4)[:, None] + 5  # by query and key
    rows = module.rel_h[shift].repeat_interleave(4, 0).repeat_interleave(6, 1)  # (16, 36, D)
    columns = module.rel_w[shift].repeat(4, 6, 1)
    scores = torch.einsum("bdnq,bdnk->bnqk", q, k)
    scores = scores + torch.einsum("bdnq,qkd->bnqk", q, rows + columns)
    scores = scores.masked_fill(hidden[:, None], torch.finfo(scores.dtype).min)
    y = torch.einsum("bnqk,bdnk->bdqn", scores.softmax(3), v)
    return F.fold(y.flatten(1, 2), x.shape[2:], 4, stride=4)


def test_halo_hides_no_key() -> None:
    """Beside a mask over the outside, and beside the inverted one of a popular copy."""
    module, x = small_halo(), random_map(2, 4, 12, 12)
    outside = windows(torch.ones(1, 1, 12, 12, dtype=torch.float64))[0, 0] == 0  # (9, 36)
    assert_close(module(x), attended(module, x, torch.zeros_like(outside)))
    assert differ(module(x), attended(module, x, outside))
    inverted = attended(module, x, ~outside)
    assert differ(module(x), inverted)
    assert (inverted[:, :, :4] == 0).all()  # nothing but zeros is left to attend to
    average = module.kv(x[:, :, 3:9, 3:9])[:, 4:].mean((2, 3), keepdim=True)
    assert_close(inverted[:, :, 4:8, 4:8], average.expand(-1, -1, 4, 4))


def test_zeros_around_the_map_take_their_share() -> None:
    module, x = small_halo(), random_map(1, 4, 4, 4)
    nn.init.zeros_(module.q.weight)
    values = module.kv(x)[:, 4:]
    share = values.sum((2, 3), keepdim=True) / 36  # of which 16 are in the map
    assert_close(module(x), share.expand_as(x))
    assert differ(module(x), values.mean((2, 3), keepdim=True).expand_as(x))


@pytest.mark.parametrize("stride", [2, 4])
def test_strided_queries_are_some_of_all(stride: int) -> None:
    dense, x = small_halo(), random_map(2, 4, 9, 11)
    strided = small_halo(stride=stride)
    strided.load_state_dict(dense.state_dict())
    assert_close(strided(x), dense(x)[:, :, ::stride, ::stride])


def test_timms_strided_halo_takes_its_queries_for_neighbours() -> None:
    ours, x = small_halo(8, stride=2), random_map(2, 8, 8, 12)
    theirs = HaloAttn(
        8, stride=2, num_heads=1, block_size=4, halo_size=1, scale_pos_embed=True
    ).double()
    names = {"rel_h": "pos_embed.height_rel", "rel_w": "pos_embed.width_rel"}
    theirs.load_state_dict({names.get(name, name): w for name, w in ours.state_dict().items()})
    assert differ(ours(x), theirs(x))
    for table in (ours.rel_h, ours.rel_w, theirs.pos_embed.height_rel, theirs.pos_embed.width_rel):
        nn.init.zeros_(table)
    assert_close(ours(x), theirs(x))


def test_halo_moves_with_its_input_by_whole_blocks() -> None:
    module, x = small_halo(), random_map(1, 4, 20, 20)
    y = module(x)
    for step, moves in ((4, True), (1, False)):
        moved = module(x.roll((step, step), (2, 3)))[:, :, 8:16, 8:16]
        expected = y[:, :, 8 - step : 16 - step, 8 - step : 16 - step]
        assert differ(moved, expected) != moves


def test_first_embeddings_of_halo_are_never_read() -> None:
    module, x = small_halo(), random_map(2, 4, 8, 8)
    module(x).square().sum().backward()
    for table in (module.rel_h, module.rel_w):
        read = table.grad.abs().sum(1) > 0
        assert read.tolist() == [False] * 2 + [True] * 9


def test_halo_holds_no_scores() -> None:
    module = foveate.create("halo", 8, num_heads=1, block_size=16)
    x = torch.randn(1, 8, 64, 64, requires_grad=True)
    with LargestTensor() as recorded:
        module(x).sum().backward()
    blocks, queries, keys = 16, 16**2, 22**2
    assert recorded.numel <= blocks * keys * (8 + 22 + 22)
    assert recorded.numel < blocks * queries * keys / 4


def test_embeddings_of_halo_start_with_the_deviation_of_scaled_scores() -> None:
    torch.manual_seed(0)
    module = foveate.create("halo", 512, block_size=40)
    for table in (module.rel_h, module.rel_w):
        assert table.shape == (2 * 46 - 1, 64)
        torch.testing.assert_close(table.std().item(), 64**-0.5, rtol=0.05, atol=0)


# Lambda


def small_lambda(channels: int = 16, **options: object) -> nn.Module:
    return case_of("lambda", kernel_size=9).randomised(channels, **options)


def parts(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``(B, 4, 16, H, W)``, keys ``(B, 16, HW)`` and values ``(B, V, H, W)``."""
    q = module.norm_q(module.to_q(x)).unflatten(1, (4, 16))
    return q, module.to_k(x).flatten(2), module.norm_v(module.to_v(x))


def applied(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The lambdas of normalised keys and values, applied to queries."""
    y = torch.einsum("bhkij,bkn,bvn->bhvij", q, k, v.flatten(2))
    taps = module.embedding.weight.flatten(1)  # (K, 81)
    around = F.unfold(v, 9, padding=4).unflatten(1, (v.shape[1], 81)).unflatten(3, v.shape[2:])
    return (y + torch.einsum("bhkij,kr,bvrij->bhvij", q, taps, around)).flatten(1, 2)


def test_lambda_resnet_50_has_the_published_parameters() -> None:
    with torch.device("meta"):
        model = foveate.models.create("lambda_resnet50")
    assert sum(p.numel() for p in model.parameters()) == 14_995_592


def test_keys_of_lambda_are_shares_of_positions() -> None:
    module, x = small_lambda(), random_map(2, 16, 7, 5)
    q, k, v = parts(module, x)
    assert_close(module(x), applied(module, q, k.softmax(2), v))
    assert differ(module(x), applied(module, q, k.softmax(1), v))
    assert differ(module(x), applied(module, q, k, v))


def test_values_of_lambda_are_normalised_and_its_keys_are_not() -> None:
    """A popular copy has it the other way round."""
    module, x = small_lambda().train(), random_map(2, 16, 7, 5)
    q, k, v = parts(module, x)
    standard = (k - k.mean((0, 2), keepdim=True)) / k.var((0, 2), correction=0, keepdim=True).sqrt()
    assert_close(module(x), applied(module, q, k.softmax(2), v))
    assert differ(module(x), applied(module, q, standard.softmax(2), module.to_v(x)))
    assert differ(module(x), applied(module, q, standard.softmax(2), v))
    assert differ(module(x), applied(module, q, k.softmax(2), module.to_v(x)))


def test_heads_of_lambda_share_keys_and_values() -> None:
    module, x = small_lambda(), random_map(2, 16, 7, 5)
    assert module.to_k.out_channels == 16
    assert module.to_v.out_channels == 4
    y = module(x)
    for layer in (module.to_q, module.norm_q):
        for tensor in layer.state_dict().values():
            if tensor.ndim:
                tensor.copy_(tensor.roll(16, 0))  # each head takes the queries of another
    assert_close(module(x), y.roll(4, 1))


def test_lambda_is_linear_in_its_queries() -> None:
    module, x = small_lambda(), random_map(2, 16, 7, 5)
    y = module(x)
    for parameter in module.norm_q.parameters():
        parameter.data.mul_(3)
    assert_close(module(x), 3 * y)


def test_dilated_surroundings_have_holes() -> None:
    wide, x = small_lambda(), random_map(2, 16, 12, 11)
    narrow = small_lambda(kernel_size=5, dilation=2)
    nn.init.zeros_(wide.embedding.weight)
    wide.embedding.weight.data[:, :, ::2, ::2] = narrow.embedding.weight
    others = {n: w for n, w in wide.state_dict().items() if n != "embedding.weight"}
    narrow.load_state_dict(others, strict=False)
    assert_close(narrow(x), wide(x))


def test_surroundings_of_lambda_reach_11_pixels() -> None:
    """Where all keys are equal the content is a mean, which exchanged pixels do not change."""
    module = case_of("lambda").randomised(16)
    nn.init.zeros_(module.to_k.weight)
    x = random_map(1, 16, 1, 40)
    x[..., 36] = x[..., 37]  # two pixels far away
    before = module(x)[..., 0]
    for place, seen in ((12, False), (11, True)):
        swapped = x.clone()
        swapped[..., place], swapped[..., 39] = x[..., 39], x[..., place]
        assert differ(module(swapped)[..., 0], before) == seen


def test_lambda_holds_no_pairs() -> None:
    module = foveate.create("lambda", 16, kernel_size=3)
    x = torch.randn(1, 16, 48, 48, requires_grad=True)
    with LargestTensor() as recorded:
        module(x).sum().backward()
    lambdas = module.value_dim * module.key_dim
    assert recorded.numel <= 48**2 * lambdas
    assert recorded.numel < 48**4 / 4


def test_lambda_starts_as_in_its_paper() -> None:
    torch.manual_seed(0)
    module = foveate.create("lambda", 256)
    for projection in (module.to_q, module.to_k, module.to_v):
        torch.testing.assert_close(projection.weight.std().item(), 1 / 16, rtol=0.05, atol=0)
    torch.testing.assert_close(module.embedding.weight.std().item(), 1.0, rtol=0.05, atol=0)
    identity = foveate.create("lambda", 256, init="identity")
    taps = identity.embedding.weight.flatten(1)
    torch.testing.assert_close(taps.square().sum(1).mean().item(), 1.0, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd, but got kernel_size=4"),
        ({"key_dim": 0}, "key_dim must be at least 1, but got key_dim=0"),
        ({"num_heads": 5}, "num_heads must divide out_channels, but got num_heads=5"),
    ],
)
def test_what_lambda_refuses(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foveate.create("lambda", 64, **options)
