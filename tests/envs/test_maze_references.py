"""Exact returns of the labyrinth against the card of CRAR (sections 2.3, 6.2 C1, O12), searches and played episodes.

Differences between mazes: 3.5 steps of the shortest tour, so the mean over a pool of 4608 is known to 0.05.
"""

import itertools
from collections import deque
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs import make
from metadyna.envs.labyrinths import Mazes
from metadyna.envs.maze import NUM_CELLS, START, Labyrinth, Maze
from metadyna.envs.maze_references import normalised, optimal_return, optimal_values, random_return, shortest_tour
from tests.arrays import replaced

ENV = Labyrinth()
FILTERS = ("published", "reachable")

tours = jax.jit(jax.vmap(shortest_tour))


@partial(jax.jit, static_argnums=1)
def optima(mazes, env=ENV):
    return jax.vmap(partial(optimal_return, env))(mazes)


@partial(jax.jit, static_argnums=1)
def random_returns(mazes, env=ENV):
    return jax.vmap(partial(random_return, env))(mazes)


@partial(jax.jit, static_argnums=(1, 2))
def values_of(mazes, discount, env=ENV):
    return jax.vmap(lambda maze: optimal_values(env, maze, discount))(mazes)


@cache
def all_tours(name):
    """Of all mazes of a filter."""
    return np.asarray(tours(pool_of(name)))


