"""An execution agent that plans: what it acts on, and that its model learns what happens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metadyna.adapt.decoupled import Attempt, Contexts
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import valid_steps
from metadyna.envs import make
from metadyna.improve.planned import Planned

KEY = jax.random.key(0)
FAMILY = make("city-5x5")
ENV = FAMILY.env


@functools.cache
def fresh():
    return jax.jit(lambda key: Planned().create(ENV, 8, key))(KEY)


def attempts(count=8):
    """Random episodes [T, B], which are all that there is of these trials."""
    collector = DeviceCollector(ENV, FAMILY.train)

    def act(params, carry, timestep, key):
        return jax.random.randint(key, (), 0, 9), carry, ()

    @jax.jit
    def live(key):
        tasks = jax.vmap(FAMILY.train.sample)(jax.random.split(key, count))
        lived = collector.episodes(act, (), (), tasks, key).episodes
        return Attempt(ENV.problem(tasks), ENV.instruction(tasks), lived, lived)

    return live(KEY)


def contexts(count=8):
    """Anything."""
    context = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    return Contexts(context, context, {})


def test_with_depth_0_it_acts_on_the_values_and_with_more_on_plans():
    obs, instruction, context = np.int32([2, 2, 0, 0]), np.int32([1, 3]), np.ones(8, np.float32)

    @jax.jit
    def values(weights, obs, instruction, context):
        """Of planning to depths 0 and 1, and as they are written out."""
        acted = (Planned(depth=d, breadth=9).act(ENV, weights, (), obs, instruction, context)[0] for d in (0, 1))
        q, x = weights.policy.step((), obs, instruction, context)[0], weights.policy.hidden(obs, instruction, context)
        after, reward, discount = jax.vmap(weights.step, (None, 0))(x, jnp.arange(9))
        return *acted, q, reward + discount * jax.vmap(weights.value)(after).max(axis=1)

    at_once, ahead, q, planned = map(np.asarray, values(fresh(), obs, instruction, context))
    np.testing.assert_allclose(at_once, q, rtol=1e-6)
    np.testing.assert_allclose(ahead, (q + planned) / 2, rtol=1e-5)


def test_the_model_learns_rewards_and_ends_of_valid_steps_alone():
    settings, batch, context, start = Planned(), attempts(), contexts(), fresh()
    valid = np.asarray(valid_steps(batch.execute.last))
    assert not valid.all()
    optimiser = optax.adam(3e-3)

    @jax.jit
    def loss(weights, batch, context):
        return settings.losses(ENV, weights, start, batch, context, 0.99)["model_loss"]

    @jax.jit
    def learn(weights, batch, context):
        def step(at, _):
            weights, state = at
            value, slope = jax.value_and_grad(loss)(weights, batch, context)
            updates, state = optimiser.update(slope, state)
            return (optax.apply_updates(weights, updates), state), value

        return jax.lax.scan(step, (weights, optimiser.init(weights)), None, length=300)

    @jax.jit
    def told(weights, batch, context):
        read = jax.vmap(jax.vmap(weights.policy.hidden), (0, None, None))
        x = read(batch.execute.obs, batch.instruction, context.online)
        return jax.vmap(jax.vmap(weights.step))(x, batch.execute.action)[1:]

    (weights, _), losses = learn(start, batch, context)
    losses = np.asarray(losses)
    assert losses[-1] < 0.1 * losses[0]
    execute = jax.tree.map(np.asarray, batch.execute)
    reward, discount = map(np.asarray, told(weights, batch, context))
    assert np.abs(reward - execute.reward)[valid].mean() < 0.05
    assert np.abs(discount - 0.99 * execute.discount)[valid].mean() < 0.05
    broken = execute._replace(reward=np.where(valid, execute.reward, np.float32(1e3)))
    np.testing.assert_allclose(loss(weights, batch._replace(execute=broken), context), losses[-1], rtol=0.3)
