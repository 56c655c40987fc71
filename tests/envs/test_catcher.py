"""Catcher: its exact returns, and what it looks like (card of CRAR, section 2.5)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs import make
from metadyna.envs.catcher import LEFT, RIGHT, Catcher, CatcherState
from metadyna.envs.control import Episode

ENV = Catcher()
TASK = Episode(jnp.int32(0))
KEY = jax.random.key(0)


@jax.jit
def play(state, actions):
    return jax.lax.scan(lambda state, action: ENV.step(TASK, state, action, KEY), state, actions)


def state_of(row, column, paddle):
    return CatcherState(jnp.int32(row), jnp.int32(column), jnp.int32(paddle))


def all_states():
    """Ten rows, two columns, ten places of the paddle."""
    rows, columns, paddles = np.meshgrid(np.arange(10), [0, 9], np.arange(10), indexing="ij")
    return CatcherState(*(jnp.asarray(x.ravel(), jnp.int32) for x in (rows, columns, paddles)))


def start_values(act):
    """Expected returns of the twenty starts, by nine backups through the environment's own step."""
    step = jax.vmap(jax.vmap(ENV.step, (None, None, 0, None)), (None, 0, None, None))
    after, timestep = step(TASK, all_states(), jnp.arange(2), KEY)
    index = np.asarray(after.row * 20 + (after.column // 9) * 10 + after.paddle)
    values = np.zeros(200)
    for _ in range(9):
        values = act(timestep.reward + timestep.discount * values[index])
    return np.asarray(values)[-20:]


def test_random_play_catches_one_block_in_five():
    values = start_values(lambda gains: np.mean(gains, axis=1))
    assert values.mean() == pytest.approx(-0.6, abs=1e-6)
    assert values.std() > 0.1  # some starts are luckier
    assert make("catcher").references()["random"] == -0.6


def test_every_block_can_be_caught():
    np.testing.assert_allclose(start_values(lambda gains: np.max(gains, axis=1)), 1)
    assert make("catcher").references()["optimal"] == 1


def test_starts_are_uniform():
    keys = jax.random.split(jax.random.key(0), 4000)
    state, timestep = jax.vmap(ENV.reset, (None, 0))(TASK, keys)
    assert (state.row == 9).all()
    assert timestep.first.all()
    np.testing.assert_array_equal(timestep.obs, np.column_stack(state))
    counts = np.bincount(np.asarray(state.column // 9 * 10 + state.paddle), minlength=20)
    assert set(np.unique(state.column).tolist()) == {0, 9}
    np.testing.assert_allclose(counts / 4000, 1 / 20, atol=0.015)


@pytest.mark.parametrize(
    ("column", "paddle", "action", "final", "reward"),
    [(0, 9, LEFT, 0, 1), (0, 5, RIGHT, 9, -1), (9, 0, RIGHT, 9, 1), (9, 9, LEFT, 0, -1)],
)
def test_an_episode_is_one_fall(column, paddle, action, final, reward):
    _, steps = play(state_of(9, column, paddle), jnp.full(9, action))
    assert steps.obs.dtype == np.uint8
    assert steps.obs[:, 0].tolist() == list(range(8, -1, -1))
    assert (steps.obs[:, 1] == column).all()
    assert steps.obs[-1].tolist() == [0, column, final]
    assert steps.reward.tolist() == [0] * 8 + [reward]
    assert steps.last.tolist() == [False] * 8 + [True]
    assert steps.discount.tolist() == [1] * 8 + [0]


@pytest.mark.parametrize(
    ("column", "paddle", "action", "reward"),
    [(0, 2, LEFT, 1), (0, 1, RIGHT, -1), (9, 7, RIGHT, 1), (9, 8, LEFT, -1), (0, 0, RIGHT, 1), (9, 9, LEFT, 1)],
)
def test_the_paddle_catches_one_column_away_after_its_move(column, paddle, action, reward):
    _, steps = play(state_of(1, column, paddle), jnp.array([action]))
    assert steps.reward.tolist() == [reward]


def test_going_on_past_the_end_stays_within_the_spec():
    state, steps = play(state_of(1, 0, 0), jnp.full(5, LEFT))
    assert (state.row, state.paddle) == (0, 0)
    assert steps.obs.max() <= 9


def test_pictures():
    states = all_states()
    obs = jnp.stack(states, axis=1).astype(jnp.uint8)
    pictures = np.asarray(jax.jit(jax.vmap(ENV.picture))(obs))
    assert pictures.shape == (200, 36, 36)
    assert len(np.unique(pictures.reshape(200, -1), axis=0)) == 200
    high = pictures[np.asarray(states.row) >= 2]  # the block is clear of the paddle
    block, paddle = high[:, :30], high[:, 30:]
    assert set(np.unique(block).tolist()) == {0, *np.float32([0.6, 0.7, 0.8, 0.9, 1]).tolist()}
    assert (np.unique(paddle)[1], paddle.max()) == (0.5, 1)
    assert ((paddle > 0).sum((1, 2)) == 14).all()
    for lit, height in ((block > 0, 5), (paddle > 0, 2)):
        assert (lit.any(2).sum(1) == height).all()
        assert (lit.any(1).sum(1) == 7).all()


def test_block_and_paddle_are_drawn_where_they_are():
    def centre(picture):
        rows, columns = np.nonzero(picture)
        return rows.mean(), columns.mean()

    for row, column, paddle in ((9, 0, 4), (5, 9, 0), (2, 9, 9)):
        picture = np.asarray(ENV.picture(jnp.array([row, column, paddle], jnp.uint8)))
        assert centre(picture[:29]) == (31 - 3 * row, 3 * column + 4) or row == 2
        assert centre(picture[30:])[1] == 3 * paddle + 4
    landed = np.asarray(ENV.picture(jnp.array([0, 0, 0], jnp.uint8)))
    apart = [np.asarray(ENV.picture(jnp.array(obs, jnp.uint8))) for obs in ((0, 0, 9), (9, 9, 0))]
    np.testing.assert_array_equal(landed[27:, :10], np.maximum(apart[0], apart[1])[27:, :10])
