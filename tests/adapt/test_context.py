"""Contexts: losses and rewards against hand-computed numbers, and where gradients may flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.adapt import context
from metadyna.adapt.context import ProblemEncoder
from tests.arrays import normal, replaced

KEY = jax.random.key(0)
distances, decoder_loss, final_prefix = map(jax.jit, (context.distances, context.decoder_loss, context.final_prefix))
bottleneck_loss = jax.jit(context.bottleneck_loss, static_argnames="free")
information_gain = jax.jit(context.information_gain, static_argnames="penalty")


def columns(*sequences):
    """Sequences over time as a [T, B] array."""
    return np.array(sequences).T


def test_exploration_reward_by_hand():  # O5
    distance = columns([10.0, 10.0, 6.0, 6.0, 1.0])
    reward = np.asarray(information_gain(distance, np.ones((4, 1), bool), 0.1))
    np.testing.assert_allclose(reward[:, 0], [-0.1, 3.9, -0.1, 4.9], atol=1e-6)
    assert reward.sum() == pytest.approx(8.6, abs=1e-5)


def test_padded_steps_earn_exactly_nothing():  # O5
    distance = columns([10.0, 4.0, np.inf, 7.0], [3.0, 2.0, 1.0, 0.0])
    reward = np.asarray(information_gain(distance, columns([True, False, False], [True, True, True]), 0.1))
    np.testing.assert_allclose(reward.T, [[5.9, 0, 0], [0.9, 0.9, 0.9]], atol=1e-6)
    assert (reward[1:, 0] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_exploration_rewards_telescope(seed):  # O14
    """Σ r = d_0 − d_T − c T for any f, any g and any lengths."""
    rng = np.random.default_rng(seed)
    steps, batch, width = 7, 4, 5
    f, g = 3 * normal(batch, width, seed=rng), normal(steps + 1, batch, width, seed=rng)
    length, penalty = rng.integers(0, steps + 1, batch), rng.normal()
    reward = np.asarray(information_gain(distances(f, g), np.arange(steps)[:, None] < length, penalty))
    for b, end in enumerate(length.tolist()):
        first, last = np.sum((f[b] - g[0, b]) ** 2), np.sum((f[b] - g[end, b]) ** 2)
        assert reward[:, b].sum() == pytest.approx(first - last - penalty * end, abs=1e-4)


def test_bottleneck_by_hand():  # O6
    encoding = np.float32([[2, 0], [3, 4]])  # squared norms 4 and 25
    assert bottleneck_loss(encoding, 10.0) == 17.5
    gradient = jax.jit(jax.grad(bottleneck_loss), static_argnums=1)(encoding, 10.0)
    np.testing.assert_allclose(gradient, [[0, 0], [3, 4]])


ENCODING = np.float32([[1, 0]])
PREFIXES = np.float32([[[0, 0]], [[1, 1]], [[50, 60]]])
VALID = np.array([[True], [False]])  # one step, then padding


def test_decoder_loss_by_hand():  # O6
    assert decoder_loss(ENCODING, PREFIXES, VALID) == 1


def test_decoder_loss_counts_prefixes_not_episodes():
    encoding, prefixes = np.zeros((2, 1), np.float32), columns([1.0, 1.0, 1.0], [3.0, 9.0, 9.0])[..., None]
    valid = columns([True, True], [False, False])
    assert decoder_loss(encoding, prefixes, valid) == (1 + 1 + 1 + 9) / 4


def test_only_the_decoder_learns_from_its_loss():
    of_encoding, of_prefixes = map(np.asarray, jax.jit(jax.grad(decoder_loss, (0, 1)))(ENCODING, PREFIXES, VALID))
    assert not of_encoding.any()
    np.testing.assert_allclose(of_prefixes[:, 0], [[-1, 0], [0, 1], [0, 0]])


@pytest.mark.parametrize("padding", [np.inf, 1e30, -7.0])
def test_padding_does_not_reach_any_result(padding):
    other = replaced(PREFIXES, 2, padding)
    assert decoder_loss(ENCODING, other, VALID) == 1
    np.testing.assert_array_equal(final_prefix(other, VALID), [[1, 1]])
    reward = information_gain(distances(ENCODING, other), VALID, 0.5)
    np.testing.assert_array_equal(reward, [[1 - 1 - 0.5], [0]])


def test_the_final_prefix_is_that_of_the_last_valid_step():
    prefixes = np.arange(4.0)[:, None, None] + np.array([0.0, 10.0, 20.0, 30.0])[:, None]
    lengths = np.array([0, 1, 2, 3])
    valid = np.arange(3)[:, None] < lengths
    assert np.asarray(final_prefix(prefixes, valid))[:, 0].tolist() == [0, 11, 22, 33]


@pytest.mark.parametrize("hidden", [None, 16])
def test_problems_are_told_apart(hidden):

    @jax.jit
    def encode(key):
        return jax.vmap(ProblemEncoder.create(24, 8, key, hidden=hidden))(jnp.arange(24))

    encodings = np.asarray(encode(KEY))
    assert encodings.shape == (24, 8)
    gaps = np.linalg.norm(encodings[:, None] - encodings[None], axis=-1) + np.eye(24)
    assert gaps.min() > 0.1
