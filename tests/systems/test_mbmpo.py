"""MB-MPO: which model a task has, what is stored, and who lives."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.adapt.gradient import GradientSteps
from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.gaussian_policy import GaussianPolicy, practise
from metadyna.improve.meta import MetaTRPO
from metadyna.rollout import DeviceCollector, valid_steps
from metadyna.systems.mbmpo import MBMPO, Explorer, bounded, bounded_world, explore
from metadyna.types import TimeStep
from tests.tiny import CONTINUOUS

KEY = jax.random.key(0)
FAMILY = make("cartpole-balance")  # whose episodes end early
COLLECTOR = DeviceCollector(FAMILY.env, FAMILY.train)
SMALL = CONTINUOUS["mb-mpo"]


def test_tasks_share_the_models_in_order():
    """Reference card of MB-MPO, O14."""
    assert MBMPO(tasks=20).models.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert MBMPO().models.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="tasks = 7 cannot be shared equally among 5 models"):
        MBMPO(tasks=7)


def test_what_was_lived_is_stored_without_padding_and_counted():
    state = jax.jit(lambda key: SMALL.init(COLLECTOR, key))(KEY)
    explorers = Explorer(state.policies, jnp.ones(2, bool))
    tasks = jax.vmap(FAMILY.train.sample)(jax.random.split(KEY, 2))
    lived = COLLECTOR.episodes_of_each(explore, explorers, tasks, 3, KEY)
    valid = np.asarray(valid_steps(lived.last))
    assert 0 < valid.sum() < valid.size
    after, metrics = SMALL._learn(bounded_world(FAMILY.env), state, lived, KEY)
    assert after.real.added == after.steps == valid.sum()
    np.testing.assert_array_equal(after.real.items.obs[: valid.sum()], lived.obs[valid])
    assert after.real.items.discount[: valid.sum()].sum() == valid.sum() - 6  # every end was a fall
    assert after.starts.added == 6
    np.testing.assert_array_equal(after.starts.items[:6], lived.obs[0].reshape(6, 4))
    returned = metrics["train/episode_return"]
    assert returned.total / returned.weight == pytest.approx(valid.sum() / 6)


def test_the_policies_to_live_with_are_those_that_adapt():
    world = bounded_world(FAMILY.env)
    for rate, moved in ((0.5, True), (0.0, False)):
        system = replace(SMALL, learner=MetaTRPO(GradientSteps(rate=rate)))
        state = jax.jit(lambda key, system=system: system.init(COLLECTOR, key))(KEY)
        starts = jax.random.uniform(KEY, (8, 4), minval=-0.05, maxval=0.05)
        state = state._replace(starts=state.starts._replace(items=state.starts.items.at[:8].set(starts), added=8))
        after, metrics = system._meta_learn(world, state, KEY)
        weights, policies = after.meta.weights.mlp.layers[0].weight, after.policies.mlp.layers[0].weight
        assert not np.array_equal(weights, state.meta.weights.mlp.layers[0].weight)
        apart = np.abs(policies - weights[None]).max(axis=(1, 2))
        assert (apart > 1e-6).all() if moved else (apart == 0).all()
        assert np.isfinite(metrics["train/adaptation_gain"].total)


def test_exploring_is_random_or_the_policy():
    policy = GaussianPolicy.create(4, 1, (8,), KEY, log_std=2.0)
    one, no = jnp.float32(1), jnp.bool_(False)
    timestep = TimeStep(jnp.ones(4), one, one, no, no, jnp.zeros(1))
    keys = jax.random.split(KEY, 200)
    act = jax.vmap(lambda random, key: explore(Explorer(policy, random), (), timestep, key)[0], (None, 0))
    drawn = jax.vmap(lambda key: practise(policy, (), timestep, key)[0])(keys)
    np.testing.assert_array_equal(act(jnp.bool_(False), keys), drawn)
    anything = np.asarray(act(jnp.bool_(True), keys))
    assert np.abs(anything).max() <= 1
    assert np.abs(anything.mean()) < 0.2
    assert anything.std() == pytest.approx(3**-0.5, rel=0.15)


def test_nothing_runs_away():
    np.testing.assert_array_equal(
        bounded(jnp.array([0.0, 999.0, -999.0]), jnp.array([1.0, 1e30, -1e30])), [1, 1000, -1000]
    )
