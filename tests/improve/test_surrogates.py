"""Surrogates of policy gradients by closed forms: values, first and second derivatives."""

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

KEY = jax.random.key(0)
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


ACTIONS, ADVANTAGES = jnp.array([[1.0, -1.0, 2.0]]), jnp.array([[1.0, -1.0, 0.5]])


@pytest.mark.parametrize(("kind", "curvature"), [(log_likelihood, -1 / 6), (surrogate, 0.5)])
def test_a_bandits_derivatives(kind, curvature):
    """Reference card of MB-MPO, O5: equal slopes, and second derivatives that differ by the scores' product."""
    data = weighed(ACTIONS, ADVANTAGES)
    slope = jax.jit(jax.grad(lambda m, s: kind(bandit(m, s), data), (0, 1)))(0.0, 0.0)
    np.testing.assert_allclose(slope, [1.0, 0.5], rtol=1e-5)
    bent = jax.jit(jax.grad(jax.grad(lambda m: kind(bandit(m), data))))(0.0)
    assert bent == pytest.approx(curvature, rel=1e-5)


def test_dice_is_right_in_its_first_two_derivatives():
    """Against the double sums over an episode's steps that the box stands for (Foerster et al. 2018, eq. 5, 6)."""
    discount, shape = 0.9, (4, 3)
    action, reward = jax.random.normal(KEY, (2, *shape))
    made = steps(action, reward)
    time = jnp.broadcast_to(jnp.arange(4.0)[:, None], shape)
    valid = jnp.ones(shape, bool).at[2:, 1].set(False)
    data = Weighed(made, time, jnp.zeros(shape), jnp.zeros(shape), valid)
    worth = np.asarray(dice_worth(data, discount))
    assert worth[np.asarray(valid)].std() == pytest.approx(1, rel=1e-4)
    score, count = np.asarray(action), np.sum(valid)  # ∂ log π / ∂μ = a - μ at μ = 0, σ = 1; ∂² = -1
    first = second = 0.0
    for b in range(3):
        for t in range(4):
            if valid[t, b]:
                so_far = score[: t + 1, b]
                first += worth[t, b] * so_far.sum() / count
                second += worth[t, b] * (so_far.sum() ** 2 - (t + 1)) / count

    def objective(mean):
        return dice(bandit(mean), data, discount)

    assert objective(0.0) == pytest.approx(0, abs=1e-6)  # every box is 1, and the worth of steps is standardised
    assert jax.grad(objective)(0.0) == pytest.approx(float(first), rel=1e-4)
    assert jax.grad(jax.grad(objective))(0.0) == pytest.approx(float(second), rel=1e-4)


def test_whole_episodes_are_weighed_by_what_follows_in_them():
    last = jnp.zeros((3, 2), bool).at[1, 0].set(True)
    reward = jnp.array([[1.0, 2.0], [3.0, 4.0], [100.0, 5.0]])  # the 100 is padding
    made = steps(jnp.zeros((3, 2)), reward, last)
    data = weigh_episodes(made, ONE, discount=0.5, decay=1.0)
    np.testing.assert_array_equal(data.valid, [[True, True], [True, True], [False, True]])
    target = np.array([[1 + 1.5, 2 + 2 + 1.25], [3, 4 + 2.5], [0, 5]])
    np.testing.assert_allclose(np.where(data.valid, data.target, 0), target, rtol=1e-6)
    value = refit(LinearBaseline.zero(ONE), data)(made.obs, data.time)
    wanted = standardise(jnp.asarray(target, jnp.float32) - value, data.valid)
    np.testing.assert_allclose(data.advantage, wanted, atol=2e-5)
    assert data.advantage[2, 0] == 0


def test_a_constant_return_is_foreseen_and_nothing_is_an_advantage():
    """Reference card of MB-MPO, O14."""
    last = jnp.ones((1, 8), bool)
    data = weigh_episodes(steps(jnp.zeros((1, 8)), jnp.full((1, 8), 7.0), last), ONE, 0.99, 1.0)
    assert refit(LinearBaseline.zero(ONE), data)(jnp.zeros(1), jnp.float32(0)) == pytest.approx(7, abs=1e-3)
    np.testing.assert_allclose(data.advantage, 0, atol=1e-3)
