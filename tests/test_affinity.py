"""The rows of an affinity are the weights with which the values were added up."""

import pytest
import torch
from torch import Tensor, nn

import foveate
from cases import CASES, DEFAULTS, Case
from memory import peak_bytes

BY_KEY = {case.key: case for case in DEFAULTS}

# Of the parameters of scores: their rows as parts of the whole, or None for all of them.
SCORES = {
    "nl": {"theta": None, "phi": None},
    "danet_position": {"query_conv": None, "key_conv": None},
    "criss_cross": {"query_conv": None, "key_conv": None},
    "mhsa": {"qkv": "two thirds"},
    "aa": {"qkv": "keys"},
    "bot": {"qkv": "two thirds"},
    "halo": {"q": None, "kv": "half"},
    "a2": {"gather": None, "distribute": None},
    "efficient": {"queries": None, "keys": None},
}
AFFINITIES = [
    case
    for case in CASES
    if case.key in SCORES
    and case.options.get("form") not in ("gaussian",)
    and not case.options.get("sub_sample")
    and case.options.get("stride", 1) == 1
]


def split(case: Case, channels: int) -> nn.Module:
    """The mechanism with scores of the first half of the channels, and values of the second.

    The values are sums of their channels, and so is the output.
    """
    options = {"recurrence": 1} if case.key == "criss_cross" else {}
    module = case.randomised(channels, **options)
    with torch.no_grad():
        for name, conv in module.named_modules():
            if not isinstance(conv, nn.Conv2d):
                continue
            rows = len(conv.weight)
            part = SCORES[case.key].get(name, 0)
            scores = {
                0: 0,
                None: rows,
                "half": rows // 2,
                "two thirds": 2 * rows // 3,
                "keys": 2 * getattr(module, "key_dim", 0),
            }[part]
            conv.weight[:scores, channels // 2 :] = 0
            conv.weight[scores:] = 1
            if name in ("conv", "concat_project"):
                conv.weight.fill_(0 if name == "conv" else 0.5)
            elif conv.in_channels == channels and not (
                name.startswith("out") or name == "reprojection"
            ):
                conv.weight[scores:, : channels // 2] = 0
    return module


@pytest.mark.parametrize("case", AFFINITIES, ids=lambda case: case.id)
def test_affinities_are_the_weights_of_the_values(case: Case) -> None:
    """Where scores and values read channels of their own, weights are derivatives by values."""
    torch.manual_seed(0)  # of 3 in 200 seeds a ReLU leaves no weight at all
    module = split(case, 32)
    half = torch.randn(1, 16, 9, 5, dtype=torch.float64)
    values = torch.randn(1, 16, 9, 5, dtype=torch.float64, requires_grad=True)
    x = torch.cat([half, values], dim=1)
    with foveate.record(nn.Sequential(module)) as record:
        module(x)
    mixed = module.mix(x) if hasattr(module, "mix") else module.branch(x)
    height, width = mixed.shape[2:]
    points = [(0, 0), (height - 1, width - 1), (height // 2, 1)]
    rows = record.affinity("0", points).mean(1)
    assert rows.shape == (1, 3, 9, 5)
    for number, (y, x_) in enumerate(points):
        (slope,) = torch.autograd.grad(mixed[..., y, x_].sum(), values, retain_graph=True)
        expected = slope.sum(1)
        torch.testing.assert_close(
            rows[:, number] * (expected.sum() / rows[:, number].sum()), expected
        )


def test_every_affinity_is_tested() -> None:
    found = {
        case.key
        for case in CASES
        if foveate.get_mechanism(case.key).affinity is not foveate.get_mechanism("se").affinity
    }
    assert found == {*SCORES, "danet", "mobilevit"}


@pytest.mark.parametrize("key", [*SCORES, "danet", "mobilevit"])
def test_rows_are_weights(key: str) -> None:
    model = nn.Sequential(foveate.create(key, 64).eval())
    with foveate.record(model) as record:
        model(torch.randn(2, 64, 10, 12))
    rows = record.affinity("0", [(0, 0), (9, 11), (4, 3)])
    assert rows.shape[:1] + rows.shape[2:3] == (2, 3)
    assert (rows >= 0).all()
    total = rows.sum((3, 4))
    if key == "halo":
        assert (total <= 1 + 1e-5).all()
    else:
        torch.testing.assert_close(total, torch.ones_like(total))


def test_criss_cross_composes_its_passes() -> None:
    module = BY_KEY["criss_cross"].randomised(16)
    x = torch.randn(1, 16, 4, 5, dtype=torch.float64)
    points = [(y, x_) for y in range(4) for x_ in range(5)]

    def table(recurrence: int, x: Tensor) -> Tensor:
        module.recurrence = recurrence
        with foveate.record(nn.Sequential(module)) as record:
            module(x)
        return record.affinity("0", points).flatten(3)[0, 0]

    module.recurrence = 1
    between = module(x).detach()
    torch.testing.assert_close(table(2, x), table(1, between) @ table(1, x))


def test_pixels_of_mobilevit_read_their_own_place() -> None:
    module = BY_KEY["mobilevit"].randomised(16)
    x = torch.randn(1, 16, 7, 6, dtype=torch.float64)
    with foveate.record(nn.Sequential(module)) as record:
        module(x)
    layer, tokens = module.layers[-1], module._tokens(x)
    for one in module.layers[:-1]:
        tokens = one(tokens)
    q, k, _ = layer.tokens(layer.norm1(tokens))  # (4, heads, N, D)
    pairs = (q * q.shape[3] ** -0.5 @ k.mT).softmax(3)
    for y, x_ in [(0, 0), (7, 5), (2, 3)]:  # rows are filled up to 8
        place, patch = y % 2 * 2 + x_ % 2, y // 2 * 3 + x_ // 2
        row = record.affinity("0", [(y, x_)])
        torch.testing.assert_close(row[0, :, 0].flatten(1), pairs[place, :, patch])


def test_rows_need_no_table_of_all_pairs() -> None:
    model = nn.Sequential(foveate.create("nl", 8).eval())
    side = 64
    with foveate.record(model) as record:
        model(torch.rand(1, 8, side, side))
    assert peak_bytes(lambda: record.affinity("0", [(3, 4)])) < side**4  # of four times as many
