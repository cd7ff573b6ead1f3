"""Attention that waits for the end of a residual block in a host: the host computes the same."""

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import product

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import foveate
from cases import Case
from foveate import kernels
from foveate.insertion.pending import Pending
from foveate.mechanisms.base import Gate
from test_block_end import ENDING, both_formats, every_key
from test_kernel_ops import values


@pytest.fixture(autouse=True)
def served() -> Iterator[None]:
    with kernels.using("cpu"):
        yield


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What one pass gave, in order."""
    found: list[Tensor] = []
    plain = Pending.ended

    def watched(self: Pending, *, in_place: bool) -> Tensor | None:
        y = plain(self, in_place=in_place)
        if y is not None:
            found.append(y)
        return y

    monkeypatch.setattr(Pending, "ended", watched)
    return found


HOSTS = {
    "resnet18": partial(torchvision.models.resnet18, num_classes=5),
    "resnet50": partial(torchvision.models.resnet50, num_classes=5),
    "timm:resnet26d": partial(timm.create_model, "resnet26d", num_classes=5),
    "timm:regnetx_002": partial(timm.create_model, "regnetx_002", num_classes=5),
}
every_host = pytest.mark.parametrize("host", HOSTS)


def images(side: int = 64) -> Tensor:
    return values(2, 3, side, side, dtype=torch.float32)


def host_with(name: str, key: str, init: str = "paper") -> nn.Module:
    torch.manual_seed(0)
    model = HOSTS[name]()
    foveate.insert(model, key, where="residual", init=init, example=images())
    return model


def without_waiting(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        vars(module).pop("_foveate_ends_block", None)
    return model


@every_host
@every_key
@pytest.mark.parametrize("training", [False, True])
@both_formats
def test_a_host_gives_the_same_bits(
    host: str, case: Case, training: bool, layout: torch.memory_format, ended: list[Tensor]
) -> None:
    model = host_with(host, case.key).train(training).to(memory_format=layout)
    plain, x = without_waiting(model), images().to(memory_format=layout)
    count = sum(isinstance(m, Gate) for m in model.modules())
    with torch.set_grad_enabled(training):
        found = model(x)
        assert len(ended) == count
        expected = plain(x)
    assert len(ended) == count
    assert torch.equal(found, expected)
    if not training:
        return
    found.square().sum().backward()
    expected.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, b), c in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(b, c), name


def test_the_identity_form_changes_no_bit_of_a_host(ended: list[Tensor]) -> None:
    torch.manual_seed(0)
    model = HOSTS["resnet18"]().eval()
    expected = model(images())
    for case in ENDING:
        handle = foveate.insert(model, case.key, where="residual")
        assert torch.equal(model(images()), expected)
        assert ended
        ended.clear()
        handle.remove()
    assert torch.equal(model(images()), expected)
    assert not ended


def test_a_plan_says_where_blocks_end() -> None:
    model = HOSTS["resnet18"]()
    sites = foveate.insertion.make_plan(model, "se", where="residual").sites
    assert all(site.ends_block for site in sites)
    for where in ("post", "pre", "conv", "stage"):
        sites = foveate.insertion.make_plan(model, "se", where=where).sites
        assert not any(site.ends_block for site in sites), where


class Host(nn.Module):
    """One residual block, whose end a function says."""

    def __init__(self, end: object) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self, self.bn(self.conv(x)), x)


def in_place(host: Host, out: Tensor, x: Tensor) -> Tensor:
    out += x
    return F.relu_(out)


ENDS = {
    "in place": in_place,
    "apart": lambda host, out, x: host.relu(out + x),
    "reversed": lambda host, out, x: host.relu(x + out),
    "function": lambda host, out, x: torch.relu(torch.add(out, x)),
    "method": lambda host, out, x: out.add(x).relu(),
    "methods in place": lambda host, out, x: out.add_(x).relu_(),
    "shape asked": lambda host, out, x: host.relu(out + x) if out.shape == x.shape else x,
}
# In which the sum is used after its ReLU.
LATER_USES = {
    "sum in place": lambda host, out, x: (lambda s: host.relu(s) - s)(out.add_(x)),
    "sum replaced": lambda host, out, x: (lambda s: F.relu_(s) + s)(out.add_(x)),
    "branch": lambda host, out, x: host.relu(out + x) * out.mean(),
    "something between": lambda host, out, x: (lambda s, y: host.relu(s) + y)(out + x, x * 2),
}
OTHER_ENDS = {
    **LATER_USES,
    "scaled sum": lambda host, out, x: host.relu(torch.add(out, x, alpha=2)),
    "broadcast": lambda host, out, x: host.relu(out + x.mean((2, 3), keepdim=True)),
    "number": lambda host, out, x: host.relu(out + 1.0),
    "no sum": lambda host, out, x: host.relu(out) + x,
    "other activation": lambda host, out, x: F.silu(out + x),
    "two sums": lambda host, out, x: host.relu(out + x + x),
    "used twice": lambda host, out, x: host.relu(out + x) * out.mean(),
    "sum used twice": lambda host, out, x: (lambda s: host.relu(s) - s)(out + x),
    "into the shortcut": lambda host, out, x: host.relu(x.clone().add_(out)),
    "wider": lambda host, out, x: host.relu(out + x.double()).float(),
    "with itself": lambda host, out, x: host.relu(out + out),
    "looked into": lambda host, out, x: host.relu(out + x) * (1 + out.requires_grad),
}
ALIKE = ("scaled sum", "into the shortcut", "wider", "looked into", "sum replaced")
"""Those that a plan does not tell from a block's; they are told when they run."""


