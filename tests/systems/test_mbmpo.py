"""MB-MPO: which model a task has, what is stored, and who lives."""

from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.adapt.gradient import GradientSteps
from metadyna.collect import replay
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_returns, valid_steps
from metadyna.envs import make
from metadyna.envs.control import ControlState
from metadyna.errors import UserError
from metadyna.improve.meta import MetaPPO, MetaTRPO
from metadyna.models import fit as fits
from metadyna.models.fit import Fit, Rows
from metadyna.models.imagine import branch
from metadyna.models.truth import Place, TrueDynamics
from metadyna.models.worlds import Meaning, known_world
from metadyna.policies import direct
from metadyna.policies.acting import practise, practise_or_guess
from metadyna.systems.mbmpo import MBMPO
from metadyna.types import TimeStep
from tests.arrays import replaced, uniform
from tests.tiny import CONTINUOUS, Moving

KEY = jax.random.key(0)
FAMILY = make("cartpole-balance")  # whose episodes end early
COLLECTOR = DeviceCollector(FAMILY.env, FAMILY.train)
WORLD = known_world(FAMILY.env)
SMALL = CONTINUOUS["mb-mpo"]
BOLD = replace(SMALL, outer=Moving(GradientSteps(rate=0.5)), collect=3)
REST = replace(BOLD, starts="any", adapted_collection=False)
PAID = Meaning(reward=lambda obs, action, next_obs: obs[0] + obs[1] * action[0])


@cache
def fresh(system=BOLD):
    """A state that nothing has been learnt in."""
    return jax.jit(lambda key: system.init(COLLECTOR, key))(KEY)


@cache
def lived():
    """Three random episodes of each of two tasks."""

    @jax.jit
    def live(policies, key):
        tasks = jax.vmap(FAMILY.train.sample)(jax.random.split(key, 2))
        explorers = policies, jnp.ones(2, bool)
        return COLLECTOR.episodes_of_each(practise_or_guess, explorers, (), tasks, 3, key).episodes

    return live(fresh().policies, KEY)


def learn(state):
    return COLLECTOR.compute(BOLD._learn, state, lived(), KEY, static=(WORLD,))


def meta_learn(system, world, state):
    return COLLECTOR.compute(system._meta_learn, state, KEY, static=(world,))


def test_tasks_share_the_models_in_order():
    """Reference card of MB-MPO, O14."""
    assert MBMPO(tasks=20).models.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert MBMPO().models.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="tasks = 7 cannot be shared equally among 5 models"):
        MBMPO(tasks=7)


def test_what_was_lived_is_stored_without_padding_and_counted():
    seen = jax.tree.map(np.asarray, lived())
    valid = np.asarray(valid_steps(lived().last))
    assert 0 < valid.sum() < valid.size
    after, metrics = learn(fresh())
    assert after.real.added == after.steps == valid.sum()
    stored = jax.tree.map(lambda x: np.asarray(x)[: valid.sum()], after.real.items)
    np.testing.assert_array_equal(stored.obs, seen.obs[valid])
    assert stored.discount.sum() == valid.sum() - 6  # every end was a fall
    assert after.starts.added == 6
    np.testing.assert_array_equal(np.asarray(after.starts.items)[:6], seen.obs[0].reshape(6, 4))
    returned = metrics["train/episode_return"]
    assert returned.total / returned.weight == pytest.approx(valid.sum() / 6)


def filled(ring):
    """A buffer in which eight rows are taken for stored."""
    return ring._replace(next=jnp.int32(8))


def warm(starts, others):
    """A state after the random steps, with eight observations stored that were first ones, and eight others."""
    state = fresh()
    first = jnp.asarray(replaced(np.asarray(state.starts.items), slice(8), starts))
    obs = jnp.asarray(replaced(np.asarray(state.real.items.obs), slice(8), others))
    return state._replace(
        real=filled(state.real._replace(items=state.real.items._replace(obs=obs))),
        starts=filled(state.starts._replace(items=first)),
        steps=jnp.int32(SMALL.warmup),
    )


