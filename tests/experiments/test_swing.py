"""Measurements on the pendulum: true dynamics are true, arms share their starts, and each gives what it names."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.windows import History
from metadyna.experiments import figures, swing
from metadyna.experiments.swing import Compounding, Exploitation, FewData, Planners, Trials
from metadyna.models.truth import TrueDynamics
from metadyna.search.random import RandomShooting


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A planner of eight sequences and a model of eight units; enough to run, not to swing up.

    All plans have one horizon and all fits one length, and the tests share numbers of episodes: every other one is
    compiled anew.
    """
    search = replace(swing.AGENT.planner.search, population=8, elites=2, iterations=2)
    planner = replace(swing.AGENT.planner, search=search, horizon=5)
    model = replace(swing.AGENT.model, widths=(8,), weight_decay=(0.0, 0.0))
    monkeypatch.setattr(swing, "AGENT", replace(swing.AGENT, planner=planner, model=model))
    monkeypatch.setattr(swing, "FIT", replace(swing.FIT, max_updates=600))


def test_the_true_dynamics_predict_what_happens():
    episodes = swing.random_episodes(3, jax.random.key(0))
    rows = swing.flat(episodes)

    @jax.jit
    def foretold(rows):
        starts = jax.vmap(lambda obs: swing.TRUTH.begin(History(obs)))(rows.obs)
        return swing.TRUTH.step(*jax.tree.map(lambda x: x[None], (starts, rows.action)), None)[1].obs[0]

    np.testing.assert_allclose(foretold(rows), rows.next_obs, atol=2e-5)
    assert rows.reward.shape == (600,)
    np.testing.assert_array_equal(np.asarray(rows.obs)[200:400], np.asarray(episodes.obs)[:, 1])  # one after another


def test_reach_bounds_the_torques():
    actions = swing.random_rows(1, jax.random.key(1), 0.25).action
    assert 0.2 < np.abs(actions).max() <= 0.25


def test_planning_on_the_true_dynamics_promises_what_it_keeps():
    starts = swing.random_episodes(3, jax.random.key(2)).obs[0]
    for planned in (False, True):
        promised, kept = swing.promises(swing.TRUTH, starts, planned, jax.random.key(3))
        np.testing.assert_allclose(promised, kept, atol=2e-2)


def test_arms_of_trials_share_their_starts():
    key = jax.random.key(4)
    one = swing.planned_episodes(swing.AGENT, swing.TRUTH, 1, key)
    other = swing.random_rows(1, key)
    np.testing.assert_array_equal(np.asarray(one.obs)[0, 0], np.asarray(other.obs)[0])


@pytest.mark.parametrize(
    ("measure", "arms", "length"),
    [
        (Trials(episodes=2), 2, 2),
        (Planners(data=2, episodes=1), 5, 1),
        (Compounding(data=(2, 3), horizon=6, trajectories=3), 2, 6),
        (Exploitation(reach=1.0, data=2, starts=3), 4, 3),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_measurement_gives_finite_numbers_by_arm(measure, arms, length):
    found = measure(0)
    assert len(found) == arms
    assert all(len(values) == length and np.isfinite(values).all() for values in found.values())


def test_planners_of_a_figure_play_alike(monkeypatch):
    """As many episodes from the same starts in the same model; each has what its name says."""
    planned = {}

    def play(system, model, count, key):
        planned[len(planned)] = system.planner, model, count, jax.random.key_data(key).tolist()
        return count * [0.0]

    monkeypatch.setattr(swing, "play", play)
    monkeypatch.setattr(swing, "learn", lambda *_: swing.TRUTH)
    monkeypatch.setattr(swing, "AGENT", replace(swing.AGENT, planner=replace(swing.AGENT.planner, horizon=7)))
    found = Planners(data=2, episodes=3)(0)
    assert {len(values) for values in found.values()} == {3}
    assert len({str(x[2:]) for x in planned.values()}) == 1
    planner = swing.AGENT.planner
    shooting = replace(planner, search=RandomShooting(2 * 8))
    planners = dict(zip(found, (each[0] for each in planned.values()), strict=False))
    assert planners == {
        "CEM, true dynamics": planner,
        "CEM, learnt model": planner,
        "random shooting": shooting,
        "CEM, horizon 5": replace(planner, horizon=5),
    }


def test_a_measurement_repeats_itself():
    measure = Compounding(data=(2,), horizon=6, trajectories=3)
    assert measure(3) == measure(3) != measure(4)


def test_a_single_network_learns_from_all_rows_and_shares_data_and_starts(monkeypatch):
    """Both arms of the figure; five networks that are one in all but their number are as good as it."""
    learnt, planned = [], []
    learn, promises = swing.learn, swing.promises
    monkeypatch.setattr(swing, "learn", lambda *x: learnt.append(x) or learn(*x))
    monkeypatch.setattr(swing, "promises", lambda *x: planned.append(x) or promises(*x))
    ensemble, single = (replace(arm, data=2, starts=3, tests=2) for arm in figures.FEW_DATA.arms.values())
    found = [each(0) for each in (ensemble, single)]
    (model, rows, key, fit), (model_1, rows_1, key_1, fit_1) = learnt
    assert (model.members, model.elites, fit.bootstrap) == (5, 5, True)
    assert (model_1.members, model_1.elites, fit_1.bootstrap) == (1, 1, False)
    assert replace(model_1, members=5, elites=5) == model
    assert replace(fit_1, bootstrap=True) == fit
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(key_1))
    jax.tree.map(np.testing.assert_array_equal, rows, rows_1)
    np.testing.assert_array_equal(planned[0][1], planned[1][1])
    assert np.abs(rows.action).max() <= 0.25
    assert set(found[0]) - set(found[1]) == {"rank correlation of disagreement and error"}
    assert all(np.isfinite(value) for each in found for value in each.values())
    assert -1 <= found[0]["rank correlation of disagreement and error"] <= 1


def test_no_sequence_earns_less_than_the_least():
    obs = swing.random_rows(2, jax.random.key(6)).next_obs
    obs = np.concatenate([obs, np.float32([[-1.0, 0.0, 8.0]])])  # and the worst
    action = np.ones((len(obs), 1), np.float32)
    rewards = np.asarray(jax.jit(jax.vmap(swing.WORLD.reward))(obs, action, obs))
    assert rewards.min() == rewards[-1] == pytest.approx(swing.LEAST_REWARD)


def test_errors_are_those_of_the_mean_and_disagreement_is_about_it():
    """Members that add 1 and 3 to the truth of every entry: their mean errs by 2, each is 1 from it."""

    class Apart(TrueDynamics):
        def step(self, latent, action, noise):
            latent, told = super().step(latent, action, noise)
            return latent, told._replace(obs=told.obs + jnp.array([1.0, 3.0])[:, None, None])

    error, disagreement = swing.one_step_errors(
        Apart(swing.PENDULUM, num_members=2), swing.random_rows(1, jax.random.key(5))
    )
    np.testing.assert_allclose(error, 2, rtol=1e-4)
    np.testing.assert_allclose(disagreement, 1, rtol=1e-4)


def test_figures_measure_with_these():
    arms = [
        arm for figure in figures.FIGURES.values() for study in figure.budgets.values() for arm in study.arms.values()
    ]
    assert {type(arm) for arm in arms} >= {Trials, Planners, Compounding, Exploitation, FewData}
    for study, length in ((figures.PETS_TRIALS, 9), (figures.COMPOUNDING, 50)):
        assert len(study.report.keywords["x"]) == length
