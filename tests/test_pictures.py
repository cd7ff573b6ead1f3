"""Pictures show the numbers that they are made of, and leave no trace in the network."""

import copy
import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.text import Text
from PIL import Image
from torch import Tensor, nn

import foveate
from cases import DEFAULTS, Case
from foveate import explain, figures
from foveate.errors import InvalidValueError
from foveate.explain import layers
from foveate.explain.sheets import Input
from foveate.explain.surveys import GateSurvey
from foveate.figures import fonts, overlay
from foveate.mechanisms.base import Mixer

SIZE = (13, 18)


def network(*attention: nn.Module, channels: int = 8, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*stem, *attention, *head).eval()


def texts(figure: figures.Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text) if isinstance(t, Text))


def state(model: nn.Module) -> list[object]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    grads = [
        (p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()
    ]
    return [*hooks, *(m.training for m in model.modules()), *map(str, grads)]


def test_a_panel_shows_each_cell_where_it_is_in_the_colour_of_its_value() -> None:
    values = np.array([[0.0, 0.25, 0.5], [0.75, 0.5, 1.0]])
    picture = np.random.default_rng(0).random((5, 7, 3))
    figure = figures.Figure()
    axes = figure.subplots()
    overlay.draw_panel(axes, figures.Panel("t", values), picture, figures.Meaning.GATE)
    shown = axes.get_images()[0].get_array()
    grey = picture @ [0.299, 0.587, 0.114]
    for y in range(5):
        for x in range(7):
            colour = np.array(mpl.colormaps["viridis"](values[y * 2 // 5, x * 3 // 7])[:3])
            np.testing.assert_allclose(shown[y, x], 0.6 * colour + 0.4 * grey[y, x], atol=1e-9)
    bar = axes.child_axes[0]
    assert [label.get_text() for label in bar.get_xticklabels()] == ["0", "1"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([[0.3, 0.3]], ["0.3 everywhere"]),
        ([[0.99912, 0.99987]], ["0.99912", "0.99987"]),
        ([[np.nan, 2.0], [1.0, np.inf]], ["1", "2"]),
        ([[np.nan, np.nan]], ["nan", "nan"]),
    ],
)
def test_the_bar_tells_its_ends_apart(values: list[list[float]], told: list[str]) -> None:
    figure = figures.Figure()
    axes = figure.subplots()
    picture = np.zeros((4, 4, 3))
    overlay.draw_panel(axes, figures.Panel("t", np.array(values)), picture, figures.Meaning.GATE)
    assert [label.get_text() for label in axes.child_axes[0].get_xticklabels()] == told


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.25), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))])
def test_the_normalisation_is_undone(mean: object, std: object) -> None:
    pixels = torch.rand(3, 5, 7)
    normal = (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(Input(mean, std).picture(normal), pixels.permute(1, 2, 0))


def test_a_picture_of_one_channel_is_grey() -> None:
    pixels = torch.rand(1, 5, 7)
    shown = Input(0.3, 0.2).picture((pixels - 0.3) / 0.2)
    torch.testing.assert_close(shown, pixels[0].unsqueeze(2).expand(-1, -1, 3))


@pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.id)
def test_every_mechanism_has_a_sheet_that_shows_its_maps(case: Case) -> None:
    channels = case.fit(8)
    module = case.randomised(channels, dtype=torch.float32)
    model = network(module, channels=channels)
    image = torch.rand(3, *SIZE)
    with foveate.record(model) as record:
        model(image.unsqueeze(0))
    figure = explain.sheet(model, image, cams=(), points=[(1, 2)], label=1)
    panels = {axes.get_title(): axes for axes in figure.findobj(mpl.axes.Axes)}
    shown = list(panels)
    for name, found in record["3"].maps.items():
        if max(found.shape[2:]) > 1:
            titles = [title for title in shown if title.startswith(f"3\n{name}")]
            assert len(titles) == 1
            assert (", mean of" in titles[0]) == (found.shape[1] > 1)
            mean = found[0].mean(0).double()
            told = [t.get_text() for t in panels[titles[0]].child_axes[0].get_xticklabels()]
            ends = overlay.apart(float(mean.min()), float(mean.max()))
            assert told in (ends, [f"{float(mean.min()):.3g} everywhere"])
    assert any("affinity" in title for title in shown) == (record["3"].size is not None)
    weighs = not isinstance(module, Mixer)  # what is added to channels is no gate
    assert ("Channel gates" in texts(figure)) == any(
        weighs and t.shape[1] > 1 and t.shape[2:] == (1, 1) for t in record["3"].maps.values()
    )


