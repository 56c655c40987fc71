"""Labyrinths step by step and pixel by pixel (card of CRAR, sections 2.1, 2.4 and oracles O11, O12)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs import make
from metadyna.envs.control import Episode
from metadyna.envs.maze import AGENT, FREE, KEY, SIDE, WALL, Labyrinth, Maze, SimpleMaze
from metadyna.errors import UserError
from metadyna.types import Pictured

LABYRINTH, SIMPLE = Labyrinth(), SimpleMaze()
DOWN, RIGHT, UP, LEFT = range(4)
CODES = {".": FREE, "#": WALL, "k": KEY, "a": AGENT}

BENDS = (
    "########",
    "#a.kk..#",
    "##.##..#",
    "#k.#...#",
    "#...#..#",
    "##..#..#",
    "#......#",
    "########",
)
TOUR = (RIGHT, DOWN, DOWN, LEFT, RIGHT, UP, UP, RIGHT, RIGHT)  # over the keys at (3, 1), (1, 3) and (1, 4)


def codes(rows):
    return np.array([[CODES[letter] for letter in row] for row in rows], np.uint8)


def maze_of(rows):
    board = codes(rows)
    return Maze(jnp.asarray(board == WALL), jnp.asarray(np.flatnonzero(board == KEY), jnp.int32))


@partial(jax.jit, static_argnums=0)
def play(env, task, actions):
    """Time steps of a fixed sequence of actions, without the reset; goes on past the end."""
    key = jax.random.key(0)
    state, _ = env.reset(task, key)
    return jax.lax.scan(lambda state, action: env.step(task, state, action, key), state, actions)[1]


def played(env, task, *actions):
    return play(env, task, jnp.array(actions, jnp.int32))


def position(obs):
    return tuple(np.argwhere(np.asarray(obs) == AGENT)[0].tolist())


def close(values, expected):
    np.testing.assert_allclose(values, expected, atol=1e-5)


# --- playing


def test_a_reset_shows_the_map():
    _, timestep = LABYRINTH.reset(maze_of(BENDS), jax.random.key(0))
    np.testing.assert_array_equal(timestep.obs, codes(BENDS))
    assert timestep.obs.dtype == np.uint8
    assert (timestep.reward, timestep.discount, timestep.prev_action) == (0, 1, -1)
    assert (timestep.first, timestep.last) == (True, False)


def test_a_tour_pays_a_key_or_costs_a_step():
    steps = played(LABYRINTH, maze_of(BENDS), *TOUR)
    close(steps.reward, [-0.1, -0.1, -0.1, 1.0, -0.1, -0.1, -0.1, 1.0, 1.0])
    close(steps.reward.sum(), 3.3 - 0.1 * len(TOUR))
    assert steps.last.tolist() == [False] * 8 + [True]
    assert steps.discount.tolist() == [1] * 8 + [0]
    assert steps.prev_action.tolist() == list(TOUR)
    assert not steps.first.any()


def test_a_key_is_taken_once():
    steps = played(LABYRINTH, maze_of(BENDS), RIGHT, RIGHT, LEFT, RIGHT)
    close(steps.reward, [-0.1, 1.0, -0.1, -0.1])
    assert [(np.asarray(obs) == KEY).sum() for obs in steps.obs] == [3, 2, 2, 2]
    assert steps.obs[2, 1, 3] == FREE


def test_actions_lead_where_the_card_says():
    steps = played(LABYRINTH, maze_of(BENDS), RIGHT, DOWN, UP, LEFT, LEFT, UP, DOWN)
    assert [position(obs) for obs in steps.obs] == [(1, 2), (2, 2), (1, 2), (1, 1), (1, 1), (1, 1), (1, 1)]


def test_bumping_until_the_time_limit():
    steps = played(LABYRINTH, maze_of(BENDS), *[UP] * 50)
    close(steps.reward.sum(), -5.0)
    assert steps.last.tolist() == [False] * 49 + [True]
    assert (steps.discount == 1).all()


def test_the_last_key_terminates_also_at_the_time_limit():
    steps = played(Labyrinth(horizon=len(TOUR)), maze_of(BENDS), *TOUR)
    assert (steps.last[-1], steps.discount[-1]) == (True, 0)
    steps = played(Labyrinth(horizon=len(TOUR) - 1), maze_of(BENDS), *TOUR)
    assert (steps.last[-2], steps.discount[-2]) == (True, 1)


def test_prices_are_settings():
    steps = played(Labyrinth(horizon=2**31 - 1, step_cost=0.25, key_reward=2.0), maze_of(BENDS), *[LEFT] * 60, *TOUR)
    close(steps.reward.sum(), 3 * 2 - 0.25 * (60 + len(TOUR) - 3))
    assert steps.last.tolist() == [False] * 68 + [True]


@pytest.mark.parametrize("env", [Labyrinth, SimpleMaze])
def test_bad_settings_are_explained(env):
    with pytest.raises(UserError, match=r"horizon = 0 is out of range"):
        env(horizon=0)


@pytest.mark.parametrize("name", ["labyrinth", "simple-maze"])
def test_random_play_stays_within_the_spec_and_batches(name):
    """Many copies at once do what each does alone."""
    family = make(name)
    keys = jax.random.split(jax.random.key(0), 64)
    tasks = jax.vmap(family.test.sample)(keys)
    actions = jax.vmap(lambda key: jax.random.randint(key, (60,), 0, 4))(keys)
    steps = jax.vmap(partial(play, family.env))(tasks, actions)
    box = family.env.spec.observation
    assert steps.obs.shape[2:] == box.shape
    assert steps.obs.dtype == box.dtype
    assert steps.obs.min() == box.low
    assert steps.obs.max() == box.high
    assert ((steps.obs == AGENT).sum((2, 3)) == 1).all()
    for copy in (0, 63):
        alone = play(family.env, jax.tree.map(lambda x, i=copy: x[i], tasks), actions[copy])
        jax.tree.map(np.testing.assert_array_equal, alone, jax.tree.map(lambda x, i=copy: x[i], steps))
    jitted = jax.jit(jax.vmap(family.env.picture))(steps.obs[0])
    np.testing.assert_array_equal(jitted[7], family.env.picture(steps.obs[0, 7]))


# --- pictures

# (row, columns, tenths before scaling), as the card lists them
AGENT_PIXELS = (
    (0, (2,), 8),
    (1, (0, 1, 2, 3, 4), 9),
    (2, (1, 2, 3), 9),
    (3, (1, 2, 3), 9),
    (4, (1, 3), 9),
    (5, (0, 1, 3, 4), 9),
)
KEY_PIXELS = (
    (0, (1, 2, 3), 6),
    (1, (1, 3), 7),
    (2, (1, 2, 3), 6),
    (3, (1,), 7),
    (4, (1, 2), 7),
    (5, (1, 2, 3), 7),
)


def glyph(pixels, paler=0):
    tile = np.zeros((6, 6))
    for row, columns, tenths in pixels:
        tile[row, list(columns)] = (tenths - paler) / 10
    return tile


def tile(picture, row, column):
    return picture[6 * row : 6 * row + 6, 6 * column : 6 * column + 6]


def test_glyphs():
    picture = LABYRINTH.picture(jnp.asarray(codes(BENDS)))
    assert picture.shape == (48, 48)
    assert picture.dtype == np.float32
    close(tile(picture, 1, 1), 2 * glyph(AGENT_PIXELS) - 1)
    for key in ((1, 3), (1, 4), (3, 1)):
        close(tile(picture, *key), 2 * glyph(KEY_PIXELS) - 1)
    close(tile(picture, 3, 3), 1)
    close(tile(picture, 6, 6), -1)


@pytest.mark.parametrize("name", ["labyrinth", "labyrinth-reachable"])
def test_pictures_at_reset(name):
    """Oracle O11: 40 walls, one agent and three keys whatever the maze."""
    family = make(name)
    obs = jax.vmap(lambda task: family.env.reset(task, jax.random.key(0))[1].obs)(family.test.enumerate())
    assert (obs != WALL)[:, 6, 1:7].all()
    assert (obs != WALL)[:, 1:7, 6].all()
    pictures = np.asarray(jax.vmap(family.env.picture)(obs), np.float64)
    close(pictures.sum((1, 2)), 663.4)
    close(((pictures + 1) / 2).sum((1, 2)), 1483.7)
    for picture in pictures:
        close(np.unique(picture), [-1, 0.2, 0.4, 0.6, 0.8, 1])


@pytest.mark.parametrize("name", ["labyrinth", "simple-maze", "catcher"])
def test_they_are_pictured(name):
    assert isinstance(make(name).env, Pictured)


# --- two rooms

SIMPLE_UP, SIMPLE_DOWN, SIMPLE_LEFT, SIMPLE_RIGHT = range(4)
TASK = Episode(jnp.int32(0))


def test_the_simple_maze_is_two_rooms_joined_by_a_gap():
    boards = SIMPLE.all_boards
    assert boards.shape == (31, SIDE, SIDE)
    assert boards.dtype == np.uint8
    positions = [position(board) for board in boards]
    assert positions == sorted(set(positions))
    columns = np.array(positions)[:, 1]
    assert ((columns < 4).sum(), (columns == 4).sum(), (columns > 4).sum()) == (18, 1, 12)
    assert (4, 4) in positions
    without_agent = np.where(boards == AGENT, FREE, boards)
    assert (without_agent == without_agent[0]).all()
    assert (without_agent[0] == WALL).sum() == 28 + 5


def test_a_long_walk_through_the_simple_maze_shows_all_boards():
    actions = jax.random.randint(jax.random.key(0), (4000,), 0, 4)
    steps = play(SimpleMaze(horizon=5000), TASK, actions)
    seen = np.unique(steps.obs, axis=0)
    np.testing.assert_array_equal(seen, np.unique(SIMPLE.all_boards, axis=0))
    assert (steps.reward == 0).all()
    assert (steps.discount == 1).all()
    assert not steps.last.any()


def test_the_simple_maze_has_directions_of_its_own():
    actions = (SIMPLE_UP, SIMPLE_DOWN, SIMPLE_RIGHT, SIMPLE_UP, SIMPLE_LEFT, SIMPLE_DOWN, SIMPLE_LEFT, SIMPLE_LEFT)
    steps = played(SIMPLE, TASK, *actions)
    path = [(4, 4), (4, 4), (4, 5), (3, 5), (3, 5), (4, 5), (4, 4), (4, 3)]
    assert [position(obs) for obs in steps.obs] == path
    assert position(SIMPLE.reset(TASK, jax.random.key(0))[1].obs) == (4, 4)


def test_the_simple_maze_is_cut_after_its_horizon():
    steps = played(SIMPLE, TASK, *[SIMPLE_LEFT] * 500)
    assert steps.last.tolist() == [False] * 499 + [True]
    assert (steps.discount == 1).all()


def test_the_simple_maze_is_drawn_unscaled_with_a_paler_agent():
    for board in (SIMPLE.all_boards[0], SIMPLE.all_boards[-1]):
        picture = SIMPLE.picture(jnp.asarray(board))
        close(tile(picture, *position(board)), glyph(AGENT_PIXELS, paler=1))
        close(np.unique(picture), [0, 0.7, 0.8, 1])
        close(picture.sum(), 33 * 36 + 17 * 0.8 + 0.7)
