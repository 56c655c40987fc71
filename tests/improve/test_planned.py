"""An execution agent that plans: what it acts on, and that its model learns what happens."""

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
WEIGHTS = Planned().create(ENV, 8, KEY)


def attempts(count=8):
    """Random episodes [T, B], which are all that there is of these trials."""
    collector = DeviceCollector(ENV, FAMILY.train)
    tasks = jax.vmap(FAMILY.train.sample)(jax.random.split(KEY, count))

    def act(params, carry, timestep, key):
        return jax.random.randint(key, (), 0, 9), carry, ()

    lived = jax.jit(lambda key: collector.episodes(act, (), (), tasks, key).episodes)(KEY)
    return Attempt(ENV.problem(tasks), ENV.instruction(tasks), lived, lived)


def contexts(count=8):
    """Anything."""
    context = jax.random.normal(KEY, (count, 8))
    return Contexts(context, context, {})


def test_with_depth_0_it_acts_on_the_values_and_with_more_on_plans():
    obs, instruction, context = jnp.array([2, 2, 0, 0]), jnp.array([1, 3]), jnp.ones(8)

    def values(depth):
        return Planned(depth=depth, breadth=9).act(ENV, WEIGHTS, (), obs, instruction, context)[0]

    q = WEIGHTS.policy.step((), obs, instruction, context)[0]
    np.testing.assert_allclose(values(0), q, rtol=1e-6)
    x = WEIGHTS.policy.hidden(obs, instruction, context)
    planned = []
    for action in range(9):
        after, reward, discount = WEIGHTS.step(x, jnp.int32(action))
        planned.append(reward + discount * WEIGHTS.value(after).max())
    np.testing.assert_allclose(values(1), (q + jnp.stack(planned)) / 2, rtol=1e-5)


def test_the_model_learns_rewards_and_ends_of_valid_steps_alone():
    settings, batch, context = Planned(), attempts(), contexts()
    valid = np.asarray(valid_steps(batch.execute.last))
    assert not valid.all()
    optimiser = optax.adam(3e-3)

    def loss(weights, batch):
        return settings.losses(ENV, weights, WEIGHTS, batch, context, 0.99)["model_loss"]

    @jax.jit
    def learn(weights):
        def step(at, _):
            weights, state = at
            value, slope = jax.value_and_grad(loss)(weights, batch)
            updates, state = optimiser.update(slope, state)
            return (optax.apply_updates(weights, updates), state), value

        return jax.lax.scan(step, (weights, optimiser.init(weights)), None, length=300)

    (weights, _), losses = learn(WEIGHTS)
    assert losses[-1] < 0.1 * losses[0]
    read = jax.vmap(jax.vmap(weights.policy.hidden), (0, None, None))
    x = read(batch.execute.obs, batch.instruction, context.online)
    _, reward, discount = jax.vmap(jax.vmap(weights.step))(x, batch.execute.action)
    assert np.abs(reward - batch.execute.reward)[valid].mean() < 0.05
    assert np.abs(discount - 0.99 * batch.execute.discount)[valid].mean() < 0.05
    broken = batch.execute._replace(reward=jnp.where(valid, batch.execute.reward, 1e3))
    np.testing.assert_allclose(loss(weights, batch._replace(execute=broken)), losses[-1], rtol=0.3)
