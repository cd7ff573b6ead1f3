"""Training and comparing for segmentation and detection, from the command line and in Python."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import scene_data
from foveate import models
from foveate.cli import main
from foveate.experiments.build import build_network
from foveate.experiments.config import RunConfig
from foveate.experiments.configfile import parse
from foveate.experiments.data.batches import batches
from foveate.experiments.data.load import Data
from foveate.experiments.reporting.results import Results, RunResult
from foveate.experiments.run import run
from foveate.experiments.saved import load
from foveate.experiments.subject import open_subject, trained
from foveate.experiments.tasks import get_task
from foveate.experiments.tasks.detect import _losses_wanted
from foveate.experiments.training.interrupt import Interrupted
from foveate.experiments.training.journal import read_journal
from foveate.experiments.training.learner import Learner
from foveate.experiments.training.processes import launch
from foveate.experiments.training.progress import Watcher

RECIPE = {
    **{"epochs": 2, "batch_size": 4, "tracker": "none", "accelerator": "cpu"},
    **{"lr": 0.01, "warmup_epochs": 0},
}
SMALL = ["--host", "tiny:deep", "--image-size", "64", "--tracker", "none", "--batch-size", "4"]


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene_data.make_masks(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene_data.make_instances(tmp_path_factory.mktemp("instances"))


def configured(task, folder, mechanism="se", *, image_size=64, **recipe) -> RunConfig:
    values = {
        "task": task,
        "data": {"name": str(folder), "image_size": image_size},
        "host": "tiny:deep",
        "mechanism": mechanism,
        "recipe": {**RECIPE, **recipe},
    }
    return parse(RunConfig, values)


def loaded(config: RunConfig) -> Data:
    return get_task(config.task).load(config.data)


def train(config, folder, **options) -> RunResult:
    return run(config, loaded(config), folder, launch(config.recipe), Watcher(), **options)


def rows_of(folder):
    """The journal, without what the clock decides."""
    rows = read_journal(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def interrupt_in_step(monkeypatch, number):
    """Stop as Ctrl-C would, after a step was taken and saved."""
    original, steps = Learner.step, []

    def step(self, *args):
        steps.append(None)
        if len(steps) == number:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(Learner, "step", step)


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_an_interrupted_run_comes_to_the_same_numbers(task, masks, instances, tmp_path):
    config = configured(task, {"segment": masks, "detect": instances}[task], "cbam")
    whole = train(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in_step(patch, 3)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    assert train(config, tmp_path / "run") == whole.model_copy(
        update={
            key: getattr(json_result(tmp_path / "run"), key)
            for key in ("wall_seconds", "images_per_second", "energy_joules")
        }
    )
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    ours, theirs = (load(tmp_path / name, trust_code=True).network for name in ("run", "whole"))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def json_result(folder) -> RunResult:
    return RunResult.model_validate_json((folder / "result.json").read_text())


def test_a_segmentation_learns_and_says_what_it_measured(masks, tmp_path):
    config = configured("segment", masks, epochs=12, augment="none")
    result = train(config, tmp_path / "run")
    assert (result.metric, result.test_correct) == ("mIoU", None)
    assert result.test_accuracy > 55  # one class alone gives about 20
    by_class = result.test_per_class
    assert list(by_class) == ["0", "1", "2"]
    assert sum(by_class.values()) / 3 == pytest.approx(result.test_accuracy)
    assert 100 * sum(result.test_values) / 4 == pytest.approx(result.test_accuracy)
    assert 0 < result.test_scores["pixel accuracy"] <= 100
    assert result.curves.val_accuracy == [row["val_miou"] for row in rows_of(tmp_path / "run")
                                          if "epoch" in row]  # fmt: skip
    assert result.curves.train_accuracy == []  # pixels that are right are no mIoU
    assert max(result.curves.val_accuracy) == result.val_accuracy


def test_the_file_gives_the_network_back(masks, tmp_path):
    config = configured("segment", masks, "se", epochs=1)
    result = train(config, tmp_path / "run")
    subject = trained(tmp_path / "run" / "model.safetensors", trust_code=True)
    assert (subject.task, subject.classes) == ("segment", ("0", "1", "2"))
    data = loaded(config)
    fabric = launch(config.recipe)
    again = get_task("segment").evaluate(subject.module, data.test, data, config.recipe, fabric)
    assert again.score == result.test_accuracy
    image = subject.image(masks / "test" / "images" / "00.png")
    expected, _ = next(batches(data.test, data, batch_size=1))
    assert torch.equal(image, expected)
    assert open_subject(str(tmp_path / "run"), trust_code=True).task == "segment"


def test_the_first_loss_of_a_mechanism_is_that_of_the_network_alone(masks, tmp_path):
    losses = {}
    for name in ("none", "cbam"):
        train(configured("segment", masks, name, epochs=1), tmp_path / name)
        losses[name] = [row["loss"] for row in rows_of(tmp_path / name) if "loss" in row]
    assert losses["none"][0] == losses["cbam"][0]
    assert losses["none"][1] != losses["cbam"][1]


def test_detection_learns_finds_and_reports(instances, tmp_path):
    config = configured("detect", instances, epochs=3, augment="none")
    result = train(config, tmp_path / "run")
    assert result.metric == "mAP"
    assert set(result.test_scores) == {"AP50", "AP75"}
    assert set(result.test_per_class) == {"object"}
    assert result.test_values is None  # no image has a share of the mAP
    rows = [row for row in rows_of(tmp_path / "run") if "epoch" in row]
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    assert "train_accuracy" not in rows[0]
    subject = open_subject(str(tmp_path / "run"), trust_code=True)
    assert (subject.task, subject.classes) == ("detect", ("object",))


def test_the_loss_of_an_evaluation_changes_nothing(instances):
    config = configured("detect", instances, "none")
    data, fabric = loaded(config), launch(config.recipe)
    module = build_network(config, data).module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    found = [get_task("detect").evaluate(module, data.val, data, config.recipe, fabric)
             for _ in range(2)]  # fmt: skip
    assert found[0] == found[1]
    assert torch.equal(torch.rand(2), expected)
    assert not module.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_loss_of_an_evaluation_drops_no_layers():
    detector = models.detector("ssdlite", "efficientnet_b0", num_classes=1, image_size=64)
    with _losses_wanted(detector):
        assert detector.training
        layers = [m for m in detector.modules() if isinstance(m, StochasticDepth | nn.BatchNorm2d)]
        assert {StochasticDepth, nn.BatchNorm2d} <= {type(layer) for layer in layers}
        assert not any(layer.training for layer in layers)
    assert all(module.training for module in detector.modules())


class Oracle(nn.Module):
    """A detector that knows the truth, and counts classes from 1 as detectors do."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.truth = [
            {"boxes": boxes, "labels": labels + 1, "scores": torch.ones(len(labels))}
            for boxes, labels in data.test.targets
        ]
        self.seen: list[int] = []

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        if self.training:
            self.seen += [int(label) for target in targets for label in target["labels"]]
            return {"a": images[0].mean(), "b": torch.ones(())}
        found, self.truth = self.truth[: len(images)], self.truth[len(images) :]
        return found


