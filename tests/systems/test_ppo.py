"""PPO: what it makes of rewards and observations before the update, and where an episode's end counts."""

import functools
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import valid_steps
from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.improve.ppo import PPO
from metadyna.nets.moments import Moments
from metadyna.systems.ppo import ProximalPolicyOptimisation, Sight
from metadyna.types import Transition
from tests.arrays import normal, replaced
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
SEEN = jnp.asarray(2 * normal(50, 2) + 1)
std = jax.jit(lambda moments: moments.std)


@functools.cache
def born(system=SMALL):
    """A state that has seen something, and whose policy and values depend on it."""
    last = lambda weights: weights.policy.mlp.layers[-1].weight  # noqa: E731

    @jax.jit
    def start(key):
        state = system.init(COLLECTOR, key)
        learner = system.ppo.start(eqx.tree_at(last, state.learner.weights, replace_fn=lambda x: 100 * x))
        return state._replace(learner=learner, sight=state.sight.add(SEEN))

    return start(KEY)


def shifted(state, obs):
    seen = state.sight.seen
    return (np.asarray(obs) - np.asarray(seen.mean)) / np.asarray(std(seen))


def lived():
    """Two copies, [4, 2]: one terminates at its second step, the other meets the time limit at its third."""
    obs, next_obs, action = normal(3, 4, 2, 2)
    last = np.array([[False, False], [True, False], [False, True], [False, False]])
    discount = np.float32([[1, 1], [0, 1], [1, 1], [1, 1]])
    reward = np.float32([[1, -2], [3, 0.5], [-1, 4], [2, 1]])
    log_prob = np.arange(8, dtype=np.float32).reshape(4, 2)
    return Transition(*map(jnp.asarray, (obs, action, reward, discount, next_obs, last, log_prob)))


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.fixture
def kept(monkeypatch):
    """What reaches the update, which then does nothing; to be given back by the function that is compiled."""
    kept = {}

    def keep(settings, learner, batch, loss, key):
        del settings, key
        kept.update(batch=batch, loss=loss)
        return learner, {"loss": jnp.float32(2)}

    monkeypatch.setattr(PPO, "update", keep)
    return kept


def test_discounted_returns_begin_anew_with_every_episode():
    """Of 4 and 8 so far: 0.5 · 4 + 1 = 3, 0.5 · 3 + 2 = 3.5, the end, 3; and 5, 4.5, 5.25."""
    follow = jax.jit(replace(SMALL, discount=0.5)._follow)
    state = born()._replace(discounted=np.float32([4, 8]))
    steps = jax.tree.map(lambda x: np.asarray(x)[:3], lived())
    last = np.array([[False, False], [True, False], [False, False]])
    steps = steps._replace(reward=np.float32([[1, 1], [2, 2], [3, 3]]), last=last)
    discounted, returns = follow(state, steps)
    np.testing.assert_allclose(discounted, [3, 5.25])
    totals = [3, 3.5, 3, 5, 4.5, 5.25]
    np.testing.assert_allclose((returns.number, returns.mean, std(returns)), (6, np.mean(totals), np.std(totals)))
    ended, _ = follow(state, steps._replace(last=replaced(last, (2, 1), True)))
    np.testing.assert_allclose(ended, [3, 0])
    _, more = follow(state._replace(returns=returns), steps)
    assert more.number == 12


def test_advantages_by_hand(kept):
    """Nothing is worth anything after a termination; a time limit is bootstrapped; neither is looked across."""
    state, steps = born()._replace(discounted=np.float32([1, -1])), lived()
    after, told, batch = numpy(jax.jit(lambda *given: (*SMALL._improve(*given), kept["batch"]))(state, steps, KEY))
    value = jax.jit(jax.vmap(jax.vmap(state.learner.weights.value)))
    here, there = (np.asarray(value(shifted(state, obs)))[..., 0] for obs in (steps.obs, steps.next_obs))
    steps = numpy(steps)
    totals, advantage = np.zeros((4, 2)), np.zeros((4, 2))
    for copy, total in enumerate([1.0, -1.0]):
        for t in range(4):
            totals[t, copy] = total = 0.8 * total + steps.reward[t, copy]
            total = 0 if steps.last[t, copy] else total
        assert after.discounted[copy] == pytest.approx(float(total), rel=1e-5)
    assert std(after.returns) == pytest.approx(np.std(totals), rel=1e-5)
    for copy in range(2):
        for t in reversed(range(4)):
            alive, cut = steps.discount[t, copy], t == 3 or steps.last[t, copy]
            error = steps.reward[t, copy] / np.std(totals) + 0.8 * alive * there[t, copy] - here[t, copy]
            advantage[t, copy] = error + (0 if cut else 0.8 * 0.5 * advantage[t + 1, copy])
    np.testing.assert_allclose(batch.advantage, advantage.ravel(), rtol=1e-4)
    np.testing.assert_allclose(batch.value_target, (advantage + here).ravel(), rtol=1e-4)
    np.testing.assert_array_equal(batch.log_prob, np.arange(8))
    np.testing.assert_array_equal(batch.action, steps.action.reshape(8, 2))
    assert after.steps == 8
    assert told["train/loss"].total == 2


