"""Model-predictive control of a double integrator whose dynamics are known."""

from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.windows import History
from metadyna.errors import UserError
from metadyna.planning.mpc import MPC, acting, at_first
from metadyna.search.cem import CEM
from metadyna.search.icem import ICEM
from metadyna.search.mppi import MPPI
from metadyna.search.random import RandomShooting
from metadyna.types import Box, TimeStep

KEY = jax.random.key(0)
HORIZON, STEPS, DT = 15, 60, 0.1

PLANNERS = {
    "random": MPC(RandomShooting(300), HORIZON),
    "cem": MPC(CEM(population=60, elites=8, iterations=4), HORIZON),
    "icem": MPC(ICEM(), HORIZON),
    "mppi": MPC(MPPI(iterations=3, noise=0.5, normalise=True, temperature=0.2), HORIZON),
}


def move(state, force):
    """Push a unit mass, (position, velocity), for one step."""
    velocity = state[1] + DT * force
    return jnp.stack([state[0] + DT * velocity, velocity])


def reward(state):
    return -(state[0] ** 2) - 0.1 * state[1] ** 2


def returns(state):
    """The score of force sequences from a state, and of nothing else: the planner sees no model."""

    def one(sequence):
        def step(state, action):
            state = move(state, action[0])
            return state, reward(state)

        return jnp.sum(jax.lax.scan(step, state, sequence)[1])

    return lambda candidates, key: jax.vmap(one)(candidates)