def block_with(end: object) -> nn.Module:
    torch.manual_seed(0)
    host = Host(end)
    foveate.insert(host, "se", where="after", at="bn", init="paper", example=torch.rand(1, 4, 8, 8))
    return host


def run(host: nn.Module) -> list[Tensor]:
    x = values(2, 4, 8, 8, dtype=torch.float32).requires_grad_()
    y = host(x)
    with torch.no_grad():
        quiet = host(x)
    return [y, quiet, *torch.autograd.grad(y.square().sum(), [x, host.conv.weight])]


@pytest.mark.parametrize("end", ENDS)
def test_sums_and_activations_are_known_in_any_spelling(end: str, ended: list[Tensor]) -> None:
    host = block_with(ENDS[end])
    assert hasattr(host.bn, "_foveate_ends_block")
    found = run(host)
    assert len(ended) == 2
    for tensor, expected in zip(found, run(without_waiting(host)), strict=True):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("end", OTHER_ENDS)
@pytest.mark.parametrize("seen", [False, True])
def test_other_ends_are_computed_as_they_are(end: str, seen: bool, ended: list[Tensor]) -> None:
    host = block_with(ENDS["apart"] if seen else OTHER_ENDS[end])
    assert hasattr(host.bn, "_foveate_ends_block") is (seen or end in ALIKE)
    host.end = OTHER_ENDS[end]  # a host may do another thing than when it was looked at
    for tensor, expected in zip(run(host), run(without_waiting(host)), strict=True):
        torch.testing.assert_close(tensor, expected)


