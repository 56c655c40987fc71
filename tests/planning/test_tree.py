"""Trees: the card's table, value iteration on a labyrinth, an explicit recursion, and who is expanded."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs.labyrinths import Mazes
from metadyna.envs.maze import NUM_CELLS, NUM_KEYS, Labyrinth, LabyrinthState, Maze
from metadyna.envs.maze_references import NUM_MASKS, optimal_values
from metadyna.planning.tree import depth_values, planned_values
from tests.arrays import normal

KEY = jax.random.key(0)
plan = jax.jit(depth_values, static_argnums=(2, 3))
average = jax.jit(planned_values, static_argnums=(2, 3))


class Table(NamedTuple):
    """A state is a number; where its actions lead, what they pay, and what is left of the future by [state, action]."""

    next: Any
    reward: Any
    discount: Any
    values: Any

    def step(self, x, action):
        state = x[0].astype(jnp.int32)
        return self.next[state, action][None].astype(x.dtype), self.reward[state, action], self.discount[state, action]

    def value(self, x):
        return self.values[x[0].astype(jnp.int32)]


def table(next, reward, discount, values):
    numbers = (np.asarray(entry, np.float32) for entry in (reward, discount, values))
    return Table(*map(jnp.asarray, (np.asarray(next), *numbers)))


def state(number):
    return jnp.asarray(np.float32([number]))


def random_table(states=12, actions=4, seed=0):
    """Rewards, discounts (some negative, as nothing forbids) and values without order."""
    rng = np.random.default_rng(seed)
    shape = states, actions
    return table(
        rng.integers(0, states, shape), rng.normal(size=shape), rng.uniform(-0.5, 1.0, shape), rng.normal(size=shape)
    )


@partial(jax.jit, static_argnums=(1, 2))
def all_depth_values(model, depth, breadth, states):
    return jax.vmap(lambda x: depth_values(model, x, depth, breadth))(states)


def of_every_state(model, depth, breadth):
    """[states, depths, actions]."""
    states = np.arange(len(model.next), dtype=np.float32)[:, None]
    return np.asarray(all_depth_values(model, depth, breadth, states))


# --- the card's table

TWO_STATES = table(  # actions go, stay; the third state is the end
    next=[[1, 0], [2, 1], [2, 2]],
    reward=[[-0.1, -0.1], [1, -0.1], [0, 0]],
    discount=[[0.9, 0.9], [0, 0.9], [0, 0]],
    values=np.zeros((3, 2)),
)


def test_two_states_by_hand():  # O1
    values = of_every_state(TWO_STATES, 3, 2)
    np.testing.assert_allclose(values[0], [[0, 0], [-0.1, -0.1], [0.8, -0.19], [0.8, 0.62]], atol=1e-6)
    np.testing.assert_allclose(values[1, :3], [[0, 0], [1, -0.1], [1, 0.8]], atol=1e-6)


def test_a_plan_is_the_mean_over_its_depths():  # O1; T4: of D + 1, where the text divides by D
    np.testing.assert_allclose(average(TWO_STATES, state(0), 2, 2), [0.7 / 3, -0.29 / 3], atol=1e-6)
    model = random_table()
    each = of_every_state(model, 3, 2)[5]
    np.testing.assert_allclose(average(model, state(5), 3, 2), each.mean(0), atol=1e-6)


# --- a labyrinth


@dataclass(frozen=True)
class TrueModel:
    """A labyrinth itself: x holds the keys left, as bits, times 64, plus the cell."""

    maze: Maze
    values: Any

    def step(self, x, action):
        mask, cell = jnp.divmod(x[0].astype(jnp.int32), NUM_CELLS)
        before = LabyrinthState(cell, (mask >> np.arange(NUM_KEYS) & 1).astype(bool), jnp.int32(0))
        after, timestep = Labyrinth().step(self.maze, before, action, KEY)
        number = jnp.sum(after.left * 2 ** np.arange(NUM_KEYS)) * NUM_CELLS + after.cell
        return number[None].astype(x.dtype), timestep.reward, 0.9 * timestep.discount

    def value(self, x):
        return self.values[x[0].astype(jnp.int32)]


@pytest.fixture(scope="module")
def labyrinth():
    """A maze, its states with keys left off the walls, and what every action leads to, pays and leaves there."""
    maze = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[0]), Mazes(split="test", count=1).enumerate())
    numbers = np.arange(NUM_MASKS * NUM_CELLS)
    mask, cell = divmod(numbers, NUM_CELLS)
    states = numbers[(mask > 0) & ~np.asarray(maze.walls).ravel()[cell]]
    step = TrueModel(maze, None).step
    each = jax.jit(jax.vmap(jax.vmap(step, (None, 0)), (0, None)))
    after, reward, discount = map(np.asarray, each(np.float32(states)[:, None], np.arange(4)))
    return maze, states, after[..., 0].astype(int), reward, discount


@partial(jax.jit, static_argnums=(3, 4))
def labyrinth_values(maze, values, states, depth, breadth):
    return jax.vmap(lambda x: depth_values(TrueModel(maze, values), x, depth, breadth))(states)


best_of = jax.jit(partial(optimal_values, Labyrinth()))


def test_full_trees_over_nothing_are_sweeps_of_value_iteration(labyrinth):  # O1
    maze, states, after, reward, discount = labyrinth
    values = np.zeros((NUM_MASKS * NUM_CELLS, 4), np.float32)
    planned = np.asarray(labyrinth_values(maze, values, np.float32(states)[:, None], 3, 4))
    for depth in range(4):
        np.testing.assert_allclose(planned[:, depth], values[states], atol=1e-5)
        swept = np.zeros_like(values)
        swept[states] = reward + discount * values[after].max(-1)
        values = swept
    assert values.max() > 0.9
    assert (discount == 0).any()


@pytest.mark.parametrize("breadth", [2, 4])
def test_at_optimal_values_every_depth_agrees(labyrinth, breadth):  # O1: the best by Q is then the best
    maze, states, *_ = labyrinth
    optimal = np.asarray(best_of(maze)).reshape(-1, 4)
    planned = np.asarray(labyrinth_values(maze, optimal, np.float32(states)[:, None], 3, breadth))
    for depth in range(4):
        np.testing.assert_allclose(planned[:, depth], optimal[states], atol=1e-5)
    assert np.ptp(optimal[states], axis=1).max() > 0.3


# --- against an explicit recursion


def recursion(model, state, action, depth, breadth):
    """Qᵈ(x, a) of card 3.4, node by node."""
    if depth == 0:
        return float(model.values[state, action])
    ahead = int(model.next[state, action])
    tried = np.argsort(-np.asarray(model.values[ahead]), kind="stable")[:breadth]
    best = max(recursion(model, ahead, each, depth - 1, breadth) for each in tried)
    return float(model.reward[state, action]) + float(model.discount[state, action]) * best


@pytest.mark.parametrize("breadth", [1, 2, 4])
def test_trees_of_a_batch_are_those_of_a_recursion(breadth):  # O15, P4, P12
    planned, model = of_every_state(random_table(), 3, breadth), jax.tree.map(np.asarray, random_table())
    for x, depth, action in np.ndindex(*planned.shape):
        assert planned[x, depth, action] == pytest.approx(recursion(model, x, action, depth, breadth), abs=1e-5)


def test_breadth_decides():
    """What is pruned by Q would often have been best: the test above tells the widths apart."""
    model = random_table()
    full = of_every_state(model, 3, 4)
    for narrow, wide in ((1, 2), (2, 4)):
        assert not np.allclose(of_every_state(model, 3, narrow)[:, 2:], of_every_state(model, 3, wide)[:, 2:])
    np.testing.assert_array_equal(of_every_state(model, 3, 9), full)
    leaves = [of_every_state(model, 1, breadth) for breadth in (1, 2, 4)]  # the best of Q is always among them
    np.testing.assert_array_equal(leaves[0], leaves[1])
    np.testing.assert_array_equal(leaves[0], leaves[2])


def test_asked_for_some_actions_it_tells_theirs_in_their_order():
    model, actions = random_table(), [2, 0, 2]
    some = plan(model, state(3), 3, 2, np.array(actions))
    np.testing.assert_allclose(some, of_every_state(model, 3, 2)[3][:, actions], atol=1e-6)


# --- batches of abstract states


class Smooth(NamedTuple):
    """A model of states of any shape, all of it smooth and random; [actions, outputs, inputs]."""

    change: Any
    reward: Any
    discount: Any
    values: Any

    def step(self, x, action):
        flat = x.reshape(-1)
        following = x + jnp.tanh(self.change[action] @ flat).reshape(x.shape)
        return following, jnp.tanh(self.reward[action] @ flat), jnp.tanh(self.discount[action] @ flat)

    def value(self, x):
        return jnp.tanh(self.values @ x.reshape(-1))


def smooth(size, actions=4):
    rng = np.random.default_rng(0)
    shapes = (actions, size, size), (actions, size), (actions, size), (actions, size)
    return Smooth(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))


@pytest.mark.parametrize("shape", [(), (2, 3, 2)])
def test_abstract_states_of_any_shape_in_a_batch_are_planned_as_alone(shape):  # O15
    model = smooth(int(np.prod(shape)))
    x = normal(5, *shape)
    together = np.asarray(jax.jit(jax.vmap(lambda x: depth_values(model, x, 2, 2)))(x))
    assert together.shape == (5, 3, 4)
    np.testing.assert_allclose(together, [plan(model, each, 2, 2) for each in x], atol=1e-5)

    @jax.jit
    def ahead(x):
        following, reward, discount = jax.vmap(jax.vmap(model.step, (None, 0)), (0, None))(x, jnp.arange(4))
        return reward + discount * jax.vmap(jax.vmap(model.value))(following).max(-1)

    np.testing.assert_allclose(together[:, 1], ahead(x), atol=1e-5)


# --- who is expanded


@dataclass(frozen=True)
class Standing:
    """Nothing ever changes; two actions are worth the same at 0 but have slopes of 1 and -3."""

    def step(self, x, action):
        return x, jnp.float32(0), jnp.float32(1)

    def value(self, x):
        return jnp.array([1.0, -3.0]) * x[0]


@pytest.mark.parametrize("depth", range(6))
def test_a_tree_has_as_many_nodes_as_published(depth):  # O10
    """Counted in the program: a step takes one sine, and a value one cosine."""

    class Marked(Standing):
        def step(self, x, action):
            return x, jax.lax.sin(x[0] + action), jnp.float32(1)

        def value(self, x):
            return jnp.full(4, jax.lax.cos(x[0]))

    def nodes(breadth, actions=None):
        program = jax.make_jaxpr(lambda x: depth_values(Marked(), x, depth, breadth, actions))(state(0))
        counts = {"sin": 0, "cos": 0}
        for operation in program.eqns:
            if operation.primitive.name in counts:
                counts[operation.primitive.name] += operation.outvars[0].aval.size
        assert counts["cos"] == counts["sin"] + 1
        return counts["sin"]

    assert nodes(2) == 4 * (2**depth - 1)
    one = jnp.asarray(np.array([1]))
    assert nodes(2, one) == 2**depth - 1
    assert nodes(4, one) == (4**depth - 1) // 3


def taken(model, x, depth, breadth):
    """Every step of a tree: where, and which action."""
    steps = []

    class Watched(Standing):
        def step(self, x, action):
            jax.debug.callback(lambda x, action: steps.append((int(x[0]), int(action))), x, action)
            return model.step(x, action)

        def value(self, x):
            return model.value(x)

    jax.jit(lambda x: depth_values(Watched(), x, depth, breadth))(state(x)).block_until_ready()
    jax.effects_barrier()
    return sorted(steps)


def test_below_the_root_the_best_by_the_q_function_are_tried():
    model, ahead = random_table(), np.asarray(random_table().next)
    best = np.argsort(-np.asarray(model.values), axis=1, kind="stable")
    expected, level = [], [(7, action) for action in range(4)]
    for _ in range(3):
        expected += level
        reached = [int(ahead[node]) for node in level]
        level = [(x, int(action)) for x in reached for action in best[x, :2]]
    assert taken(model, 7, 3, 2) == sorted(expected)


def test_between_equals_the_first_are_tried():  # P9
    model = table(np.zeros((1, 4), int), [[0, 1, 9, 9]], np.ones((1, 4)), np.zeros((1, 4)))
    np.testing.assert_allclose(np.asarray(plan(model, state(0), 2, 2))[2], [1, 2, 10, 10])


def test_between_equals_the_first_has_the_slope():
    """`max` would share it: (1 - 3) / 2."""
    for depth in (1, 2):
        slope = jax.jit(jax.jacobian(partial(depth_values, Standing()), 0), static_argnums=(1, 2))(state(0), depth, 2)
        np.testing.assert_array_equal(np.asarray(slope)[depth, :, 0], [1, 1])


# --- no tree at all


def test_depth_0_asks_the_q_function_alone():
    model, values = random_table(), np.asarray(random_table().values)[4]
    np.testing.assert_array_equal(plan(model, state(4), 0, 2), values[None])
    np.testing.assert_array_equal(average(model, state(4), 0, 2), values)
    np.testing.assert_array_equal(plan(model, state(4), 0, 2, np.array([3])), [values[3:]])
