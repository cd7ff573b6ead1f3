"""The training loop: what one step does, what pairs, what is frozen, what is chosen on what."""

import copy
import json
import math
import sys
import types

import pytest
import torch
from torch import nn

import tiny
from foveate.cost import peak_memory
from foveate.errors import InvalidValueError, MissingExtraError
from foveate.experiments.build import build_network
from foveate.experiments.config import Recipe, RunConfig
from foveate.experiments.configfile import parse
from foveate.experiments.training import train as train_module
from foveate.experiments.training.checkpoint import load
from foveate.experiments.training.freezing import find_classifier, freeze, train_mode
from foveate.experiments.training.journal import Journal, read_journal
from foveate.experiments.training.learner import Learner
from foveate.experiments.training.optimization import Schedule, build_optimizer, plateau_cuts
from foveate.experiments.training.processes import launch
from foveate.experiments.training.recompute import recompute_blocks
from foveate.experiments.training.state import State
from foveate.experiments.training.trackers import check_tracker


def losses(folder):
    return [row["loss"] for row in read_journal(folder / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("mechanism", ["se", "cbam", "coord", "static", "nl"])
def test_the_first_loss_of_every_mechanism_is_that_of_the_host_alone(tmp_path, mechanism):
    for name in ("none", mechanism):
        tiny.train(tiny.config(name, epochs=1, warmup_epochs=0), tmp_path / name)
    bare, attended = losses(tmp_path / "none"), losses(tmp_path / mechanism)
    assert attended[0] == bare[0]
    assert attended[1:] != bare[1:]


def test_the_seed_sets_weights_order_and_dropout(tmp_path):
    a, b, again = (tmp_path / name for name in ("a", "b", "again"))
    tiny.train(tiny.config(seed=0, epochs=1), a)
    tiny.train(tiny.config(seed=1, epochs=1), b)
    torch.manual_seed(99)  # whatever was drawn before does not matter
    tiny.train(tiny.config(seed=0, epochs=1), again)
    assert losses(a) == losses(again)
    assert losses(a)[0] != losses(b)[0]


def test_one_step_is_what_torch_says(tmp_path):
    config = tiny.config(
        "none", epochs=1, batch_size=90, optimizer="sgd", lr=0.5, momentum=0, weight_decay=0.1,
        schedule="constant", warmup_epochs=0, label_smoothing=0.2, clip_norm=0.1,
    )  # fmt: skip
    tiny.train(config, tmp_path / "run")
    data = tiny.digits()
    network = build_network(config, data).module.train()
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    images, labels = next(_batches(config, data))
    torch.manual_seed(train_module.derive_seed("step", 0, 0, 0, 0))
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)(network(images), labels)
    loss.backward()
    expected = pytest.approx(loss.item(), rel=1e-6)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters()))
    assert norm > 0.1  # else nothing would be clipped
    weights, _ = load(tmp_path / "run" / "model.safetensors")
    assert losses(tmp_path / "run") == [expected]
    for name, parameter in network.named_parameters():
        decay = 0.1 if parameter.ndim > 1 else 0.0
        moved = start[name] - 0.5 * (parameter.grad * 0.1 / norm + decay * start[name])
        torch.testing.assert_close(weights[name], moved.detach(), rtol=1e-4, atol=1e-6)


def _batches(config, data):
    recipe = config.recipe
    return train_module.batches(
        data.train, data, batch_size=recipe.batch_size, augment=recipe.augment,
        seed=config.seed, shuffle=True,
    )  # fmt: skip


def test_recomputed_blocks_give_the_same_numbers(tmp_path):
    for flag in (False, True):
        tiny.train(tiny.config(checkpointing=flag, mechanism="cbam"), tmp_path / str(flag))
    kept, recomputed = tmp_path / "False", tmp_path / "True"
    assert losses(kept) == losses(recomputed)
    before, after = (load(folder / "model.safetensors")[0] for folder in (kept, recomputed))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_recomputed_blocks_hold_less():
    layers = [nn.Conv2d(8, 8, 1), nn.Tanh(), nn.Conv2d(8, 8, 1), nn.Tanh()]
    model = nn.Sequential(*[nn.Sequential(*copy.deepcopy(layers)) for _ in range(4)])
    x = torch.rand(1, 8, 16, 16, requires_grad=True)
    before = peak_memory(model, x)
    assert recompute_blocks(model) == ["0", "1", "2", "3"]
    assert peak_memory(model, x) < before / 1.5


