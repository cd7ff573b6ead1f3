"""The benchmark of the gates: its rivals do the same work, and its verdicts follow the numbers."""

import json
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
    page,
    position_forms,
    positions,
    rivals,
    targets,
)
from gatebench.record import write

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


def times(ratio: float) -> list[float]:
    return [0.9 * ratio, ratio, 1.1 * ratio]


def from_quartile(lower: float) -> list[float]:
    return [lower, 2 * lower, 3 * lower]


def result(eager: float = 2.0, timm: float = 9.0, compiled: float = 9.0) -> dict:
    """An invented measurement in which every gate has the same figures."""
    slower = {
        rivals.EAGER: eager,
        rivals.TIMM_EAGER: timm,
        rivals.TIMM_COMPILED: compiled,
        rivals.TEXTBOOK: 5.0,
    }
    copies = {rivals.FOVEATE: 10.0, **{name: 10 * ratio for name, ratio in slower.items()}}
    entries = [
        {
            **{"mechanism": key, "mode": mode, "shape": shape, "format": "contiguous"},
            "milliseconds": {name: times(value) for name, value in copies.items()},
            "copies": {name: times(value) for name, value in copies.items()},
            "slower": {name: times(value) for name, value in slower.items()},
            "rounds": 7,
            "calls": 2,
            "missing": {"timm eager": "TypeError: no"} if key == "ge" else {},
        }
        for shape in gates.ALL
        for key in rivals.KEYS
        for mode in gates.MODES
    ]
    held = {rivals.FOVEATE: {"saved": 1.05, "held": 0.05, "peak": 2.0}}
    hosts = [
        {
            **{"mode": case.mode, "format": case.layout, "input": [8, 3, 224, 224], "rounds": 7},
            "milliseconds": {name: times(100) for name in ("bare", "foveate cbam", "foveate se")},
            "added_percent": {"foveate cbam": times(5), "foveate se": times(2)},
            "missing": {"timm se": "ImportError: no"},
        }
        for case in gatebench.hosts.ON_PROCESSOR
    ]
    return {
        "environment": {
            **{"kind": "cpu", "device": "a processor", "threads": 2, "torch": "2", "commit": "c"},
            **{"load_before": 0.0, "kernels": "cpu: there"},
        },
        "gates": entries,
        "memory": [{"mechanism": "se", "rivals": held}],
        "positions": [between(key) for key in positions.KEYS],
        "hosts": hosts,
    }


def between(key: str) -> dict:
    """An invented measurement of attention between positions."""
    forms = [form for name in position_forms.FORMS[key] for form in (name, rivals.compiled(name))]
    slower = {rivals.EAGER: 2.0, **dict.fromkeys(forms, 3.0)}
    peaks = {rivals.FOVEATE: 4.0, rivals.EAGER: 9.0, **dict.fromkeys(forms, 10.0)}
    return {
        **{"mechanism": key, "shape": "1x512x97x97", "rounds": 7},
        "milliseconds": {name: times(value) for name, value in {"foveate": 1.0, **slower}.items()},
        "slower": {name: times(value) for name, value in slower.items()},
        "memory": {name: {"peak": value} for name, value in peaks.items()},
    }


def verdicts(found: dict) -> dict[str, targets.Verdict]:
    return {v.demand: v for v in targets.judge(targets.ON_PROCESSOR_TARGETS, found)}


def test_verdicts_follow_the_numbers() -> None:
    assert {v.text for v in verdicts(result()).values()} == {"met"}
    compiled = verdicts(result(compiled=3.0))  # the faster of two rivals counts
    assert compiled["at least 8x"].text == "not met, 1 of 1 miss"
    assert compiled["at least 2.5x"].text == "met"
    assert verdicts(result(eager=0.9))["at least 0.95x"].text == "not met, 272 of 272 miss"
    empty = {**result(), "gates": [], "memory": [], "positions": [], "hosts": []}
    assert {v.text for v in verdicts(empty).values()} == {"not measured"}


def test_attention_between_positions_is_judged_by_its_fastest_form() -> None:
    found = result()
    for entry in found["positions"]:
        entry["slower"][rivals.compiled(position_forms.EINSUM)] = times(1.9)
        entry["slower"][rivals.compiled(rivals.TEXTBOOK)] = times(1.4)
        entry["memory"][rivals.FOVEATE]["peak"] = 6.1
    shown = verdicts(found)
    for demand, value in {
        "at least 2x": 1.9,
        "at least 1.5x": 1.4,
        "at most 6 x input": 6.1,
        "at most 0.5 of einsum's": 0.61,
    }.items():
        assert shown[demand].text == "not met, 1 of 1 miss"
        assert shown[demand].worst.value == pytest.approx(value)


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


def test_a_form_is_bound_by_the_products_that_it_pays() -> None:
    found = result()
    (entry,) = (e for e in found["positions"] if e["mechanism"] == "criss_cross")
    entry["slower"] |= {name: times(1.4) for name in entry["slower"]}
    assert verdicts(found)["at least 2x"].text == "not met, 1 of 1 miss"
    for name in positions.BOUNDS:
        entry["milliseconds"][name] = from_quartile(1.0)
    shown = verdicts(found)["at least 2x"]
    assert shown.measured == ("1.4x", "", "1.5x")
    assert shown.text == "not met, 1 of 1 miss, 1 of them out of reach"


def test_bytes_bound_what_can_be_reached() -> None:
    found = result(timm=6.0, compiled=4.0)["gates"]
    by_name = {(entry["mechanism"], entry["mode"]): entry for entry in found}
    assert targets.ceiling(by_name["cbam", "training"]) == 40.0 / 4
    assert targets.ceiling(by_name["se", "inference"]) == 40.0
    assert targets.ceiling(by_name["simam", "training"]) is None


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


