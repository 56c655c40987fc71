"""ME-TRPO: where imagination begins, and when the members end it."""

from dataclasses import replace
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from metadyna.collect.device import DeviceCollector
from metadyna.envs import make
from metadyna.models.fit import FitState
from metadyna.models.gaussian import Standardiser
from metadyna.models.worlds import known_world
from metadyna.systems import metrpo
from tests.arrays import replaced
from tests.tiny import CONTINUOUS

KEY = jax.random.key(0)
SMALL = CONTINUOUS["me-trpo"]


@cache
def began(name):
    family = make(name)
    collector = DeviceCollector(family.env, family.train)
    return collector, known_world(family.env), jax.jit(lambda key: SMALL.init(collector, key))(KEY)


def test_imagination_begins_where_real_episodes_did():
    collector, world, state = began("cartpole-balance")  # whose episodes end early
    _, lived = jax.jit(lambda *at: collector.collect(metrpo.practise, *at, 60))(state.policy, state.env, KEY)
    ends = np.flatnonzero(np.asarray(lived.last)[:, 0])
    ends = ends[ends < 59]
    assert len(ends)
    learn = jax.jit(partial(SMALL._learn, world))
    for fresh in (True, False):
        after, _ = learn(state._replace(env=()), lived, np.array([fresh]), KEY)
        assert after.steps == after.real.added == 60
        firsts = np.concatenate([[0] if fresh else [], ends + 1]).astype(int)
        assert after.starts.added == len(firsts)
        np.testing.assert_array_equal(np.asarray(after.starts.items)[: len(firsts)], np.asarray(lived.obs)[firsts, 0])


def trained(system, gains):
    """What becomes of the policy in a model of such gains, in which imagination begins at (1, 1)."""
    _, world, state = began("point-mass")
    items = jnp.asarray(replaced(np.asarray(state.starts.items), slice(8), 1))
    starts = state.starts._replace(items=items, next=jnp.int32(8))
    state = state._replace(starts=starts, env=(), model=FitState(Drifting(jnp.asarray(np.float32(gains))), ()))
    return jax.jit(partial(system._train, world))(state, KEY)


class Drifting(eqx.Module):
    """Members in which an action moves the point by so much (`models.nearby.Scaled`)."""

    gains: Float[Array, "K"]
    num_inputs: int = eqx.field(static=True, default=4)
    num_outputs: int = eqx.field(static=True, default=2)

    @property
    def num_members(self):
        return self.gains.shape[0]

    @property
    def elites(self):
        return jnp.arange(self.num_members)

    @property
    def input_scale(self):
        return Standardiser.identity(self.num_inputs)

    @property
    def target_scale(self):
        return Standardiser.identity(self.num_outputs)

    def best(self):
        return self

    def only(self, member):
        return Drifting(self.gains[member][None])

    def sample(self, inputs, noise):
        del noise
        return self.gains[:, None, None] * inputs[..., 2:]


@pytest.mark.parametrize(("tolerance", "steps"), [(0.5, 2), (0.7, 5)])
def test_training_ends_once_too_many_members_find_the_policy_worse(tolerance, steps, monkeypatch):
    """Every policy step pushes further away from the goal: by 0.1 and by 0.2 in two members of three, not at all in
    the third."""

    def push(settings, policy, data):
        del settings, data
        return replace(
            policy, mlp=eqx.tree_at(lambda mlp: mlp.layers[-1].bias, policy.mlp, replace_fn=lambda b: b + 0.2)
        ), {}

    monkeypatch.setattr(metrpo, "trust_region_step", push)
    system = replace(SMALL, policy_steps=5, validate_every=2, tolerance=tolerance)
    after, told = trained(system, [0.1, 0.2, 0.0])
    assert told["train/policy_steps"].total == steps
    np.testing.assert_allclose(after.policy.mlp.layers[-1].bias, 0.2 * steps, rtol=1e-5)


def test_every_imagined_step_is_that_of_a_member_drawn_anew(monkeypatch):
    def look(settings, policy, data):
        del settings
        return policy, {"moved": data.steps.next_obs - data.steps.obs, "action": data.steps.action}

    monkeypatch.setattr(metrpo, "trust_region_step", look)
    system = replace(SMALL, policy_steps=1, validate_every=2, episodes=30, horizon=20, reach=100.0)
    _, told = trained(system, [0.1, 0.3])
    moved, action = (np.asarray(told[f"train/{name}"].total) for name in ("moved", "action"))
    gain = (moved / np.clip(action, -1, 1))[..., 0]
    first = np.abs(gain - 0.1) < 0.01
    assert (first | (np.abs(gain - 0.3) < 0.01)).all()
    assert first.mean() == pytest.approx(0.5, abs=0.1)
    changes = first[1:] != first[:-1]
    assert changes.mean() == pytest.approx(0.5, abs=0.1)  # within an episode, not from one to the next
