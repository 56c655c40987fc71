"""SAC: when it guesses, when it begins to learn, and from what."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import valid_steps
from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.improve.sac import SAC
from metadyna.systems.sac import SoftActorCritic
from metadyna.types import Transition
from tests.tiny import CONTINUOUS

KEY = jax.random.key(0)
SMALL = replace(CONTINUOUS["sac"], sac=SAC(batch=12), parallel=2, collect=5, updates_per_step=3)
FAMILY = make("point-mass")
COLLECTOR = DeviceCollector(FAMILY.env, FAMILY.train)


def born(system=SMALL):
    """A state whose policy always pushes both ways as hard as it can."""
    state = jax.jit(lambda key: system.init(COLLECTOR, key))(KEY)
    bias = lambda learner: learner.actor.mlp.layers[-1].bias  # noqa: E731
    return state._replace(learner=eqx.tree_at(bias, state.learner, jnp.array([9.0, -9.0, -9.0, -9.0])))


@pytest.fixture
def counted(monkeypatch):
    """A count and a look at the batch in the place of an update."""

    def update(settings, learner, batch, key):
        noise = jax.random.uniform(key)
        told = {"reward": batch.reward, "squares": batch.reward**2, "noise": noise, "noise_squared": noise**2}
        return learner._replace(updates=learner.updates + 1), told

    monkeypatch.setattr(SAC, "update", update)


@pytest.mark.parametrize("warmup", [0, 20])
def test_random_actions_come_first_and_updates_after_them(warmup, counted):
    system = replace(SMALL, warmup=warmup)
    state, iterate = born(system), jax.jit(lambda state, key: system.iterate(state, COLLECTOR, key))
    for steps in (10, 20, 30):
        state, told = iterate(state, jax.random.fold_in(KEY, steps))
        due = 30 if steps > warmup else 0  # 3 for each of 10 steps
        assert (state.steps, state.replay.added, told["train/reward"].weight) == (steps, steps, due)
    assert state.learner.updates == (30 if warmup else 90)
    action = np.asarray(state.replay.items.action[:30])
    guessed, chosen = action[:warmup], action[warmup:]
    np.testing.assert_allclose(chosen, np.tile([1.0, -1.0], (30 - warmup, 1)), atol=1e-3)
    assert len(np.unique(guessed)) == 2 * warmup
    assert (np.abs(guessed) < 0.999).all()
    obs, next_obs = (np.asarray(x[:30]).reshape(3, 5, 2, 2) for x in state.replay.items[:5:4])
    np.testing.assert_array_equal(obs[:, 1:], next_obs[:, :-1])  # both copies go on, step by step


def lived(first):
    """Steps [5, 2] that pay 1, 2, … more than the first."""
    reward = first + jnp.arange(10.0).reshape(5, 2)
    obs = jnp.broadcast_to(reward[..., None], (5, 2, 2))
    return Transition(obs, obs, reward, jnp.ones((5, 2)), obs + 1, jnp.zeros((5, 2), bool))


def test_what_was_lived_is_stored_and_learnt_from_at_once(counted):
    """Of 10 rows from before and 10 new ones, all are drawn and none of the 80 empty slots."""
    state = born()
    state, _ = SMALL._improve(state, lived(100), KEY)
    state, told = SMALL._improve(state._replace(steps=jnp.int32(30)), lived(200), KEY)
    assert (state.steps, state.learner.updates) == (40, 30)
    np.testing.assert_array_equal(state.replay.items.reward[:20], [*range(100, 110), *range(200, 210)])
    np.testing.assert_array_equal(state.replay.items.obs[:20, 0], state.replay.items.reward[:20])
    mean = told["train/reward"].total / 30
    assert mean.shape == (12,)
    assert np.mean(mean) == pytest.approx(154.5, abs=10)
    assert min(mean) > 110  # batches differ: no row of theirs has always been an old one
    assert max(mean) < 199
    spread = told["train/noise_squared"].total / 30 - (told["train/noise"].total / 30) ** 2
    assert np.sqrt(spread) == pytest.approx(12**-0.5, abs=0.08)  # and so do the draws within updates


def test_trials_take_the_likeliest_action():
    state = jax.jit(lambda key: SMALL.init(COLLECTOR, key))(KEY)
    run = jax.jit(lambda params: SMALL.trial(params, COLLECTOR, jnp.zeros((3, 1)), KEY))
    episodes = run(SMALL.params(state)).episodes
    obs, action, last = (x[:, :, 0, 0] for x in (episodes.obs, episodes.action, episodes.last))
    meant = jnp.tanh(jax.vmap(jax.vmap(state.learner.actor.mlp))(obs)[..., :2])
    valid = np.asarray(valid_steps(last))
    np.testing.assert_allclose(np.asarray(action)[valid], np.asarray(meant)[valid], atol=1e-5)


def test_an_iteration_fits_the_replay():
    with pytest.raises(UserError, match=r"SoftActorCritic\.capacity = 9 .* \(2 × 5\); raise it"):
        SoftActorCritic(parallel=2, collect=5, capacity=9)
    SoftActorCritic(parallel=2, collect=5, capacity=10)
