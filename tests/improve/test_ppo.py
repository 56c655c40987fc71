"""PPO: the clipped surrogate by hand, where its slope vanishes, and a bandit."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.errors import UserError
from metadyna.improve.ppo import PPO, OnPolicyBatch, clipped_surrogate
from metadyna.nets.layers import MLP
from metadyna.policies.direct import Policy, create
from metadyna.types import Box, Discrete, EnvSpec

KEY = jax.random.key(0)
SMALL = PPO(epochs=3, minibatches=4)


class Networks(NamedTuple):
    """What PPO may be given: anything."""

    policy: Policy
    value: MLP


def networks(observed, actions, key, log_std=0.0):
    action = actions if isinstance(actions, Discrete) else Box((actions,), -1.0, 1.0)
    k_policy, k_value = jax.random.split(key)
    policy = create(EnvSpec(Box((observed,)), action, 10), (8,), k_policy, log_std)
    return Networks(policy, MLP.create((observed, 8, 1), k_value, jax.nn.tanh))


def values(network, obs):
    return jax.vmap(network)(obs)[:, 0]


def judged(network, obs):
    return np.asarray(jax.jit(values)(network, obs))


def loss(settings):
    return lambda weights, rows: settings.loss(
        jax.vmap(weights.policy)(rows.obs), values(weights.value, rows.obs), rows
    )


# --- the clipped surrogate


surrogate_and_slope = jax.jit(jax.value_and_grad(clipped_surrogate), static_argnums=2)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.0, -2.0, -2.0, -2.0),
        (1.1, 1.0, 1.1, 1.1),
        (0.9, -1.0, -0.9, -0.9),
        (1.5, 1.0, 1.2, 0.0),  # already likely enough
        (1.5, -1.0, -1.5, -1.5),  # a mistake is always undone
        (0.5, 1.0, 0.5, 0.5),
        (0.5, -1.0, -0.8, 0.0),  # already unlikely enough
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_clipped_surrogate(ratio, advantage, value, slope):
    """By hand, ε = 0.2; the slope is along the log-ratio."""
    got = surrogate_and_slope(np.log(np.float32(ratio)), np.float32(advantage), 0.2)
    np.testing.assert_allclose(got, (value, slope), atol=1e-6)


@functools.cache
def experience():
    """A fresh policy and value network, and what the policy did."""

    obs = np.random.default_rng(0).normal(size=(43, 3)).astype(np.float32)

    @jax.jit
    def act(key, obs):
        k_weights, k_noise = jax.random.split(key)
        weights = networks(3, 2, k_weights, -0.7)
        return weights, *jax.vmap(weights.policy)(obs).sample_with_log_prob(k_noise)

    weights, *lived = act(KEY, obs)
    return weights, obs, *map(np.asarray, lived)


def policy_batch(count=40, ratio=1.0, advantage=None):
    """Experience whose ratio π / π_old is made to be as given, row by row."""
    weights, *rows = experience()
    obs, action, log_prob = (x[:count] for x in rows)
    log_prob = log_prob - np.log(np.broadcast_to(np.float32(ratio), (count,)))
    advantage = action[:, 0] if advantage is None else np.float32(advantage)
    return weights, OnPolicyBatch(obs, action, log_prob, advantage, obs[:, 0])


@functools.partial(jax.jit, static_argnums=0)
def gradient(settings, weights, batch):
    return jax.grad(loss(settings), has_aux=True)(weights, batch)[0]


def slopes(*arguments):
    return tuple(max(np.abs(x).max() for x in jax.tree.leaves(part)) for part in gradient(*arguments))


def test_the_loss_has_no_slope_where_all_rows_are_clipped():
    """Half the rows good and too likely already, the other half bad and too unlikely."""
    good = np.arange(40) % 2 == 0
    batch = policy_batch(ratio=np.where(good, 2.0, 0.5), advantage=np.where(good, 1.0, -1.0))
    policy, value = slopes(SMALL, *batch)
    assert policy == 0
    assert value > 0
    turned = policy_batch(ratio=np.where(good, 2.0, 0.5), advantage=np.where(good, -1.0, 1.0))
    assert slopes(SMALL, *turned)[0] > 0.01


def test_at_the_old_policy_the_slope_is_the_policy_gradient():
    """Of Σ log π Â with standardised advantages, plus the entropy's."""
    weights, batch = policy_batch(advantage=np.random.default_rng(0).normal(size=40) * 7 + 3)
    advantage = (batch.advantage - batch.advantage.mean()) / batch.advantage.std()
    settings = PPO(value_weight=0.0, entropy_weight=0.3)

    @jax.jit
    @jax.grad
    def slope(policy, batch, advantage):
        entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e) * 2 + policy.log_std.sum()
        return -jnp.mean(jax.vmap(policy)(batch.obs).log_prob(batch.action) * advantage) - 0.3 * entropy

    got = gradient(settings, weights, batch)
    expected = slope(weights.policy, batch, advantage)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), got.policy, expected)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(got.value))


