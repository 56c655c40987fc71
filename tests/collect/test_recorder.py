"""The recorder: the same episodes, and the states that they went through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_lengths, valid_steps
from metadyna.collect.host import HostCollector
from metadyna.collect.recorder import Recorder
from metadyna.envs import make
from metadyna.envs.mujoco import Snapshot
from metadyna.types import Collector, HostEnv

KEY = jax.random.key(3)
BATCH = 3


def act(params, carry, timestep, key):
    """A policy that looks, remembers, draws and leaves the range of actions."""
    wish = params * jnp.sum(timestep.obs) + 2 * jax.random.normal(key, timestep.prev_action.shape)
    return wish, carry + timestep.reward, (carry, timestep.prev_action)


def played(name):
    family = make(name)
    kind = HostCollector if isinstance(family.env, HostEnv) else DeviceCollector
    collector = kind(family.env, family.train)
    tasks = jax.tree.map(lambda x: x[:BATCH], family.test.enumerate())
    recorder = Recorder(collector)
    plain, recorded = (c.episodes(act, jnp.float32(0.1), jnp.zeros(BATCH), tasks, KEY) for c in (collector, recorder))
    return family.env, tasks, plain, recorded, recorder.states[0]


@pytest.mark.parametrize("name", ["double-integrator", "point-direction"])
def test_on_a_device(name):
    env, tasks, plain, recorded, states = played(name)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), plain, recorded)
    each_time = jax.vmap(jax.vmap(env.observe), in_axes=(None, 0))(tasks, states.physics)
    np.testing.assert_allclose(each_time[:-1], recorded.obs, atol=1e-5)
    np.testing.assert_allclose(each_time[1:], recorded.next_obs, atol=1e-5)
    np.testing.assert_array_equal(states.time[:, 0], np.arange(env.spec.horizon + 1))


def test_on_the_host():
    env, tasks, plain, recorded, states = played("hopper")
    jax.tree.map(np.testing.assert_array_equal, plain, recorded)
    valid = np.asarray(valid_steps(recorded.last))
    for time in range(int(episode_lengths(recorded.last).max())):
        before = Snapshot(*(np.asarray(x[time]) for x in states))
        np.testing.assert_array_equal(env.robot.observe(env._reading(before.physics.view(float))).astype(np.float32),
                                      recorded.obs[time])  # fmt: skip
        after, timestep = env.step(tasks, before, np.asarray(recorded.action[time]))
        np.testing.assert_array_equal(after.physics[valid[time]], states.physics[time + 1][valid[time]])
        np.testing.assert_array_equal(timestep.obs[valid[time]], recorded.next_obs[time][valid[time]])
    assert states.physics.dtype == np.uint32  # float64, in words that JAX does not round


def test_every_call_is_kept_and_the_rest_is_the_collector():
    family = make("point-mass")
    collector = DeviceCollector(family.env, family.train)
    recorder = Recorder(collector)
    assert isinstance(recorder, Collector)
    assert (recorder.env, recorder.tasks) == (collector.env, collector.tasks)
    tasks = jax.tree.map(lambda x: x[:1], family.test.enumerate())
    for i in range(2):
        recorder.episodes(act, jnp.float32(0), jnp.zeros(1), tasks, jax.random.key(i))
    first, second = recorder.states
    assert first.physics.shape == second.physics.shape == (31, 1, 2)
    assert (first.physics != second.physics).all()
    assert (recorder.begin, recorder.collect) == (collector.begin, collector.collect)


@pytest.mark.parametrize("name", ["navigation", "inverted-pendulum"])
def test_of_several_episodes_of_a_task_the_first_is_kept(name):
    family = make(name)
    collector = (HostCollector if isinstance(family.env, HostEnv) else DeviceCollector)(family.env, family.train)
    tasks = jax.tree.map(lambda x: x[:BATCH], family.test.enumerate())

    def memoryless(params, carry, timestep, key):
        return params * jnp.ones(timestep.prev_action.shape), carry, ()

    recorder, weights = Recorder(collector), jnp.array([0.1, 0.2, 0.3])
    plain, recorded = (c.episodes_of_each(memoryless, weights, tasks, 2, KEY) for c in (collector, recorder))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), plain, recorded)
    states = recorder.states[0]
    assert all(leaf.shape[:2] == (family.env.spec.horizon + 1, BATCH) for leaf in jax.tree.leaves(states))
    if name == "navigation":
        np.testing.assert_allclose(states.physics[1:], recorded.next_obs[:, :, 0], atol=1e-6)
