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


def loss(settings):
    return lambda weights, rows: settings.loss(
        jax.vmap(weights.policy)(rows.obs), values(weights.value, rows.obs), rows
    )


# --- the clipped surrogate


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
    got = jax.value_and_grad(clipped_surrogate)(jnp.log(jnp.float32(ratio)), jnp.float32(advantage), 0.2)
    np.testing.assert_allclose(got, (value, slope), atol=1e-6)


@functools.cache
def experience():
    """A fresh policy and value network, and what the policy did."""

    def act(key):
        k_weights, k_obs, k_noise = jax.random.split(key, 3)
        weights = networks(3, 2, k_weights, -0.7)
        obs = jax.random.normal(k_obs, (43, 3))
        action, log_prob = jax.vmap(weights.policy)(obs).sample_with_log_prob(k_noise)
        return weights, obs, action, log_prob

    return jax.jit(act)(KEY)


def policy_batch(count=40, ratio=1.0, advantage=None):
    """Experience whose ratio π / π_old is made to be as given, row by row."""
    weights, *rows = experience()
    obs, action, log_prob = (x[:count] for x in rows)
    log_prob = log_prob - jnp.log(jnp.broadcast_to(jnp.asarray(ratio, jnp.float32), (count,)))
    advantage = action[:, 0] if advantage is None else jnp.asarray(advantage, jnp.float32)
    return weights, OnPolicyBatch(obs, action, log_prob, advantage, obs[:, 0])


@functools.partial(jax.jit, static_argnums=0)
def gradient(settings, weights, batch):
    return jax.grad(loss(settings), has_aux=True)(weights, batch)[0]


def slopes(*arguments):
    return tuple(max(float(jnp.abs(x).max()) for x in jax.tree.leaves(part)) for part in gradient(*arguments))


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

    def objective(policy):
        entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e) * 2 + policy.log_std.sum()
        return -jnp.mean(jax.vmap(policy)(batch.obs).log_prob(batch.action) * advantage) - 0.3 * entropy

    got = gradient(settings, weights, batch)
    expected = jax.jit(jax.grad(objective))(weights.policy)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), got.policy, expected)
    assert all(not leaf.any() for leaf in jax.tree.leaves(got.value))


def test_the_loss_weighs_its_parts_and_measures_the_divergence():
    weights, batch = policy_batch(ratio=1.1)
    predicted = values(weights.value, batch.obs)
    squared = float(jnp.mean((predicted - batch.value_target) ** 2))
    entropy = float(np.log(2 * np.pi * np.e)) - 1.4
    for value_weight, entropy_weight in ((0.0, 0.0), (2.0, 0.3)):
        settings = PPO(value_weight=value_weight, entropy_weight=entropy_weight)
        total, metrics = loss(settings)(weights, batch)
        # All ratios are equal, and standardised advantages have mean 0.
        assert total == pytest.approx(value_weight * squared - entropy_weight * entropy, abs=1e-5)
        assert metrics["value_loss"] == pytest.approx(squared, rel=1e-5)
        assert metrics["entropy"] == pytest.approx(entropy, rel=1e-5)
        assert metrics["kl"] == pytest.approx(0.1 - np.log(1.1), rel=1e-3)


# --- training


def trained(settings, batch, learner):
    return jax.jit(lambda learner, batch: settings.update(learner, batch, loss(settings), KEY))(learner, batch)


def test_every_pass_takes_every_row_at_most_once():
    """43 rows in 4 minibatches of 10: a policy that may not learn, whose value is pulled by what it is shown."""
    rows = 43
    settings = PPO(epochs=1, minibatches=4, learning_rate=1e-8)
    learner = settings.start(networks(3, 2, KEY))
    target = 1e3 * 2.0 ** (jnp.arange(rows) % 20)
    batch = policy_batch(rows)[1]._replace(value_target=target)
    learner, metrics = trained(settings, batch, learner)
    assert learner.updates == 4
    squares = np.asarray((target - values(learner.weights.value, batch.obs)) ** 2, np.float64)
    left = squares.sum() - 40 * float(metrics["value_loss"])  # what the three rows sat out would have added
    triples = squares[:, None, None] + squares[:, None] + squares
    assert np.abs(triples - left).min() < 1e-4 * squares.sum()


def test_training_counts_its_updates_and_clips_its_gradients():
    settings = PPO(epochs=3, minibatches=4, learning_rate=1e-2, gradient_clip=1e-9)
    learner = settings.start(networks(3, 2, KEY))
    batch = policy_batch()[1]
    still, _ = trained(settings, batch, learner)
    assert still.updates == 12
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), still.weights, learner.weights)


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

    learner = settings.start(networks(1, 1, KEY))
    before = learner.weights.policy(jnp.ones(1))
    learner, (kl, likelihood) = jax.jit(lambda x: jax.lax.scan(iterate, x, jax.random.split(KEY, 25)))(learner)
    after = learner.weights.policy(jnp.ones(1))
    assert after.mean[0] == pytest.approx(0.7, abs=0.1)
    assert after.log_std[0] < before.log_std[0] - 0.5
    assert likelihood[2] > before.log_prob(jnp.array([0.7]))
    assert likelihood[-1] > likelihood[2] + 0.3
    assert 0 <= kl.min() < kl.max() < 0.1
    assert values(learner.weights.value, jnp.ones((1, 1)))[0] == pytest.approx(
        -float(jnp.exp(2 * after.log_std[0])), abs=0.1
    )


def test_a_bandit_of_three_arms_is_solved():
    """The same update on a choice: the best of three arms becomes nearly certain."""
    settings = PPO(epochs=5, minibatches=4, learning_rate=1e-2)
    pays = jnp.array([0.2, 1.0, 0.5])

    def iterate(learner, key):
        k_act, k_train = jax.random.split(key)
        obs = jnp.ones((64, 1))
        action, log_prob = jax.vmap(learner.weights.policy)(obs).sample_with_log_prob(k_act)
        advantage = pays[action] - values(learner.weights.value, obs)
        batch = OnPolicyBatch(obs, action, log_prob, advantage, pays[action])
        return settings.update(learner, batch, loss(settings), k_train)[0], ()

    learner = settings.start(networks(1, Discrete((3,)), KEY))
    learner, _ = jax.jit(lambda x: jax.lax.scan(iterate, x, jax.random.split(KEY, 25)))(learner)
    assert jax.nn.softmax(learner.weights.policy(jnp.ones(1)).logits)[1] > 0.95


def test_steps_that_are_not_valid_do_not_count():
    """The loss of sequences with padding is that of their steps alone, whatever the padding holds."""
    weights, batch = policy_batch(12, advantage=np.arange(12.0) ** 2)
    settings, valid = PPO(entropy_weight=0.1), jnp.arange(12) % 4 != 3

    def told(rows, valid=None):
        return settings.loss(jax.vmap(weights.policy)(rows.obs), values(weights.value, rows.obs), rows, valid)

    alone = told(jax.tree.map(lambda x: x[valid], batch))
    spoilt = jax.tree.map(lambda x: jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, 7.0), batch)
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