def test_the_host_is_frozen_then_thawed(tmp_path):
    epochs = []

    class Spy(train_module.Learner):
        def enter_epoch(self, epoch):
            super().enter_epoch(epoch)
            epochs.append({n for n, p in self.module.named_parameters() if p.requires_grad})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "Learner", Spy)
        tiny.train(tiny.config(epochs=2, freeze_epochs=1), tmp_path / "run")
    frozen, thawed = epochs
    assert {name for name in frozen if "attention" not in name} == {"5.weight", "5.bias"}
    assert any("attention" in name for name in frozen)
    assert frozen < thawed
    assert "0.0.weight" in thawed


def test_frozen_norms_keep_their_statistics_and_attention_does_not():
    host = tiny.net(10, 1)
    head = find_classifier(host, 10)
    freeze(host, head.parameters())
    train_mode(host)
    before = host[0][1].running_mean.clone()
    host(torch.rand(4, 1, 8, 8))
    assert torch.equal(host[0][1].running_mean, before)
    freeze(host, host.parameters())
    train_mode(host)
    host(torch.rand(4, 1, 8, 8))
    assert not torch.equal(host[0][1].running_mean, before)


def test_norms_without_weights_are_as_frozen_as_what_is_around_them():
    def norm():
        return nn.BatchNorm2d(2, affine=False)

    host = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 2, 1), norm()), norm(), nn.Sequential(nn.Conv2d(2, 2, 1), norm())
    )
    freeze(host, host[2].parameters())
    train_mode(host, freezing=True)
    assert [host[0][1].training, host[1].training, host[2][1].training] == [False, False, True]
    freeze(host, host.parameters())
    train_mode(host)
    assert [host[0][1].training, host[1].training, host[2][1].training] == [True] * 3


def test_what_the_host_keeps_from_learning_stays_so(tmp_path, monkeypatch):
    def fixed(num_classes, in_channels):
        host = tiny.net(num_classes, in_channels)
        host[0][0].weight.requires_grad_(False)
        return host

    monkeypatch.setattr(tiny, "fixed", fixed, raising=False)
    network = build_network(tiny.config(host="tiny:fixed", freeze_epochs=1), tiny.digits())
    config = tiny.config(epochs=2, freeze_epochs=1)
    learner = Learner(network, config.recipe, tiny.digits(), launch(config.recipe))
    first = network.module[0][0].weight
    assert not first.requires_grad
    for epoch in range(2):
        learner.enter_epoch(epoch)
        assert not first.requires_grad


def test_a_host_without_a_classifier_cannot_be_frozen():
    with pytest.raises(InvalidValueError, match="7 outputs"):
        find_classifier(tiny.net(10, 1), 7)


def test_weight_decay_spares_vectors_and_scalars():
    network = build_network(tiny.config("cbam"), tiny.digits()).module
    decayed, spared = build_optimizer(Recipe(), network).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in network.named_parameters()}
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    assert {"0.1.weight", "0.1.bias", "5.bias"} <= {names[id(p)] for p in spared["params"]}
    assert any(names[id(p)].endswith("strength") for p in spared["params"])
    assert len(names) == len(decayed["params"]) + len(spared["params"])


def test_cosine_after_a_linear_warm_up():
    schedule = Schedule(Recipe(epochs=4, lr=1.0, warmup_epochs=1, schedule="cosine"), 10)
    rates = [schedule.at(step) for step in range(40)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[25] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_plateau_agrees_with_torch():
    losses = [3.0, 2.0, 2.5, 2.4, 2.3, 2.2, 2.1, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, threshold=0.0
    )
    schedule = Schedule(Recipe(epochs=99, lr=1.0, warmup_epochs=0, schedule="plateau"), 1)
    for epoch in range(1, len(losses) + 1):
        reference.step(losses[epoch - 1])
        rate = schedule.at(epoch, plateau_cuts(losses[:epoch], 2))
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])


def test_the_best_epoch_is_chosen_on_validation_ties_by_loss():
    state = State(val_accuracies=[90.0, 95.0, 95.0, 95.0], val_losses=[0.1, 0.5, 0.3, 0.3])
    assert state.best_epoch == 2


def hits(network, images, data):
    batches = train_module.batches(images, data, batch_size=50)
    return torch.cat([network(inputs).argmax(1) == labels for inputs, labels in batches])


def test_the_test_split_is_looked_at_once_with_the_best_weights(tmp_path, monkeypatch):
    seen = []
    original = train_module.evaluate

    def spy(module, images, *rest):
        seen.append(images)
        return original(module, images, *rest)

    monkeypatch.setattr(train_module, "evaluate", spy)
    result = tiny.train(tiny.config(epochs=3, lr=0.05, schedule="constant"), tmp_path / "run")
    assert result.best_epoch < 3  # so the best weights are not the last
    data = tiny.digits()
    assert [images is data.test for images in seen] == [False, False, False, True]
    network = build_network(tiny.config(), data).module
    network.load_state_dict(load(tmp_path / "run" / "model.safetensors")[0])
    network.eval()
    correct = hits(network, data.test, data)
    assert result.test_correct == correct.tolist()
    assert result.test_accuracy == pytest.approx(100 * correct.double().mean())
    epochs = [row for row in read_journal(tmp_path / "run" / "metrics.jsonl") if "epoch" in row]
    assert hits(network, data.val, data).sum().item() == result.val_accuracy  # of 100 images
    assert result.val_accuracy == max(row["val_accuracy"] for row in epochs)
    assert result.curves.val_accuracy == [row["val_accuracy"] for row in epochs]


