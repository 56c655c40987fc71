"""True dynamics in the place of a model: what they predict is what the environment does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.windows import History
from metadyna.envs.control import Body, DoubleIntegrator, Pendulum, PointMass
from metadyna.models.imagine import open_loop_errors, sequence_returns
from metadyna.models.truth import TrueDynamics
from metadyna.models.worlds import World

KEY = jax.random.key(0)
COPIES, STEPS = 6, 10
CASES = {
    "point mass": (PointMass(), None),
    "double integrator": (DoubleIntegrator(), Body(jnp.float32(0.7), jnp.float32(0.4))),
    "pendulum": (Pendulum(), None),
}
"""Environments and their tasks."""

NEAR = {"rtol": 1e-5, "atol": 1e-5}


def lived(env, task):
    """First observations [copies], actions [copies, T] of which some leave the box, and what came of them."""
    actions = jax.random.uniform(KEY, (COPIES, STEPS, *env.spec.action.shape), minval=-1.5, maxval=1.5)

    def one(actions, key):
        state, first = env.reset(task, key)
        return first.obs, jax.lax.scan(lambda state, action: env.step(task, state, action, key), state, actions)[1]

    first, steps = jax.jit(jax.vmap(one))(actions, jax.random.split(KEY, COPIES))
    return first, actions, steps


@pytest.mark.parametrize("name", CASES)
def test_open_loop_predictions_are_what_happens(name):
    """From the first observation alone, ten steps on; with several members each knows the same of its own rows."""
    env, task = CASES[name]
    first, actions, steps = lived(env, task)
    world = TrueDynamics(env, task, num_members=2)
    assert isinstance(world, World)

    def by_member(x):
        return x.reshape(2, COPIES // 2, *x.shape[1:])

    def predict(latent, action):
        latent, predicted = world.step(latent, action, world.draw(KEY, (2, COPIES // 2)))
        return latent, (world.features(latent), predicted)

    start = jax.tree.map(by_member, jax.vmap(lambda obs: world.begin(History(obs)))(first))
    actions, happened = jax.tree.map(jax.vmap(by_member, in_axes=1), (actions, steps))  # [T, member, row]
    _, (shown, predicted) = jax.jit(lambda actions: jax.lax.scan(predict, start, actions))(actions)
    np.testing.assert_allclose(predicted.obs, happened.obs, **NEAR)
    np.testing.assert_allclose(predicted.reward, happened.reward, **NEAR)
    np.testing.assert_array_equal(predicted.terminated, happened.discount == 0)
    np.testing.assert_array_equal(shown, predicted.obs)


@pytest.mark.parametrize("name", CASES)
def test_open_loop_they_make_no_errors(name):
    env, task = CASES[name]
    first, actions, steps = lived(env, task)
    world = TrueDynamics(env, task, num_members=2)
    errors = jax.jit(lambda: open_loop_errors(world, world.begin(History(first[0])), actions[0], steps.obs[0]))()
    np.testing.assert_allclose(errors, np.zeros((2, STEPS)), atol=1e-5)


@pytest.mark.parametrize("mode", ["TSinf", "TS1", "mean"])
def test_a_plan_earns_what_it_would_up_to_the_end(mode):
    """A point two steps from the goal: the third step of the first plan would lead away again, unpaid."""
    env = PointMass()
    world = TrueDynamics(env, num_members=2)
    there, back = [-1.0, 0.0], [1.0, 0.0]
    plans = jnp.array([[there, there, back], [back, back, there]])
    start = world.begin(History(jnp.array([0.2, 0.0])))
    returns = jax.jit(lambda: sequence_returns(world, start, plans, KEY, 4, mode))()
    np.testing.assert_allclose(returns, [-0.1, -(0.3 + 0.4 + 0.3)], atol=1e-6)


def test_an_average_of_truths_is_the_truth():
    world = TrueDynamics(*CASES["double integrator"], num_members=3)
    assert world.best() is world
    assert world.averaged().num_members == 1
    assert world.averaged().task is world.task
    assert world.action == world.env.spec.action


def test_another_task_is_another_truth():
    env, body = CASES["double integrator"]
    latent, push = jnp.array([0.3, 0.1]), jnp.ones((1, 1, 1))

    def speed(task):
        world = TrueDynamics(env, task)
        start = jax.tree.map(lambda x: x[None, None], world.begin(History(latent)))
        return world.step(start, push, None)[1].obs[0, 0, 1]

    assert speed(body) == pytest.approx(0.1 + 0.1 * (1 - 0.4 * 0.1) / 0.7, rel=1e-5)
    assert speed(body._replace(mass=jnp.float32(1.4))) < speed(body)
