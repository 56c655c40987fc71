"""MAML, E-MAML and ProMP: what they reduce to, and their gradients through the adaptation."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metadyna.adapt.gradient import GradientSteps
from metadyna.dists import normal_log_prob
from metadyna.envs import make
from metadyna.gaussian_policy import practise
from metadyna.improve.on_policy import Weighed, dice_worth, over_steps, surrogate, trust_region_step
from metadyna.improve.trpo import TRPO
from metadyna.returns import masked_mean
from metadyna.rollout import DeviceCollector
from metadyna.systems import maml
from metadyna.systems.maml import EMAML, MAML, ProMP

KEY = jax.random.key(0)
FAMILY = make("navigation")
COLLECTOR = DeviceCollector(replace(FAMILY.env, horizon=12), FAMILY.train)
SMALL = MAML(GradientSteps(rate=0.3), widths=(4,), tasks=3, episodes=4)


@functools.cache
def lived(system):
    """A fresh state, the adapted policies, and the rounds of one iteration."""

    @jax.jit
    def live():
        state = system.init(COLLECTOR, KEY)
        tasks, policies, rounds = system._draw(COLLECTOR, KEY), system._copies(state.meta, system.tasks), []
        for number in range(system.inner.steps + 1):
            episodes = COLLECTOR.episodes_of_each(practise, policies, tasks, system.episodes, jax.random.key(number))
            rounds.append(system._weigh(episodes)[0])
            if number < system.inner.steps:
                policies = system._adapt(state.meta, policies, rounds[-1], number)
        return state, policies, tuple(rounds)

    return live()


@functools.partial(jax.jit, static_argnums=0)
def stepped(system, state, rounds):
    return system._outer_step(state.meta, state.optimiser, rounds)


@functools.partial(jax.jit, static_argnums=0)
def objective_of(system, meta, rounds):
    return system._objective(meta, rounds)


def flat(system, state, rounds):
    """The outer objective as a function of a vector."""
    start, unravel = ravel_pytree(state.meta)
    return start, lambda vector: system._objective(unravel(vector), rounds)


def weighted(policy, data, discount):
    """DiCE without the trick: every step weighed by how likely the episode so far is now, relative to then.

    What DiCE holds constant moves along with the weights, so differences of its values say nothing.
    """
    log_prob = normal_log_prob(data.steps.action, *over_steps(policy, data.steps.obs))
    so_far = jnp.cumsum(jnp.where(data.valid, log_prob - data.steps.extras, 0), axis=0)
    return masked_mean(jnp.exp(so_far) * dice_worth(data, discount), data.valid)


def test_adaptation_while_living_is_that_of_the_outer_objective():
    system = replace(SMALL, inner=GradientSteps(rate=0.3, steps=2))
    state, policies, rounds = lived(system)
    adapted = jax.jit(system._adapted)(state.meta, rounds)
    assert len(adapted) == 3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), adapted[-1], policies)
    before = ravel_pytree(system._copies(state.meta, 3))[0]
    assert np.abs(ravel_pytree(policies)[0] - before).max() > 1e-3


@pytest.mark.parametrize(("system", "kind"), [
    (MAML, "log-likelihood"), (MAML, "ratio"), (MAML, "dice"), (EMAML, "log-likelihood"), (ProMP, "ratio"),
])  # fmt: skip
def test_gradients_through_the_inner_step_are_those_of_finite_differences(system, kind, monkeypatch):
    small = system(GradientSteps(rate=0.3, learnt_rates="tensor"), surrogate=kind, widths=(3,), tasks=2, episodes=2)
    state, _, rounds = lived(small)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if x.dtype == jnp.float32 else x, (state, rounds))
        start, objective = flat(small, *wide)
        slope = jax.jit(jax.grad(objective))(start)
        monkeypatch.setattr(maml, "dice", weighted)
        value, small_step = jax.jit(lambda vector: objective(vector)), 1e-5
        for seed in range(2):
            way = jax.random.normal(jax.random.key(seed), start.shape, jnp.float64)
            difference = (value(start + small_step * way) - value(start - small_step * way)) / (2 * small_step)
            # Not closer: the probabilities noted while acting are float32.
            assert slope @ way == pytest.approx(float(difference), rel=1e-4, abs=1e-7)
    assert np.abs(slope).max() > 1e-3


def test_the_first_order_leaves_the_curvature_out():
    exact, first = SMALL, replace(SMALL, inner=GradientSteps(rate=0.3, first_order=True))
    state, policies, rounds = lived(exact)
    start = ravel_pytree(state.meta)[0]
    slopes = [jax.jit(jax.grad(flat(system, state, rounds)[1]))(start) for system in (exact, first)]
    assert not np.allclose(*slopes, rtol=1e-2)
    # To first order the slope is the mean of those of the adapted policies.

    @jax.jit
    @jax.grad
    def of_each(policies):
        return jnp.sum(jax.vmap(surrogate)(policies, rounds[-1])) / 3

    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), of_each(policies))
    weights = ravel_pytree(total)[0]
    np.testing.assert_allclose(slopes[1][: weights.size], weights, rtol=1e-4, atol=1e-6)


def test_without_a_rate_it_is_trpo_on_all_tasks():
    """Reference card of MB-MPO, O2."""
    # Damped, or float32 decides where the conjugate gradients end.
    system = replace(SMALL, inner=GradientSteps(rate=0.0), learner=TRPO(damping=0.1))
    state, policies, rounds = lived(system)
    jax.tree.map(np.testing.assert_array_equal, policies, system._copies(state.meta, 3))
    meta, _, told = stepped(system, state, rounds)
    pooled = Weighed(*jax.tree.map(lambda x: jnp.concatenate(list(x), axis=1), tuple(rounds[-1])))
    policy, alone = jax.jit(trust_region_step, static_argnums=0)(system.learner, state.meta.weights, pooled)
    assert jnp.all(pooled.valid)  # or tasks would count alike whatever their episodes' lengths
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4), meta.weights, policy)
    assert told["kl"] == pytest.approx(float(alone["kl"]), rel=0.05)
    np.testing.assert_array_equal(ravel_pytree(meta.rates)[0], 0)


def test_an_accepted_step_keeps_its_bound_on_what_adapts():
    state, _, rounds = lived(SMALL)
    meta, _, told = stepped(SMALL, state, rounds)
    assert told["rejected"] == 0
    assert 0 < told["kl"] <= SMALL.learner.max_kl
    assert told["surrogate_gain"] > 0
    gain = objective_of(SMALL, meta, rounds) - objective_of(SMALL, state.meta, rounds)
    assert gain == pytest.approx(float(told["surrogate_gain"]), rel=1e-4)


def test_every_step_counts_if_it_shall():
    inner = GradientSteps(rate=0.3, steps=2)
    last, every = replace(SMALL, inner=inner), replace(SMALL, inner=inner, every_step=True)
    state, _, rounds = lived(last)
    first = objective_of(SMALL, state.meta, rounds[:2])
    mean = (first + objective_of(last, state.meta, rounds)) / 2
    moved = state.meta._replace(weights=jax.tree.map(lambda x: x + 0.05, state.meta.weights))
    assert objective_of(every, state.meta, rounds) == pytest.approx(float(mean), abs=1e-6)
    assert objective_of(every, moved, rounds) != pytest.approx(float(objective_of(last, moved, rounds)), abs=1e-5)


def test_credit_for_sampling_rises_with_the_rewards_it_led_to():
    system = EMAML(GradientSteps(rate=0.3), widths=(4,), tasks=3, episodes=4)
    state, _, rounds = lived(system)
    *_, last = rounds
    reward = jnp.zeros_like(last.steps.reward).at[0].set(1.0)  # the first task's steps pay, the others' do not
    only_first = last._replace(steps=last.steps._replace(reward=reward))
    added = objective_of(system, state.meta, (rounds[0], only_first)) - objective_of(
        SMALL, state.meta, (rounds[0], only_first)
    )
    log_prob = normal_log_prob(
        rounds[0].steps.action, *jax.vmap(over_steps, (None, 0))(state.meta.weights, rounds[0].steps.obs)
    )
    valid = np.asarray(last.valid)
    share = valid[0].sum() / valid.sum()
    worth = np.array([1 - share, -share, -share]) / np.sqrt(share * (1 - share))
    each = [np.asarray(x)[np.asarray(v)].mean() for x, v in zip(log_prob, rounds[0].valid, strict=True)]
    assert added == pytest.approx(np.mean(worth * each), rel=1e-3)


def test_proximal_steps_stop_where_ratios_are_clipped():
    system = ProMP(GradientSteps(rate=0.3), widths=(4,), tasks=3, episodes=4, clip=0.1, updates=3)
    state, _, rounds = lived(system)
    assert system._objective(state.meta, rounds) == pytest.approx(
        float(MAML._objective(system, state.meta, rounds)), abs=1e-6
    )
    unlikely = rounds[-1].steps._replace(extras=rounds[-1].steps.extras - 1.0)  # ratios of e, far beyond 1.1
    beyond = (rounds[0], rounds[-1]._replace(steps=unlikely, advantage=jnp.abs(rounds[-1].advantage)))
    start, objective = flat(system, state, beyond)
    np.testing.assert_array_equal(jax.jit(jax.grad(objective))(start), 0)
    meta, _, told = stepped(system, state, rounds)
    moved = np.abs(ravel_pytree(meta.weights)[0] - ravel_pytree(state.meta.weights)[0])
    assert moved.max() == pytest.approx(3e-3, rel=0.05)  # Adam: the step size in every update, at first
    assert told["inner_kl"] >= 0


def test_an_evaluation_adapts_to_every_task_from_the_same_start():
    state, _, _ = lived(SMALL)
    assert SMALL.episode_names == ("0 steps", "1 step", "2 steps", "3 steps")
    tasks = jax.tree.map(lambda x: x[:5], FAMILY.test.enumerate())
    shown = jax.jit(lambda meta: SMALL.trial(meta, COLLECTOR, tasks, KEY))(state.meta)
    assert [episode.reward.shape for episode in shown] == [(12, 5)] * 4
    still = replace(SMALL, inner=GradientSteps(rate=0.0), shown_steps=1)
    before, after = jax.jit(lambda meta: still.trial(meta, COLLECTOR, tasks, KEY))(state.meta)
    assert not np.array_equal(before.action, after.action)  # other noise
    assert replace(SMALL, shown_steps=0).episode_names == ("0 steps",)
