"""PPO: the clipped surrogate by hand, where its slope vanishes, and a bandit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.errors import UserError
from metadyna.improve.ppo import PPO, ActorCritic, OnPolicyBatch, clipped_surrogate, values
from metadyna.policies.distributions import normal_log_prob
from metadyna.policies.gaussian import GaussianPolicy

KEY = jax.random.key(0)
SMALL = PPO(widths=(8,), epochs=3, minibatches=4, log_std=-0.7)


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
        weights = SMALL.init(3, 2, k_weights).weights
        obs = jax.random.normal(k_obs, (43, 3))
        action, log_prob = jax.vmap(weights.policy.sample)(obs, jax.random.split(k_noise, 43))
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
    return jax.grad(settings.loss, has_aux=True)(weights, batch)[0]


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
        mean, log_std = jax.vmap(policy)(batch.obs)
        entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e) * 2 + policy.log_std.sum()
        return -jnp.mean(normal_log_prob(batch.action, mean, log_std) * advantage) - 0.3 * entropy

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
        loss, metrics = settings.loss(weights, batch)
        # All ratios are equal, and standardised advantages have mean 0.
        assert loss == pytest.approx(value_weight * squared - entropy_weight * entropy, abs=1e-5)
        assert metrics["value_loss"] == pytest.approx(squared, rel=1e-5)
        assert metrics["entropy"] == pytest.approx(entropy, rel=1e-5)
        assert metrics["kl"] == pytest.approx(0.1 - np.log(1.1), rel=1e-3)


# --- training


def trained(settings, batch, learner):
    return jax.jit(settings.train)(learner, batch, KEY)


def test_every_pass_takes_every_row_at_most_once():
    """43 rows in 4 minibatches of 10: a policy that may not learn, whose value is pulled by what it is shown."""
    rows = 43
    settings = PPO(widths=(8,), epochs=1, minibatches=4, learning_rate=1e-8)
    learner = settings.init(3, 2, KEY)
    target = 1e3 * 2.0 ** (jnp.arange(rows) % 20)
    batch = policy_batch(rows)[1]._replace(value_target=target)
    learner, metrics = trained(settings, batch, learner)
    assert learner.updates == 4
    squares = np.asarray((target - values(learner.weights.value, batch.obs)) ** 2, np.float64)
    left = squares.sum() - 40 * float(metrics["value_loss"])  # what the three rows sat out would have added
    triples = squares[:, None, None] + squares[:, None] + squares
    assert np.abs(triples - left).min() < 1e-4 * squares.sum()


def test_training_counts_its_updates_and_clips_its_gradients():
    settings = PPO(widths=(8,), epochs=3, minibatches=4, learning_rate=1e-2, gradient_clip=1e-9)
    learner = settings.init(3, 2, KEY)
    batch = policy_batch()[1]
    still, _ = trained(settings, batch, learner)
    assert still.updates == 12
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), still.weights, learner.weights)


def test_a_bandit_is_solved():
    """r = -(a - 0.7)²: better actions become likelier, until the mean is there and the spread is small."""
    settings = PPO(widths=(8,), epochs=5, minibatches=4, learning_rate=1e-2)

    def iterate(learner, key):
        k_act, k_train = jax.random.split(key)
        obs = jnp.ones((64, 1))
        action, log_prob = jax.vmap(learner.weights.policy.sample)(obs, jax.random.split(k_act, 64))
        reward = -((action[:, 0] - 0.7) ** 2)
        advantage = reward - values(learner.weights.value, obs)
        batch = OnPolicyBatch(obs, action, log_prob, advantage, reward)
        learner, metrics = settings.train(learner, batch, k_train)
        return learner, (metrics["kl"], normal_log_prob(jnp.array([0.7]), *learner.weights.policy(jnp.ones(1))))

    learner = settings.init(1, 1, KEY)
    before = learner.weights.policy(jnp.ones(1))
    learner, (kl, likelihood) = jax.jit(lambda x: jax.lax.scan(iterate, x, jax.random.split(KEY, 25)))(learner)
    mean, log_std = learner.weights.policy(jnp.ones(1))
    assert mean[0] == pytest.approx(0.7, abs=0.1)
    assert log_std[0] < before[1][0] - 0.5
    assert likelihood[2] > normal_log_prob(jnp.array([0.7]), *before)
    assert likelihood[-1] > likelihood[2] + 0.3
    assert 0 <= kl.min() < kl.max() < 0.1
    assert values(learner.weights.value, jnp.ones((1, 1)))[0] == pytest.approx(-float(jnp.exp(2 * log_std[0])), abs=0.1)


def test_a_fresh_policy_acts_around_0_with_the_given_spread():
    weights, obs, *_ = experience()
    assert isinstance(weights, ActorCritic)
    mean, log_std = jax.vmap(weights.policy)(10 * obs)
    assert jnp.abs(mean).max() < 0.02
    np.testing.assert_allclose(log_std, -0.7, rtol=1e-6)


def test_samples_of_a_policy_follow_its_mean_and_spread():
    policy = GaussianPolicy(experience()[0].policy.mlp, jnp.array([0.3, -9.0]))
    obs = jnp.array([0.5, -1.0, 2.0])
    mean, log_std = policy(obs)
    np.testing.assert_allclose(log_std, [0.3, -5])  # a spread never vanishes
    action, log_prob = jax.vmap(policy.sample, (None, 0))(obs, jax.random.split(KEY, 5000))
    np.testing.assert_allclose(action.mean(axis=0), mean, atol=0.08)
    np.testing.assert_allclose(action.std(axis=0), jnp.exp(log_std), rtol=0.05)
    repeated = (jnp.broadcast_to(x, action.shape) for x in (mean, log_std))
    np.testing.assert_allclose(log_prob, normal_log_prob(action, *repeated), atol=1e-3)


def test_values_take_any_batch():
    network, obs = experience()[0].value, jax.random.normal(KEY, (5, 7, 3))
    got = values(network, obs)
    assert got.shape == (5, 7)
    assert got[2, 3] == pytest.approx(float(network(obs[2, 3])[0]), abs=1e-6)
    assert values(network, obs[0, 0]).shape == ()


@pytest.mark.parametrize(
    ("change", "interval"),
    [
        ({"learning_rate": 0.0}, r"\(0, 1\]"),
        ({"clip": 1.0}, r"\(0, 1\)"),
        ({"epochs": 0}, r"\[1, 10000\]"),
        ({"minibatches": 0}, r"\[1, 100000\]"),
        ({"value_weight": -1.0}, r"\[0, \d+\]"),
        ({"entropy_weight": float("nan")}, r"\[0, \d+\]"),
        ({"gradient_clip": 0.0}, r"\(0, inf\]"),
        ({"log_std": 3.0}, r"\[-5, 2\]"),
    ],
)
def test_impossible_settings_name_the_range(change, interval):
    (name,) = change
    with pytest.raises(UserError, match=rf"PPO\.{name} = .* {interval}"):
        PPO(**change)