@pytest.mark.parametrize("hold", [lambda t: t, Tensor.detach, Tensor.numpy, Tensor.flatten])
def test_a_map_that_others_hold_is_not_written_over(hold: object, ended: list[Tensor]) -> None:
    host = block_with(ENDS["in place"]).eval()
    forward, held = host.bn.forward, []

    def keeping(x: Tensor) -> Tensor:
        y = forward(x)
        held.append(hold(y))
        return y

    x = values(2, 4, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        expected = forward(host.conv(x))
        host.bn.forward = keeping
        y = host(x)
    assert torch.equal(torch.as_tensor(held[0]).reshape(x.shape), expected)
    assert torch.equal(y, ended[0])


@pytest.mark.parametrize("end", ENDS)
def test_memory_is_written_over_where_nobody_else_holds_it(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    plain = foveate.create("se", 4).whole.__func__

    def watched(self: Gate, x: Tensor, shortcut: Tensor, *, in_place: bool) -> Tensor:
        asked.append(in_place)
        return plain(self, x, shortcut, in_place=in_place)

    host = block_with(ENDS[end]).eval()
    monkeypatch.setattr(type(host.bn.attention), "whole", watched)
    x = values(2, 4, 8, 8, dtype=torch.float32)
    host(x)
    with torch.no_grad():
        host(x)
    with torch.inference_mode():
        host(x)
    over = "in place" in end  # else the sum, or what was added, may be used again
    assert asked == [False, over, over]


@pytest.mark.parametrize("at", ["map", "shortcut"])
def test_a_change_in_place_before_the_end_is_refused(at: str) -> None:
    host = block_with(ENDS["apart"])

    def change(host: Host, out: Tensor, x: Tensor) -> Tensor:
        total = out + x
        (out.x if at == "map" else x).mul_(2)
        return host.relu(total)

    host.end = change
    with torch.no_grad(), pytest.raises(RuntimeError, match="changed in place before"):
        host(values(2, 4, 8, 8, dtype=torch.float32))


class Halves(nn.Module):
    """A block whose parts run under modes of their own."""

    def __init__(self, modes: Sequence[Callable[[], AbstractContextManager]]) -> None:
        super().__init__()
        self.bn, self.modes = nn.BatchNorm2d(4), modes

    def forward(self, x: Tensor) -> Tensor:
        branch, total, end = self.modes
        with branch():
            out = self.bn(x * 1)
        with total():
            out = out + x
        with end():
            return F.relu(out)


def outcome(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What comes out and which gradients go where; fewer where autograd refuses."""
    x = x.detach().requires_grad_()
    y = model(x)
    wanted = [x, *model.parameters()]
    try:
        found = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)
    except RuntimeError:
        return [y]
    return [y, *(torch.zeros(()) if g is None else g for g in found)]


MODES = {
    "gradients": torch.enable_grad,
    "none": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
}


@pytest.mark.parametrize("modes", [*product(MODES, repeat=3)], ids="-".join)
def test_each_part_is_done_under_the_mode_of_its_place(
    modes: tuple[str, ...], ended: list[Tensor]
) -> None:
    model = Halves([torch.enable_grad] * 3)
    example = torch.rand(1, 4, 8, 8)
    foveate.insert(model, "se", where="after", at="bn", init="paper", example=example)
    model.modes = [MODES[mode] for mode in modes]
    x = values(2, 4, 8, 8, dtype=torch.float32)
    expected = outcome(without_waiting(model), x)
    assert not ended
    found = outcome(model, x)
    assert len(ended) == (len(set(modes)) == 1 and "autocast" not in modes)
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


class Watching(TorchFunctionMode):
    def __torch_function__(
        self, func: object, types: object, args: object, kwargs: object = None
    ) -> object:
        return func(*args, **(kwargs or {}))


def observer(*_: object) -> None:
    """A hook that does nothing."""


HINDRANCES = {
    "hook on the attention": lambda host: host.bn.attention.register_forward_hook(observer),
    "hook on the norm": lambda host: host.bn.register_forward_hook(observer),
    "backward hook": lambda host: host.bn.register_full_backward_hook(observer),
    "backward pre-hook": lambda host: host.bn.register_full_backward_pre_hook(observer),
    "hook on all": lambda host: nn.modules.module.register_module_forward_hook(observer),
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_nothing_waits_where_a_hook_would_see_it(hindrance: str, ended: list[Tensor]) -> None:
    host = block_with(ENDS["apart"])
    expected = run(host)
    assert len(ended) == 2
    handle = HINDRANCES[hindrance](host)
    for tensor, plain in zip(run(host), expected, strict=True):
        torch.testing.assert_close(tensor, plain)
    handle.remove()
    assert len(ended) == 2


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_nothing_waits_where_operations_are_watched(ended: list[Tensor]) -> None:
    host, x = block_with(ENDS["in place"]).eval(), values(2, 4, 8, 8, dtype=torch.float32)
    expected = host(x)
    ended.clear()
    for mode in (Watching(), FlopCounterMode(display=False), torch.device("cpu")):
        with mode:
            torch.testing.assert_close(host(x), expected)
    with kernels.using("eager"):
        torch.testing.assert_close(host(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert type(host(x)) is Tensor
    torch.testing.assert_close(torch.func.functional_call(host, {}, (x,)), expected)
    assert len(ended) == 1
    ended.clear()
    each = torch.func.vmap(lambda one: host(one[None])[0])(x)
    torch.testing.assert_close(each, expected)
    with pytest.warns(FutureWarning, match="jit.trace"):
        traced = torch.jit.trace(host, x, check_trace=False)
    torch.testing.assert_close(traced(x), expected)
    torch.testing.assert_close(torch.export.export(host, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.compile(host, fullgraph=True)(x), expected)
    assert not ended


def test_a_second_attention_at_the_same_place_is_applied_as_well(ended: list[Tensor]) -> None:
    model = HOSTS["resnet18"]().eval()
    first = foveate.insert(model, "se", where="residual", init="paper")
    x = images()
    expected = model(x)
    second = foveate.insert(model, "eca", where="residual", init="paper")
    ended.clear()
    assert not torch.equal(model(x), expected)
    assert not ended
    second.remove()
    assert torch.equal(model(x), expected)
    first.remove()
    assert not any(hasattr(m, "_foveate_ends_block") for m in model.modules())


def test_copies_and_pickles_wait_as_well(ended: list[Tensor]) -> None:
    model = host_with("resnet18", "cbam").eval()
    x = images()
    expected = model(x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        ended.clear()
        assert torch.equal(again(x), expected)
        assert len(ended) == 8


def test_what_waits_looks_like_its_map_and_computes_itself_for_the_rest() -> None:
    gate, x = foveate.create("se", 4).eval(), values(2, 4, 5, 3, dtype=torch.float32)
    pending = Pending(gate, x)
    assert (pending.shape, pending.dtype, pending.device, pending.ndim) == (
        *(x.shape, x.dtype, x.device, 4),
    )
    assert pending.size(1) == 4
    assert pending.value is None
    expected = gate(x)
    assert torch.equal(pending.sum(), expected.sum())
    assert pending.value is not None
    assert "tensor" in repr(Pending(gate, x))
    assert torch.equal(pickle.loads(pickle.dumps(Pending(gate, x))), expected)
    assert torch.equal(copy.deepcopy(Pending(gate, x.detach()).detach()), expected)
    assert torch.equal(torch.cat([Pending(gate, x), x]), torch.cat([expected, x]))
