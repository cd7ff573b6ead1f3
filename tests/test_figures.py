"""Figures: readable on any page, by any eye, and nothing over anything else."""

import io
import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.image import imread

from foveate import figures
from foveate.figures import Curve, curves, style
from foveate.figures.costs import spread_apart

LONG = "通道注意力 with a reduction of 4, after every stage"
NAMES = [
    "none",
    "static",
    "se",
    "eca",
    "cbam $r$=4",
    "coord",
    "criss_cross",
    "danet_position",
    LONG,
]
CONTROLS = ("none", "static")


@pytest.fixture
def looks() -> dict[str, figures.Look]:
    return figures.looks(NAMES, controls=CONTROLS)


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def oklab(rgb: np.ndarray) -> np.ndarray:
    lms = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.63]])
    lab = [[0.2105, 0.7936, -0.0041], [1.978, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return np.array(lab) @ np.cbrt(np.clip(lms @ rgb, 0, None))


# Machado, Oliveira and Fernandes 2009, at full severity.
SIGHT = {
    "full": np.eye(3),
    "deuteranopia": [[0.3673, 0.8606, -0.228], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.052]],
}


@pytest.mark.parametrize("page", ["#ffffff", "#161a1f"])
@pytest.mark.parametrize("colour", [*style.COLOURS, style.GREY])
def test_colours_stand_out_on_white_and_dark_pages(page: str, colour: str) -> None:
    dark, light = sorted([luminance(page), luminance(colour)])
    assert (light + 0.05) / (dark + 0.05) >= 3


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_stay_apart_for_the_colour_blind(sight: str) -> None:
    seen = [oklab(np.array(SIGHT[sight]) @ linear(colour)) for colour in style.COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.07


def test_looks_tell_everyone_apart_and_do_not_depend_on_the_controls(looks) -> None:
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(NAMES)
    assert {looks[name].colour for name in CONTROLS} == {style.GREY}
    assert style.GREY not in {looks[name].colour for name in NAMES[2:]}
    assert figures.looks(NAMES[2:]) == {name: looks[name] for name in NAMES[2:]}


def cost_figure(looks, accuracies):
    points = [
        figures.CostPoint(name, accuracy, 0.4, [(1e6 + 1e3 * i, 0.0), (3e-3, 1e-4)])
        for i, (name, accuracy) in enumerate(zip(NAMES, accuracies, strict=True))
    ]
    axes = [figures.CostAxis("parameters"), figures.CostAxis("latency", "s")]
    return figures.accuracy_against_cost(points, axes, looks, ylabel="test accuracy, %")


def differences_figure(looks):
    rows = [
        figures.DifferenceRow(name, [0.1, 0.4], 0.25, (0.0, 0.5), (-0.1, 0.6), "+0.25 better")
        for name in NAMES[1:]
    ]
    return figures.differences(rows, looks, xlabel="points")


def curve_figures(looks, epochs=12):
    val = {
        name: [Curve(range(1, epochs + 1), np.linspace(50, 90, epochs) + i + s) for s in (0, 1)]
        for i, name in enumerate(NAMES)
    }
    loss = {
        name: [Curve(range(1, 301), 2 / np.arange(1.0, 301.0)) for _ in (0, 1)] for name in NAMES
    }
    yield figures.accuracy_per_epoch(val, {}, looks, reference="none")
    yield figures.loss_per_step(loss, looks, reference="none")


def boxes(figure):
    """Where each text that is drawn stands, in dots."""
    with style.style():
        figure.draw_without_rendering()
    texts = set(figure.findobj(lambda artist: hasattr(artist, "get_text")))
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high or not axis.axes.get_visible():
                texts -= {tick.label1, tick.label2}  # matplotlib keeps them, and leaves them out
    drawn = [text for text in texts if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in drawn]


@pytest.mark.parametrize("spread", [2.0, 0.01, 0.0])
def test_no_text_touches_another_or_leaves_the_figure(looks, spread: float) -> None:
    accuracies = 95 + spread * np.random.default_rng(0).random(len(NAMES))
    all_figures = [cost_figure(looks, accuracies), differences_figure(looks), *curve_figures(looks)]
    for figure in all_figures:
        placed = boxes(figure)
        assert {text for text, _ in placed} >= set(NAMES[1:-1])
        assert [text for text, box in placed if not on_paper(figure, box)] == []
        for (a, one), (b, other) in itertools.combinations(placed, 2):
            assert not one.overlaps(other), (a, b)


def test_every_format_has_the_layout_of_the_figure(looks) -> None:
    written, drawn = differences_figure(looks), differences_figure(looks)
    boxes(drawn)
    expected = [axes.get_position().bounds for axes in drawn.axes]
    for write in (figures.png, figures.svg):
        write(written)
        found = [axes.get_position().bounds for axes in written.axes]
        np.testing.assert_allclose(found, expected, atol=0.01)


def on_paper(figure, box) -> bool:
    width, height = figure.get_size_inches() * figure.dpi
    return box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1


def test_names_at_the_points_are_kept_short(looks) -> None:
    texts = [text for text, _ in boxes(cost_figure(looks, [95.0] * len(NAMES)))]
    assert [text for text in texts if text.endswith("…")] == [f"{LONG[:23]}…"]


def test_notes_stand_beside_the_data(looks) -> None:
    figure = differences_figure(looks)
    notes = [box for text, box in boxes(figure) if text == "+0.25 better"]
    assert len(notes) == len(NAMES) - 1
    assert all(box.x0 > figure.axes[0].bbox.x1 for box in notes)


@pytest.mark.parametrize("seed", range(20))
def test_labels_spread_apart_keep_order_distance_and_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([0.0, 3.0, 3.2, 10.0, *rng.random(3) * 10], size=8).tolist()
    spread = spread_apart(values, gap=1.0, low=0.0, high=10.0)
    order = np.argsort(spread)
    assert np.all(np.diff(np.array(values)[order]) >= 0)
    assert np.all(np.diff(np.array(spread)[order]) >= 1 - 1e-9)
    assert min(spread) >= 0.5 - 1e-9
    assert max(spread) <= 9.5 + 1e-9


def test_labels_that_do_not_touch_stay_where_they_are() -> None:
    assert spread_apart([5.0, 1.0, 9.0], gap=1.0, low=0.0, high=10.0) == [5.0, 1.0, 9.0]
    moved = spread_apart([5.0, 5.2, 5.4], gap=1.0, low=0.0, high=10.0)
    assert moved == pytest.approx([4.2, 5.2, 6.2])
    squeezed = spread_apart([1.0, 1.0, 1.0, 1.0], gap=1.0, low=0.0, high=2.0)
    assert squeezed == pytest.approx([0.25, 0.75, 1.25, 1.75])


def test_smoothing_keeps_the_ends_and_straight_lines_and_quietens_noise() -> None:
    line = Curve(range(400), np.linspace(1, 3, 400).tolist())
    assert curves.smooth(line).y == pytest.approx(line.y)
    rng = np.random.default_rng(0)
    noisy = Curve(range(400), (1 + rng.normal(size=400)).tolist())
    assert np.std(curves.smooth(noisy).y) < 0.35 * np.std(noisy.y)
    assert curves.smooth(noisy).y[0] == pytest.approx(noisy.y[0])


def test_a_mean_over_seeds_goes_as_far_as_the_shortest() -> None:
    grid, mean = curves.mean_of([Curve([1, 2, 3, 4], [0, 0, 0, 9]), Curve([1, 2, 3], [2, 4, 6])])
    assert grid[-1] == 3
    assert (mean[0], mean[-1]) == pytest.approx((1, 3))


@pytest.mark.parametrize(("low", "scale"), [(1.9, "linear"), (0.3, "log"), (0.0, "linear")])
def test_loss_is_on_a_log_axis_where_it_spans_enough(looks, low: float, scale: str) -> None:
    loss = {"se": [Curve(range(100), np.linspace(2.3, low, 100).tolist())]}
    assert figures.loss_per_step(loss, looks, reference="none").axes[0].get_yscale() == scale


def test_a_run_of_one_epoch_can_be_drawn_and_seen(looks) -> None:
    per_epoch, _ = curve_figures(looks, epochs=1)
    lines = per_epoch.axes[0].get_lines()
    assert any(len(line.get_xdata()) == 1 and line.get_marker() == "o" for line in lines)


def test_png_is_opaque_and_svg_is_the_same_each_time(looks) -> None:
    image = imread(io.BytesIO(figures.png(differences_figure(looks))))
    assert image[0, 0].tolist() == [1, 1, 1, 1]
    assert image.min() < 0.2
    one, other = figures.svg(differences_figure(looks)), figures.svg(differences_figure(looks))
    assert one == other
    assert ">cbam $r$=4<" in one  # text is text, and a dollar no formula


def test_inline_svg_takes_ink_and_font_of_the_page_and_lets_nothing_through(looks) -> None:
    evil = '<script>alert("1")</script>&'
    figure = figures.differences(
        [figures.DifferenceRow(evil, [0.0], 0.0, None, None, evil)],
        {evil: looks["se"]},
        xlabel=evil,
    )
    text = figures.inline_svg(figures.svg(figure), label=evil)
    root = ET.fromstring(text)
    assert root.get("aria-label") == evil
    assert "script" not in {element.tag.split("}")[-1] for element in root.iter()}
    assert style.INK not in text
    assert "currentColor" in text
    assert "font-family" not in text
    assert "width" not in root.attrib
    backgrounds = [element.get("style", "") for element in root.iter()]
    assert not any(style.PAPER in background for background in backgrounds)
