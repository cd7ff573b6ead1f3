"""The statistics of paired differences: numbers in, numbers out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

MIN_PAIRS = 3
"""Below this many pairs the spread cannot be estimated well enough for any verdict."""
POWER = 0.8
SAME = 1e-9
"""Differences closer than this are equal: rounding must not pass for a tiny variance."""
MAX_PAIRS = 100_000

Values = NDArray[np.bool_] | NDArray[np.float64]


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test that the mean of paired differences is zero.

    ``interval`` and ``effect_size`` are None where all differences are equal: their spread, and
    with it the t test, is undefined.
    """

    difference: float
    interval: tuple[float, float] | None
    p: float
    effect_size: float | None


def paired_test(differences: Sequence[float], *, confidence: float = 0.95) -> PairedTest:
    """Student's paired t test, its interval, and Cohen's d of the pairs (Hedges' correction).

    Where all differences are equal the exact sign-flip test takes the place of the t test: its p
    is ``2 ** (1 - n)``, or 1 if they are all zero, so a constant gain over few pairs proves little.

    Args:
        differences: At least 3 finite differences.
        confidence: Of the interval, between 0 and 1.

    Example:
        >>> test = paired_test([1.0, 2.0, 3.0])
        >>> print(f"{test.difference:.1f} ({test.interval[0]:.2f}, {test.interval[1]:.2f})")
        2.0 (-0.48, 4.48)
    """
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    if np.ptp(values) < SAME:
        p = 1.0 if abs(mean) < SAME else 2.0 ** (1 - values.size)
        return PairedTest(mean, None, p, None)
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(confidence)
    effect = mean / float(values.std(ddof=1)) * hedges_correction(values.size)
    return PairedTest(mean, (float(low), float(high)), float(test.pvalue), effect)


def hedges_correction(pairs: int) -> float:
    """The factor that makes Cohen's d of ``pairs`` differences unbiased (Hedges 1981)."""
    df = pairs - 1
    log = special.gammaln(df / 2) - special.gammaln((df - 1) / 2) - math.log(df / 2) / 2
    return math.exp(log)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the p-values, as large as all of them together make them.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(ps, kind="stable")
    factors = np.arange(len(ps), 0, -1)
    corrected = np.minimum(1.0, np.maximum.accumulate(np.asarray(ps)[order] * factors))
    restored = np.empty_like(corrected)
    restored[order] = corrected
    return [float(p) for p in restored]


def pairs_needed(differences: Sequence[float], *, alpha: float = 0.05) -> int | None:
    """How many pairs show a difference as observed with 80 % power, by the noncentral t.

    Returns:
        At least 3, or None where no number can be told: all differences are equal, their mean is
        zero, or more than 100,000 pairs would be needed.
    """
    values = np.asarray(differences, dtype=np.float64)
    if np.ptp(values) < SAME:
        return None
    effect = abs(float(values.mean())) / float(values.std(ddof=1))
    if power(MAX_PAIRS, effect, alpha) < POWER:
        return None
    low, high = MIN_PAIRS - 1, MAX_PAIRS  # power is below the aim at low, or low is too few
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect, alpha) >= POWER else (middle, high)
    return high


def power(pairs: int, effect: float, alpha: float) -> float:
    """Chance that the two-sided paired t test at ``alpha`` sees a true effect, on its own side.

    The effect is the mean of the differences over their standard deviation.
    """
    critical = stats.t.isf(alpha / 2, pairs - 1)
    shift = min(effect * math.sqrt(pairs), 1e4)  # SciPy gives NaN beyond 1e8; the power is 1
    return float(stats.nct.sf(critical, pairs - 1, shift))


def interval_over_both(
    values: Values, baseline: Values, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean difference in percent when seeds and test images are both a sample.

    The variance is that of a two-way layout with random rows and columns, as radiology has it for
    readers and cases; the quantile is Student's for the seeds alone. So the interval contains that
    over the seeds, and is conservative where the images vary more than the seeds.

    Args:
        values: ``(seeds, images)``, of the mechanism's runs: 1 for each image that is right, or
            what else has the metric as its mean.
        baseline: The same for the baseline: rows are paired by seed, columns by image.
        confidence: Of the interval, between 0 and 1.

    Source:
        Hillis, A comparison of denominator degrees of freedom methods for multiple observer ROC
        analysis, Statistics in Medicine 2007 (the variance).
    """
    difference = 100.0 * (values.astype(np.float64) - baseline.astype(np.float64))
    seeds, images = difference.shape
    mean = difference.mean()
    rows = difference.mean(axis=1, keepdims=True)  # (S, 1)
    columns = difference.mean(axis=0, keepdims=True)  # (1, N)
    residual = difference - rows - columns + mean
    ms_rows = images * np.square(rows - mean).sum() / (seeds - 1)
    ms_columns = seeds * np.square(columns - mean).sum() / (images - 1)
    ms_residual = np.square(residual).sum() / ((seeds - 1) * (images - 1))
    variance = (ms_rows + max(ms_columns - ms_residual, 0.0)) / difference.size
    half = stats.t.isf((1 - confidence) / 2, seeds - 1) * math.sqrt(variance)
    return float(mean - half), float(mean + half)
