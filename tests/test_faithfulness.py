"""Claims that are repeated without a test, tested; and the page that lists such claims."""

import ast
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import foveate
from foveate.cost import count_flops, count_parameters
from foveate.describe.facts import cost

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "faithfulness.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
CLAIMS = [row for row in ROWS if not row.startswith("| what is seen ")]


# The page.


def defined(file: str) -> set[str]:
    """The functions of a file of tests."""
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", CLAIMS, ids=lambda row: row.split(" | ")[0][2:60])
def test_every_claim_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rpartition(" | ")[2])
    assert named
    for file, test in named:
        assert test in defined(file), f"{file}::{test}"


def test_there_are_claims() -> None:
    assert len(CLAIMS) > 40
    assert ".py::test_" not in re.sub(r"^\| .*$", "", PAGE, flags=re.MULTILINE)


# Claims about costs.


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, **options).eval()


def test_millions_of_two_to_the_twentieth() -> None:
    parameters = count_parameters(on_meta("resnet50"))
    assert f"{parameters / 1e6:.2f}" == "25.56"
    assert f"{parameters / 2**20:.2f}" == "24.37"
    assert f"{(parameters + 80) / 2**20:.2f}" == "24.37"


def test_squeeze_excitation_adds_a_tenth_of_the_parameters_and_few_multiply_adds() -> None:
    added = [cost("se", width, 7, 7) for width in 3 * [256] + 4 * [512] + 6 * [1024] + 3 * [2048]]
    host = on_meta("resnet50")
    flops = count_flops(host, torch.empty(1, 3, 224, 224, device="meta"))
    assert 0.09 < sum(parameters for parameters, _ in added) / count_parameters(host) < 0.10
    assert 0.0005 < sum(flops for _, flops in added) / flops < 0.0010  # 0.26 % is the claim


def test_coordinate_attention_computes_more_than_squeeze_excitation() -> None:
    (coord, coord_flops), (se, se_flops) = (cost(key, 256, 56, 56) for key in ("coord", "se"))
    assert coord < se
    assert coord_flops == 56 * se_flops


def test_squeeze_excitation_in_a_residual_network_for_small_images() -> None:
    """A tutorial prints 11.17 M without and 11.22 M with it; at 16 it is 11.26 M."""
    printed = {}
    for reduction in (16, 32):
        model = on_meta("resnet18", num_classes=10)
        with torch.device("meta"):
            model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        added = sum(2 * cost_of_se(width, reduction) for width in (64, 128, 256, 512))
        printed[reduction] = f"{(count_parameters(model) + added) / 1e6:.2f}"
    assert f"{count_parameters(model) / 1e6:.2f}" == "11.17"
    assert printed == {16: "11.26", 32: "11.22"}


def cost_of_se(channels: int, reduction: int) -> int:
    with torch.device("meta"):
        return count_parameters(foveate.create("se", channels, reduction=reduction))


# Claims about gradients.


def test_the_gradient_of_a_gated_map_is_not_the_gate_times_the_gradient() -> None:
    torch.manual_seed(0)
    module = foveate.create("se", 16).double()
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    gate = module.gate(x)["channel"]
    (gradient,) = torch.autograd.grad(module(x), x, upstream)
    (through_gate,) = torch.autograd.grad(gate, x, (upstream * x).sum((2, 3), keepdim=True))
    torch.testing.assert_close(gradient, gate * upstream + through_gate)
    assert not torch.allclose(gradient, gate * upstream, atol=1e-3)


@pytest.mark.parametrize("zero", [False, True])
def test_a_zero_last_norm_starves_the_attention_after_it(zero: bool) -> None:
    torch.manual_seed(0)
    host = torchvision.models.resnet18(num_classes=10, zero_init_residual=zero)
    images = torch.randn(2, 3, 64, 64)
    handle = foveate.insert(host, "se", where="residual", init="paper", example=images)
    host(images).square().sum().backward()
    gradients = [p.grad.abs().max() for m in handle.modules.values() for p in m.parameters()]
    assert all(bool(gradient == 0) == zero for gradient in gradients)
