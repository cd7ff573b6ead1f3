"""BoT, attention augmentation, halo and lambda: timm, memory, positions, known mistakes."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from timm.layers.lambda_layer import LambdaLayer
from torch import Tensor, nn

import foveate
from cases import CASES, Case
from foveate import ops
from foveate.ops.relative_attention import resized_table
from references import relative_positions
from test_mechanism_memory import LargestTensor
from tolerances import assert_close


def case_of(key: str, **options: object) -> Case:
    return next(case for case in CASES if case.key == key and case.options == options)


def random_map(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


# Positions


def test_displacements_are_those_of_single_pairs() -> None:
    q, k, v = (random_map(2, 1, 12, 6) for _ in range(3))
    k, v = k.flip(2), v.flip(3)
    rows, columns = random_map(5, 6), random_map(7, 6).flip(0)
    y = ops.displacement_attention(q, k, v, rows, columns, size=torch.Size((3, 4)))
    expected = relative_positions.attention(
        q[:, 0], k[:, 0], v[:, 0], rows, columns, height=3, width=4
    )
    assert_close(y[:, 0], expected)
    mirrored = ops.displacement_attention(q, k, v, rows.flip(0), columns, size=torch.Size((3, 4)))
    assert differ(y, mirrored)


def test_position_logits_are_read_by_row_and_column_of_the_key() -> None:
    q, k, v = (random_map(1, 2, n, 4) for n in (5, 6, 6))
    a, b = random_map(1, 2, 5, 2), random_map(1, 2, 5, 3)
    logits = q @ k.mT + a.repeat_interleave(3, dim=3) + b.repeat(1, 1, 1, 2)
    y = ops.relative_attention(q, k, v, row_logits=a, column_logits=b)
    assert_close(y, logits.softmax(3) @ v)


@pytest.mark.parametrize("key", ["bot", "aa"])
def test_tables_of_other_sizes_keep_their_middle(key: str) -> None:
    module = foveate.create(key, 8, size=4)
    module.rel_h.data.zero_()
    module.rel_h.data[3] = 1.0  # no displacement
    for length in (1, 2, 9):
        table = resized_table(module.rel_h, length)
        assert table.shape[0] == 2 * length - 1
        assert table[length - 1].mean() == table.mean(1).max()


@pytest.mark.parametrize("key", ["bot", "aa"])
@pytest.mark.parametrize(("table", "down", "right"), [("rel_h", 2, 0), ("rel_w", 0, 1)])
def test_embeddings_are_of_the_way_from_query_to_key(
    key: str, table: str, down: int, right: int
) -> None:
    """Where one displacement outweighs all others, each position reads the key that far away."""
    module = case_of(key).randomised(8, size=(7, 5))
    keys = getattr(module, "key_dim", 8)
    weight = module.qkv.weight.data
    weight[: 2 * keys] = 0.0
    weight[:keys, 0] = 1.0
    nn.init.zeros_(module.rel_h)
    nn.init.zeros_(module.rel_w)
    tables = module.get_parameter(table).data
    tables[len(tables) // 2 + down + right] = 1e3
    x = random_map(2, 8, 7, 5)
    x[:, 0] = 1.0  # one query for all
    values = F.conv2d(x, weight[2 * keys :])
    if key == "aa":
        values = module.out(values)
    y = module(x)[:, -values.shape[1] :]
    if right:
        assert_close(y[..., :-1], values.mean(2, keepdim=True).expand_as(values)[..., 1:])
    else:
        assert_close(y[..., :-2, :], values.mean(3, keepdim=True).expand_as(values)[..., 2:, :])


@pytest.mark.parametrize("key", ["bot", "aa"])
def test_a_single_position_attends_to_itself(key: str) -> None:
    module, x = case_of(key).randomised(16), random_map(2, 16, 1, 1)
    keys = getattr(module, "key_dim", 16)
    values = F.conv2d(x, module.qkv.weight[2 * keys :])
    expected = module.out(values) if key == "aa" else values
    assert_close(module(x)[:, -values.shape[1] :], expected)


@pytest.mark.parametrize("key", ["bot", "aa"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide out_channels, but got num_heads=3"),
        ({"size": 0}, "height must be at least 1, but got height=0"),
        ({"size": (4, -1)}, "width must be at least 1, but got width=-1"),
    ],
)
def test_what_attention_to_all_positions_refuses(
    key: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        foveate.create(key, 64, **options)


@pytest.mark.parametrize("key", ["bot", "aa"])
def test_memory_grows_with_positions_times_sides(key: str) -> None:
    heads, side = 1, 32
    module = foveate.create(key, 8, num_heads=heads, size=side)
    x = torch.randn(1, 8, side, side, requires_grad=True)
    with LargestTensor() as recorded:
        module(x).sum().backward()
    width = getattr(module, "key_dim", 8) + 2 * side
    assert recorded.numel <= heads * side**2 * width
    assert recorded.numel < side**4 / 4


# BoTNet


@pytest.mark.parametrize("size", [(7, 5), (4, 8)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_bot_equals_timms_with_scaled_positions(size: tuple[int, int], stride: int) -> None:
    if stride == 2:
        size = (2 * size[0], 2 * size[1])  # timm cuts odd borders off
    ours = case_of("bot").randomised(32, size=size, stride=stride)
    theirs = BottleneckAttn(
        32, feat_size=size, stride=stride, num_heads=4, scale_pos_embed=True
    ).double()
    theirs.qkv.weight.data = ours.qkv.weight.data
    theirs.pos_embed.height_rel.data = ours.rel_h.data
    theirs.pos_embed.width_rel.data = ours.rel_w.data
    x = random_map(2, 32, *size)
    assert_close(ours(x), theirs(x))
    assert not BottleneckAttn(32, feat_size=size).scale_pos_embed
    theirs.scale_pos_embed = False
    assert differ(ours(x), theirs(x))
    ours.rel_h.data, ours.rel_w.data = ours.rel_h * 8**0.5, ours.rel_w * 8**0.5
    assert_close(ours(x), theirs(x))


def test_bot_attends_at_full_resolution_and_then_averages() -> None:
    module, x = case_of("bot").randomised(16, stride=2), random_map(2, 16, 7, 5)
    weights = module.state_dict()
    at_once = case_of("bot").randomised(16)
    at_once.load_state_dict(weights)
    y = module(x)
    assert_close(y[..., :3, :2], F.avg_pool2d(at_once(x), 2))
    assert_close(y[..., 3, 2], at_once(x)[..., 6, 4])  # the corner has a window of its own
    for mistaken in (at_once(F.avg_pool2d(x, 2, ceil_mode=True)), at_once(x)[..., ::2, ::2]):
        assert mistaken.shape == y.shape
        assert differ(y, mistaken)


def test_dilation_does_not_change_global_attention() -> None:
    module, x = case_of("bot").randomised(16), random_map(2, 16, 7, 5)
    assert torch.equal(case_of("bot").randomised(16, dilation=2)(x), module(x))


def test_bot_has_the_positions_of_its_site() -> None:
    with torch.device("meta"):
        model = foveate.models.create("botnet50")
    shapes = [tuple(block.conv2.rel_h.shape) for block in model.layer4]
    assert shapes == [(27, 128), (13, 128), (13, 128)]


def test_bot_starts_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    module = foveate.create("bot", 256, size=40)
    for table in (module.rel_h, module.rel_w):
        torch.testing.assert_close(table.std().item(), 64**-0.5, rtol=0.05, atol=0)
    torch.testing.assert_close(module.qkv.weight.std().item(), 0.01, rtol=0.05, atol=0)


# Attention augmentation


def test_heads_of_attention_augmentation_that_attend_to_themselves_return_their_values() -> None:
    """A port reads its heads back without transposing them: channels and positions mix."""
    module = case_of("aa", relative=False).randomised(20, num_heads=2, value_ratio=0.4)
    keys = torch.eye(20, dtype=torch.float64).repeat(2, 1)[..., None, None]
    module.qkv.weight.data[:80] = torch.cat([1e4 * keys, keys])
    x = torch.eye(20, dtype=torch.float64).view(1, 20, 4, 5)  # each position has a channel
    values = F.conv2d(x, module.qkv.weight[80:])  # (1, 8, 4, 5)
    attended = module(x)[:, -8:]
    assert_close(attended, module.out(values))
    ported = values.flatten(2).unflatten(1, (2, -1)).mT.reshape(1, 8, 4, 5)
    assert differ(attended, module.out(ported))


def test_attention_augmentation_with_a_stride_attends_to_means() -> None:
    module, x = case_of("aa").randomised(16, stride=2), random_map(2, 16, 7, 5)
    at_once = case_of("aa").randomised(16, size=7)  # half of 14
    at_once.load_state_dict(module.state_dict())
    y = module(x)
    assert_close(y[:, :8], F.conv2d(x, module.conv.weight, stride=2, padding=1))
    assert_close(y[:, 8:], at_once(F.avg_pool2d(x, 2, ceil_mode=True))[:, 8:])


@pytest.mark.parametrize(
    ("out", "key_dim", "value_dim"), [(64, 160, 8), (128, 160, 8), (256, 160, 24), (1024, 200, 96)]
)
def test_widths_of_attention_augmentation(out: int, key_dim: int, value_dim: int) -> None:
    module = foveate.create("aa", 64, out_channels=out)
    assert (module.key_dim, module.value_dim) == (key_dim, value_dim)
    assert module.conv.out_channels == out - value_dim
    assert module.qkv.kernel_size == (1, 1)  # a port takes a 3x3


def test_attention_augmented_resnet_50_without_positions() -> None:
    with torch.device("meta"):
        model = foveate.models.create("aa_resnet50", relative=False)
    assert sum(p.numel() for p in model.parameters()) == 25_797_032


@pytest.mark.parametrize("name", ["key_ratio", "value_ratio"])
@pytest.mark.parametrize("ratio", [0, 1.5])
def test_ratios_have_limits(name: str, ratio: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0 and at most 1, but got {ratio}"):
        foveate.create("aa", 64, **{name: ratio})


# Halo


def halo_pair(channels: int, heads: int) -> tuple[nn.Module, nn.Module]:
    ours = case_of("halo").randomised(channels, num_heads=heads)
    theirs = HaloAttn(channels, num_heads=heads, scale_pos_embed=True).double()
    kv = ours.kv.weight.data.unflatten(0, (2, heads, -1))
    theirs.q.weight.data = ours.q.weight.data
    theirs.kv.weight.data = kv.transpose(0, 1).flatten(0, 2)  # keys and values by head
    theirs.pos_embed.height_rel.data = ours.rel_h.data
    theirs.pos_embed.width_rel.data = ours.rel_w.data
    return ours, theirs


def test_halo_equals_timms_with_scaled_positions() -> None:
    ours, theirs = halo_pair(32, 4)
    x = random_map(2, 32, 16, 24)
    assert_close(ours(x), theirs(x))
    theirs.scale_pos_embed = False  # its default
    assert differ(ours(x), theirs(x))


def test_halo_takes_maps_that_timms_refuses() -> None:
    ours, theirs = halo_pair(32, 4)
    x = random_map(2, 32, 14, 14)
    assert ours(x).shape == x.shape
    with pytest.raises(AssertionError):
        theirs(x)


def test_halo_attends_to_valid_keys_and_not_to_hidden_ones() -> None:
    """A copy had its mask inverted: interior blocks became averages, corners constants."""
    module = case_of("halo", num_heads=1, block_size=4, halo_size=1).randomised(8)
    x = random_map(1, 8, 12, 12)
    y = module(x)
    inside = x[:, :, 3:9, 3:9]  # the window of the middle block
    k, v = module.kv(inside).flatten(2).chunk(2, dim=1)
    average = v.mean(2)
    assert differ(y[:, :, 5, 5], average)
    nn.init.zeros_(module.q.weight)
    assert_close(module(x)[:, :, 5, 5], average)  # what equal scores give
    assert k.shape == v.shape


def test_halo_reaches_the_window_of_its_block_only() -> None:
    module = case_of("halo", num_heads=1, block_size=4, halo_size=1).randomised(4)
    x = random_map(1, 4, 12, 12).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[0, :, 4, 7].sum(), x)
    seen = gradient.abs().sum((0, 1)) > 0
    assert seen[3:9, 3:9].all()
    assert seen.sum() == 36


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 3}, "stride must divide block_size, but got stride=3 and block_size=8"),
        ({"dilation": 2}, "dilation must be 1, but got dilation=2"),
        ({"num_heads": 5}, "num_heads must divide out_channels"),
    ],
)
def test_what_halo_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foveate.create("halo", 64, **options)


# Lambda


@pytest.mark.parametrize("stride", [1, 2])
def test_lambda_equals_timms_without_a_bias(stride: int) -> None:
    ours = case_of("lambda", kernel_size=9).randomised(64, stride=stride)
    theirs = LambdaLayer(64, stride=stride, num_heads=4, dim_head=16, r=9).double().eval()
    weights = ours.state_dict()
    theirs.qkv.weight.data = torch.cat([weights[f"to_{name}.weight"] for name in "qkv"])
    theirs.norm_q.load_state_dict(ours.norm_q.state_dict())
    theirs.norm_v.load_state_dict(ours.norm_v.state_dict())
    theirs.conv_lambda.weight.data = weights["embedding.weight"].unsqueeze(4)
    nn.init.zeros_(theirs.conv_lambda.bias)
    x = random_map(2, 64, 10, 6)
    assert_close(ours(x), theirs(x))
    nn.init.ones_(theirs.conv_lambda.bias)
    assert differ(ours(x), theirs(x))


def test_lambda_normalises_queries_and_values_and_not_keys() -> None:
    module = foveate.create("lambda", 64)
    norms = {name for name, child in module.named_modules() if isinstance(child, nn.BatchNorm2d)}
    assert norms == {"norm_q", "norm_v"}


def test_lambda_without_surroundings_is_linear_attention() -> None:
    module, x = case_of("lambda", kernel_size=9).randomised(64), random_map(2, 64, 7, 5)
    nn.init.zeros_(module.embedding.weight)
    q = module.norm_q(module.to_q(x)).unflatten(1, (4, 16)).flatten(3)  # (B, heads, K, HW)
    k = module.to_k(x).flatten(2).softmax(2)
    v = module.norm_v(module.to_v(x)).flatten(2)
    pairs = q.mT @ k.unsqueeze(1)  # (B, heads, HW, HW)
    expected = (pairs @ v.mT.unsqueeze(1)).mT.flatten(1, 2).unflatten(2, (7, 5))
    assert_close(module(x), expected)