def test_the_affinity_that_is_drawn_is_that_of_the_point() -> None:
    attention = foveate.create("nl", 8, init="paper")
    model = network(nn.MaxPool2d(2), attention)
    image = torch.rand(3, 12, 18)
    figure = explain.sheet(model, image, cams=(), points=[(5, 16)])
    with foveate.record(model) as record:
        model(image.unsqueeze(0))
    expected = record.affinity("4", [(2, 8)])[0, 0, 0].double().numpy()  # half the resolution
    axes = next(a for a in figure.findobj(mpl.axes.Axes) if "affinity" in a.get_title())
    scale = axes.child_axes[0].get_xticklabels()
    assert [t.get_text() for t in scale] == overlay.apart(expected.min(), expected.max())
    (mark, _) = axes.get_lines()
    assert (mark.get_ydata()[0], mark.get_xdata()[0]) == pytest.approx((5, 16))


def test_the_sheet_says_what_is_true_and_what_is_predicted() -> None:
    model = network(foveate.create("cbam", 8))
    nn.init.zeros_(model[-1].weight)
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([0.0, 3.0, 1.0, 2.0]))
    feed = Input(classes=["ant", "bee", "cat", "dog"])
    shares = torch.tensor([0.0, 3.0, 1.0, 2.0]).softmax(0)
    right = texts(explain.sheet(model, torch.rand(3, *SIZE), feed=feed, label=1, cams=()))
    assert f"true: bee   predicted: bee, {shares[1]:.1%} (right)" in right
    assert f"{shares[3]:.1%}" in right
    wrong = texts(explain.sheet(model, torch.rand(3, *SIZE), feed=feed, label=0, cams=()))
    assert f"true: ant   predicted: bee, {shares[1]:.1%} (wrong)" in wrong


def test_of_many_layers_an_even_choice_is_drawn() -> None:
    model = network(*(foveate.create("spatial", 8) for _ in range(13)))
    figure = explain.sheet(model, torch.rand(3, *SIZE), cams=())
    titles = [a.get_title() for a in figure.findobj(mpl.axes.Axes) if "\nspatial" in a.get_title()]
    assert [int(title.split()[0]) for title in titles] == [3, 4, 6, 7, 8, 10, 11, 12, 14, 15]
    assert "Gates of positions (10 of 13)" in texts(figure)


@pytest.mark.parametrize(("choose", "expected"), [("strongest", [2, 0]), ("first", [0, 1])])
def test_features_are_the_maps_of_the_layer(choose: str, expected: list[int]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(60, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([-2.0, 1.0, 3.0])).view(3, 3, 1, 1))
    image = torch.rand(3, 4, 5)
    figure = explain.sheet(model, image, cams=(), layers=["0"], features=2, choose=choose)
    panels = [a for a in figure.findobj(mpl.axes.Axes) if a.get_title().startswith("channel ")]
    assert [panel.get_title() for panel in panels] == [f"channel {i}" for i in expected]
    first = (image[expected[0]] * torch.tensor([-2.0, 1.0, 3.0])[expected[0]]).double().numpy()
    norm = (first - first.min()) / (first.max() - first.min())
    shown = panels[0].get_images()[0].get_array()[..., 0]
    np.testing.assert_allclose(shown, norm, atol=0.01)