def moved(before, after):
    """How far the policies that collect are from the initial one, which is another than before."""
    trees = after.meta.weights, before.meta.weights, after.policies
    weights, was, policies = ([np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in trees)
    assert not any(np.array_equal(*pair) for pair in zip(weights, was, strict=True))
    far = [np.abs(each - one[None]).reshape(len(each), -1) for each, one in zip(policies, weights, strict=True)]
    return np.concatenate(far, axis=1).max(axis=1)


def test_the_policies_to_live_with_are_those_that_adapt_or_the_initial_one():
    starts = np.float32(0.05) * uniform(8, 4) + np.float32([[0, 1, 0, 0]])  # 1 is what an action is paid there
    state = warm(starts, starts)
    after, metrics = meta_learn(BOLD, PAID, state)
    assert (moved(state, after) > 1e-3).all()
    assert np.isfinite(metrics["train/adaptation_gain"].total)
    after, _ = meta_learn(REST, PAID, state)
    assert (moved(state, after) == 0).all()


class Watching(DeviceCollector):
    """A collector that remembers who lived."""

    def episodes_of_each(self, act, params, carry, tasks, count, key):
        self.policies, self.guesses = params
        return super().episodes_of_each(act, params, carry, tasks, count, key)


def test_the_policies_to_live_with_live_once_the_random_steps_are_over():
    state = fresh()
    apart = jax.jit(lambda x: x + jnp.arange(2).reshape(2, *(1,) * (x.ndim - 1)))
    state = state._replace(policies=jax.tree.map(apart, state.policies))
    for steps, random in ((SMALL.warmup - 1, True), (SMALL.warmup, False)):
        collector = Watching(FAMILY.env, FAMILY.train)
        after, _ = BOLD.iterate(state._replace(steps=jnp.int32(steps)), collector, KEY)
        assert collector.guesses.tolist() == [random] * 2
        jax.tree.map(np.testing.assert_array_equal, collector.policies, state.policies)
        assert after.real.added == after.steps - steps > 0
        assert after.starts.added == 2 * 3


def test_a_buffer_too_small_for_an_iteration_is_refused():
    with pytest.raises(UserError, match="capacity"):
        MBMPO(tasks=5, collect=2, capacity=9)


def test_nothing_is_learnt_before_the_random_steps_are_over():
    state = fresh()
    early, told = meta_learn(BOLD, WORLD, state._replace(steps=jnp.int32(19)))
    jax.tree.map(np.testing.assert_array_equal, early.meta, state.meta)
    jax.tree.map(np.testing.assert_array_equal, early.policies, state.policies)
    assert {int(value.weight) for value in told.values()} == {0}
    count = np.asarray(valid_steps(lived().last)).sum()
    for steps, times in ((20, 1), (19, 0)):
        after, told = learn(state._replace(steps=jnp.int32(steps - count)))
        assert after.steps == steps
        assert after.real.added == count > 20
        moved = [
            not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (after.model, state.model)), strict=True)
        ]
        assert any(moved) == bool(times)
        assert told["fit/updates"].weight == times


def places(env, starts):
    """Where true dynamics begin."""
    return jax.vmap(lambda obs: Place(env.state_of(None, obs), obs))(starts)


def test_true_dynamics_in_place_of_the_models_return_what_the_environment_does():
    """Reference card of MB-MPO, O12: the same episodes with the same noise, ends and all, whatever the task's model."""
    family = make("point-mass")
    starts = np.float32([[0.35, -0.25], [0.1, 0.1], [1.5, -0.7], [0.05, -0.005]])

    def act(params, carry, timestep, key):
        return jnp.clip(-10 * timestep.obs, -1.5, 1.5) + params * jax.random.normal(key, (2,)), carry, ()

    def episode(start, actions):
        def step(at, action):
            state, ended = at
            state, after = family.env.step(None, state, action, KEY)
            return (state, ended | after.last), (jnp.where(ended, 0, after.reward), ended)

        return jax.lax.scan(step, (ControlState(start, jnp.int32(0)), jnp.bool_(False)), actions)[1]

    @jax.jit
    def run(noise):
        made = branch(TrueDynamics(family.env), act, noise, places(family.env, starts), 30, KEY)
        return valid_steps(made.last), episode_returns(made), *jax.vmap(episode, (0, 1), 1)(starts, made.action)

    for noise in (0.0, 0.3):
        valid, returns, rewards, ended = map(np.asarray, run(np.float32(noise)))
        np.testing.assert_array_equal(valid, ~ended)
        np.testing.assert_allclose(returns, rewards.sum(axis=0), rtol=1e-5)
        assert ended[-1].any()


def test_adapted_policies_differ_through_what_was_sampled_alone():
    """O12: in models that are one and the same, two tasks that sample the same adapt alike; and else they do not."""
    outer, env = MetaTRPO(GradientSteps(rate=0.5)), make("point-mass").env
    meta = jax.jit(lambda key: outer.inner.start(direct.create(env.spec, (8,), key)))(KEY)
    world = TrueDynamics(env)
    starts = 2 * uniform(5, 2)

    @jax.jit
    def adapted(keys):
        def lived(member, key):
            del member
            return branch(world, practise, meta.weights, places(env, starts), 10, key)

        made = jax.vmap(lived, out_axes=1)(jnp.arange(2), keys)
        return outer.adapt(meta, outer.copies(meta, 2), outer.weigh(made, meta.weights.inputs), 0)

    for same, keys in ((True, jnp.stack([KEY, KEY])), (False, jax.random.split(KEY))):
        first, second = np.asarray(adapted(keys).mlp.layers[0].weight)
        assert np.allclose(first, second, atol=1e-6) == same


