"""Did attention help: each mechanism of a comparison against none, with a verdict in words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from foveate.errors import InvalidValueError
from foveate.experiments.reporting.paired import (
    MIN_PAIRS,
    PairedTest,
    holm,
    interval_over_both,
    paired_test,
    pairs_needed,
)
from foveate.experiments.reporting.results import (
    BASELINE,
    STATIC,
    Comparison,
    Interval,
    Results,
    RunResult,
    Verdict,
)
from foveate.experiments.reporting.units import at_most, p_value, signed


@dataclass(frozen=True)
class _Pairs:
    """The finished runs of two mechanisms that share a seed, in the order of the seeds."""

    ours: list[RunResult]
    theirs: list[RunResult]
    dropped: list[int]

    @property
    def differences(self) -> list[float]:
        return [a.accuracy - b.accuracy for a, b in zip(self.ours, self.theirs, strict=True)]

    def test(self, confidence: float) -> PairedTest | None:
        enough = len(self.ours) >= MIN_PAIRS
        return paired_test(self.differences, confidence=confidence) if enough else None


def compare_to_baseline(results: Results, *, confidence: float = 0.95) -> list[Comparison]:
    """Compare each mechanism with the baseline, paired by seed.

    A seed that either side lacks is dropped, and said. P-values are corrected by Holm over all
    mechanisms, the control ``static`` included, and the verdict is of the corrected ones at
    ``1 - confidence``; fewer than 3 pairs give no verdict. Those against ``static`` are a family
    of their own. The seeds needed are those of a test at ``1 - confidence`` over the number of
    mechanisms, which no corrected test asks more than.

    Args:
        results: The runs; its ``comparisons`` are not read.
        confidence: Of each interval alone, between 0 and 1.

    Returns:
        One comparison a mechanism: ``static`` first, then by falling difference.

    Raises:
        ValueError: If ``confidence`` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise InvalidValueError(f"confidence must lie between 0 and 1, but got {confidence=}")
    mechanisms = [key for key in results.mechanisms if key != BASELINE]
    pairs = {key: _pair(results, key, BASELINE) for key in mechanisms}
    tests = {key: pairs[key].test(confidence) for key in mechanisms}
    to_static = {
        key: _pair(results, key, STATIC).test(confidence) for key in mechanisms if key != STATIC
    }
    corrected, static_corrected = _correct(tests), _correct(to_static)
    comparisons = []
    for key in mechanisms:
        static = to_static.get(key)
        p_holm, family = corrected.get(key), len(corrected)
        comparison = _compare(key, pairs[key], tests[key], p_holm, family, confidence)
        comparison.difference_to_static = static.difference if static else None
        comparison.p_static_holm = static_corrected.get(key)
        comparison.explanation = _explain(comparison, pairs[key].dropped, confidence)
        comparisons.append(comparison)
    return sorted(comparisons, key=_rank)


def _pair(results: Results, ours: str, theirs: str) -> _Pairs:
    a, b = results.finished(ours), results.finished(theirs)
    planned = {run.seed for run in results.runs if run.mechanism in (ours, theirs)}
    shared = [seed for seed in a if seed in b]
    dropped = sorted(planned.difference(shared))
    return _Pairs([a[seed] for seed in shared], [b[seed] for seed in shared], dropped)


def _correct(tests: dict[str, PairedTest | None]) -> dict[str, float]:
    ps = {key: test.p for key, test in tests.items() if test is not None}
    return dict(zip(ps, holm(list(ps.values())), strict=True))


def _compare(
    mechanism: str,
    pairs: _Pairs,
    test: PairedTest | None,
    p_holm: float | None,
    family: int,
    confidence: float,
) -> Comparison:
    seeds = len(pairs.ours)
    comparison = Comparison(mechanism=mechanism, seeds=seeds, verdict="no verdict", explanation="")
    if seeds:
        comparison.mean = fmean(run.accuracy for run in pairs.ours)
        comparison.difference = fmean(pairs.differences)
    if test is None or p_holm is None:
        return comparison
    comparison.interval = test.interval
    comparison.interval_both = _interval_over_both(pairs, confidence)
    comparison.p, comparison.p_holm, comparison.effect_size = test.p, p_holm, test.effect_size
    comparison.verdict = _verdict(test.difference, p_holm, 1 - confidence)
    comparison.seeds_needed = pairs_needed(pairs.differences, alpha=(1 - confidence) / family)
    return comparison


