"""The verdicts: against numbers worked out by hand, against SciPy, and by simulation."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from foveate.errors import InvalidValueError
from foveate.experiments.reporting.paired import (
    hedges_correction,
    holm,
    interval_over_both,
    paired_test,
    pairs_needed,
)
from foveate.experiments.reporting.results import Comparison, Results, RunResult
from foveate.experiments.reporting.statistics import compare_to_baseline
from synthetic_results import realistic, results_of

NONE = [97.0, 98.0, 96.5]


def compare(**accuracies: Sequence[float | None]) -> dict[str, Comparison]:
    return {c.mechanism: c for c in compare_to_baseline(results_of(accuracies))}


def test_paired_test_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3) with 2 degrees of freedom, where
    # p = 1 - t / sqrt(t^2 + 2), and the 97.5 % quantile is 4.302653.
    test = paired_test([1.0, 2.0, 3.0])
    assert test.difference == pytest.approx(2)
    assert test.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert test.interval == pytest.approx(
        (2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3))
    )
    assert test.effect_size == pytest.approx(2 / math.sqrt(math.pi))  # correction: 1 / sqrt(pi)


def test_hedges_correction_is_near_its_usual_approximation() -> None:
    for pairs in (5, 10, 30):
        assert hedges_correction(pairs) == pytest.approx(1 - 3 / (4 * (pairs - 1) - 1), abs=3e-3)


def test_comparison_agrees_with_scipy_on_the_raw_accuracies() -> None:
    se = [97.9, 98.3, 97.0]
    expected = stats.ttest_rel(se, NONE)
    found = compare(none=NONE, se=se)["se"]
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()))
    assert found.mean == pytest.approx(np.mean(se))


@pytest.mark.parametrize(
    ("raw", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
    ],
)
def test_holm_by_hand(raw: list[float], corrected: list[float]) -> None:
    assert holm(raw) == pytest.approx(corrected)


def test_holm_runs_over_all_mechanisms_with_the_static_control() -> None:
    found = compare(none=NONE, static=[97.9, 98.3, 97.0], se=[97.4, 98.5, 96.9])
    raw = [found["static"].p, found["se"].p]
    assert [found["static"].p_holm, found["se"].p_holm] == pytest.approx(holm(raw))


def test_the_verdict_is_of_the_corrected_p() -> None:
    gain = [0.20, 0.75, 0.55, 0.15, 0.60]
    base = [97.0, 96.0, 98.0, 97.5, 96.5]
    better = [b + g for b, g in zip(base, gain, strict=True)]
    worse = [b - g for b, g in zip(base, gain, strict=True)]
    alone = compare(none=base, se=better)["se"]
    assert alone.verdict == "better"
    assert compare(none=base, se=worse)["se"].verdict == "worse"
    rivals = {f"m{i}": [b + (-1) ** s * i / 2 for s, b in enumerate(base)] for i in range(1, 4)}
    crowded = compare(none=base, se=better, **rivals)["se"]
    assert crowded.p == pytest.approx(alone.p)
    assert crowded.verdict == "not distinguishable"
    assert "only before the correction" in crowded.explanation
    assert crowded.seeds_needed is not None
    assert alone.seeds_needed is not None
    assert crowded.seeds_needed > max(alone.seeds_needed, crowded.seeds)


def test_two_seeds_or_fewer_give_no_verdict() -> None:
    for count in (1, 2):
        found = compare(none=NONE[:count], se=[99.0, 100.0][:count])["se"]
        assert found.verdict == "no verdict"
        assert (found.p, found.interval, found.interval_both) == (None, None, None)
        assert found.difference == pytest.approx(2.0)
        assert "at least 3 seeds are needed" in found.explanation


def test_identical_scores_are_not_distinguishable() -> None:
    found = compare(none=NONE, se=NONE)["se"]
    assert (found.verdict, found.p, found.difference) == ("not distinguishable", 1.0, 0.0)
    assert (found.interval, found.effect_size, found.seeds_needed) == (None, None, None)
    assert "the same at every seed" in found.explanation


def test_a_constant_gain_is_judged_by_the_exact_sign_flip_test() -> None:
    # 97.3 - 97.0 and 3.3 - 3.0 differ in their last bits: a t test would see p near 1e-28.
    found = compare(none=[97.0, 3.0, 96.5], se=[97.3, 3.3, 96.8])["se"]
    assert (found.p, found.verdict) == (0.25, "not distinguishable")
    six = compare(none=NONE * 2, se=[97.3, 98.3, 96.8] * 2)["se"]
    assert (six.p, six.verdict) == (2**-5, "better")


def test_seeds_without_a_partner_are_dropped_and_named() -> None:
    whole = compare(none=NONE, se=[97.9, 98.3, 97.0])["se"]
    found = compare(none=[*NONE, None, 97.0], se=[97.9, 98.3, 97.0, 99.0, None])["se"]
    assert found.seeds == 3
    assert found.p == pytest.approx(whole.p)
    assert "seeds 3, 4" in found.explanation
    assert "seed" not in whole.explanation.replace("seeds would", "").replace("3 seeds", "")


def test_a_mechanism_that_never_finished_has_no_numbers() -> None:
    found = compare(none=NONE, se=[None, None, None])["se"]
    assert (found.seeds, found.mean, found.difference) == (0, None, None)
    assert "no seed has a finished run" in found.explanation


def test_order_is_static_first_then_by_difference() -> None:
    up, down = [97.5, 98.4, 97.5], [96.0, 97.1, 95.0]
    listed = compare(none=NONE, eca=down, se=up, static=down, cbam=[None] * 3)
    assert list(listed) == ["static", "se", "eca", "cbam"]


def test_beating_none_but_not_the_static_gate_is_said() -> None:
    base = [97.0, 96.0, 98.0, 97.5, 96.5]
    gain = [1.0, 1.1, 0.9, 1.05, 0.95]
    se = [b + g for b, g in zip(base, gain, strict=True)]
    near = [s + e for s, e in zip(se, [0.1, -0.1, 0.05, -0.1, 0.1], strict=True)]
    found = compare(none=base, static=near, se=se)["se"]
    assert found.verdict == "better"
    assert found.difference_to_static == pytest.approx(-0.01)
    assert "not shown to beat the static gate" in found.explanation
    alone = compare(none=base, static=base, se=se)["se"]
    assert alone.p_static_holm == pytest.approx(alone.p)
    assert "seeing the input is what helps" in alone.explanation
    above = [s + g for s, g in zip(se, gain, strict=True)]
    below = compare(none=base, static=above, se=se)["se"]
    assert below.p_static_holm is not None
    assert below.p_static_holm < 0.05
    assert "not shown to beat the static gate" in below.explanation


def test_seeds_needed_reach_the_power_and_one_fewer_does_not() -> None:
    # Cohen's table: d = 0.5 needs 34 pairs, d = 1 needs 10, d = 0.2 needs 199.
    for effect, pairs in ((0.5, 34), (1.0, 10), (0.2, 199)):
        assert pairs_needed([effect - 1, effect, effect + 1]) == pairs
    assert pairs_needed([-1.0, 0.0, 1.0]) is None
    assert pairs_needed([1e9, 1e9 + 1, 1e9 + 2]) == 3
    assert pairs_needed([-1.0, 0.001, 1.0]) is None  # more than anyone will run


def test_power_is_as_promised_and_the_null_is_rejected_five_times_in_a_hundred() -> None:
    rng = np.random.default_rng(0)
    trials = 4000
    null = stats.norm.rvs(size=(trials, 5), random_state=rng)
    rejected = np.mean([paired_test(row).p <= 0.05 for row in null])
    assert rejected == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))
    rejected = np.mean([paired_test(row + 1.0).p <= 0.05 for row in rng.normal(size=(trials, 10))])
    assert rejected == pytest.approx(0.803, abs=3 * math.sqrt(0.8 * 0.2 / trials))


def test_family_of_true_nulls_is_rejected_at_most_five_times_in_a_hundred() -> None:
    rng = np.random.default_rng(1)
    trials = 200
    wrong = 0
    for _ in range(trials):
        scores = {key: (90 + rng.normal(size=4)).tolist() for key in ("none", "a", "b", "c", "d")}
        wrong += any(c.verdict != "not distinguishable" for c in compare(**scores).values())
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_interval_over_both_by_hand() -> None:
    # Differences [[1, 0], [1, 0], [0, 0], [1, 0]] (seeds x images), in hundreds: mean 37.5.
    # Mean squares: rows 1250, columns 11250, residual 1250; so variance (1250 + 10000) / 8.
    ours = np.array([[1, 1], [1, 1], [0, 1], [1, 1]], dtype=bool)
    theirs = np.array([[0, 1]] * 4, dtype=bool)
    half = stats.t.ppf(0.975, 3) * math.sqrt(11250 / 8)
    assert interval_over_both(ours, theirs) == pytest.approx((37.5 - half, 37.5 + half))


def test_interval_over_both_contains_that_over_seeds_and_covers_new_images() -> None:
    rng = np.random.default_rng(2)
    trials, seeds, images, truth = 300, 5, 200, 1.0
    covered = {"seeds": 0, "both": 0}
    for _ in range(trials):
        # Each image has a difference of its own; the mean over all images that exist is 1 point.
        chance = 0.5 + 0.01 * truth + 0.3 * (rng.random(images) - 0.5)
        ours, theirs = rng.random((seeds, images)) < chance, rng.random((seeds, images)) < 0.5
        low, high = interval_over_both(ours, theirs)
        inner = paired_test(100 * (ours.mean(1) - theirs.mean(1))).interval
        assert inner is not None
        assert low <= inner[0] + 1e-9
        assert high >= inner[1] - 1e-9
        covered["both"] += low <= truth <= high
        covered["seeds"] += inner[0] <= truth <= inner[1]
    assert covered["both"] / trials >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials)
    assert covered["both"] > covered["seeds"]


def test_interval_over_both_is_left_out_where_test_images_are_unknown() -> None:
    results = realistic(["none", "se"], seeds=3)
    assert compare_to_baseline(results)[0].interval_both is not None
    results.runs[0].test_correct = results.runs[-1].test_correct = None  # of different seeds
    assert compare_to_baseline(results)[0].interval_both is None


def test_wider_confidence_widens_both_intervals() -> None:
    results = realistic(["none", "se"], seeds=4)
    (usual,), (wide,) = compare_to_baseline(results), compare_to_baseline(results, confidence=0.99)
    for a, b in ((usual.interval, wide.interval), (usual.interval_both, wide.interval_both)):
        assert a is not None
        assert b is not None
        assert b[0] < a[0] < a[1] < b[1]
    with pytest.raises(InvalidValueError, match=r"confidence=95"):
        compare_to_baseline(results, confidence=95)


@pytest.mark.parametrize("value", [math.nan, math.inf, 101.0, -1.0, None])
def test_a_finished_run_needs_an_accuracy_that_is_one(value: float | None) -> None:
    with pytest.raises(ValidationError, match="test_accuracy"):
        RunResult(mechanism="se", seed=0, status="finished", test_accuracy=value)


def test_a_run_that_is_there_twice_is_refused() -> None:
    run = RunResult(mechanism="se", seed=1, status="finished", test_accuracy=50.0)
    fields = results_of({}).model_dump()
    with pytest.raises(ValidationError, match="se with seed 1 is there twice"):
        Results(**{**fields, "runs": [run, run]})


def test_results_survive_json_even_with_a_loss_that_became_nan(tmp_path) -> None:
    results = realistic(["none", "se"], seeds=2, epochs=2)
    results.runs[0].curves.train_loss[-1] = math.nan
    results.comparisons = compare_to_baseline(results)
    path = tmp_path / "results.json"
    path.write_text(results.to_json(), encoding="utf-8")
    json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # no bare NaN
    again = Results.from_json(path)
    assert math.isnan(again.runs[0].curves.train_loss.pop())
    results.runs[0].curves.train_loss.pop()
    assert again == results
    path.write_text('{"foveate": 1}', encoding="utf-8")
    with pytest.raises(InvalidValueError, match="holds no results: foveate"):
        Results.from_json(path)