def test_the_loss_weighs_its_parts_and_measures_the_divergence():
    weights, batch = policy_batch(ratio=1.1)
    squared = np.mean((judged(weights.value, batch.obs) - batch.value_target) ** 2)
    entropy = float(np.log(2 * np.pi * np.e)) - 1.4
    for value_weight, entropy_weight in ((0.0, 0.0), (2.0, 0.3)):
        settings = PPO(value_weight=value_weight, entropy_weight=entropy_weight)
        total, metrics = jax.jit(loss(settings))(weights, batch)
        # All ratios are equal, and standardised advantages have mean 0.
        assert total == pytest.approx(value_weight * squared - entropy_weight * entropy, abs=1e-5)
        assert metrics["value_loss"] == pytest.approx(squared, rel=1e-5)
        assert metrics["entropy"] == pytest.approx(entropy, rel=1e-5)
        assert metrics["kl"] == pytest.approx(0.1 - np.log(1.1), rel=1e-3)


# --- training


def trained(settings, weights, batch):
    @jax.jit
    def train(weights, batch):
        return settings.update(settings.start(weights), batch, loss(settings), KEY)

    return train(weights, batch)


def test_every_pass_takes_every_row_at_most_once():
    """43 rows in 4 minibatches of 10: a policy that may not learn, whose value is pulled by what it is shown."""
    rows = 43
    settings = PPO(epochs=1, minibatches=4, learning_rate=1e-8)
    target = np.float32(1e3 * 2.0 ** (np.arange(rows) % 20))
    weights, batch = policy_batch(rows)
    batch = batch._replace(value_target=target)
    learner, metrics = trained(settings, weights, batch)
    assert int(learner.updates) == 4
    squares = np.float64((target - judged(learner.weights.value, batch.obs)) ** 2)
    left = squares.sum() - 40 * float(metrics["value_loss"])  # what the three rows sat out would have added
    triples = squares[:, None, None] + squares[:, None] + squares
    assert np.abs(triples - left).min() < 1e-4 * squares.sum()


def test_training_counts_its_updates_and_clips_its_gradients():
    settings = PPO(epochs=3, minibatches=4, learning_rate=1e-2, gradient_clip=1e-9)
    weights, batch = policy_batch()
    still, _ = trained(settings, weights, batch)
    assert int(still.updates) == 12
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), still.weights, weights)