def test_rewards_are_scaled_by_the_deviation_of_returns_and_clipped(kept):
    """The deviation is 2 after so much experience, whatever comes now; 50 / 2 is beyond 10."""
    state, steps = born(), lived()
    nothing = jax.tree.map(np.zeros_like, state.learner.weights.value)
    learner = eqx.tree_at(lambda learner: learner.weights.value, state.learner, nothing)
    state = state._replace(learner=learner, returns=Moments(np.float32(1e8), np.float32(0), np.float32(4e8)))
    steps = steps._replace(reward=np.float32([[1, -2], [3, 50], [-50, 4], [2, 1]]))
    system = replace(SMALL, gae_decay=0.0)
    batch = jax.jit(lambda *given: (system._improve(*given), kept["batch"]))(state, steps, KEY)[1]
    np.testing.assert_allclose(batch.advantage, [0.5, -1, 1.5, 10, -10, 2, 1, 0.5], rtol=1e-4)


@pytest.mark.parametrize("normalise", [True, False])
def test_learning_reads_observations_as_acting_did(normalise, kept):
    """As shifted and scaled by what was seen before; what is seen now counts from the next iteration on."""
    system = replace(SMALL, normalise=normalise)
    state = born(system)
    after, batch = jax.jit(lambda state, key: (system.iterate(state, COLLECTOR, key)[0], kept["batch"]))(state, KEY)
    assert after.steps == 40
    shown, seen = np.asarray(batch.obs), state.sight.seen
    shown = shown * np.asarray(std(seen)) + np.asarray(seen.mean) if normalise else shown
    assert np.abs(shown).max() <= 5  # places in the plane, again
    assert after.sight.seen.number == 90
    whole = np.concatenate([SEEN, shown])
    np.testing.assert_allclose(after.sight.seen.mean, whole.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(std(after.sight.seen), whole.std(axis=0), rtol=1e-4)
    judge = jax.jit(kept["loss"])
    loss, told = judge(state.learner.weights, batch)
    assert told["kl"] == pytest.approx(0, abs=1e-6)
    assert told["value_loss"] == pytest.approx(np.mean(np.square(batch.advantage)), rel=1e-4)
    later = judge(after.learner.weights, batch._replace(obs=jax.jit(Sight.__call__)(after.sight, shown)))[1]
    assert (later["kl"] > 1e-4) == normalise
    assert np.isfinite(loss)


def test_an_iteration_is_so_many_updates_of_policy_and_values():
    state = born()
    after, told = jax.jit(lambda state, key: SMALL.iterate(state, COLLECTOR, key))(state, KEY)
    assert (after.steps, after.learner.updates) == (40, 4)
    old, new = (jax.tree.leaves(numpy(x.learner.weights)) for x in (state, after))
    assert all((x != y).any() for x, y in zip(old, new, strict=True))  # of both networks
    assert np.isfinite(told["train/value_loss"].total)


def test_trials_take_the_likeliest_action():
    state = born()
    tasks = jnp.asarray(np.zeros((3, 1), np.float32))
    episodes = jax.jit(lambda params: SMALL.trial(params, COLLECTOR, tasks, KEY))(SMALL.params(state)).episodes
    obs, action, last = (np.asarray(x)[:, :, 0, 0] for x in (episodes.obs, episodes.action, episodes.last))
    meant = jax.jit(jax.vmap(jax.vmap(state.learner.weights.policy.mlp)))(shifted(state, obs))
    valid = np.asarray(jax.jit(valid_steps)(last))
    np.testing.assert_allclose(action[valid], np.asarray(meant)[valid], atol=1e-5)


def test_every_minibatch_has_rows_to_compare():
    with pytest.raises(UserError, match=r"PPO\.minibatches = 8 .* \(3 × 5\); lower it"):
        ProximalPolicyOptimisation(PPO(minibatches=8), parallel=3, collect=5)
    ProximalPolicyOptimisation(PPO(minibatches=8), parallel=4, collect=4)
