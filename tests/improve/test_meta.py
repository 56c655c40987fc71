"""Meta-policy gradients: what they reduce to, and their gradients through the adaptation."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metadyna.adapt.gradient import GradientSteps
from metadyna.collect.device import DeviceCollector
from metadyna.collect.returns import masked_mean
from metadyna.envs import make
from metadyna.improve import meta as module
from metadyna.improve.meta import MetaPPO, MetaTRPO
from metadyna.improve.on_policy import Weighed, dice_worth, over_steps, surrogate, trust_region_step
from metadyna.improve.trpo import TRPO
from metadyna.policies.acting import practise
from metadyna.policies.direct import create

KEY = jax.random.key(0)
TASKS = 3
INNER = GradientSteps(rate=0.3)
LEARNER = MetaTRPO(INNER)


@functools.cache
def lived(learner, episodes=4, width=4):
    """Fresh weights, the adapted policies, and the rounds of one iteration."""
    family = make("navigation")
    collector = DeviceCollector(replace(family.env, horizon=12), family.train)

    @jax.jit
    def live():
        meta = learner.inner.start(create(family.env.spec, (width,), KEY))
        tasks, rounds = jax.vmap(family.train.sample)(jax.random.split(KEY, TASKS)), []
        policies = learner.copies(meta, TASKS)
        for number in range(learner.inner.steps + 1):
            played = collector.episodes_of_each(practise, policies, (), tasks, episodes, jax.random.key(number))
            rounds.append(learner.weigh(played.episodes, meta.weights.inputs))
            if number < learner.inner.steps:
                policies = learner.adapt(meta, policies, rounds[-1], number)
        return meta, policies, tuple(rounds)

    return live()


@functools.partial(jax.jit, static_argnums=0)
def stepped(learner, meta, rounds):
    return learner.update(meta, learner.start(meta), rounds)


@functools.partial(jax.jit, static_argnums=0)
def objective_of(learner, meta, rounds):
    return learner.objective(meta, rounds)


def flat(learner, meta, rounds):
    """The outer objective as a function of a vector."""
    start, unravel = ravel_pytree(meta)
    return start, lambda vector: learner.objective(unravel(vector), rounds)


def weighted(policy, data, discount):
    """DiCE without the trick: every step weighed by how likely the episode so far is now, relative to then.

    What DiCE holds constant moves along with the weights, so differences of its values say nothing.
    """
    log_prob = over_steps(policy, data.steps.obs).log_prob(data.steps.action)
    so_far = jnp.cumsum(jnp.where(data.valid, log_prob - data.steps.extras, 0), axis=0)
    return masked_mean(jnp.exp(so_far) * dice_worth(data, discount), data.valid)


def test_adaptation_while_living_is_that_of_the_outer_objective():
    learner = MetaTRPO(GradientSteps(rate=0.3, steps=2))
    meta, policies, rounds = lived(learner)
    adapted = jax.jit(learner.adapted)(meta, rounds)
    assert len(adapted) == 3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), adapted[-1], policies)
    before = ravel_pytree(learner.copies(meta, TASKS))[0]
    assert np.abs(ravel_pytree(policies)[0] - before).max() > 1e-3


LEARNT = GradientSteps(rate=0.3, learnt_rates="tensor")


LEARNERS = (
    *(MetaTRPO(LEARNT, kind) for kind in ("log-likelihood", "ratio", "dice")),
    MetaTRPO(LEARNT, credit=True),
    MetaPPO(LEARNT),
)


@pytest.mark.parametrize("learner", LEARNERS)
def test_gradients_through_the_inner_step_are_those_of_finite_differences(learner, monkeypatch):
    meta, _, rounds = lived(learner, episodes=2, width=3)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if x.dtype == jnp.float32 else x, (meta, rounds))
        start, objective = flat(learner, *wide)
        slope = jax.jit(jax.grad(objective))(start)
        monkeypatch.setattr(module, "dice", weighted)
        value, small_step = jax.jit(lambda vector: objective(vector)), 1e-5
        for seed in range(2):
            way = jax.random.normal(jax.random.key(seed), start.shape, jnp.float64)
            difference = (value(start + small_step * way) - value(start - small_step * way)) / (2 * small_step)
            # Not closer: the probabilities noted while acting are float32.
            assert slope @ way == pytest.approx(float(difference), rel=1e-4, abs=1e-7)
    assert np.abs(slope).max() > 1e-3


def test_the_first_order_leaves_the_curvature_out():
    first = MetaTRPO(GradientSteps(rate=0.3, first_order=True))
    meta, policies, rounds = lived(LEARNER)
    start = ravel_pytree(meta)[0]
    slopes = [jax.jit(jax.grad(flat(learner, meta, rounds)[1]))(start) for learner in (LEARNER, first)]
    assert not np.allclose(*slopes, rtol=1e-2)
    # To first order the slope is the mean of those of the adapted policies.

    @jax.jit
    @jax.grad
    def of_each(policies):
        return jnp.sum(jax.vmap(surrogate)(policies, rounds[-1])) / TASKS

    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), of_each(policies))
    weights = ravel_pytree(total)[0]
    np.testing.assert_allclose(slopes[1][: weights.size], weights, rtol=1e-4, atol=1e-6)


def test_without_a_rate_it_is_trpo_on_all_tasks():
    """Reference card of MB-MPO, O2."""
    # Damped, or float32 decides where the conjugate gradients end.
    learner = MetaTRPO(GradientSteps(rate=0.0), trust=TRPO(damping=0.1))
    meta, policies, rounds = lived(learner)
    jax.tree.map(np.testing.assert_array_equal, policies, learner.copies(meta, TASKS))
    moved, _, told = stepped(learner, meta, rounds)
    pooled = Weighed(*jax.tree.map(lambda x: jnp.concatenate(list(x), axis=1), tuple(rounds[-1])))
    policy, alone = jax.jit(trust_region_step, static_argnums=0)(learner.trust, meta.weights, pooled)
    assert jnp.all(pooled.valid)  # or tasks would count alike whatever their episodes' lengths
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4), moved.weights, policy)
    assert told["kl"] == pytest.approx(float(alone["kl"]), rel=0.05)
    np.testing.assert_array_equal(ravel_pytree(moved.rates)[0], 0)


def test_an_accepted_step_keeps_its_bound_on_what_adapts():
    meta, _, rounds = lived(LEARNER)
    moved, _, told = stepped(LEARNER, meta, rounds)
    assert told["rejected"] == 0
    assert 0 < told["kl"] <= LEARNER.trust.max_kl
    assert told["surrogate_gain"] > 0
    gain = objective_of(LEARNER, moved, rounds) - objective_of(LEARNER, meta, rounds)
    assert gain == pytest.approx(float(told["surrogate_gain"]), rel=1e-4)


def test_every_step_counts_if_it_shall():
    last = MetaTRPO(GradientSteps(rate=0.3, steps=2))
    every = replace(last, every_step=True)
    meta, _, rounds = lived(last)
    first = objective_of(LEARNER, meta, rounds[:2])
    mean = (first + objective_of(last, meta, rounds)) / 2
    moved = meta._replace(weights=jax.tree.map(lambda x: x + 0.05, meta.weights))
    assert objective_of(every, meta, rounds) == pytest.approx(float(mean), abs=1e-6)
    assert objective_of(every, moved, rounds) != pytest.approx(float(objective_of(last, moved, rounds)), abs=1e-5)


def test_credit_for_sampling_rises_with_the_rewards_it_led_to():
    meta, _, rounds = lived(LEARNER)
    *_, last = rounds
    reward = jnp.zeros_like(last.steps.reward).at[0].set(1.0)  # the first task's steps pay, the others' do not
    only_first = last._replace(steps=last.steps._replace(reward=reward))
    added = objective_of(replace(LEARNER, credit=True), meta, (rounds[0], only_first))
    added -= objective_of(LEARNER, meta, (rounds[0], only_first))
    said = jax.vmap(over_steps, (None, 0))(meta.weights, rounds[0].steps.obs)
    log_prob = said.log_prob(rounds[0].steps.action)
    valid = np.asarray(last.valid)
    share = valid[0].sum() / valid.sum()
    worth = np.array([1 - share, -share, -share]) / np.sqrt(share * (1 - share))
    each = [np.asarray(x)[np.asarray(v)].mean() for x, v in zip(log_prob, rounds[0].valid, strict=True)]
    assert added == pytest.approx(np.mean(worth * each), rel=1e-3)


def test_proximal_steps_stop_where_ratios_are_clipped():
    learner = MetaPPO(INNER, clip=0.1, updates=3)
    meta, _, rounds = lived(learner)
    plain = objective_of(MetaTRPO(INNER, "ratio"), meta, rounds)
    assert objective_of(learner, meta, rounds) == pytest.approx(float(plain), abs=1e-6)
    unlikely = rounds[-1].steps._replace(extras=rounds[-1].steps.extras - 1.0)  # ratios of e, far beyond 1.1
    beyond = (rounds[0], rounds[-1]._replace(steps=unlikely, advantage=jnp.abs(rounds[-1].advantage)))
    start, objective = flat(learner, meta, beyond)
    np.testing.assert_array_equal(jax.jit(jax.grad(objective))(start), 0)
    after, _, told = stepped(learner, meta, rounds)
    moved = np.abs(ravel_pytree(after.weights)[0] - ravel_pytree(meta.weights)[0])
    assert moved.max() == pytest.approx(3e-3, rel=0.05)  # Adam: the step size in every update, at first
    assert told["inner_kl"] >= 0


def test_straying_from_the_policy_that_sampled_has_its_price():
    meta, _, rounds = lived(LEARNER)
    free, dear = (stepped(MetaPPO(INNER, kl_weight=weight, updates=20), meta, rounds)[2] for weight in (0.0, 1e3))
    assert 0 < dear["inner_kl"] < 0.1 * free["inner_kl"]
    assert dear["surrogate_gain"] < free["surrogate_gain"]


def test_the_outer_step_goes_along_the_natural_gradient_through_the_inner_step():
    """Reference card of MB-MPO, O9: F is the Hessian of KL(π_old || π_θ'(θ)) with respect to θ."""
    learner = MetaTRPO(INNER, trust=TRPO(damping=0.1, cg_iterations=40))
    meta, policies, rounds = lived(learner, width=2)
    start, objective = flat(learner, meta, rounds)
    _, unravel = ravel_pytree(meta)
    data = rounds[-1]

    def kl(vector):
        said = [
            jax.vmap(over_steps)(each, data.steps.obs)
            for each in (policies, learner.adapted(unravel(vector), rounds)[-1])
        ]
        return jnp.mean(jax.vmap(masked_mean)(said[0].kl(said[1]), data.valid))

    fisher, slope = jax.jit(jax.hessian(kl))(start), jax.jit(jax.grad(objective))(start)
    assert np.linalg.eigvalsh(fisher)[-1] > 0.1  # so that it matters beside the damping
    natural = np.linalg.solve(fisher + 0.1 * np.eye(start.size), slope)
    moved, _, told = stepped(learner, meta, rounds)
    way = np.asarray(ravel_pytree(moved)[0] - start)
    assert told["rejected"] == 0
    assert natural @ way / np.linalg.norm(natural) / np.linalg.norm(way) == pytest.approx(1, abs=1e-3)
    longest = np.sqrt(2 * learner.trust.max_kl / (natural @ slope)) * natural
    assert np.linalg.norm(way) == pytest.approx(np.linalg.norm(longest) * 0.8 ** float(told["backtracks"]), rel=1e-2)
