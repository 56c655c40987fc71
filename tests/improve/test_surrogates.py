"""Surrogates of policy gradients by closed forms: values, first and second derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.returns import standardise
from metadyna.improve.baseline import LinearBaseline
from metadyna.improve.on_policy import Weighed, dice, dice_worth, log_likelihood, refit, surrogate, weigh_episodes
from metadyna.nets.inputs import Inputs
from metadyna.nets.layers import MLP, Linear
from metadyna.policies.direct import GaussianPolicy
from metadyna.policies.distributions import Normal
from metadyna.types import Transition

ONE = Inputs(1)


def bandit(mean, log_std=0.0):
    """A policy whose action has this mean whatever is observed."""
    mean, log_std = jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32)
    return GaussianPolicy(MLP((Linear(jnp.zeros((1, 1)), mean[None]),), jnp.tanh), log_std[None])


def steps(action, reward, last=None, log_prob=None):
    """Experience [T, B] of one observation that is always 0."""
    shape = action.shape
    obs, last = jnp.zeros((*shape, 1)), jnp.zeros(shape, bool).at[-1].set(True) if last is None else last
    log_prob = Normal(jnp.zeros((*shape, 1)), jnp.zeros((*shape, 1))).log_prob(action[..., None])
    return Transition(obs, action[..., None], reward, jnp.ones(shape), obs, last, log_prob)


def weighed(action, advantage):
    made = steps(action, advantage)
    return Weighed(made, jnp.zeros(action.shape), advantage, advantage, jnp.ones(action.shape, bool))


ACTIONS, ADVANTAGES = np.array([[[1.0, -1.0, 2.0]], [[1.0, -1.0, 0.5]]], np.float32)


@pytest.mark.parametrize(("kind", "curvature"), [(log_likelihood, -1 / 6), (surrogate, 0.5)])
def test_a_bandits_derivatives(kind, curvature):
    """Reference card of MB-MPO, O5: equal slopes, and second derivatives that differ by the scores' product."""

    @jax.jit
    def derivatives(actions, advantages):
        data = weighed(actions, advantages)
        slope = jax.grad(lambda m, s: kind(bandit(m, s), data), (0, 1))(0.0, 0.0)
        return slope, jax.grad(jax.grad(lambda m: kind(bandit(m), data)))(0.0)

    slope, bent = derivatives(ACTIONS, ADVANTAGES)
    np.testing.assert_allclose(slope, [1.0, 0.5], rtol=1e-5)
    assert bent == pytest.approx(curvature, rel=1e-5)


def test_dice_is_right_in_its_first_two_derivatives():
    """Against the double sums over an episode's steps that the box stands for (Foerster et al. 2018, eq. 5, 6)."""
    discount, shape = 0.9, (4, 3)
    score, reward = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    valid = np.ones(shape, bool)
    valid[2:, 1] = False

    @jax.jit
    def derivatives(action, reward, valid):
        time = jnp.broadcast_to(jnp.arange(4.0)[:, None], shape)
        data = Weighed(steps(action, reward), time, jnp.zeros(shape), jnp.zeros(shape), valid)

        def objective(mean):
            return dice(bandit(mean), data, discount)

        return dice_worth(data, discount), objective(0.0), jax.grad(objective)(0.0), jax.grad(jax.grad(objective))(0.0)

    # ∂ log π / ∂μ = a - μ at μ = 0, σ = 1; ∂² = -1
    worth, value, slope, curvature = map(np.asarray, derivatives(score, reward, valid))
    assert worth[valid].std() == pytest.approx(1, rel=1e-4)
    count = np.sum(valid)
    first = second = 0.0
    for b in range(3):
        for t in range(4):
            if valid[t, b]:
                so_far = score[: t + 1, b]
                first += worth[t, b] * so_far.sum() / count
                second += worth[t, b] * (so_far.sum() ** 2 - (t + 1)) / count

    assert value == pytest.approx(0, abs=1e-6)  # every box is 1, and the worth of steps is standardised
    assert slope == pytest.approx(float(first), rel=1e-4)
    assert curvature == pytest.approx(float(second), rel=1e-4)


@functools.partial(jax.jit, static_argnums=2)
def foreseen(reward, last, discount):
    """Episodes without actions, weighed, and what the baseline says of each step."""
    data = weigh_episodes(steps(jnp.zeros(reward.shape), reward, last), ONE, discount, decay=1.0)
    return data, refit(LinearBaseline.zero(ONE), data)(data.steps.obs, data.time)


def test_whole_episodes_are_weighed_by_what_follows_in_them():
    last = np.array([[False, False], [True, False], [False, False]])
    reward = np.array([[1.0, 2.0], [3.0, 4.0], [100.0, 5.0]], np.float32)  # the 100 is padding
    data, value = foreseen(reward, last, 0.5)
    np.testing.assert_array_equal(data.valid, [[True, True], [True, True], [False, True]])
    target = np.array([[1 + 1.5, 2 + 2 + 1.25], [3, 4 + 2.5], [0, 5]])
    np.testing.assert_allclose(np.where(data.valid, data.target, 0), target, rtol=1e-6)
    wanted = jax.jit(standardise)(np.float32(target - np.asarray(value)), data.valid)
    np.testing.assert_allclose(data.advantage, wanted, atol=2e-5)
    assert np.asarray(data.advantage)[2, 0] == 0


def test_a_constant_return_is_foreseen_and_nothing_is_an_advantage():
    """Reference card of MB-MPO, O14."""
    data, value = foreseen(np.full((1, 8), 7, np.float32), np.ones((1, 8), bool), 0.99)
    np.testing.assert_allclose(value, 7, atol=1e-3)
    np.testing.assert_allclose(data.advantage, 0, atol=1e-3)
