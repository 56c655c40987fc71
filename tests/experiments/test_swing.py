"""Measurements on the pendulum: true dynamics are true, arms share their starts, and each gives what it names."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.experiments import figures, swing
from metadyna.experiments.swing import Compounding, Exploitation, FewData, Planners, Trials


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A planner of eight sequences and a model of eight units; enough to run, not to swing up."""
    planner = replace(
        swing.AGENT.planner, search=replace(swing.AGENT.planner.search, population=8, elites=2, iterations=2)
    )
    model = replace(swing.AGENT.model, widths=(8,), weight_decay=(0.0, 0.0))
    monkeypatch.setattr(swing, "AGENT", replace(swing.AGENT, planner=planner, model=model))
    monkeypatch.setattr(swing, "FIT", replace(swing.FIT, max_updates=300))


def test_the_true_dynamics_predict_what_happens():
    episodes = swing.random_episodes(3, jax.random.key(0))
    rows = swing.flat(episodes)
    inputs = jax.vmap(swing.WORLD.inputs)(rows.obs, rows.action)
    change = swing.TruePendulum().sample(inputs[None], None)[0]
    np.testing.assert_allclose(rows.obs + change, rows.next_obs, atol=2e-5)
    assert rows.reward.shape == (600,)
    np.testing.assert_array_equal(rows.obs[200:400], episodes.obs[:, 1])  # episode after episode


def test_reach_bounds_the_torques():
    actions = swing.random_rows(1, jax.random.key(1), 0.25).action
    assert 0.2 < jnp.abs(actions).max() <= 0.25


def test_planning_on_the_true_dynamics_promises_what_it_keeps():
    starts = swing.random_episodes(4, jax.random.key(2)).obs[0]
    for planned in (False, True):
        gap = swing.optimism(swing.TruePendulum(), starts, planned, jax.random.key(3))
        np.testing.assert_allclose(gap, 0, atol=2e-2)


def test_arms_of_trials_share_their_starts():
    key = jax.random.key(4)
    one = swing.planned_episodes(swing.AGENT, swing.TruePendulum(), 1, key)
    other = swing.random_episodes(1, key)
    np.testing.assert_array_equal(one.obs[0], other.obs[0])


@pytest.mark.parametrize(
    ("measure", "arms", "length"),
    [
        (Trials(episodes=2), 2, 2),
        (Planners(data=1, episodes=2), 5, 2),
        (Compounding(data=(1, 2), horizon=6, trajectories=3), 2, 6),
        (Exploitation(reach=1.0, data=2, starts=3), 4, 3),
        (FewData(transitions=(10,), episodes=1), 2, 1),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_measurement_gives_finite_numbers_by_arm(measure, arms, length):
    found = measure(0)
    assert len(found) == arms
    assert all(len(values) == length and np.isfinite(values).all() for values in found.values())


def test_a_measurement_repeats_itself():
    measure = Compounding(data=(1,), horizon=6, trajectories=3)
    assert measure(3) == measure(3) != measure(4)


def test_figures_measure_with_these(tmp_path):
    used = {
        type(each.measure)
        for figure in figures.FIGURES.values()
        for each in figure.budgets.values()
        if isinstance(each, figures.Measurement)
    }
    assert used == {Trials, Planners, Compounding, Exploitation, FewData}
    for name in ("pets-trials", "compounding-error", "few-data"):
        each = figures.find(name, "quick")
        assert isinstance(each, figures.Measurement)
        assert len(each.x) == {"pets-trials": 9, "compounding-error": 50, "few-data": 3}[name]
    trials, compounding = figures.find("pets-trials", "quick"), figures.find("compounding-error", "quick")
    assert len(trials.x) == trials.measure.episodes
    assert len(compounding.x) == compounding.measure.horizon
