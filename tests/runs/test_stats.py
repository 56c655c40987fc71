"""Statistics against hand-computed values, scipy and simulation."""

import numpy as np
import pytest
from scipy.stats import trim_mean, ttest_1samp

from metadyna.runs.stats import (
    bootstrap_band,
    bootstrap_interval,
    detectable_difference,
    iqm,
    mean,
    paired_difference,
    t_difference,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(8.0), 3.5),
        ([-1000.0, 1.0, 3.0, 1000.0], 2.0),
        ([1.0, 2.0, 300.0], 101.0),
        ([5.0], 5.0),
        ([0.0, 1.0, 2.0, 3.0, 100.0], 2.0),  # five scores lose one at each end
        (np.arange(8.0).reshape(4, 2), 3.5),
    ],
)
def test_iqm_by_hand(values, expected):
    assert iqm(values) == pytest.approx(expected)


@pytest.mark.parametrize("num_runs", range(1, 14))
def test_iqm_is_the_trimmed_mean_of_rliable(num_runs):
    scores = np.random.default_rng(num_runs).standard_normal((num_runs, 3))
    assert iqm(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None))


def test_a_diverged_run_is_never_dropped():
    scores = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    assert np.isnan([iqm(scores), mean(scores), *bootstrap_interval(scores, iqm)]).all()


def test_constant_scores_have_an_interval_of_width_zero():
    assert bootstrap_interval(np.full((5, 3), 2.5), iqm) == (2.5, 2.5)
    assert paired_difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]) == (2.0, 2.0, 2.0)


def test_one_run_has_no_interval():
    assert np.isnan(bootstrap_interval([1.0], mean)).all()
    assert np.isnan(bootstrap_band(np.ones((1, 4)))).all()


def test_two_runs_by_enumeration():
    # Resamples of {0, 1} have mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0], mean, level=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], mean, level=0.4) == (0.5, 0.5)
    np.testing.assert_array_equal(bootstrap_band(np.array([[0.0], [1.0]])), [[0.0], [1.0]])


def test_tasks_are_resampled_apart():
    # The tasks differ and the runs within a task do not: drawing within tasks leaves nothing to vary.
    scores = np.tile([0.0, 10.0, 200.0], (6, 1))
    assert bootstrap_interval(scores, mean) == (70.0, 70.0)
    # Independent draws per task average out; drawing whole runs would keep the full spread.
    correlated = np.tile(np.arange(6.0)[:, None], (1, 50))
    low, high = bootstrap_interval(correlated, mean)
    assert high - low < 0.5


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    num_trials, covered = 300, 0
    for trial in range(num_trials):
        low, high = bootstrap_interval(generator.standard_normal(30), mean, level=0.9, samples=300, seed=trial)
        covered += low <= 0 <= high
    # The bootstrap of 30 runs is slightly narrow (about 0.88); the standard error of the estimate is 0.018.
    assert 0.83 <= covered / num_trials <= 0.94


def test_pairing_removes_what_the_seeds_share():
    generator = np.random.default_rng(0)
    seed_effect = 10 * generator.standard_normal(10)
    difference = paired_difference(seed_effect + 1 + 0.1 * generator.standard_normal(10), seed_effect)
    assert 0.8 < difference.low < difference.mean < difference.high < 1.2


@pytest.mark.parametrize(("runs", "effect"), [(5, 1.682), (10, 0.996), (34, 0.495)])
def test_what_a_paired_test_can_show_is_what_tables_of_power_say(runs, effect):
    # Effects in deviations of the differences; 34 pairs is the usual answer for an effect of one half.
    spread = np.arange(runs) - np.mean(np.arange(runs))
    found = detectable_difference(7 + spread, np.full(runs, 7.0))
    assert found == pytest.approx(effect * spread.std(ddof=1), rel=1e-3)
    assert np.isnan(detectable_difference([1.0], [0.0]))
    assert detectable_difference([1.0, 2.0], [0.0, 1.0]) == 0


def test_what_can_be_shown_is_found_as_often_as_said():
    generator = np.random.default_rng(0)
    effect = detectable_difference([1.0, -1.0, 0.5, -0.5, 0.0], 5 * [0.0])
    draws = effect + np.std([1.0, -1.0, 0.5, -0.5, 0.0], ddof=1) * generator.standard_normal((20_000, 5))
    assert np.mean(ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)


def test_band_is_the_interval_at_each_point():
    curves = np.random.default_rng(0).standard_normal((12, 3))
    low, high = bootstrap_band(curves, samples=20_000)
    for point in range(3):
        expected = bootstrap_interval(curves[:, point], mean, samples=20_000)
        assert (low[point], high[point]) == pytest.approx(expected, abs=0.05)


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(0).standard_normal(7)
    assert bootstrap_interval(scores, iqm, seed=3) == bootstrap_interval(scores, iqm, seed=3)
    assert bootstrap_interval(scores, iqm, seed=3) != bootstrap_interval(scores, iqm, seed=4)


def test_wrong_shapes_raise():
    with pytest.raises(ValueError, match="one shape"):
        paired_difference([1.0, 2.0], [1.0])
    for scores in (np.zeros((0,)), np.zeros((2, 2, 2)), np.float64(1)):
        with pytest.raises(ValueError, match="scores must be"):
            bootstrap_interval(np.asarray(scores), mean)


def test_the_t_interval_of_a_difference():
    found = t_difference([3.0, 5.0, 4.0, 8.0], [1.0, 2.0, 3.0, 4.0])  # 2, 3, 1, 4: mean 2.5, sd 1.291; t(3) = 3.1824
    assert found == pytest.approx((2.5, 2.5 - 3.1824 * 1.290994 / 2, 2.5 + 3.1824 * 1.290994 / 2), abs=1e-3)
    assert t_difference(np.array([[3.0, 5.0], [4.0, 8.0]]), np.zeros((2, 2)))[0] == 5
    one = t_difference([3.0], [1.0])
    assert one.mean == 2
    assert np.isnan(one[1:]).all()
    with pytest.raises(ValueError, match="one shape"):
        t_difference([1.0, 2.0], [1.0])
