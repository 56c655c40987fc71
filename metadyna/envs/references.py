"""Exact reference returns of the grids, by backward induction through the environment's own `step`.

Every state (`all_states`) is stepped with every action at every time, so what is solved is the code that agents run,
not a second statement of its rules. Tasks are stacked [N]; returns count an episode up to its last step and are
undiscounted unless a `discount` is given. The grids are deterministic, so the keys do not matter.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metadyna.envs.gridworld import Action, CityGrid, Grid, GridTask, Split, to_cell
from metadyna.errors import UserError
from metadyna.types import TimeStep

Backup = Callable[[Array], Array]
"""From action values [..., A] to the value of acting, [...]."""


def optimal(env: Grid, tasks: GridTask, discount: float = 1.0) -> Float[np.ndarray, " N"]:
    """Return of the best policy that knows the task."""
    return np.asarray(_start_values(env, tasks, _best, _reward, discount))


def walking(env: Grid, tasks: GridTask, discount: float = 1.0) -> Float[np.ndarray, " N"]:
    """Return of the best policy that never rides: what a goal is worth without knowing any bus."""
    return np.asarray(_start_values(env, tasks, _best_on_foot, _reward, discount))


def random_policy(env: Grid, tasks: GridTask, discount: float = 1.0) -> Float[np.ndarray, " N"]:
    """Expected return of uniformly random actions."""
    return np.asarray(_start_values(env, tasks, _average, _reward, discount))


def random_length(env: Grid, tasks: GridTask) -> Float[np.ndarray, " N"]:
    """Expected number of steps of an episode of uniformly random actions."""
    return np.asarray(_start_values(env, tasks, _average, _one_step, 1.0))


def optimal_actions(env: Grid, tasks: GridTask) -> Int[np.ndarray, "N T S"]:
    """An action that attains `optimal`, by task, time and `state_index`; the first of equals."""
    return np.asarray(_greedy_actions(env, tasks))


def family_returns(env: Grid, test: Split) -> dict[str, float]:
    """The references of a `Family`: mean return over all test tasks, `walking` for cities only."""
    policies = {"optimal": optimal, "walking": walking, "random": random_policy}
    if not isinstance(env, CityGrid):
        del policies["walking"]
    tasks = test.enumerate()
    return {name: float(policy(env, tasks).mean(dtype=np.float64)) for name, policy in policies.items()}


def ladder(env: CityGrid, known: int, discount: float = 1.0) -> float:
    """Return of the best adaptive policy that knows `known` helpful buses beforehand, in a city without distractors.

    It starts with every problem that agrees with those buses equally likely and updates this belief with each
    observation, so it may ride to find out. Averaged over problems, choices of known buses and goals. The rungs let
    any test return be read as the number of buses that an agent has learnt.
    """
    if env.distractors:
        raise UserError("the ladder is defined for cities without distractors; their beliefs are too many")
    if not 0 <= known <= len(env.stops):
        raise UserError(f"known is {known}; the city has {len(env.stops)} helpful buses")
    evidence = _evidence(env)
    values = _belief_values(env, discount)
    cells = [to_cell(stop, env.width) for stop in env.stops]
    starts = []
    for problem, stops in itertools.product(range(env.num_problems), itertools.combinations(cells, known)):
        rides = (evidence.masks[evidence.kinds[problem, stop, Action.RIDE]] for stop in stops)
        starts.append(functools.reduce(int.__and__, rides, _anything(env)))
    return float(np.mean([values[start] for start in starts]))


class _Evidence(NamedTuple):
    """What observations tell about the problem. Sets of problems are bit masks.

    In `problem`, doing `action` on `cell` shows an observation that exactly the problems
    `masks[kinds[problem, cell, action]]` would show.
    """

    masks: list[int]
    kinds: Int[np.ndarray, "problems cells actions"]


def _solve(
    env: Grid, task: GridTask, backup: Backup, pay: Callable[[TimeStep], Array], discount: Array
) -> tuple[Float[Array, ""], Int[Array, "T S"]]:
    """Value of the start and greedy actions of the policy that `backup` describes, by backward induction."""

    def sweep(values, time):
        state, timestep = _step_everywhere(env, task, time)
        future = discount * values[env.state_index(state)]
        gains = pay(timestep) + jnp.where(timestep.last, 0.0, future)
        return backup(gains), gains.argmax(-1)

    start, _ = env.reset(task, jax.random.key(0))
    num_states = env.state_index(env.all_states(jnp.int32(0))).size
    times = jnp.arange(env.spec.horizon)
    values, actions = jax.lax.scan(sweep, jnp.zeros(num_states), times, reverse=True)
    return values[env.state_index(start)], actions


@functools.partial(jax.jit, static_argnames=("env", "backup", "pay"))
def _start_values(env, tasks, backup, pay, discount):
    return jax.vmap(lambda task: _solve(env, task, backup, pay, discount)[0])(tasks)


@functools.partial(jax.jit, static_argnames="env")
def _greedy_actions(env, tasks):
    return jax.vmap(lambda task: _solve(env, task, _best, _reward, jnp.float32(1))[1])(tasks)


def _step_everywhere(env: Grid, task: GridTask, time: Int[Array, ""]) -> tuple[Any, TimeStep]:
    """Take every action in every state at `time`, [states, actions]."""
    actions = jnp.arange(len(Action))
    each_action = jax.vmap(env.step, (None, None, 0, None))
    each_state = jax.vmap(each_action, (None, 0, None, None))
    return each_state(task, env.all_states(time), actions, jax.random.key(0))


def _best(gains: Array) -> Array:
    return gains.max(-1)


def _best_on_foot(gains: Array) -> Array:
    return gains.at[..., Action.RIDE].set(-jnp.inf).max(-1)


def _average(gains: Array) -> Array:
    return gains.mean(-1)


def _reward(timestep: TimeStep) -> Array:
    return timestep.reward


def _one_step(timestep: TimeStep) -> Array:
    return jnp.ones_like(timestep.reward)


def _with_goal(env: CityGrid, goal: Array) -> GridTask:
    """Every problem with one goal, stacked."""
    return GridTask(jnp.arange(env.num_problems), jnp.tile(goal, (env.num_problems, 1)))


def _anything(env: CityGrid) -> int:
    """The belief that rules nothing out."""
    return 2**env.num_problems - 1


@functools.lru_cache
def _evidence(env: CityGrid) -> _Evidence:
    tasks = _with_goal(env, jnp.asarray(env.goals[0]))
    _, timestep = jax.vmap(lambda task: _step_everywhere(env, task, jnp.int32(0)))(tasks)
    _, shown = np.unique(timestep.obs.reshape(-1, timestep.obs.shape[-1]), axis=0, return_inverse=True)
    shown = shown.reshape(timestep.obs.shape[:-1])
    same = shown[:, None] == shown[None, :]
    masks = np.einsum("pqca,q->pca", same, 2 ** np.arange(env.num_problems))
    unique, kinds = np.unique(masks, return_inverse=True)
    return _Evidence(unique.tolist(), kinds.reshape(masks.shape))


@functools.lru_cache
def _belief_values(env: CityGrid, discount: float) -> dict[int, float]:
    """Value of starting with each reachable belief, averaged over the goals."""
    evidence = _evidence(env)
    beliefs = [_anything(env)]
    for belief in beliefs:  # grows while it is read
        following = dict.fromkeys(belief & mask for mask in evidence.masks)
        beliefs.extend(follower for follower in following if follower and follower not in beliefs)
    number = {belief: index for index, belief in enumerate(beliefs)}
    # evidence that contradicts a belief has weight zero there, so its follower does not matter
    follow = np.array([[number.get(belief & mask, 0) for mask in evidence.masks] for belief in beliefs])
    members = (np.array(beliefs)[:, None] >> np.arange(env.num_problems)) & 1
    values = [_solve_beliefs(env, jnp.asarray(goal), members, follow, evidence.kinds, discount) for goal in env.goals]
    return dict(zip(beliefs, np.mean(values, axis=0).tolist(), strict=True))


@functools.partial(jax.jit, static_argnames="env")
def _solve_beliefs(
    env: CityGrid,
    goal: Int[Array, "2"],
    members: Int[Array, "beliefs problems"],
    follow: Int[Array, "beliefs masks"],
    kinds: Int[Array, "problems cells actions"],
    discount: Float[Array, ""],
) -> Float[Array, " beliefs"]:
    """Value of the start under each belief: the best action in the mean over its problems, backwards in time."""
    tasks = _with_goal(env, goal)
    chances = members / members.sum(1, keepdims=True)
    next_belief = follow[:, kinds]

    def sweep(values, time):
        state, timestep = jax.vmap(lambda task: _step_everywhere(env, task, time))(tasks)
        future = discount * values[next_belief, state.cell[None]]
        gains = timestep.reward[None] + jnp.where(timestep.last[None], 0.0, future)
        return jnp.einsum("bp,bpca->bca", chances, gains).max(-1), None

    nothing = jnp.zeros((len(members), env.width * env.height))
    values, _ = jax.lax.scan(sweep, nothing, jnp.arange(env.horizon), reverse=True)
    return values[:, to_cell(env.start, env.width)]
