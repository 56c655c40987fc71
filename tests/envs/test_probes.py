"""The probes' known action values, and that their steps agree with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs.probes import PROBES, ProbeState, values

KNOWN = {
    "constant": [[1, 1]],
    "observation": [[-1, -1], [1, 1]],
    "two-step": [[0.9, 0.9], [1, 1]],
    "action": [[-1, 1]],
    "observation-action": [[1, -1], [-1, 1]],
}


@pytest.mark.parametrize("name", PROBES)
def test_known_values(name):
    np.testing.assert_allclose(values(PROBES[name], 0.9), KNOWN[name])


@pytest.mark.parametrize("name", PROBES)
def test_steps_satisfy_the_bellman_equation(name):
    env, key = PROBES[name], jax.random.key(0)
    known = values(env, 0.9)
    for number, action in np.ndindex(known.shape):
        state = ProbeState(jnp.int32(number), jnp.int32(number if env.horizon > 1 else 0))
        _, timestep = env.step((), state, jnp.int32(action), key)
        future = timestep.discount * 0.9 * known[timestep.obs[0]].max()
        assert timestep.reward + future == pytest.approx(known[number, action])
        assert timestep.prev_action == action


@pytest.mark.parametrize("name", PROBES)
def test_episodes_start_everywhere_and_end_on_time(name):
    env = PROBES[name]
    keys = jax.random.split(jax.random.key(0), 64)
    states, timesteps = jax.vmap(env.reset, (None, 0))((), keys)
    assert set(timesteps.obs[:, 0].tolist()) == set(range(env.num_starts))
    assert timesteps.first.all()
    assert (timesteps.prev_action == -1).all()
    for time in range(env.horizon):
        states, timesteps = jax.vmap(env.step, (None, 0, None, None))((), states, jnp.int32(0), keys[0])
        assert (timesteps.last == (time + 1 == env.horizon)).all()
        assert (timesteps.discount == 1 - timesteps.last).all()
        assert (timesteps.obs < env.spec.observation.sizes[0]).all()