def test_a_sheet_leaves_the_network_as_it_was() -> None:
    model = network(foveate.create("cbam", 8)).train()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    model(torch.rand(2, 3, *SIZE)).sum().backward()
    before, weights = state(model), copy.deepcopy(model.state_dict())
    explain.sheet(model, torch.rand(3, *SIZE))
    assert state(model) == before
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights.values(), model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        ((2, 3, 9, 9), {}, "a sheet shows one image"),
        ((9, 9), {}, "a sheet shows one image"),
        ((3, 9, 9), {"points": [(9, 0)]}, r"of 9 rows and 9 columns, but got \(y, x\) = \(9, 0\)"),
        ((3, 9, 9), {"layers": ["layr"]}, "unknown layer 'layr'"),
        ((3, 9, 9), {"cams": ["gradcma"]}, "did you mean 'gradcam'"),
    ],
)
def test_a_mistake_is_one_clear_error(image: tuple[int, ...], options: dict, message: str) -> None:
    model = network(foveate.create("se", 8))
    before = state(model)
    with pytest.raises(InvalidValueError, match=message):
        explain.sheet(model, torch.rand(image), **options)
    assert state(model) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["6"]}, r"layer '6' gives no map"),
        ({"label": 4}, "label must be from 0 to 3, but got label=4"),
        ({"label": -1}, "label must be from 0 to 3, but got label=-1"),
        ({"feed": Input(classes=["a", "b"])}, "4 outputs, but got 2 names"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        explain.sheet(network(foveate.create("se", 8)), torch.rand(3, 9, 9), cams=(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["crane", "dog", "crane"]}, "'crane' stands twice"),
        ({"std": 0.0}, "std finite and above 0"),
        ({"std": (1.0, -1.0, 1.0)}, "std finite and above 0"),
        ({"mean": float("nan")}, "mean must be finite"),
    ],
)
def test_an_input_is_checked(options: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Input(**options)


def test_a_network_that_has_diverged_is_refused() -> None:
    model = network(foveate.create("eca", 8))
    nn.init.constant_(model[3].conv.weight, float("nan"))
    with pytest.raises(InvalidValueError, match="it has diverged"):
        explain.sheet(model, torch.rand(3, 9, 9))
    with pytest.raises(InvalidValueError, match="the channel of '3' is not finite"):
        foveate.diagnose(model, batches(1))


def test_what_waits_for_gradients_of_parameters_does_not_run() -> None:
    model = network(foveate.create("cbam", 8))
    called = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(called.append)
    for method in ("gradcam", "layercam"):
        explain.class_evidence(model, torch.rand(1, 3, *SIZE), target=1, method=method)
    explain.gradient_norms(model, *batches(1)[0])
    assert not called


def test_inference_mode_and_autocast_change_nothing() -> None:
    model, image = network(foveate.create("cbam", 8)), torch.rand(1, 3, *SIZE)
    expected = explain.class_evidence(model, image, target=1)
    with torch.inference_mode():
        torch.testing.assert_close(explain.class_evidence(model, image, target=1), expected)
        explain.sheet(model, image, cams=["gradcam"])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(explain.class_evidence(model, image, target=1), expected)
    with pytest.raises(InvalidValueError, match="parameters in bfloat16"):
        explain.class_evidence(model.bfloat16(), image.bfloat16(), target=1)


def test_a_frozen_network_has_gradient_norms() -> None:
    model = network(foveate.create("cbam", 8)).requires_grad_(False)
    assert len(explain.over_data(model, batches(), ["x", "y", "z"])) == 4
    assert not any(p.requires_grad for p in model.parameters())


def test_a_sample_is_of_all_columns() -> None:
    gate = torch.zeros(32, 64, 16, 16)
    gate[..., 0] = 1
    found = GateSurvey("a", "element")
    found.update(gate, torch.zeros(32).long())
    assert float(found.values.mean()) == pytest.approx(1 / 16, abs=0.01)


def test_a_gate_that_all_images_share_has_no_classes() -> None:
    found = GateSurvey("a", "channel")
    found.update(torch.rand(1, 8, 1, 1), torch.zeros(4).long())
    found.update(torch.rand(1, 8, 1, 1), torch.zeros(1).long())
    assert not found.classes


def test_what_is_no_gate_is_not_called_one() -> None:
    model = network(foveate.create("gc", 8), foveate.create("nl", 8), foveate.create("splat", 8))
    said = texts(explain.sheet(model, torch.rand(3, *SIZE), cams=()))
    assert "Gates of positions" not in said
    assert "Other maps of positions: weights, and lengths of vectors" in said
    assert {gate.layer for gate in explain.survey(model, batches(1)).gates} == {"5"}


def test_a_tall_image_and_long_names_stay_on_the_sheet() -> None:
    names = ["a" * 200, "b" * 200, "c" * 200, "d" * 200]
    model = network(foveate.create("cbam", 8))
    figure = explain.sheet(
        model, torch.rand(3, 300, 10), feed=Input(classes=names), label=1, cams=()
    )
    assert figure.get_size_inches()[1] < 30
    assert max(map(len, texts(figure).splitlines())) < 120


def test_a_network_that_is_no_classifier_is_refused() -> None:
    with pytest.raises(
        InvalidValueError, match=r"output is \(B, classes\), but got \(1, 4, 9, 9\)"
    ):
        explain.sheet(nn.Conv2d(3, 4, 1), torch.rand(3, 9, 9), layers=[""])


def literal_grad_cam(model: nn.Module, image: Tensor, at: int, target: int) -> Tensor:
    """Selvaraju et al. 2017, equations 1 and 2, then scaled to 0 and 1."""
    maps = model[: at + 1](image).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model[at + 1 :](maps)[0, target], maps)
    importance = slope.mean((2, 3), keepdim=True)
    cam = F.relu((importance * maps).sum(1))[0].detach()
    return (cam - cam.min()) / (cam.max() - cam.min())


