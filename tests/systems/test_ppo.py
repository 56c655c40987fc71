"""PPO: what it makes of rewards and observations before the update, and where an episode's end counts."""

import functools
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import flat, valid_steps
from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.improve.ppo import PPO
from metadyna.nets.moments import Moments
from metadyna.systems.ppo import ProximalPolicyOptimisation
from metadyna.types import Transition
from tests.tiny import CONTINUOUS

KEY = jax.random.key(0)
SMALL = replace(CONTINUOUS["ppo"], discount=0.8, gae_decay=0.5)
FAMILY = make("point-mass")


@dataclass(frozen=True)
class Eager(DeviceCollector):
    """One that does not compile what it computes, so that tests may look in."""

    def compute(self, function, *arguments, static=(), spend=False):
        del spend
        return function(*static, *arguments)


COLLECTOR = Eager(FAMILY.env, FAMILY.train)


@functools.cache
def born(system=SMALL):
    """A state that has seen something, and whose policy and values depend on it."""
    state = jax.jit(lambda key: system.init(COLLECTOR, key))(KEY)
    last = lambda weights: weights.policy.mlp.layers[-1].weight  # noqa: E731
    learner = system.ppo.start(eqx.tree_at(last, state.learner.weights, replace_fn=lambda x: 100 * x))
    return state._replace(learner=learner, sight=state.sight.add(jax.random.normal(KEY, (50, 2)) * 2 + 1))


def shifted(state, obs):
    mean, std = np.asarray(state.sight.seen.mean), np.asarray(state.sight.seen.std)
    return jnp.asarray((np.asarray(obs) - mean) / std)


def lived():
    """Two copies, [4, 2]: one terminates at its second step, the other meets the time limit at its third."""
    obs, next_obs, action = jax.random.normal(KEY, (3, 4, 2, 2))
    last = jnp.array([[False, False], [True, False], [False, True], [False, False]])
    discount = jnp.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    reward = jnp.array([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0], [2.0, 1.0]])
    return Transition(obs, action, reward, discount, next_obs, last, jnp.arange(8.0).reshape(4, 2))


@pytest.fixture
def kept(monkeypatch):
    """What reaches the update, which then does nothing."""
    kept = {}

    def keep(settings, learner, batch, loss, key):
        del settings, key
        kept.update(batch=batch, loss=loss)
        return learner, {"loss": jnp.float32(2)}

    monkeypatch.setattr(PPO, "update", keep)
    return kept


def test_discounted_returns_begin_anew_with_every_episode():
    """Of 4 and 8 so far: 0.5 · 4 + 1 = 3, 0.5 · 3 + 2 = 3.5, the end, 3; and 5, 4.5, 5.25."""
    system = replace(SMALL, discount=0.5)
    state = born()._replace(discounted=jnp.array([4.0, 8.0]))
    steps = jax.tree.map(lambda x: x[:3], lived())
    last = jnp.zeros((3, 2), bool).at[1, 0].set(True)
    steps = steps._replace(reward=jnp.repeat(jnp.arange(1.0, 4.0)[:, None], 2, axis=1), last=last)
    discounted, returns = system._follow(state, steps)
    np.testing.assert_allclose(discounted, [3, 5.25])
    totals = [3, 3.5, 3, 5, 4.5, 5.25]
    np.testing.assert_allclose((returns.number, returns.mean, returns.std), (6, np.mean(totals), np.std(totals)))
    ended, _ = system._follow(state, steps._replace(last=last.at[2, 1].set(True)))
    np.testing.assert_allclose(ended, [3, 0])
    _, more = system._follow(state._replace(returns=returns), steps)
    assert more.number == 12


def test_advantages_by_hand(kept):
    """Nothing is worth anything after a termination; a time limit is bootstrapped; neither is looked across."""
    state, steps = born()._replace(discounted=jnp.array([1.0, -1.0])), lived()
    after, told = SMALL._improve(state, steps, KEY)

    def value(obs):
        return np.asarray(jax.vmap(jax.vmap(state.learner.weights.value))(shifted(state, obs)))[..., 0]

    here, there = value(steps.obs), value(steps.next_obs)
    totals, advantage = np.zeros((4, 2)), np.zeros((4, 2))
    for copy, total in enumerate([1.0, -1.0]):
        for t in range(4):
            totals[t, copy] = total = 0.8 * total + steps.reward[t, copy]
            total = 0 if steps.last[t, copy] else total
        assert after.discounted[copy] == pytest.approx(float(total), rel=1e-5)
    assert after.returns.std == pytest.approx(np.std(totals), rel=1e-5)
    for copy in range(2):
        for t in reversed(range(4)):
            alive, cut = steps.discount[t, copy], t == 3 or steps.last[t, copy]
            error = steps.reward[t, copy] / np.std(totals) + 0.8 * alive * there[t, copy] - here[t, copy]
            advantage[t, copy] = error + (0 if cut else 0.8 * 0.5 * advantage[t + 1, copy])
    batch = kept["batch"]
    np.testing.assert_allclose(batch.advantage, advantage.ravel(), rtol=1e-4)
    np.testing.assert_allclose(batch.value_target, (advantage + here).ravel(), rtol=1e-4)
    np.testing.assert_array_equal(batch.log_prob, np.arange(8))
    np.testing.assert_array_equal(batch.action, flat(steps.action))
    assert after.steps == 8
    assert told["train/loss"].total == 2


