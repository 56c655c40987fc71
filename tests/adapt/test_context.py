"""Contexts: losses and rewards against hand-computed numbers, and where gradients may flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.adapt.context import (
    ProblemEncoder,
    bottleneck_loss,
    decoder_loss,
    distances,
    final_prefix,
    information_gain,
)

KEY = jax.random.key(0)


def columns(*sequences):
    """Sequences over time as a [T, B] array."""
    return jnp.array(sequences).T


def test_exploration_reward_by_hand():  # O5
    distance = jnp.array([10.0, 10.0, 6.0, 6.0, 1.0])[:, None]
    reward = information_gain(distance, jnp.ones((4, 1), bool), 0.1)
    np.testing.assert_allclose(reward[:, 0], [-0.1, 3.9, -0.1, 4.9], atol=1e-6)
    assert reward.sum() == pytest.approx(8.6, abs=1e-5)


def test_padded_steps_earn_exactly_nothing():  # O5
    distance = columns([10.0, 4.0, jnp.inf, 7.0], [3.0, 2.0, 1.0, 0.0])
    reward = information_gain(distance, columns([True, False, False], [True, True, True]), 0.1)
    np.testing.assert_allclose(reward.T, [[5.9, 0, 0], [0.9, 0.9, 0.9]], atol=1e-6)
    assert (reward[1:, 0] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_exploration_rewards_telescope(seed):  # O14
    """Σ r = d_0 − d_T − c T for any f, any g and any lengths."""
    k_f, k_g, k_length, k_penalty = jax.random.split(jax.random.key(seed), 4)
    steps, batch, width = 7, 4, 5
    encoding = 3 * jax.random.normal(k_f, (batch, width))
    prefixes = jax.random.normal(k_g, (steps + 1, batch, width))
    length = jax.random.randint(k_length, (batch,), 0, steps + 1)
    penalty = jax.random.normal(k_penalty).item()
    distance = distances(encoding, prefixes)
    reward = information_gain(distance, jnp.arange(steps)[:, None] < length[None], penalty)
    f, g = np.asarray(encoding), np.asarray(prefixes)
    for b, end in enumerate(length.tolist()):
        first, last = np.sum((f[b] - g[0, b]) ** 2), np.sum((f[b] - g[end, b]) ** 2)
        assert reward[:, b].sum() == pytest.approx(first - last - penalty * end, abs=1e-4)


def test_bottleneck_by_hand():  # O6
    encoding = jnp.array([[2.0, 0.0], [3.0, 4.0]])  # squared norms 4 and 25
    assert bottleneck_loss(encoding, 10.0) == 17.5
    gradient = jax.grad(bottleneck_loss)(encoding, 10.0)
    np.testing.assert_allclose(gradient, [[0, 0], [3, 4]])


ENCODING = jnp.array([[1.0, 0.0]])
PREFIXES = jnp.array([[[0.0, 0.0]], [[1.0, 1.0]], [[50.0, 60.0]]])
VALID = jnp.array([[True], [False]])  # one step, then padding


def test_decoder_loss_by_hand():  # O6
    assert decoder_loss(ENCODING, PREFIXES, VALID) == 1


def test_decoder_loss_counts_prefixes_not_episodes():
    encoding, prefixes = jnp.zeros((2, 1)), columns([1.0, 1.0, 1.0], [3.0, 9.0, 9.0])[..., None]
    valid = columns([True, True], [False, False])
    assert decoder_loss(encoding, prefixes, valid) == (1 + 1 + 1 + 9) / 4


def test_only_the_decoder_learns_from_its_loss():
    of_encoding, of_prefixes = jax.grad(decoder_loss, argnums=(0, 1))(ENCODING, PREFIXES, VALID)
    assert not of_encoding.any()
    np.testing.assert_allclose(of_prefixes[:, 0], [[-1, 0], [0, 1], [0, 0]])


@pytest.mark.parametrize("padding", [jnp.inf, 1e30, -7.0])
def test_padding_does_not_reach_any_result(padding):
    other = PREFIXES.at[2].set(padding)
    assert decoder_loss(ENCODING, other, VALID) == 1
    np.testing.assert_array_equal(final_prefix(other, VALID), [[1, 1]])
    reward = information_gain(distances(ENCODING, other), VALID, 0.5)
    np.testing.assert_array_equal(reward, [[1 - 1 - 0.5], [0]])


def test_the_final_prefix_is_that_of_the_last_valid_step():
    prefixes = jnp.arange(4.0)[:, None, None] + jnp.array([0.0, 10.0, 20.0, 30.0])[None, :, None]
    lengths = jnp.array([0, 1, 2, 3])
    valid = jnp.arange(3)[:, None] < lengths[None]
    assert final_prefix(prefixes, valid)[:, 0].tolist() == [0, 11, 22, 33]


@pytest.mark.parametrize("hidden", [None, 16])
def test_problems_are_told_apart(hidden):
    encoder = ProblemEncoder.create(24, 8, KEY, hidden=hidden)
    encodings = np.asarray(jax.vmap(encoder)(jnp.arange(24)))
    assert encodings.shape == (24, 8)
    gaps = np.linalg.norm(encodings[:, None] - encodings[None], axis=-1) + np.eye(24)
    assert gaps.min() > 0.1