def test_class_evidence_is_grad_cam_of_the_class_at_the_last_map() -> None:
    model = network(foveate.create("cbam", 8, init="paper"))
    image = torch.rand(1, 3, *SIZE)
    for target in range(4):
        found = explain.class_evidence(model, image, target=target)[0]
        torch.testing.assert_close(
            found, literal_grad_cam(model, image, 3, target), atol=1e-4, rtol=0
        )


def test_class_evidence_needs_no_gradients_of_the_network() -> None:
    model = network(foveate.create("cbam", 8)).requires_grad_(False)
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        for method in explain.CAMS:
            found = explain.class_evidence(model, images, target=[0, 3], method=method)
            assert found.shape == (2, *SIZE)
            assert float(found.min()) >= 0 <= float(found.max()) <= 1 + 1e-6
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_maps_are_listed_in_the_order_in_which_they_end() -> None:
    block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
    model = nn.Sequential(block, foveate.create("cbam", 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    names = layers.list_maps(model, torch.rand(1, 3, 9, 9))
    assert names == ["0.0", "0.1", "0", "1"]
    assert layers.last_map(model, torch.rand(1, 3, 9, 9)) == "1"
    with pytest.raises(InvalidValueError, match="no module of this Sequential gives a map"):
        layers.last_map(nn.Sequential(nn.Flatten()), torch.rand(1, 3, 9, 9))


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(3)
    return [(torch.rand(5, 3, *SIZE), torch.tensor([0, 1, 2, 1, 0])) for _ in range(count)]


def test_a_survey_keeps_the_gates_that_were_there() -> None:
    attention = foveate.create("cbam", 8, init="paper")
    nn.init.normal_(attention.spatial_gate.conv.weight)
    model, data = network(attention), batches()
    found = explain.survey(model, data)
    assert [(gate.layer, gate.part) for gate in found.gates] == [("3", "channel"), ("3", "spatial")]
    assert found.images == 15
    with foveate.record(model) as record, torch.no_grad():
        for images, _ in data:
            model(images)
    for gate in found.gates:
        values = record["3"].maps[gate.part].flatten().sort().values
        torch.testing.assert_close(gate.values.sort().values, values)
        expected = np.percentile(values.numpy(), explain.surveys.SHARES, method="nearest")
        np.testing.assert_allclose(gate.percentiles, expected, rtol=1e-6)
    labels = torch.cat([labels for _, labels in data])
    channel = record["3"].maps["channel"][:, :, 0, 0].double()
    for label, mean in found.gates[0].classes.items():
        torch.testing.assert_close(mean, channel[labels == label].mean(0))


def test_the_variance_between_classes_is_a_share() -> None:
    labels = torch.arange(3).repeat(20)
    planted, noise = GateSurvey("a", "channel"), GateSurvey("b", "channel")
    planted.update(labels.view(-1, 1, 1, 1).expand(-1, 4, 1, 1).float() / 3, labels)
    torch.manual_seed(0)
    noise.update(torch.rand(60, 50, 1, 1), labels)
    assert planted.between == (pytest.approx(1.0), pytest.approx(2 / 59))
    assert noise.between[0] == pytest.approx(2 / 59, abs=0.015)


def test_what_has_no_gates_is_not_surveyed() -> None:
    with pytest.raises(InvalidValueError, match="no attention of this Sequential has gates"):
        explain.survey(network(foveate.create("nl", 8)), batches(1))
    with pytest.raises(InvalidValueError, match="at least one image"):
        explain.survey(network(foveate.create("se", 8)), [])
    drawn = explain.over_data(network(foveate.create("nl", 8)), batches(1), "abc")
    assert list(drawn) == ["gradients-by-depth"]


def test_figures_over_data_are_complete() -> None:
    model = network(foveate.create("cbam", 8), foveate.create("static", 8))
    found = explain.over_data(model, batches(), ["x", "y", "z"])
    assert list(found) == [
        *("gate-histograms", "gates-by-depth", "class-profiles", "gradients-by-depth"),
    ]
    assert "of the variance between classes" in texts(found["class-profiles"])
    assert {"3 channel", "3 spatial", "4 channel"} <= set(
        texts(found["gate-histograms"]).split("\n")
    )


def test_gradient_norms_are_those_of_the_loss() -> None:
    model = network(foveate.create("se", 8))
    (images, labels), *_ = batches(1)
    figure = explain.gradient_norms(model, images, labels)
    host, attention = (
        dict(zip(*line.get_data(), strict=True)) for line in figure.axes[0].get_lines()
    )
    grads = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    named = dict(zip((n for n, _ in model.named_parameters()), grads, strict=True))
    first = (
        torch.cat([named["0.weight"].flatten(), named["0.bias"]]).double().square().mean().sqrt()
    )
    assert host[1] == pytest.approx(float(first), rel=1e-5)
    mine = torch.cat([g.flatten() for n, g in named.items() if n.startswith("3.")])
    assert list(attention.values()) == [pytest.approx(float(mine.double().square().mean().sqrt()))]
    assert all(p.grad is None for p in model.parameters())


def test_evolution_follows_the_weights() -> None:
    attention = foveate.create("se", 8, init="identity")
    model = network(attention)
    (images, _), *_ = batches(1)
    watch = explain.Evolution(model, images)
    with pytest.raises(InvalidValueError, match="no snapshot"):
        watch.figure()
    for step, strength in ((0, 0.0), (10, 1.0)):
        nn.init.constant_(attention.strength, strength)
        watch.snapshot(step)
    with foveate.record(model) as record:
        model(images)
    gate = record["3"].maps["channel"]
    assert watch.steps == [0, 10]
    assert watch.gates[0]["3 channel"] == [1.0] * 5
    assert watch.gates[1]["3 channel"][0] == pytest.approx(float(gate.min()), abs=0.02)
    (line,) = watch.figure().axes[0].get_lines()
    assert line.get_xdata().tolist() == [0, 10]
    assert line.get_ydata()[1] == pytest.approx(watch.gates[1]["3 channel"][2])


def test_every_way_out_is_a_whole_file() -> None:
    model, image = network(foveate.create("cbam", 8)), torch.rand(3, *SIZE)
    figure = explain.sheet(model, image, cams=())
    Image.open(io.BytesIO(figures.encoded(figure, "png"))).verify()
    assert figures.encoded(figure, "pdf").startswith(b"%PDF-")
    again = figures.svg(explain.sheet(model, image, cams=()))
    assert again == figures.svg(explain.sheet(model, image, cams=()))
    inline = figures.inline_svg(figures.svg(figure), label="a <sheet>")
    assert "image/png" not in inline
    assert inline.count("image/webp") == figures.svg(figure).count("image/png") > 0
    assert len(inline) < len(figures.svg(figure))


def test_a_letter_that_no_font_has_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "installed", lambda: ["DejaVu Sans"])
    monkeypatch.setattr(fonts, "_told", set())
    fonts._package.cache_clear()
    figure = figures.Figure()
    figure.suptitle("通道 and ꯍ")
    with pytest.warns(UserWarning, match="no installed font has") as told:
        fonts.warn_of_missing(figure)
    fonts.warn_of_missing(figure)  # would be an error if it warned again
    fonts._package.cache_clear()
    said = [str(one.message) for one in told]
    assert len(said) == 2
    assert any("fonts-noto-cjk" in one for one in said)