def test_what_is_found_is_held_against_what_is_there(tmp_path):
    root = scene_data.make_coco(tmp_path)
    config = configured("detect", root, "none")
    data = loaded(config)
    oracle = Oracle(data)
    found = get_task("detect").evaluate(
        oracle, data.test, data, config.recipe, launch(config.recipe)
    )
    assert (found.score, found.scores["AP75"]) == (pytest.approx(100), pytest.approx(100))
    assert found.per_class == {"thing": pytest.approx(100), "other": pytest.approx(100)}
    assert set(oracle.seen) == {1, 2}
    assert found.loss > 1  # the sum of its losses


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_the_host_is_frozen_while_head_and_attention_learn(task, masks, instances, tmp_path):
    config = configured(
        task, {"segment": masks, "detect": instances}[task], "se", epochs=2, freeze_epochs=1
    )
    data = loaded(config)
    network = build_network(config, data)
    learner = Learner(network, config.recipe, data, launch(config.recipe))
    host = get_task(task).host(learner.module)
    learner.enter_epoch(0)
    in_host = {name for name, p in host.named_parameters() if p.requires_grad}
    assert in_host
    assert all("attention" in name for name in in_host)
    inside = {id(p) for p in host.parameters()}
    assert all(p.requires_grad for p in learner.module.parameters() if id(p) not in inside)
    norm = next(m for m in host.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = norm.running_mean.clone()
    images, known = next(batches(data.train, data, batch_size=4))
    learner.step(images, known, 0.01)
    assert torch.equal(norm.running_mean, before)  # frozen statistics are those it was trained with
    learner.enter_epoch(1)
    assert all(p.requires_grad for p in learner.module.parameters())
    learner.step(images, known, 0.01)
    assert not torch.equal(norm.running_mean, before)


def test_attention_goes_into_the_host_unless_modules_are_named(masks):
    config = configured("segment", masks, "cbam")
    data = loaded(config)
    network = build_network(config, data)
    host = get_task("segment").host(network.module)
    inside = {id(parameter) for parameter in host.parameters()}
    assert {id(parameter) for parameter in network.added()} < inside
    assert len(network.attention.sites) == 5  # its units


def test_attention_fills_the_slots_of_the_head(masks, tmp_path, capsys):
    command = ["train", "--task", "segment", "--data", str(masks), *SMALL, "--epochs", "1"]
    command += ["--mechanism", "se", "--where", "after", "--at", "decoder*attention"]
    assert main([*command, "--out", str(tmp_path / "run"), "--set", "explain=0"]) == 0
    assert "test mIoU" in capsys.readouterr().out
    names = load(tmp_path / "run", trust_code=True).network.state_dict()
    assert any(
        "decoder" in name and name.endswith("attention.attention.strength") for name in names
    )
    assert not any("backbone" in name and "attention" in name for name in names)


def test_a_comparison_of_segmentations(masks, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["compare", "--task", "segment", "--data", str(masks), *SMALL, "--epochs", "1"]
    command += ["--mechanisms", "cbam", "--seeds", "2", "--out", str(out), "--limit", "4"]
    command += ["--set", "recipe.snapshots=0", "--set", "controls=[none]"]
    command += ["--at", "backbone.host.[12]", "--where", "post"]
    assert main(command) == 0
    assert "mIoU %" in capsys.readouterr().out
    results = Results.from_json(out / "results.json")
    assert (results.metric, results.task) == ("test mIoU", "segment")
    assert [run.status for run in results.runs] == ["finished"] * 4
    page = (out / "report.html").read_text()
    for words in ("mIoU against cost", "Every class", "Predictions", "jackknife", "pixel accuracy"):
        assert words in page, words
    assert "It could not be drawn" not in page
    assert "Accuracy" not in page
    assert "test_values" not in (out / "results.csv").read_text()
    drawn = {path.name for path in (out / "figures").iterdir()}
    assert {"miou-per-epoch.svg", "cbam-predictions.png", "none-predictions.png"} <= drawn
    before = (out / "runs" / "cbam-seed0" / "result.json").read_bytes()
    assert main([*command, "--set", "explain=0"]) == 0  # everything is there already
    assert (out / "runs" / "cbam-seed0" / "result.json").read_bytes() == before


def test_a_training_for_detection_from_the_command_line(instances, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", "--task", "detect", "--data", str(instances), *SMALL, "--epochs", "1"]
    command += ["--limit", "4", "--set", "recipe.snapshots=0"]
    assert main([*command, "--mechanism", "spatial", "--out", str(out)]) == 0
    assert "test mAP" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "AP50" in page
    assert "It could not be drawn" not in page
    assert (out / "figures" / "spatial-predictions.svg").exists()
    assert (
        main(["explain", "--trust-code", str(out), str(instances / "test" / "images" / "00.png")])
        == 2
    )
    assert (
        "was trained to detect, but this takes what was trained to classify"
        in capsys.readouterr().err
    )


def test_another_task_is_another_run(masks, tmp_path):
    config = configured("segment", masks, "none", epochs=1)
    train(config, tmp_path / "run")
    other = config.model_copy(update={"head": "psp"})
    with pytest.raises(ValueError, match="holds another run"):
        train(other, tmp_path / "run")


def test_what_a_classification_writes_says_nothing_of_other_tasks():
    result = RunResult(mechanism="se", seed=0, status="finished", test_accuracy=50.0)
    fields = json.loads(result.model_dump_json())
    assert not {"metric", "test_values", "test_scores", "test_per_class"} & set(fields)
    assert RunResult.model_validate(fields) == result
