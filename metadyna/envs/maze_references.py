"""Exact reference returns of the labyrinth.

Values come from stepping the environment itself in every state with every action, so what is solved is the code that
agents run; the shortest tour is measured on the map, independently of it. Everything is pure JAX and speaks of one
maze; `vmap` makes it many.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from metadyna.envs.maze import NUM_CELLS, NUM_KEYS, SIDE, START, Labyrinth, LabyrinthState, Maze
from metadyna.types import TaskDistribution

NUM_MASKS = 2**NUM_KEYS
"""Sets of keys that are left, as bit masks: key k is bit k, all keys are 7."""

NUM_ACTIONS = 4
_LONGEST_PATH = (SIDE - 2) ** 2  # no shortest path is longer than there are cells within the border

Values = Float[Array, "8 64"]
ActionValues = Float[Array, "8 64 4"]
Scores = Float[ArrayLike, "*batch"]


def shortest_tour(maze: Maze) -> Float[Array, ""]:
    """Steps of the shortest way from the start through all keys; infinite where one cannot be reached."""
    stops = jnp.concatenate([jnp.array([START]), maze.keys])
    between = jax.vmap(lambda cell: _distances(maze.walls, cell)[stops])(stops)
    orders = np.array([(0, *order) for order in itertools.permutations(range(1, NUM_KEYS + 1))])
    return between[orders[:, :-1], orders[:, 1:]].sum(1).min()


def optimal_return(env: Labyrinth, maze: Maze) -> Float[Array, ""]:
    """Undiscounted return of the shortest tour: 3.3 less 0.1 per step. The horizon must leave time for it."""
    return NUM_KEYS * env.key_reward - env.step_cost * (shortest_tour(maze) - NUM_KEYS)


def optimal_values(env: Labyrinth, maze: Maze, discount: float = 0.9) -> ActionValues:
    """Discounted values of the best play without a time limit, by keys left, cell and action.

    Exact where all keys can be reached: the sweeps start from the value of never finding anything, a lower bound, and
    as many as the longest tour has steps settle every state. Only states with keys left and off the walls mean
    anything.
    """
    outcomes = _outcomes(env, maze)
    nothing = jnp.full((NUM_MASKS, NUM_CELLS), -env.step_cost / (1 - discount))
    return _backup(outcomes, _sweep(outcomes, nothing, _best, discount, NUM_KEYS * _LONGEST_PATH), discount)


def random_return(env: Labyrinth, maze: Maze) -> Float[Array, ""]:
    """Expected undiscounted return of uniformly random actions until the time limit."""
    outcomes = _outcomes(env, maze)
    values = _sweep(outcomes, jnp.zeros((NUM_MASKS, NUM_CELLS)), _average, 1.0, env.horizon)
    return values[NUM_MASKS - 1, START]


def normalised(env: Labyrinth, returns: Scores, optimal: Scores) -> Scores:
    """Where a return lies between finding nothing until the time limit (0) and the shortest tour (1)."""
    nothing = -env.step_cost * env.horizon
    return (returns - nothing) / (optimal - nothing)


def family_returns(env: Labyrinth, test: TaskDistribution) -> dict[str, float]:
    """The references of a `Family`: means over all test mazes."""
    policies = {"optimal": optimal_return, "random": random_return}
    mazes = test.enumerate()
    over_mazes = {name: jax.jit(jax.vmap(functools.partial(policy, env))) for name, policy in policies.items()}
    return {name: float(np.asarray(returns(mazes)).mean(dtype=np.float64)) for name, returns in over_mazes.items()}


class _Outcomes(NamedTuple):
    """What each action leads to, by keys left and cell: keys and cell then, the reward, 0 if the episode is over."""

    mask: Int[Array, "8 64 4"]
    cell: Int[Array, "8 64 4"]
    reward: Float[Array, "8 64 4"]
    discount: Float[Array, "8 64 4"]


def _outcomes(env: Labyrinth, maze: Maze) -> _Outcomes:
    """Take every action in every state."""
    bits = 1 << np.arange(NUM_KEYS)
    masks, cells, actions = np.indices((NUM_MASKS, NUM_CELLS, NUM_ACTIONS)).reshape(3, -1)
    states = LabyrinthState(jnp.asarray(cells), jnp.asarray(masks[:, None] & bits != 0), jnp.zeros(len(cells), int))
    each = jax.vmap(env.step, (None, 0, 0, None))
    after, timestep = each(maze, states, jnp.asarray(actions), jax.random.key(0))
    mask = (after.left * jnp.asarray(bits)[None]).sum(1)
    flat = _Outcomes(mask, after.cell, timestep.reward, timestep.discount)
    return _Outcomes(*(entry.reshape(NUM_MASKS, NUM_CELLS, NUM_ACTIONS) for entry in flat))


def _backup(outcomes: _Outcomes, values: Values, discount: float) -> ActionValues:
    return outcomes.reward + discount * outcomes.discount * values[outcomes.mask, outcomes.cell]


def _sweep(outcomes: _Outcomes, values: Values, act: Any, discount: float, times: int) -> Values:
    """Back values up under a policy, which `act` tells from action values [..., 4] to the value of acting, [...]."""
    return jax.lax.fori_loop(0, times, lambda _, values: act(_backup(outcomes, values, discount)), values)


def _best(values: ActionValues) -> Values:
    return values.max(-1)


def _average(values: ActionValues) -> Values:
    return values.mean(-1)


def _distances(walls: Bool[Array, "8 8"], cell: Int[Array, ""]) -> Float[Array, "64"]:
    """Steps from one cell to each; infinite where no way leads."""

    def relax(_, steps):
        ahead = jnp.stack([jnp.roll(steps, shift, axis) for axis in (0, 1) for shift in (-1, 1)])
        return jnp.where(walls, jnp.inf, jnp.minimum(steps, ahead.min(0) + 1))

    # the border is wall, so what `roll` carries around the edge is lost there
    nowhere = jnp.full(NUM_CELLS, jnp.inf).at[cell].set(0).reshape(SIDE, SIDE)
    return jax.lax.fori_loop(0, _LONGEST_PATH, relax, nowhere).ravel()