def test_early_stop_waits_for_its_patience(tmp_path):
    config = tiny.config(epochs=9, patience=2, lr=1e-12, warmup_epochs=0, batch_size=90)
    result = tiny.train(config, tmp_path / "run")
    assert len(result.curves.epoch) < 9
    assert len(result.curves.epoch) == result.best_epoch + 2


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = tiny.config(lr=1e30, optimizer="sgd", warmup_epochs=0)
    with pytest.raises(train_module.DivergedError, match=r"loss became (nan|inf) at step \d+"):
        tiny.train(config, tmp_path / "run")


def test_bfloat16_and_channels_last_train(tmp_path):
    config = tiny.config(precision="bf16-mixed", channels_last=True)
    plain = tiny.train(tiny.config(), tmp_path / "plain")
    result = tiny.train(config, tmp_path / "run")
    assert result.curves.train_loss[0] == pytest.approx(plain.curves.train_loss[0], rel=0.02)
    assert result.curves.train_loss != plain.curves.train_loss


def test_deterministic_algorithms_are_asked_for_and_given_back(tmp_path, monkeypatch):
    asked = []
    original = train_module.Learner.step

    def step(self, *args):
        asked.append(torch.are_deterministic_algorithms_enabled())
        return original(self, *args)

    monkeypatch.setattr(train_module.Learner, "step", step)
    tiny.train(tiny.config(epochs=1, deterministic=True), tmp_path / "run")
    assert set(asked) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_plateau_cuts_the_rate(tmp_path):
    still = {"lr": 1e-12, "warmup_epochs": 0, "schedule": "plateau", "optimizer": "sgd"}
    result = tiny.train(tiny.config(epochs=6, plateau_patience=1, **still), tmp_path / "run")
    cuts = [plateau_cuts(result.curves.val_loss[:epoch], 1) for epoch in range(6)]
    assert cuts[-1] > 0
    assert result.curves.lr == [1e-12 * 0.5**cut for cut in cuts]


def test_tensorboard_gets_the_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = tiny.train(tiny.config(tracker="tensorboard"), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("val/accuracy")] == pytest.approx(
        result.curves.val_accuracy
    )
    assert [e.step for e in events.Scalars("step/loss")] == result.curves.step


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_missing_names_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"foveate\[{name}\]"):
        check_tracker(name)


def test_weights_and_biases_and_mlflow_are_called_as_they_ask(tmp_path, monkeypatch):
    calls = []

    def note(name):
        return lambda *args, **kwargs: calls.append((name, args, kwargs)) or run

    run = types.SimpleNamespace(log=note("log"), finish=note("finish"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=note("init")))
    mlflow = {
        name: note(name)
        for name in ("set_experiment", "start_run", "log_dict", "log_metrics", "end_run")
    }
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(**mlflow))
    tiny.train(tiny.config(tracker="wandb", epochs=1), tmp_path / "w")
    assert calls[0][0] == "init"
    assert calls[0][2]["config"]["host"] == "tiny:net"
    assert calls[-1][0] == "finish"
    assert any("val/accuracy" in args[0] for name, args, _ in calls if name == "log")
    calls.clear()
    tiny.train(tiny.config(tracker="mlflow", epochs=1), tmp_path / "m")
    assert [calls[0][0], calls[-1][0]] == ["set_experiment", "end_run"]
    assert any("val/accuracy" in args[0] for name, args, _ in calls if name == "log_metrics")


def test_the_journal_drops_what_follows_its_length(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    journal.write({"step": 1})
    length = journal.sync()
    journal.write({"step": 2})
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"step": 3')  # torn
    assert read_journal(path) == [{"step": 1}, {"step": 2}]
    Journal(path, length).close()
    assert read_journal(path) == [{"step": 1}]
    with pytest.raises(InvalidValueError, match="lost lines"):
        Journal(path, length + 1)


def test_a_run_leaves_its_settings_and_environment(tmp_path):
    tiny.train(tiny.config(), tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["torch"] == torch.__version__.partition("+")[0]
    assert environment["threads"] == torch.get_num_threads()
    about = load(tmp_path / "run" / "model.safetensors")[1]
    assert parse(RunConfig, about["config"]) == tiny.config()
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