def test_a_small_network_learns_the_point_in_few_epochs():
    """Reference card of MB-MPO, O11: 20,000 random steps, (32, 32), a mean error of at most 0.01 within 20 epochs."""
    env, model = make("point-mass").env, replace(MBMPO().model, members=1, elites=1, widths=(32, 32))

    @jax.jit
    def learnt(keys):
        obs = jax.random.uniform(keys[0], (20_000, 2), minval=-2, maxval=2)
        action = jax.random.uniform(keys[1], (20_000, 2), minval=-1, maxval=1)
        next_obs = jax.vmap(lambda o, a: env.advance(None, o, a, KEY))(obs, action)
        inputs, targets = jnp.concatenate([obs, action], axis=1), next_obs - obs
        rows = Rows(replay.full((inputs[:16_000], targets[:16_000])), lambda rows: rows)
        state = fits.start(model, model.create(4, 2, keys[2]))
        state, _ = fits.fit(Fit(batch=500, max_epochs=20), model, state, rows, KEY)
        return state.ensemble.sample(inputs[None, 16_000:], None)[0], targets[16_000:]

    predicted, targets = map(np.asarray, learnt(jax.random.split(KEY, 3)))
    assert np.abs(predicted - targets).mean() <= 0.01


def test_every_task_is_imagined_in_its_own_model_and_adapts_from_the_latest_policy():
    """Models that drift apart by known amounts: what the tasks were promised tells which was whose. With a step size
    of 0 the policies to live with are the initial one as it is after the outer steps, not before."""
    system = replace(SMALL, tasks=4, outer=Moving(GradientSteps(rate=0.0)), meta_steps=1)
    state = fresh(system)
    state = state._replace(starts=filled(state.starts), steps=jnp.int32(SMALL.warmup))
    after, told = meta_learn(system, WORLD, state)
    assert (moved(state, after) == 0).all()
    # The cart's first number is x: member 0 leaves the track at once, member 1 never.
    ensemble = state.model.ensemble
    weights = jax.tree.map(jnp.zeros_like, ensemble.weights)
    bias = lambda weights: weights.members.mlp.layers[-1].bias  # noqa: E731
    drift = jnp.asarray(np.float32([[3, 0, 0, 0], [0, 0, 0, 0]]))
    ensemble = replace(ensemble, weights=eqx.tree_at(bias, weights, drift))
    state = state._replace(model=state.model._replace(ensemble=ensemble))
    _, told = meta_learn(system, WORLD, state)
    promised = told["train/promised_return"]
    assert promised.total / promised.weight == pytest.approx((2 * 1 + 2 * SMALL.horizon) / 4)


def test_the_outer_step_may_be_that_of_ppo():
    system = replace(SMALL, outer=MetaPPO(GradientSteps(rate=0.1), updates=2))
    state = fresh(system)
    state = state._replace(starts=filled(state.starts), steps=jnp.int32(SMALL.warmup))
    after, told = meta_learn(system, WORLD, state)
    assert (moved(state, after) > 0).all()
    assert np.isfinite(told["train/surrogate_gain"].total)


def test_imagination_may_begin_anywhere():
    """Stored steps at x = 1.5 and first ones at x = 0, in models that stand still under a policy that does nothing."""
    state = warm(np.zeros((8, 4), np.float32), np.float32([1.5, 0, 0, 0]))
    ensemble = replace(state.model.ensemble, weights=jax.tree.map(jnp.zeros_like, state.model.ensemble.weights))
    state = state._replace(model=state.model._replace(ensemble=ensemble))
    for system, place in ((BOLD, 0.0), (REST, 1.5)):
        promised = meta_learn(system, PAID, state)[1]["train/promised_return"]
        assert promised.total / promised.weight == pytest.approx(BOLD.horizon * place)


def test_exploring_is_random_or_the_policy():
    keys = jax.random.split(KEY, 200)

    @jax.jit
    def acted(random):
        policy = direct.create(FAMILY.env.spec, (8,), KEY, log_std=2.0)
        one, no = jnp.float32(1), jnp.bool_(False)
        timestep = TimeStep(jnp.ones(4), one, one, no, no, jnp.zeros(1))
        chosen = jax.vmap(lambda key: practise(policy, (), timestep, jax.random.split(key)[0])[0])(keys)
        return jax.vmap(lambda key: practise_or_guess((policy, random), (), timestep, key)[0])(keys), chosen

    np.testing.assert_array_equal(*acted(np.bool_(False)))
    anything = np.asarray(acted(np.bool_(True))[0])
    assert np.abs(anything).max() <= 1
    assert np.abs(anything.mean()) < 0.2
    assert anything.std() == pytest.approx(3**-0.5, rel=0.15)