def test_one_product_bounds_what_can_be_reached() -> None:
    """At its lower quartile; the rival counts with its median."""
    found = result(timm=6.0, compiled=4.0)
    cbam = [e for e in found["gates"] if (e["mechanism"], e["mode"]) == ("cbam", "training")]
    assert [targets.reach(entry) for entry in cbam] == [None] * len(cbam)
    theirs = targets.median(cbam[0], rivals.TIMM_COMPILED)
    for entry in cbam:
        entry["milliseconds"] |= {
            name: from_quartile(theirs / n) for name, n in zip(rivals.PRODUCTS, (7, 6), strict=True)
        }
    assert targets.reach(cbam[0]) == pytest.approx(7)
    cbam[0]["milliseconds"][rivals.LAYERS] = from_quartile(6 * theirs / 7)
    assert targets.reach(cbam[0]) == pytest.approx(1)
    del cbam[0]["milliseconds"][rivals.LAYERS]
    shown = verdicts(found)
    assert shown["at least 8x"].beyond == shown["at least 8x"].misses == 1
    assert "1 of them out of reach" in shown["at least 8x"].text
    assert shown["at least 8x"].measured[2] == "7x"
    # One reading from memory and four nearby.
    cbam[0]["milliseconds"] |= {
        rivals.READING: from_quartile(5 * theirs / 14),
        rivals.NEAR: from_quartile(theirs / 8),
    }
    assert targets.reach(cbam[0]) == pytest.approx(1)


def test_a_ceiling_that_a_gate_passed_is_none() -> None:
    """The miss is not called out of reach, and the page counts the row."""
    found = result(timm=6.0, compiled=4.0)
    entry = next(e for e, _ in targets.entries(found, ["cbam"], "training", targets.LARGE[:1]))
    theirs = targets.median(entry, rivals.TIMM_COMPILED)
    for times_as_fast, refuted in ((7, 0), (3, 1)):
        entry["milliseconds"][rivals.PRODUCTS[0]] = from_quartile(theirs / times_as_fast)
        verdict = verdicts(found)["at least 8x"]
        assert (verdict.worst.value, verdict.misses) == (4, 1)
        assert verdict.beyond == 1 - refuted
        (text,) = (s for s in page.sections({"cpu": found}) if "layers and readings allow" in s)
        assert f"faster than its ceiling in {refuted}" in " ".join(text.split())


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


def test_what_the_kernels_alone_would_reach() -> None:
    """Round by round: what the gate reaches, over the share that its kernels have of it."""
    found = result(timm=6.0, compiled=4.0)
    entry = next(e for e, _ in targets.entries(found, ["cbam"], "training", targets.LARGE[:1]))
    assert targets.alone(entry) is None
    entry["slower"][rivals.ALONE] = times(0.5)
    assert targets.alone(entry) == 8
    assert verdicts(found)["at least 8x"].measured == ("4x", "8x", "")
    assert "## What the kernels allow" in "".join(page.sections({"cpu": found}))


def test_operations_against_themselves_are_told_apart() -> None:
    found = result(eager=0.9)
    for entry in found["gates"][:3]:
        entry["calls"] = 0
    text = verdicts(found)["at least 0.95x"].text
    assert text == "not met, 272 of 272 miss, 3 of them the same operations"
    assert "In 3 rows foveate calls no kernel" in "".join(page.sections({"cpu": found}))


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


def test_a_verdict_names_the_worst() -> None:
    found = result()
    found["gates"][5]["slower"][rivals.EAGER] = times(0.5)
    found["memory"].append(
        {"mechanism": "cbam", "rivals": {rivals.FOVEATE: {"saved": 1.0, "held": 0.7}}}
    )
    shown = verdicts(found)
    entry = found["gates"][5]
    assert shown["at least 0.95x"].where.startswith(f"{entry['mechanism']} {entry['mode']}")
    assert shown["at least 0.95x"].worst.value == 0.5
    assert shown["at most 1.1 x input"].worst == targets.Value(1.7, "cbam")


def test_the_page_shows_losses_and_gaps(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    found = result(eager=0.9)
    found["later"] = [{"rows": ["se", "gc"], "environment": {"commit": "abc"}}]
    page.write({"cpu": found}, tmp_path)
    text = (tmp_path / "kernels_measured.md").read_text()
    assert "- Rows of `se` and `gc` are of a later process" in text
    assert "machine at commit `abc`." in text
    assert "| `se` | **0.90** |" in text
    assert "| `criss_cross`, 1 × 512 × 97 × 97 | einsum | 3 (2.7 to 3.3) | 3.00 | 10 |" in text
    assert "- timm eager, `ge`: `TypeError: no`" in text
    assert "- timm se: `ImportError: no`" in text
    assert "nan" not in text
    figure = (tmp_path / page.FIGURE).read_text()
    assert all(f">{key}<" in figure for key in rivals.KEYS)


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


def test_measurements_are_rendered(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "images").mkdir()
    write(result(), tmp_path / "all.json")
    monkeypatch.setattr(kernels, "DOCS", tmp_path)
    monkeypatch.setattr(
        kernels, "FILES", {"cpu": tmp_path / "all.json", "cuda": tmp_path / "none.json"}
    )
    kernels.main(["--render"])
    assert (tmp_path / "kernels_measured.md").exists()
    assert (tmp_path / page.FIGURE).exists()


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


def test_results_are_read_back(tmp_path: Path) -> None:
    found = result()
    write(found, tmp_path / "new" / "found.json")
    assert json.loads((tmp_path / "new" / "found.json").read_text()) == found