def test_rewards_are_scaled_by_the_deviation_of_returns_and_clipped(kept):
    """The deviation is 2 after so much experience, whatever comes now; 50 / 2 is beyond 10."""
    state, steps = born(), lived()
    nothing = jax.tree.map(jnp.zeros_like, state.learner.weights.value)
    learner = eqx.tree_at(lambda learner: learner.weights.value, state.learner, nothing)
    state = state._replace(learner=learner, returns=Moments(jnp.float32(1e8), jnp.float32(0), jnp.float32(4e8)))
    steps = steps._replace(reward=jnp.array([[1.0, -2.0], [3.0, 50.0], [-50.0, 4.0], [2.0, 1.0]]))
    replace(SMALL, gae_decay=0.0)._improve(state, steps, KEY)
    np.testing.assert_allclose(kept["batch"].advantage, [0.5, -1, 1.5, 10, -10, 2, 1, 0.5], rtol=1e-4)


@pytest.mark.parametrize("normalise", [True, False])
def test_learning_reads_observations_as_acting_did(normalise, kept):
    """As shifted and scaled by what was seen before; what is seen now counts from the next iteration on."""
    system = replace(SMALL, normalise=normalise)
    state = born(system)
    after, _ = system.iterate(state, COLLECTOR, KEY)
    assert after.steps == 40
    batch, seen = kept["batch"], state.sight.seen
    shown = np.asarray(batch.obs)
    shown = shown * np.asarray(seen.std) + np.asarray(seen.mean) if normalise else shown
    assert np.abs(shown).max() <= 5  # places in the plane, again
    assert after.sight.seen.number == 90
    whole = np.concatenate([np.asarray(jax.random.normal(KEY, (50, 2)) * 2 + 1), shown])
    np.testing.assert_allclose(after.sight.seen.mean, whole.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(after.sight.seen.std, whole.std(axis=0), rtol=1e-4)
    loss, told = kept["loss"](state.learner.weights, batch)
    assert told["kl"] == pytest.approx(0, abs=1e-6)
    assert told["value_loss"] == pytest.approx(np.mean(np.square(batch.advantage)), rel=1e-4)
    later = kept["loss"](after.learner.weights, batch._replace(obs=after.sight(jnp.asarray(shown))))[1]
    assert (later["kl"] > 1e-4) == normalise
    assert np.isfinite(loss)


def test_an_iteration_is_so_many_updates_of_policy_and_values():
    state = born()
    after, told = jax.jit(lambda state, key: SMALL.iterate(state, COLLECTOR, key))(state, KEY)
    assert (after.steps, after.learner.updates) == (40, 4)
    old, new = (jax.tree.leaves(x.learner.weights) for x in (state, after))
    assert all((x != y).any() for x, y in zip(old, new, strict=True))  # of both networks
    assert np.isfinite(told["train/value_loss"].total)


def test_trials_take_the_likeliest_action():
    state = born()
    tasks = jnp.zeros((3, 1))
    episodes = jax.jit(lambda params: SMALL.trial(params, COLLECTOR, tasks, KEY))(SMALL.params(state)).episodes
    obs, action, last = (x[:, :, 0, 0] for x in (episodes.obs, episodes.action, episodes.last))
    meant = jax.vmap(jax.vmap(state.learner.weights.policy.mlp))(shifted(state, obs))
    valid = np.asarray(valid_steps(last))
    np.testing.assert_allclose(np.asarray(action)[valid], np.asarray(meant)[valid], atol=1e-5)


def test_every_minibatch_has_rows_to_compare():
    with pytest.raises(UserError, match=r"PPO\.minibatches = 8 .* \(3 × 5\); lower it"):
        ProximalPolicyOptimisation(PPO(minibatches=8), parallel=3, collect=5)
    ProximalPolicyOptimisation(PPO(minibatches=8), parallel=4, collect=4)