def _interval_over_both(pairs: _Pairs, confidence: float) -> Interval | None:
    ours, theirs = _image_values(pairs.ours), _image_values(pairs.theirs)
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return None
    return interval_over_both(ours, theirs, confidence=confidence)


def _image_values(runs: Sequence[RunResult]) -> NDArray[np.float64] | None:
    """``(seeds, images)``, or None if a run lacks it or the runs differ in their images."""
    rows = [values for run in runs if (values := run.image_values) is not None]
    sizes = {len(row) for row in rows}
    if len(rows) < len(runs) or len(sizes) != 1 or min(sizes) < 2:
        return None
    return np.array(rows, dtype=np.float64)


def _verdict(difference: float, p: float, alpha: float) -> Verdict:
    if p > alpha:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"


def _rank(comparison: Comparison) -> tuple[bool, float]:
    gain = comparison.difference
    return comparison.mechanism != STATIC, float("inf") if gain is None else -gain


def _explain(comparison: Comparison, dropped: Sequence[int], confidence: float) -> str:
    """The verdict in plain words."""
    sentences = {
        "better": _explain_clear,
        "worse": _explain_clear,
        "not distinguishable": _explain_unclear,
        "no verdict": _explain_none,
    }
    text = sentences[comparison.verdict](comparison, confidence)
    if dropped and comparison.seeds:
        text += f" Left out, as a run failed or is missing: {_seeds(dropped)}."
    return text


def _explain_none(comparison: Comparison, confidence: float) -> str:
    name, seeds = comparison.mechanism, comparison.seeds
    if not seeds:
        return f"No verdict on {name}: no seed has a finished run of both {name} and {BASELINE}."
    count = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
    return (
        f"No verdict on {name}: {count} too few to tell a difference from luck,"
        f" at least {MIN_PAIRS} seeds are needed"
        f" (seen: {signed(comparison.difference)} percentage points)."
    )


def _explain_clear(comparison: Comparison, confidence: float) -> str:
    text = f"{comparison.mechanism} is {comparison.verdict} than {BASELINE}: {_size(comparison)}."
    both = comparison.interval_both
    if both and both[0] <= 0 <= both[1]:
        text += " On other test images of the same kind the difference might vanish."
    if comparison.verdict == "better" and comparison.p_static_holm is not None:
        text += " " + _explain_static(comparison, 1 - confidence)
    return text


def _explain_static(comparison: Comparison, alpha: float) -> str:
    gain, p = comparison.difference_to_static, comparison.p_static_holm
    found = f"({signed(gain)} points, corrected p = {p_value(p)})"
    if p is not None and p <= alpha and gain is not None and gain > 0:
        return f"It beats the static gate too {found}: seeing the input is what helps."
    return (
        f"But it is not shown to beat the static gate {found}, which cannot see the input:"
        " seeing the input need not be what helps."
    )


def _explain_unclear(comparison: Comparison, confidence: float) -> str:
    name, seeds = comparison.mechanism, comparison.seeds
    text = f"{name} cannot be told from {BASELINE} with {seeds} seeds: {_size(comparison)}."
    if comparison.interval and not comparison.interval[0] <= 0 <= comparison.interval[1]:
        text += " Its interval excludes zero, but only before the correction for many mechanisms."
    if comparison.seeds_needed:
        count = at_most(comparison.seeds_needed).replace(">", "more than ")
        text += f" If the true difference is as large as this one, {count} seeds would show it."
    return text


def _size(comparison: Comparison) -> str:
    words = f"{signed(comparison.difference)} percentage points"
    if comparison.interval:
        low, high = comparison.interval
        words += f" ({signed(low)} to {signed(high)}"
    else:
        words += " (the same at every seed"
    return f"{words}; corrected p = {p_value(comparison.p_holm)})"


def _seeds(seeds: Iterable[int]) -> str:
    listed = ", ".join(str(seed) for seed in seeds)
    return f"seed {listed}" if "," not in listed else f"seeds {listed}"
