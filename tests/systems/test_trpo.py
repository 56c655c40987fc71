"""TRPO: what it makes of experience before the step, and which baseline it is weighed by."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.episodes import valid_steps
from metadyna.envs import make
from metadyna.improve.on_policy import log_probs
from metadyna.systems import trpo
from metadyna.types import Transition
from tests.arrays import normal, replaced
from tests.systems.test_ppo import Eager
from tests.tiny import CONTINUOUS

KEY = jax.random.key(0)
SMALL = replace(CONTINUOUS["trpo"], collect=8, discount=0.8, gae_decay=0.5)
FAMILY = make("point-mass")
COLLECTOR = Eager(FAMILY.env, FAMILY.train)


@pytest.fixture(scope="module")
def born():
    """A state whose policy and baseline depend on what is seen: 0.5 x + y² + 0.1 times the step's number."""
    state = jax.jit(lambda key: SMALL.init(COLLECTOR, key))(KEY)
    last = lambda policy: policy.mlp.layers[-1].weight  # noqa: E731
    policy = eqx.tree_at(last, state.policy, replace_fn=lambda x: 100 * x)
    weights = jnp.array([0.5, 0, 0, 1, 10, 0, 0, 0])
    return state._replace(policy=policy, baseline=replace(state.baseline, weights=weights))


@pytest.fixture
def steps(monkeypatch):
    """The experience that reaches each step, which then does nothing; who compiles it takes it out."""
    seen = []

    def look(settings, policy, data):
        assert settings == SMALL.trpo
        seen.append(data)
        return policy, {"kl": jnp.float32(3)}

    monkeypatch.setattr(trpo, "trust_region_step", look)
    return seen


def value(obs, time):
    return 0.5 * obs[..., 0] + obs[..., 1] ** 2 + 0.1 * time


def test_advantages_by_hand(born, steps):
    """One copy terminates at its second step, the other meets the time limit at its third."""
    obs, next_obs, action = normal(3, 4, 2, 2)
    last = np.array([[False, False], [True, False], [False, True], [False, False]])
    discount = replaced(np.ones((4, 2), np.float32), (1, 0), 0)
    reward = np.float32([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0], [2.0, 1.0]])
    lived = Transition(obs, action, reward, discount, next_obs, last, np.zeros((4, 2), np.float32))
    improve = jax.jit(lambda *lived: (SMALL._improve(born._replace(env=()), *lived), steps.pop()))
    (after, told), data = improve(lived, np.int32([3, 0]))

    time = np.array([[3, 0], [4, 1], [0, 2], [1, 0]])  # goes on, and begins anew
    here, there = value(obs, time), value(next_obs, time + 1)
    advantage, target = np.zeros((4, 2)), np.zeros((4, 2))
    for copy in range(2):
        for t in reversed(range(4)):
            future = 0.8 * discount[t, copy] * there[t, copy]
            cut = t == 3 or last[t, copy]
            error = reward[t, copy] + future - here[t, copy]
            advantage[t, copy] = error + (0 if cut else 0.8 * 0.5 * advantage[t + 1, copy])
            target[t, copy] = reward[t, copy] + (future if cut else 0.8 * target[t + 1, copy])
    np.testing.assert_array_equal(data.time, time)
    np.testing.assert_allclose(data.advantage, (advantage - advantage.mean()) / advantage.std(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(data.target, target, rtol=1e-4)
    assert np.asarray(data.valid).all()
    assert after.steps == 8
    assert told["train/kl"].total == 3
    fitted = jax.jit(lambda *seen: born.baseline.fit(*seen))(
        obs.reshape(8, 2), np.float32(time.ravel()), np.float32(target.ravel()), np.ones(8, bool)
    )
    np.testing.assert_allclose(after.baseline.weights, fitted.weights, rtol=1e-3, atol=1e-3)


def test_episodes_go_on_from_iteration_to_iteration(born, steps):
    """20 steps each of episodes of 30; what is learnt from is what was lived with the policy as it is."""
    system, state, lived = replace(SMALL, collect=20), born, []

    @jax.jit
    def iterate(state, key):
        state, _ = system.iterate(state, COLLECTOR, key)
        data = steps.pop()
        return state, data, log_probs(born.policy, data)

    for i in range(2):
        state, data, expected = iterate(state, jax.random.fold_in(KEY, i))
        lived.append(jax.tree.map(np.asarray, data))
        assert state.steps == 40 * (i + 1)
        np.testing.assert_allclose(expected, data.steps.extras, atol=1e-5)
    time, last = (np.concatenate(kept) for kept in zip(*[(data.time, data.steps.last) for data in lived], strict=True))
    assert last.sum() >= 2
    np.testing.assert_array_equal(time[0], 0)
    np.testing.assert_array_equal(time[1:], np.where(last[:-1], 0, time[:-1] + 1))
    obs, next_obs = (np.concatenate([getattr(data.steps, name) for data in lived]) for name in ("obs", "next_obs"))
    np.testing.assert_array_equal(obs[1:][~last[:-1]], next_obs[:-1][~last[:-1]])


def test_an_iteration_moves_the_policy_within_its_bound(born):
    after, told = jax.jit(lambda state, key: SMALL.iterate(state, COLLECTOR, key))(born, KEY)
    assert after.steps == 16
    assert 0 < told["train/kl"].total <= SMALL.trpo.max_kl
    leaves = zip(*map(jax.tree.leaves, (after.policy, born.policy)), strict=True)
    moved = [np.abs(np.asarray(x) - np.asarray(y)).max() for x, y in leaves]
    assert min(moved) > 0


def test_trials_take_the_likeliest_action(born):
    run = jax.jit(lambda params: SMALL.trial(params, COLLECTOR, jnp.zeros((3, 1)), KEY))
    episodes = run(SMALL.params(born)).episodes
    obs, action, last = (x[:, :, 0, 0] for x in (episodes.obs, episodes.action, episodes.last))
    meant, valid = jax.vmap(jax.vmap(born.policy.mlp))(obs), np.asarray(valid_steps(last))
    np.testing.assert_allclose(np.asarray(action)[valid], np.asarray(meant)[valid], atol=1e-5)