def test_a_bandit_is_solved():
    """r = -(a - 0.7)²: better actions become likelier, until the mean is there and the spread is small."""
    settings = PPO(epochs=5, minibatches=4, learning_rate=1e-2)

    def iterate(learner, key):
        k_act, k_train = jax.random.split(key)
        obs = jnp.ones((64, 1))
        action, log_prob = jax.vmap(learner.weights.policy)(obs).sample_with_log_prob(k_act)
        reward = -((action[:, 0] - 0.7) ** 2)
        advantage = reward - values(learner.weights.value, obs)
        batch = OnPolicyBatch(obs, action, log_prob, advantage, reward)
        learner, metrics = settings.update(learner, batch, loss(settings), k_train)
        return learner, (metrics["kl"], learner.weights.policy(jnp.ones(1)).log_prob(jnp.array([0.7])))

    @jax.jit
    def solve(key, obs, best):
        learner = settings.start(networks(1, 1, key))
        before = learner.weights.policy(obs)
        learner, told = jax.lax.scan(iterate, learner, jax.random.split(key, 25))
        after = learner.weights.policy(obs), learner.weights.value(obs)
        return before, before.log_prob(best), *after, told

    before, unlearnt, after, value, told = solve(KEY, np.ones(1, np.float32), np.float32([0.7]))
    kl, likelihood = map(np.asarray, told)
    assert after.mean[0] == pytest.approx(0.7, abs=0.1)
    log_std = np.asarray(after.log_std)
    assert log_std[0] < np.asarray(before.log_std)[0] - 0.5
    assert likelihood[2] > unlearnt
    assert likelihood[-1] > likelihood[2] + 0.3
    assert 0 <= kl.min() < kl.max() < 0.1
    assert value[0] == pytest.approx(-np.exp(2 * log_std[0]), abs=0.1)


def test_a_bandit_of_three_arms_is_solved():
    """The same update on a choice: the best of three arms becomes nearly certain."""
    settings = PPO(epochs=5, minibatches=4, learning_rate=1e-2)
    pays = jnp.array([0.2, 1.0, 0.5], jnp.float32)

    def iterate(learner, key):
        k_act, k_train = jax.random.split(key)
        obs = jnp.ones((64, 1))
        action, log_prob = jax.vmap(learner.weights.policy)(obs).sample_with_log_prob(k_act)
        advantage = pays[action] - values(learner.weights.value, obs)
        batch = OnPolicyBatch(obs, action, log_prob, advantage, pays[action])
        return settings.update(learner, batch, loss(settings), k_train)[0], ()

    @jax.jit
    def solve(key):
        learner = settings.start(networks(1, Discrete((3,)), key))
        learner, _ = jax.lax.scan(iterate, learner, jax.random.split(key, 25))
        return jax.nn.softmax(learner.weights.policy(jnp.ones(1)).logits)

    assert np.asarray(solve(KEY))[1] > 0.95


def test_steps_that_are_not_valid_do_not_count():
    """The loss of sequences with padding is that of their steps alone, whatever the padding holds."""
    weights, batch = policy_batch(12, advantage=np.arange(12.0) ** 2)
    settings, valid = PPO(entropy_weight=0.1), np.arange(12) % 4 != 3

    @jax.jit
    def told(rows, valid=None):
        return settings.loss(jax.vmap(weights.policy)(rows.obs), values(weights.value, rows.obs), rows, valid)

    alone = told(jax.tree.map(lambda x: x[valid], batch))
    spoilt = jax.tree.map(lambda x: np.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(7)), batch)
    for rows in (batch, spoilt):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), told(rows, valid), alone)


@pytest.mark.parametrize(
    ("change", "interval"),
    [
        ({"learning_rate": 0.0}, r"\(0, 1\]"),
        ({"clip": 1.0}, r"\(0, 1\)"),
        ({"epochs": 0}, r"\[1, 10000\]"),
        ({"minibatches": 0}, r"\[1, 100000\]"),
        ({"value_weight": -1.0}, r"\[0, 1000000\]"),
        ({"entropy_weight": float("nan")}, r"\[0, 1000000\]"),
        ({"gradient_clip": 0.0}, r"\(0, inf\]"),
    ],
)
def test_impossible_settings_name_the_range(change, interval):
    (name,) = change
    with pytest.raises(UserError, match=rf"PPO\.{name} = .* {interval}"):
        PPO(**change)
