"""The benchmark of the gates: its rivals do the same work, and what they take is measured."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import gatebench.hosts
import kernels
from foveate import create
from foveate.cost import count_parameters
from foveate.kernels import explain, using
from gatebench import (
    alone,
    clock,
    gates,
    memory,
    position_forms,
    positions,
    rivals,
)

SHAPE = (2, 64, 7, 5)
STAGES = ((256, 3), (512, 4), (1024, 6), (2048, 3))
"""Channels and blocks of the stages of a ResNet-50."""
CPU = torch.device("cpu")


def filled(module: nn.Module) -> nn.Module:
    """With parameters from the same random sequence, whatever their shapes."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        values = torch.randn(parameter.numel(), generator=generator).view(parameter.shape)
        parameter.detach().copy_(values)
    return module.double()


@pytest.mark.parametrize("key", rivals.FORMS)
def test_the_textbook_form_computes_the_mechanism(key: str) -> None:
    found, _ = rivals.eager_rivals(key, SHAPE)
    modules = {rival.name: filled(rival.module) for rival in found}
    x = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for training in (False, True):  # in this order: the momenta of the averages differ
        expected = modules[rivals.FOVEATE].train(training)(x)
        output = modules[rivals.TEXTBOOK].train(training)(x)
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("key", rivals.KEYS)
def test_rivals_have_as_many_parameters(key: str) -> None:
    """But for the biases that timm's cbam and coord leave out."""
    shape = (2, 256, 7, 5)
    found, missing = rivals.eager_rivals(key, shape)
    counts = {r.name: sum(p.numel() for p in r.module.parameters()) for r in found}
    own = counts.pop(rivals.FOVEATE)
    if key in ("cbam", "coord"):
        assert 0 < counts.pop(rivals.TIMM_EAGER) < own
    assert set(counts.values()) == {own}
    assert set(missing) <= ({rivals.TIMM_EAGER} if key == "ge" else set())


def test_a_rival_that_refuses_a_shape_is_missing() -> None:
    """Norms of the textbook form of BAM: one sample, and one position after pooling."""
    scope = gates.Scope(["1x8x5x3"], ["contiguous"], (), keys=["bam"], rounds=(2, 2))
    inference, training = gates.times(scope, CPU)
    assert rivals.TEXTBOOK in inference["copies"]
    assert rivals.TEXTBOOK not in training["copies"]
    assert training["missing"][rivals.TEXTBOOK].startswith("ValueError: Expected more than 1 value")


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    contenders = [
        clock.Contender(name, lambda name=name: calls.append(name), nullcontext) for name in "abc"
    ]
    rounds = clock.take_turns(contenders, CPU, (4, 4))
    samples = [name for place, name in enumerate(calls) if calls[place - 1] != name or not place]
    assert {len(values) for values in rounds.values()} == {4}
    assert set(samples) == set("abc")
    assert len(calls) > 10 * len(samples)  # a call this short is repeated


def test_the_order_is_new_in_each_round(monkeypatch) -> None:
    contenders = [clock.Contender(name, id, nullcontext) for name in "abc"]
    order: list[str] = []
    monkeypatch.setattr(clock, "_sample", lambda one, *_: order.append(one.name) or 1.0)
    clock.take_turns(contenders, CPU, (4, 4))
    rounds = ["".join(order[start : start + 3]) for start in range(6, 18, 3)]
    assert all(sorted(names) == list("abc") for names in rounds)
    assert len(set(rounds)) > 1


def test_ratios_are_taken_round_by_round() -> None:
    times = {"fast": [1.0, 10.0, 100.0], "slow": [2.0, 20.0, 200.0]}
    assert clock.ratios(times, "slow", "fast") == [2.0, 2.0, 2.0]


def test_memory_counts_what_is_saved_held_and_allocated() -> None:
    class Cube(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp().exp()

    found = memory.footprint(rivals.Rival("cube", Cube(), Cube()), torch.zeros(4, 4, 64, 64))
    assert found["saved"] == pytest.approx(2)  # both outputs
    assert found["held"] == pytest.approx(1)  # the first of them
    assert found["peak"] == pytest.approx(4)  # both, and a gradient of each


def test_every_form_pays_the_products_that_bound_it(monkeypatch) -> None:
    """Their operations are those of the plain form, and all of them."""
    # The counter knows no other backward pass.
    monkeypatch.setattr(torch.autograd, "grad", lambda to, _, g: torch.autograd.backward(to, g))
    x, counts = torch.randn(1, 32, 9, 6, requires_grad=True), []
    own = create("criss_cross", 32)
    form = position_forms.CrissCrossEinsum(32)
    step = rivals.step(rivals.Rival("einsum", form, form), x, training=True)
    for call in (step, positions.projections(own, x), positions.affinities(own, x)):
        call()
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] + counts[2]
    assert min(counts[1:]) > 0


