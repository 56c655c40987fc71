"""Statistics over seeds and tasks: means, interquartile means, and how far to trust them.

Scores are arrays [runs] or [runs, tasks]; any other raises ValueError. A NaN (a run that diverged) makes every
statistic NaN; nothing is dropped.
Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", section 4.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # which loads a part when it is first asked for: commands without statistics start in half the time
from jaxtyping import Float

Scores = np.ndarray | Sequence[float]
Statistic = Callable[[np.ndarray], float]


class Difference(NamedTuple):
    """Mean difference between paired runs, with its interval."""

    mean: float
    low: float
    high: float


def mean(values: Scores) -> float:
    """Mean over all runs and tasks."""
    return float(_checked(values).mean())


def iqm(values: Scores) -> float:
    """Interquartile mean over all runs and tasks: the mean of what is left without the lowest and highest quarter.

    A quarter is rounded down to whole scores, as in the authors' rliable; below four scores it is the mean.
    """
    scores = _checked(values).ravel()
    if np.isnan(scores).any():
        return float("nan")  # sorting would put a diverged run among the highest quarter, and drop it
    cut = len(scores) // 4
    return float(np.sort(scores)[cut : len(scores) - cut].mean())


def bootstrap_interval(
    values: Scores,
    statistic: Statistic = iqm,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of a statistic of scores [runs] or [runs, tasks].

    Runs are drawn with replacement, independently within each task (stratified). Expect it to be too narrow below
    about ten runs; one run says nothing about the others, so its interval is (nan, nan).
    """
    scores = _checked(values)
    if len(scores) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(scores), size=(samples, *scores.shape))
    estimates = [statistic(np.take_along_axis(scores, draw, axis=0)) for draw in draws]
    return _percentiles(np.asarray(estimates), level)


def paired_difference(
    a: Scores,
    b: Scores,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Mean of a - b and its bootstrap interval, where run i of both shares a seed (and task j of both is one task).

    Pairing removes what the seeds have in common; an interval without 0 says that the arms differ, if there are ten
    runs or so: see `t_difference` for fewer. Raises ValueError if the shapes differ.
    """
    difference = _paired(a, b)
    return Difference(mean(difference), *bootstrap_interval(difference, mean, level, samples, seed))


def t_difference(a: Scores, b: Scores, level: float = 0.95) -> Difference:
    """Mean of a - b and its interval by Student's t, for few paired runs, where a bootstrap interval is too narrow.

    Holds if differences are normal. NaN for one run; for scores [runs, tasks], runs are taken by their mean over tasks.
    Raises ValueError if the shapes differ.
    """
    difference = _paired(a, b)
    return Difference(mean(difference), *t_interval(difference, level))


def t_interval(values: Scores, level: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of the mean by Student's t, of scores [runs], or of their means over [runs, tasks].

    Holds if they are normal, however few they are; (nan, nan) for one run.
    """
    each = _checked(values).reshape(len(values), -1).mean(axis=1)
    half = np.nan if len(each) < 2 else scipy.stats.t.ppf((1 + level) / 2, len(each) - 1) * scipy.stats.sem(each)
    return float(mean(each) - half), float(mean(each) + half)


def detectable_difference(a: Scores, b: Scores, power: float = 0.8, level: float = 0.95) -> float:
    """Least true mean of a - b that as many runs, with differences as spread as these, would show with that `power`.

    "Show" is to be found by a two-sided paired t-test at `level`, so a lead that was missed is told from one that could
    not have been seen. NaN for one run; for scores [runs, tasks], runs are taken by their mean over tasks. Raises
    ValueError if the shapes differ.
    Source: Cohen 1988, "Statistical Power Analysis for the Behavioral Sciences", section 2.3 (noncentral t).
    """
    difference = _paired(a, b)
    runs = len(difference)
    if runs < 2:
        return float("nan")
    critical = scipy.stats.t.ppf((1 + level) / 2, runs - 1)
    shift = scipy.optimize.brentq(lambda x: scipy.stats.nct.sf(critical, runs - 1, x) - power, 0, 4 * critical)
    return float(shift / np.sqrt(runs) * difference.reshape(runs, -1).mean(axis=1).std(ddof=1))


def rank_correlation(x: Float[np.ndarray, " numbers"], y: Float[np.ndarray, " numbers"]) -> float:
    """Spearman's rank correlation; 0 where one of them is the same everywhere."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(x, y)[0])


def bootstrap_band(
    curves: Float[np.ndarray, "runs points"], level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Pointwise percentile bootstrap interval (low, high) of the mean curve; whole runs are drawn.

    With one run, the band is NaN everywhere.
    """
    num_runs = len(curves)
    if num_runs < 2:
        nothing = np.full(curves.shape[1], np.nan)
        return nothing, nothing
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=samples)
    means = counts @ curves / num_runs
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _checked(values: Scores) -> np.ndarray:
    """Scores as an array; raises ValueError unless it is [runs] or [runs, tasks] and not empty."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise ValueError(f"scores must be [runs] or [runs, tasks] and not empty, got shape {scores.shape}")
    return scores


def _paired(a: Scores, b: Scores) -> np.ndarray:
    """a - b; raises ValueError if the shapes differ."""
    first, second = _checked(a), _checked(b)
    if first.shape != second.shape:
        raise ValueError(f"paired scores need one shape, got {first.shape} and {second.shape}")
    return first - second


def _percentiles(estimates: np.ndarray, level: float) -> tuple[float, float]:
    """Interval that holds the middle `level` of the estimates."""
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