def drive(planner, key, kick=0.0):
    """Positions, rewards and actions of an episode from (1, 0); half-way the mass is kicked."""

    def step(carry, now):
        state, plan = carry
        t, key = now
        state = state.at[0].add(jnp.where(t == STEPS // 2, kick, 0.0))
        action, plan = planner.plan(returns(state), plan, key)
        state = move(state, action[0])
        return (state, plan), (state[0], reward(state), action[0])

    start = jnp.array([1.0, 0.0]), planner.init((1,), -1.0, 1.0)
    return jax.lax.scan(step, start, (jnp.arange(STEPS), jax.random.split(key, STEPS)))[1]


def drive_many(planner, seeds=8, **settings):
    return jax.jit(jax.vmap(lambda key: drive(planner, key, **settings)))(jax.random.split(KEY, seeds))


def random_return():
    """What random forces earn."""
    position, velocity, total = np.ones(64), np.zeros(64), np.zeros(64)
    for force in np.random.default_rng(0).uniform(-1, 1, (STEPS, 64)):
        velocity = velocity + DT * force
        position = position + DT * velocity
        total -= position**2 + 0.1 * velocity**2
    return total.mean()


@pytest.mark.parametrize("name", PLANNERS)
def test_every_search_drives_to_the_goal_and_back_after_a_kick(name):
    positions, rewards, actions = map(np.asarray, drive_many(PLANNERS[name], kick=0.5))
    assert (np.abs(actions) <= 1).all()
    for stretch in (slice(STEPS // 2 - 5, STEPS // 2), slice(STEPS - 5, STEPS)):
        assert (np.abs(positions[:, stretch]) < 0.15).all()
    assert rewards.sum(axis=1).min() > 2 * random_return()


@pytest.mark.parametrize(
    "search",
    [CEM(population=60, elites=8, iterations=1), ICEM(iterations=1), MPPI(noise=0.3, temperature=0.1)],
    ids=["cem", "icem", "mppi"],
)
def test_a_warm_start_carries_one_search_into_the_next(search):
    planner = MPC(search, 6)

    def bowl(candidates, key):
        return -jnp.sum((candidates - 0.6) ** 2, axis=(1, 2))

    @jax.jit
    def errors(keys, warm):
        def step(plan, key):
            action, later = planner.plan(bowl, plan, key)
            return jax.tree.map(lambda x, y: jnp.where(warm, x, y), later, plan), jnp.abs(action[0] - 0.6)

        return jnp.mean(jax.vmap(lambda keys: jax.lax.scan(step, planner.init((1,), -1.0, 1.0), keys)[1])(keys), axis=0)

    keys = jax.random.split(KEY, (64, 10))
    warm, cold = (np.asarray(errors(keys, np.bool_(warm))) for warm in (True, False))
    assert warm[0] == pytest.approx(cold[0], rel=1e-4)
    assert warm[5:].mean() < 0.7 * cold[5:].mean()


LOW, HIGH = np.array([-1.0, 0.25, -3.0], np.float32), np.array([1.0, 0.5, -2.0], np.float32)
traced = Counter()
"""How often each planner below was traced."""


@cache
def pushing(name):
    """Plans three forces to be large, or small with a sign of -1, by a model that may be broken."""

    @jax.jit
    def push(plan, sign, broken):
        traced[name] += 1
        score = lambda x, key: jnp.where(broken, jnp.nan, sign * jnp.sum(x, axis=(1, 2)))  # noqa: E731
        return PLANNERS[name].plan(score, plan, KEY)

    return lambda plan, sign=1.0, broken=False: push(plan, np.float32(sign), np.bool_(broken))


@cache
def started(name):
    return PLANNERS[name].init((3,), LOW, HIGH)


@pytest.mark.parametrize("name", PLANNERS)
def test_plans_are_arrays_compile_once_and_outlive_a_broken_model(name):
    push, solution = pushing(name), jax.jit(PLANNERS[name].search.solution)
    _, plan = push(started(name))
    before = traced[name]
    action, later = push(plan, broken=True)
    assert action.shape == (3,)
    planned, kept = (np.asarray(solution(each)) for each in (plan, later))
    np.testing.assert_array_equal(action, planned[0])
    np.testing.assert_array_equal(kept[:-1], planned[1:])
    assert traced[name] == before >= 1
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(later))


@pytest.mark.parametrize("name", PLANNERS)
def test_actions_stay_in_each_bound(name):
    down, up = (np.asarray(pushing(name)(started(name), sign)[0]) for sign in (-1, 1))
    for action in down, up:
        assert (action >= LOW).all()
        assert (action <= HIGH).all()
    assert (down != up).all()


# --- acting


FORCE = Box((1,), -1.0, 1.0)


def outlook(params, history, sequences, key):
    """What force sequences are worth from the state that was observed last, `params` times over."""
    return params * returns(history.obs)(sequences, key)


def observed(state, first):
    zero = np.float32(0)
    return TimeStep(np.float32(state), zero, np.float32(1), np.bool_(first), np.bool_(False), np.zeros(1, np.float32))


@cache
def begun(planner):
    """The memory of one copy at its first step."""
    memory = jax.jit(lambda: at_first(planner, FORCE, History(jnp.zeros(2)), 3))()
    return jax.tree.map(lambda x: np.asarray(x)[1], memory)


SHORT = {
    "random": MPC(RandomShooting(20), 5),
    "cem": MPC(CEM(population=20, elites=5, iterations=2), 5),
    "icem": MPC(ICEM(population=20, elites=5, iterations=1), 5),
    "mppi": MPC(MPPI(population=20, iterations=2, noise=0.5), 5),
}
"""Plans that are made quickly: how good they are does not matter here."""


@pytest.mark.parametrize("name", SHORT)
def test_a_plan_is_not_carried_over_the_end_of_an_episode(name):
    """Who has acted for three steps and begins anew acts, and will go on, like who has not lived yet."""
    planner = SHORT[name]
    act, params, carry = jax.jit(acting(planner, outlook, FORCE)), (np.float32(1), np.bool_(False)), begun(planner)
    for t in range(3):
        carry = act(params, carry, observed([1.0, 0.5], t == 0), jax.random.key(t))[1]
    anew = act(params, begun(planner), observed([-0.5, 0.0], True), KEY)
    jax.tree.map(np.testing.assert_array_equal, act(params, carry, observed([-0.5, 0.0], True), KEY), anew)
    if name != "random":  # which learns nothing from the step before
        gone_on = act(params, carry, observed([-0.5, 0.0], False), KEY)
        solution = jax.jit(planner.search.solution)
        assert not np.allclose(solution(gone_on[1].plan), solution(anew[1].plan))


def test_before_there_is_a_model_any_action_is_taken_and_the_plan_stays():
    planner, state = SHORT["cem"], observed([1.0, 0.0], False)
    act = jax.jit(acting(planner, outlook, FORCE))
    carry = act((np.float32(1), np.bool_(False)), begun(planner), state, KEY)[1]
    guess = jax.jit(jax.vmap(lambda key: act((jnp.float32(jnp.nan), jnp.bool_(True)), carry, state, key)))
    actions, after, _ = guess(jax.random.split(KEY, 2000))
    np.testing.assert_allclose(np.histogram(actions, bins=4, range=(-1, 1))[0] / 2000, 0.25, atol=0.05)
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new[7], old), after.plan, carry.plan)
    assert acting(planner, outlook, FORCE) is acting(MPC(planner.search, 5), outlook, FORCE)  # compiles once


def test_an_empty_horizon_is_refused():
    with pytest.raises(UserError, match=r"MPC\.horizon = 0 .* \[1, 10000\]"):
        MPC(horizon=0)
