"""Attention transfer: the published formula, what is paired, and a student that comes nearer."""

import math

import pytest
import torch
from torch import nn

import tiny
from foveate import kernels
from foveate.cli import main
from foveate.experiments.config import DistillConfig, RunConfig
from foveate.experiments.configfile import parse
from foveate.experiments.run import run
from foveate.experiments.saved import load
from foveate.experiments.training.distill import (
    Distillation,
    attention_distance,
    attention_map,
    by_depth,
    gate_distance,
)
from foveate.experiments.training.journal import read_journal
from foveate.experiments.training.processes import launch
from foveate.experiments.training.progress import Watcher

from foveate.experiments.build import build_network  # isort: skip


def wide(num_classes: int, in_channels: int) -> nn.Module:
    """A teacher with the stages of :func:`tiny.net`, twice as wide."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(in_channels, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def literal_distance(student, teacher):
    """Squares summed over channels, flattened, over their length; mean squared difference."""
    total, count = 0.0, 0
    for a, b in zip(student, teacher, strict=True):
        maps = []
        for features in (a, b):
            channels, height, width = features.shape
            flat = [
                sum(float(features[c, y, x]) ** 2 for c in range(channels))
                for y in range(height)
                for x in range(width)
            ]
            length = math.sqrt(sum(value**2 for value in flat))
            maps.append([value / length for value in flat])
        for p, q in zip(*maps, strict=True):
            total, count = total + (p - q) ** 2, count + 1
    return total / count


def test_the_distance_is_that_of_the_paper():
    student, teacher = torch.randn(3, 4, 5, 6), torch.randn(3, 7, 5, 6)
    found = attention_distance(attention_map(student), attention_map(teacher))
    assert float(found) == pytest.approx(literal_distance(student, teacher), rel=1e-5)
    assert float(attention_distance(attention_map(student), attention_map(3 * student))) < 1e-12


def test_maps_of_other_sizes_are_resized_to_the_student():
    coarse = torch.rand(2, 1, 4, 4)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(attention_distance(fine, coarse)) < float(attention_distance(fine, fine.flip(3)))
    assert float(gate_distance(coarse, torch.full((2, 3, 9, 9), 0.5))) == pytest.approx(
        float((coarse - 0.5).square().mean())
    )


def test_layers_are_paired_by_depth():
    ours, theirs = (
        [(name, nn.Identity(), "after") for name in names] for names in ("abc", "vwxyz")
    )
    assert [(a[0], b[0]) for a, b in by_depth(ours, theirs)] == [("a", "v"), ("b", "x"), ("c", "z")]
    assert [b[0] for _, b in by_depth(theirs, ours)] == ["a", "a", "b", "c", "c"]
    assert [b[0] for _, b in by_depth(ours[:1], theirs)] == ["v"]


def a_teacher(folder, mechanism="none", host="test_distill:wide"):
    tiny.train(tiny.config(mechanism, host=host, epochs=2), folder)
    return folder


def student(teacher, mechanism="none", **recipe) -> RunConfig:
    values = tiny.config(mechanism, **recipe).model_dump(mode="json")
    return parse(RunConfig, {**values, "teacher": str(teacher)})


def distance(module, teacher, kind="attention"):
    """How far a network is from its teacher on the test images."""
    data = tiny.digits()
    distillation = Distillation(
        module, load(teacher, trust_code=True), DistillConfig(kind=kind), data
    )
    images = next(iter(tiny_batches(data)))
    with torch.enable_grad():
        module.eval()(images)
    try:
        return distillation.loss(images).item()
    finally:
        distillation.close()


def tiny_batches(data):
    from foveate.experiments.data.batches import batches

    return (images for images, _ in batches(data.test, data, batch_size=100))


@pytest.mark.parametrize(("kind", "mechanism"), [("attention", "none"), ("gates", "spatial")])
def test_a_student_comes_nearer_to_its_teacher(kind, mechanism, tmp_path):
    teacher = a_teacher(tmp_path / "teacher", mechanism)
    recipe = {"epochs": 3, "lr": 0.01, "distill": {"kind": kind}}
    far = tiny.train(tiny.config(mechanism, **{k: recipe[k] for k in ("epochs", "lr")}),
                     tmp_path / "alone")  # fmt: skip
    config = student(teacher, mechanism, **{**recipe, "distill": None})
    config = parse(
        RunConfig,
        {**config.model_dump(mode="json"),
         "recipe": {**config.recipe.model_dump(mode="json"),
                    "distill": {"kind": kind, "weight": 3000.0 if kind == "attention" else 300.0}}},
    )  # fmt: skip
    run(config, tiny.digits(), tmp_path / "run", launch(config.recipe), Watcher())
    apart = {
        name: distance(load(tmp_path / name, trust_code=True).network, teacher, kind)
        for name in ("alone", "run")
    }
    assert apart["run"] < 0.7 * apart["alone"], apart
    assert far.status == "finished"


def test_nothing_of_the_teacher_moves_and_it_is_in_evaluation_mode(tmp_path):
    teacher = a_teacher(tmp_path / "teacher", "se")
    stored = load(teacher, trust_code=True)
    before = {name: t.clone() for name, t in stored.network.state_dict().items()}
    config = student(teacher, "cbam", epochs=1)
    data = tiny.digits()
    module = build_network(config, data).module.train()
    distillation = Distillation(module, stored, config.recipe.distill, data)
    images = next(iter(tiny_batches(data)))
    module(images)
    loss = distillation.loss(images)
    loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    assert all(p.grad is None for p in stored.network.parameters())
    assert not stored.network.training
    for name, tensor in stored.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    distillation.close()
    assert not any(m._forward_hooks for m in (module[0], module[1])
                   if not hasattr(m, "attention"))  # fmt: skip


@pytest.mark.parametrize("mechanism", ["se", "cbam", "coord", "gc", "spatial"])
def test_gates_are_learned_where_kernels_serve_them_too(mechanism, tmp_path):
    teacher = a_teacher(tmp_path / "teacher", mechanism, host="tiny:net")
    config = student(teacher, mechanism)
    data = tiny.digits()
    module = build_network(config, data).module.train()
    how = DistillConfig(kind="gates")
    distillation = Distillation(module, load(teacher, trust_code=True), how, data)
    images = next(iter(tiny_batches(data)))
    with kernels.using("cpu"):
        module(images)
        distillation.loss(images).backward()
    distillation.close()
    learning = [p for name, p in module.named_parameters() if "attention" in name]
    assert any(p.grad is not None and bool(p.grad.any()) for p in learning)


@pytest.mark.parametrize("kind", ["attention", "gates"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_any_precision_learns_from_a_teacher(precision, kind, tmp_path):
    teacher = a_teacher(tmp_path / "teacher", "cbam", host="tiny:net")
    values = student(teacher, "cbam", epochs=1, precision=precision).model_dump(mode="json")
    values["recipe"]["distill"] = {"kind": kind, "weight": 1.0}
    config = parse(RunConfig, values)
    result = run(config, tiny.digits(), tmp_path / "run", launch(config.recipe), Watcher())
    assert result.status == "finished"
    losses = [row["loss"] for row in read_journal(tmp_path / "run" / "metrics.jsonl")
              if "loss" in row]  # fmt: skip
    assert losses
    assert all(math.isfinite(loss) for loss in losses)


def test_the_gates_of_a_student_are_read_without_a_trace(tmp_path):
    """Their gradients are wanted, but statistics and random numbers stay what they were."""
    teacher = a_teacher(tmp_path / "teacher", "coord")
    config = student(teacher, "coord", epochs=1)
    data = tiny.digits()
    plain, watched = (build_network(config, data).module.train() for _ in range(2))
    how = DistillConfig(kind="gates")
    distillation = Distillation(watched, load(teacher, trust_code=True), how, data)
    images = next(iter(tiny_batches(data)))
    for module in (plain, watched):
        torch.manual_seed(0)
        module(images)
    for (name, ours), theirs in zip(watched.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert distillation.loss(images).requires_grad


def test_a_distilled_run_is_interrupted_to_the_same_numbers(tmp_path):
    teacher = a_teacher(tmp_path / "teacher")
    config = student(teacher, "se")
    results = [
        run(config, tiny.digits(), tmp_path / name, launch(config.recipe), Watcher())
        for name in ("one", "two")
    ]
    losses = [
        [row["loss"] for row in read_journal(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("one", "two")
    ]
    assert losses[0] == losses[1]
    assert results[0].test_correct == results[1].test_correct


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher", "nowhere"], "there is no 'nowhere'"),
        (["--set", "recipe.distill.kind=gates"], "the student has no attention whose gates"),
        (
            ["--set", "recipe.distill.kind=gates", "--mechanism", "cbam"],
            "which mean different things; take recipe.distill.kind=attention",
        ),
        (
            ["--set", "recipe.distill.kind=gates", "--mechanism", "spatial"],
            "none to compare; take recipe.distill.kind=attention",
        ),
        (["--set", "recipe.distill.weight=0"], "recipe.distill.weight: must be greater than 0"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(words, message, tmp_path, capsys):
    teacher = a_teacher(tmp_path / "teacher", "se")
    out = tmp_path / "out"
    command = ["train", "--trust-code", "--data", "digits", "--limit", "100", "--host", "tiny:net"]
    command += ["--teacher", str(teacher), "--tracker", "none", "--out", str(out)]
    assert main([*command, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not out.exists()
