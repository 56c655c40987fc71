"""CRAR: its data are there before the first update, its steps are updates, and its trials plan to several depths."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import valid_steps
from metadyna.envs import make
from metadyna.improve.abstract import AbstractLearning
from metadyna.nets.sight import sight
from metadyna.planning.acting import TreeActing
from tests.arrays import flat
from tests.tiny import ABSTRACT

KEY = jax.random.key(0)
SMALL = replace(ABSTRACT["crar"], acting=TreeActing((0, 2), epsilon=0.0), updates=50)
FAMILY = make("catcher")
COLLECTOR = DeviceCollector(FAMILY.env, FAMILY.train)


@pytest.fixture(scope="module")
def born():
    return jax.jit(lambda key: SMALL.init(COLLECTOR, key))(KEY)


def test_the_data_are_there_before_the_first_update(born):
    assert born.data.reward.shape == (200,)
    assert SMALL.steps(born) == 0
    jax.tree.map(np.testing.assert_array_equal, born.learner.weights, born.learner.target)
    assert np.abs(np.asarray(born.data.obs) - np.asarray(born.data.next_obs)).max() > 0
    assert len(np.unique(born.data.action)) == 2


def test_updates_draw_batches_of_all_the_data(born, monkeypatch):
    """Rows of number 100 to 299; 50 batches of 4."""

    def update(learning, learner, batch, see):
        assert (learning, see) == (SMALL.learning, sight(FAMILY.env))
        told = {"reward": batch.reward, "seen": jnp.zeros(200).at[batch.reward.astype(int) - 100].add(1)}
        return learner._replace(updates=learner.updates + 1), told

    monkeypatch.setattr(AbstractLearning, "update", update)
    numbered = born._replace(data=born.data._replace(reward=jnp.asarray(np.arange(100, 300, dtype=np.float32))))
    after, told = SMALL.iterate(numbered, COLLECTOR, KEY)
    assert SMALL.steps(after) == 50
    jax.tree.map(np.testing.assert_array_equal, after.data, numbered.data)
    assert told["train/reward"].total.shape == (4,)
    seen = np.asarray(told["train/seen"].total)
    assert seen.sum() == 200
    assert (seen > 0).sum() == pytest.approx(200 * (1 - np.exp(-1)), abs=20)
    assert seen[:50].sum() > 30
    assert seen[150:].sum() > 30
    assert told["train/seen"].weight == 50
    other = SMALL.iterate(numbered, COLLECTOR, jax.random.key(1))[1]
    assert (other["train/seen"].total != seen).any()


def test_an_iteration_learns(born):
    system = replace(SMALL, updates=2)
    after, told = jax.jit(lambda state, key: system.iterate(state, COLLECTOR, key))(born, KEY)
    assert system.steps(after) == 2
    assert (flat(after.learner.weights) != flat(born.learner.weights)).any()
    assert system.params(after) is after.learner.weights  # and not the target's
    assert all(np.isfinite(value.total) for value in told.values())


def test_trials_play_every_task_at_every_depth(born):
    model, see = born.learner.weights, sight(FAMILY.env)

    @jax.jit
    def play(params, key):
        tasks = jax.vmap(FAMILY.train.sample)(jax.random.split(key, 3))
        return SMALL.trial(params, COLLECTOR, tasks, key)

    trial = play(SMALL.params(born), KEY)
    assert (trial.names, trial.score) == (("depth 0", "depth 2"), "last")
    assert trial.episodes.reward.shape == (FAMILY.env.spec.horizon, 3, 2, 1)
    episodes = trial.episodes
    obs, action, last = (np.asarray(x)[:, :, 0, 0] for x in (episodes.obs, episodes.action, episodes.last))
    values = jax.jit(jax.vmap(lambda obs: jax.vmap(model.value)(see(model.encoder, obs))))(obs)
    valid = np.asarray(jax.jit(valid_steps)(last))
    np.testing.assert_array_equal(action[valid], np.argmax(values, axis=-1)[valid])  # depth 0 asks Q alone