@pytest.mark.parametrize("key", rivals.COMPILED)
def test_layers_multiply_what_the_mechanism_does(key: str) -> None:
    x = torch.randn(2, 64, 7, 5)
    own = create(key, 64, **rivals.options(key, x.shape)).train()
    flops = []
    for training in (False, True):
        multiply = rivals.layers(key, own, x, training=training)
        with FlopCounterMode(display=False) as counter:
            if multiply is not None:
                multiply()
        flops.append(counter.get_total_flops())
    with using("eager"), FlopCounterMode(display=False) as counter:
        own(x)
    # Besides: the weighted sums of gc over channels and positions; in cbam the convolution of two
    # planes, and the second layer for either pooled vector, where their sum would do.
    planes, vector = 2 * 2 * 35 * 2 * 49, 2 * 2 * own.channels * (own.channels // 16)
    others = {"gc": 4 * x.numel(), "cbam": planes + vector, "eca": counter.get_total_flops()}
    assert flops[0] == counter.get_total_flops() - others.get(key, 0)
    assert flops[1] == 3 * flops[0]


@pytest.mark.skipif(explain(CPU)[0] != "cpu", reason="needs the C++ kernels")
@pytest.mark.parametrize("key", rivals.COMPILED)
def test_kernels_alone_are_those_of_a_step(key: str) -> None:
    """All of them in their order: they write what the step wrote."""
    x = torch.randn(2, 64, 12, 10, generator=torch.Generator().manual_seed(0))
    own = rivals.eager_rivals(key, x.shape)[0][0]
    step = rivals.step(own, x, training=True)
    wanted = [t.clone() for t in step()]
    found = []
    calls = alone.calls_of(lambda: found.extend(step()))
    assert len(calls) >= 2
    for t in found:
        t.detach().fill_(float("nan"))
    alone.again(calls)()
    # Gradients of parameters are views of what the kernels write, or copies of that.
    torch.testing.assert_close(found[0], wanted[0])
    assert len(calls) == len(alone.calls_of(step))


def test_no_kernel_is_nothing_to_repeat() -> None:
    own = rivals.eager_rivals("se", SHAPE)[0][0]
    with using("eager"):
        calls = alone.calls_of(rivals.step(own, torch.randn(SHAPE), training=True))
    assert calls == []
    assert alone.again(calls) is None


def test_readings_see_the_whole_map_once() -> None:
    x = torch.randn(6, 128, 48, 48)  # of which two images and a half lie nearby
    reads = rivals.readings(x)
    assert reads[rivals.READING]().item() == pytest.approx(x.sum().item(), abs=1e-1)
    with torch.profiler.profile(record_shapes=True) as profile:
        reads[rivals.NEAR]()
    sums = [event.input_shapes[0] for event in profile.events() if event.name == "aten::sum"]
    assert sums == [[2, 128, 48, 48]] * 3


@pytest.mark.parametrize("layout", gatebench.hosts.FORMATS)
def test_products_are_what_they_say(layout: str) -> None:
    x = torch.randn(2, 24, 40, 40).to(memory_format=gatebench.hosts.FORMATS[layout])
    for rival in rivals.products(x):
        torch.testing.assert_close(rival.call(x), x * rival.module.factor)
        given = rivals.step(rival, x, training=True)()
        assert len(given) == 1
        assert given[0].shape == x.shape


@pytest.mark.parametrize("out", [None, "some.json"])
def test_a_partial_measurement_is_written_only_where_asked(
    tmp_path: Path, capsys, monkeypatch, out: str | None
) -> None:
    monkeypatch.setattr(gates, "QUICK", gates.Scope(("2x8x5x3",), ("contiguous",), ()))
    monkeypatch.setattr(kernels, "FILES", {"cpu": tmp_path / "all.json", "cuda": tmp_path / "c"})
    monkeypatch.setattr(kernels, "DOCS", tmp_path)
    asked = [] if out is None else ["--out", str(tmp_path / out)]
    kernels.main(["--quick", "--only", "eca", *asked])
    assert [path.name for path in tmp_path.iterdir()] == ([] if out is None else [out])
    assert "at least 0.95x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "se,nope"], "no mechanism with kernels is called 'nope'"),
        (["--device", "cuda"], "--device cuda needs a graphics card"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        kernels.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_nothing_to_render_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "FILES", {"cpu": tmp_path / "none.json"})
    with pytest.raises(SystemExit, match="nothing to render"):
        kernels.main(["--render"])


@pytest.mark.parametrize("mode", gates.MODES)
def test_hosts_run_with_the_gates_of_both(mode: str, monkeypatch) -> None:
    monkeypatch.setitem(gatebench.hosts.ROUNDS, mode, (2, 2))
    case = gatebench.hosts.Case(mode, "channels_last", batch=2, side=32)
    found = gatebench.hosts.measure(case, CPU)
    names = {f"{side} {gate}" for side in ("foveate", "timm") for gate in gatebench.hosts.GATES}
    assert set(found["added_percent"]) == names


def test_hosts_differ_by_16_gates() -> None:
    found, missing = gatebench.hosts.hosts()
    assert not missing
    added = {name: count_parameters(model) for name, model in found.items()}
    bare = added.pop("bare")
    one = sum(count_parameters(create("se", width)) * n for width, n in STAGES)
    assert added["foveate se"] - bare == added["timm se"] - bare == one
    assert added["foveate cbam"] > added["timm cbam"] > bare  # timm leaves the biases out
    weights = [model.state_dict()["layer4.2.conv3.weight"] for model in found.values()]
    assert all(torch.equal(weights[0], other) for other in weights)
