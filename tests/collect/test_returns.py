"""Advantages and returns against the sums that define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.returns import gae, masked_mean, rewards_to_go, standardise

T, B, GAMMA = 14, 5, 0.9


def experience(seed=0):
    """Episodes that stop at random: half of them terminate, half are cut by a time limit."""
    rng = np.random.default_rng(seed)
    last = rng.random((T, B)) < 0.25
    terminated = last & (rng.random((T, B)) < 0.5)
    assert terminated.any()
    assert (last & ~terminated).any()
    reward, value, next_value = rng.normal(size=(3, T, B)).astype(np.float32)
    return reward, np.where(terminated, 0, GAMMA).astype(np.float32), last, value, next_value


def by_the_double_sum(reward, discount, last, value, next_value, decay):
    """Σₗ (γλ)ˡ δₜ₊ₗ within the episode, with δ = r + γ V' - V and V' = 0 where the MDP terminated."""
    advantage = np.zeros((T, B))
    for b in range(B):
        for start in range(T):
            for t in range(start, T):
                error = reward[t, b] + discount[t, b] * next_value[t, b] - value[t, b]
                advantage[start, b] += (GAMMA * decay) ** (t - start) * error
                if last[t, b]:
                    break
    return advantage


@pytest.mark.parametrize(("decay", "expected"), [(0.8, (3.8696, 3.43, 1.5)), (1.0, (4.73, 3.7, 1.5))])
def test_the_published_advantages(decay, expected):
    """Card of MB-MPO, O3."""
    value = jnp.array([0.5, 1.0, 1.5])
    advantage = gae(
        jnp.array([1.0, 2.0, 3.0]),
        jnp.array([0.9, 0.9, 0.0]),
        jnp.array([False, False, True]),
        value,
        jnp.array([1.0, 1.5, 99.0]),
        decay,
    )
    np.testing.assert_allclose(advantage, expected, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 1.0])
def test_advantages_equal_the_double_sum(decay):
    data = experience()
    np.testing.assert_allclose(gae(*map(jnp.asarray, data), decay), by_the_double_sum(*data, decay), atol=1e-5)


def test_nothing_flows_over_the_last_step_of_an_episode():
    """Not even what is not a number; the value of a time limit's true successor still counts."""
    reward, discount, last, value, next_value = experience()
    last[6], discount[6] = True, np.where(np.arange(B) < 2, 0, GAMMA)
    before = gae(*map(jnp.asarray, (reward, discount, last, value, next_value)), 0.95)
    for x in (reward, discount, value, next_value):
        x[7:] = np.nan
    after = gae(*map(jnp.asarray, (reward, discount, last, value, next_value)), 0.95)
    np.testing.assert_array_equal(before[:7], after[:7])
    next_value[6] += 1
    moved = gae(*map(jnp.asarray, (reward, discount, last, value, next_value)), 0.95)
    np.testing.assert_allclose((moved - before)[6], np.where(np.arange(B) < 2, 0, GAMMA), atol=1e-6)


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_rewards_to_go_are_sums_within_the_episode(discount):
    reward, _, last, _, _ = experience(1)
    expected = np.zeros((T, B))
    for b in range(B):
        for start in range(T):
            stop = next((t for t in range(start, T) if last[t, b]), T - 1)
            expected[start, b] = sum(discount ** (t - start) * reward[t, b] for t in range(start, stop + 1))
    np.testing.assert_allclose(rewards_to_go(jnp.asarray(reward), discount, jnp.asarray(last)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "valid", "expected"),
    [
        ((1, 2, 3, 4), None, (-1.3416, -0.4472, 0.4472, 1.3416)),  # card of MB-MPO, O4
        ((1, 2, 99, 3, -99, 4), (1, 1, 0, 1, 0, 1), (-1.3416, -0.4472, 0, 0.4472, 0, 1.3416)),
        ((5, 5, 5), None, (0, 0, 0)),
        ((5, 7), (1, 0), (0, 0)),
        ((5, 7), (0, 0), (0, 0)),
    ],
)
def test_standardising(x, valid, expected):
    valid = None if valid is None else jnp.array(valid, bool)
    np.testing.assert_allclose(standardise(jnp.array(x, jnp.float32), valid), expected, atol=1e-4)


def test_standardising_takes_all_axes_together():
    x = jax.random.normal(jax.random.key(0), (6, 7)) * 3 + 2
    y = standardise(x)
    assert y.mean() == pytest.approx(0, abs=1e-6)
    assert y.std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(y, (x - x.mean()) / x.std(), atol=1e-5)


@pytest.mark.parametrize(
    ("valid", "expected"), [([1, 1, 1], 2.0), ([0, 1, 0], 2.0), ([1, 0, 0], 1.0), ([0, 0, 0], 0.0)]
)
def test_masked_mean(valid, expected):
    assert masked_mean(jnp.array([1.0, 2.0, 3.0]), jnp.array(valid, bool)) == expected
