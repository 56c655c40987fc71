"""Model-predictive control of a double integrator whose dynamics are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.errors import UserError
from metadyna.planning.mpc import MPC
from metadyna.search.cem import CEM
from metadyna.search.icem import ICEM
from metadyna.search.mppi import MPPI
from metadyna.search.random import RandomShooting

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


def random_rewards():
    def step(state, action):
        state = move(state, action)
        return state, reward(state)

    forces = jax.random.uniform(KEY, (64, STEPS), minval=-1.0, maxval=1.0)
    return jax.vmap(lambda forces: jax.lax.scan(step, jnp.array([1.0, 0.0]), forces)[1])(forces)


@pytest.mark.parametrize("name", PLANNERS)
def test_every_search_drives_to_the_goal_and_back_after_a_kick(name):
    positions, rewards, actions = drive_many(PLANNERS[name], kick=0.5)
    assert (jnp.abs(actions) <= 1).all()
    for stretch in (slice(STEPS // 2 - 5, STEPS // 2), slice(STEPS - 5, STEPS)):
        assert (jnp.abs(positions[:, stretch]) < 0.15).all()
    assert jnp.min(jnp.sum(rewards, axis=1)) > 2 * jnp.mean(jnp.sum(random_rewards(), axis=1))


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
    warm, cold = np.asarray(errors(keys, True)), np.asarray(errors(keys, False))
    assert warm[0] == pytest.approx(cold[0], rel=1e-4)
    assert warm[5:].mean() < 0.7 * cold[5:].mean()


@pytest.mark.parametrize("name", PLANNERS)
def test_plans_are_arrays_compile_once_and_outlive_a_broken_model(name):
    planner, traces = PLANNERS[name], []

    @jax.jit
    def act(state, plan, key, broken):
        traces.append(())
        score = returns(state)
        return planner.plan(lambda x, key: jnp.where(broken, jnp.nan, score(x, key)), plan, key)

    state, plan = jnp.array([1.0, 0.0]), planner.init((1,), -1.0, 1.0)
    _, plan = act(state, plan, KEY, False)
    action, later = act(state, plan, KEY, True)
    assert action.shape == (1,)
    np.testing.assert_array_equal(action, planner.search.solution(plan)[0])
    np.testing.assert_array_equal(planner.search.solution(later)[:-1], planner.search.solution(plan)[1:])
    assert len(traces) == 1
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(later))


@pytest.mark.parametrize("name", PLANNERS)
def test_actions_stay_in_each_bound(name):
    planner = PLANNERS[name]
    low, high = np.array([-1.0, 0.25, -3.0], np.float32), np.array([1.0, 0.5, -2.0], np.float32)
    plan = planner.init((3,), low, high)
    push = jax.jit(lambda sign: planner.plan(lambda x, key: sign * jnp.sum(x, axis=(1, 2)), plan, KEY)[0])
    down, up = np.asarray(push(-1.0)), np.asarray(push(1.0))
    for action in down, up:
        assert (low <= action).all()
        assert (action <= high).all()
    assert (down != up).all()


def test_an_empty_horizon_is_refused():
    with pytest.raises(UserError, match=r"MPC\.horizon = 0 .* \[1, \d+\]"):
        MPC(horizon=0)