@cache
def pool_of(name):
    halves = (Mazes(name, split, count).enumerate() for split, count in (("train", 4096), ("test", 512)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *halves)


@pytest.fixture(scope="module", params=FILTERS)
def pool(request):
    """All mazes of a filter."""
    return request.param, pool_of(request.param)


def legs(maze, source):
    """Steps from a cell to every other that can be reached, by breadth-first search."""
    walls = np.asarray(maze.walls).ravel()
    steps, queue = {source: 0}, deque([source])
    while queue:
        cell = queue.popleft()
        for ahead in (cell + 8, cell - 8, cell + 1, cell - 1):
            if not walls[ahead] and ahead not in steps:
                steps[ahead] = steps[cell] + 1
                queue.append(ahead)
    return steps


def orders(maze):
    """For each order of the keys, the times at which they are found."""
    keys = np.asarray(maze.keys).tolist()
    distances = {cell: legs(maze, cell) for cell in (START, *keys)}
    for order in itertools.permutations(keys):
        yield np.cumsum([distances[a][b] for a, b in itertools.pairwise((START, *order))])


def each(mazes, count):
    return (jax.tree.map(lambda x, i=i: np.asarray(x[i]), mazes) for i in range(count))


def test_tours_and_nearest_keys_are_those_of_a_search(pool):
    name, mazes = pool
    found = [np.array(list(orders(maze))) for maze in each(mazes, 400)]
    np.testing.assert_array_equal(all_tours(name)[:400], [times[:, -1].min() for times in found])
    nearest = np.mean([times[:, 0].min() for times in found])
    assert nearest == pytest.approx({"published": 5.2, "reachable": 4.1}[name], abs=0.25)  # sd 1.7 and 2 between mazes


def test_mean_tours(pool):
    name, mazes = pool
    assert all_tours(name).mean() == pytest.approx({"published": 14.07, "reachable": 13.12}[name], abs=0.15)
    best = np.asarray(optima(mazes))
    np.testing.assert_allclose(best, 3.3 - 0.1 * all_tours(name), atol=1e-6)
    assert best.mean() == pytest.approx({"published": 1.893, "reachable": 1.988}[name], abs=0.015)
    assert best.std() == pytest.approx({"published": 0.35, "reachable": 0.36}[name], abs=0.015)


def test_mean_random_returns(pool):
    """The card's numbers are of sampled episodes, whose standard deviation is 1.1 and 1.2."""
    name, mazes = pool
    means = np.asarray(random_returns(jax.tree.map(lambda x: x[::2], mazes)))
    assert means.mean() == pytest.approx({"published": -4.12, "reachable": -3.89}[name], abs=0.06)
    assert means.min() > -5


def test_discounted_values_of_the_start_are_those_of_the_best_order(pool):
    """Every order in closed form; the card's means are of 300 mazes, 0.05 easier than all are."""
    name, mazes = pool
    mazes = jax.tree.map(lambda x: x[-512:], mazes)
    values = np.asarray(values_of(mazes, 0.9))[:, 7, START].max(-1)
    best = [
        max(1.1 * np.sum(0.9 ** (times - 1)) - (1 - 0.9 ** times[-1]) for times in orders(maze))
        for maze in each(mazes, 200)
    ]
    np.testing.assert_allclose(values[:200], best, atol=1e-5)
    returns = np.asarray(optima(mazes))
    in_mazes_like_the_cards = np.poly1d(np.polyfit(returns, values, 1))
    returned, expected = {"published": (1.95, 0.85), "reachable": (2.03, 0.98)}[name]
    assert in_mazes_like_the_cards(returned) == pytest.approx(expected, abs=0.06)


@jax.jit
def play_greedily(mazes, values, keys, exploration):
    """Returns of episodes that act by a table of values, and at random with some probability."""

    def episode(maze, table, key):
        def step(carry, key):
            state, alive = carry
            mask = (state.left * jnp.array([1, 2, 4])).sum()
            explore, choose = jax.random.split(key)
            action = jnp.where(
                jax.random.bernoulli(explore, exploration),
                jax.random.randint(choose, (), 0, 4),
                table[mask, state.cell].argmax(),
            )
            state, timestep = ENV.step(maze, state, action, key)
            return (state, alive & ~timestep.last), jnp.where(alive, timestep.reward, 0.0)

        start = (ENV.reset(maze, key)[0], jnp.bool_(True))
        return jax.lax.scan(step, start, jax.random.split(key, ENV.horizon))[1].sum()

    return jax.vmap(episode)(mazes, values, keys)


def test_played_episodes_earn_what_is_promised(pool):
    """The best play all but undiscounted, at the usual discount, with noise, and no play but noise."""
    name, mazes = pool
    mazes = jax.tree.map(lambda x: x[-256:], mazes)
    keys = jax.random.split(jax.random.key(0), 256)
    best, usual_values = np.asarray(optima(mazes)), values_of(mazes, 0.9)

    def play(values, exploration):
        return np.asarray(play_greedily(mazes, values, keys, exploration))

    np.testing.assert_allclose(play(values_of(mazes, 0.999), 0.0), best, atol=1e-5)
    usual = play(usual_values, 0.0)
    assert (usual <= best + 1e-5).all()
    assert (best - usual).mean() < 0.012
    noisy = play(usual_values, 0.1)
    assert (best - noisy).mean() == pytest.approx({"published": 0.16, "reachable": 0.17}[name], abs=0.05)
    aimless = play(usual_values, 1.0)
    difference = aimless - np.asarray(random_returns(mazes))
    assert abs(difference.mean()) < 3 * difference.std() / 256**0.5


def one_key_away():
    """An empty room with keys right of, below and diagonally below the start, [1]."""
    walls = np.pad(np.zeros((6, 6), bool), 1, constant_values=True)
    keys = np.array([[START + 1, START + 8, START + 9]], np.int32)
    return Maze(jnp.asarray(walls[None]), jnp.asarray(keys))


def test_values_by_hand():
    maze = one_key_away()
    assert tours(maze).tolist() == [3]
    assert optima(maze).tolist() == pytest.approx([3.0])
    values = np.asarray(values_of(maze, 0.9))[0]
    assert values.shape == (8, NUM_CELLS, 4)
    np.testing.assert_allclose(values[7, START, :2], 1 + 0.9 + 0.81, rtol=1e-6)  # down or right
    np.testing.assert_allclose(values[7, START, 2:], -0.1 + 0.9 * 2.71, rtol=1e-6)  # into the wall
    np.testing.assert_allclose(values[1, START], [-0.1 + 0.9 * -0.1 + 0.81, 1, -0.1 + 0.9, -0.1 + 0.9], rtol=1e-5)
    settings = Labyrinth(step_cost=0.5, key_reward=4.0)
    assert optima(maze, settings).tolist() == pytest.approx([12.0])
    assert np.asarray(values_of(maze, 0.9, settings))[0, 7, START].max() == pytest.approx(4 * 2.71)


def test_random_returns_by_hand():
    maze = one_key_away()
    assert random_returns(maze, Labyrinth(horizon=1)).tolist() == pytest.approx([(2 * 1 + 2 * -0.1) / 4])
    after_key = (2 * 1 + 1 * -0.1 + 1 * -0.1) / 4  # beside the start: the diagonal key, two walls or ways, the start
    after_key -= 1.1 / 4  # the other key is two steps away
    after_bump = 0.45
    expected = 0.45 + (after_key + after_bump) / 2
    assert random_returns(maze, Labyrinth(horizon=2)).tolist() == pytest.approx([expected])


def test_a_walled_off_key_has_no_tour():
    maze = one_key_away()
    walls = replaced(np.asarray(maze.walls), (0, [5, 6], [6, 5]), True)
    keys = replaced(np.asarray(maze.keys), (0, 0), 6 * 8 + 6)
    assert tours(Maze(jnp.asarray(walls), jnp.asarray(keys))).tolist() == [np.inf]


def test_normalised_returns():
    np.testing.assert_allclose(normalised(ENV, np.array([-5.0, -1.5, 2.0]), np.full(3, 2.0)), [0, 0.5, 1])
    assert normalised(Labyrinth(horizon=20), -2.0, 1.0) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("labyrinth", {"optimal": 1.8625, "random": -4.0933}),
        ("labyrinth-reachable", {"optimal": 1.9630, "random": -3.9331}),
    ],
)
def test_family_references(name, expected):
    references = make(name).references()
    assert references == pytest.approx(expected, abs=5e-5)
    assert all(isinstance(value, float) for value in references.values())
