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
from metadyna.improve.meta import MetaGradient, MetaPPO, MetaTRPO
from metadyna.improve.on_policy import Weighed, dice_worth, over_steps, surrogate, trust_region_step
from metadyna.improve.trpo import TRPO
from metadyna.policies.acting import practise
from metadyna.policies.direct import create
from tests.arrays import flat
from tests.given import given

KEY = jax.random.key(0)
TASKS, EPISODES, WIDTH = 3, 4, 4
FAMILY = make("navigation")
COLLECTOR = DeviceCollector(replace(FAMILY.env, horizon=12), FAMILY.train)
INNER = GradientSteps(rate=0.3)
LEARNER = MetaTRPO(INNER, trust=TRPO(damping=0.1, cg_iterations=40))
"""Damped, or float32 decides where the conjugate gradients end."""


@jax.jit
def begun():
    """Fresh weights, and the tasks."""
    return create(FAMILY.env.spec, (WIDTH,), KEY), jax.vmap(FAMILY.train.sample)(jax.random.split(KEY, TASKS))


@functools.partial(jax.jit, static_argnums=0)
def live(learner, policies, tasks, number):
    played = COLLECTOR.episodes_of_each(practise, policies, (), tasks, EPISODES, jax.random.key(number))
    return learner.weigh(played.episodes, policies.inputs)


@functools.partial(jax.jit, static_argnums=0)
def _adapt(learner, meta, policies, data):
    return learner.adapt(meta, policies, data, 0)


def adapt(learner, meta, policies, data):
    """Every task's policy after an inner step: one program for all learners that raise the same."""
    # How a step depends on what it began with, and where its rates come from, is nothing to where it leads; nor is its
    # number, for all steps have the same rates.
    alike = MetaGradient(GradientSteps(), learner.surrogate, learner.discount)
    return _adapt(alike, meta, policies, data)


@functools.partial(jax.jit, static_argnums=0)
def copies(learner, meta):
    return learner.copies(meta, TASKS)


@functools.cache
def lived(learner, rate=None):
    """Fresh weights, with this rate or the learner's, the adapted policies, and the rounds of one iteration."""
    weights, tasks = begun()
    meta = (learner.inner if rate is None else replace(learner.inner, rate=rate)).start(weights)
    # Learners that weigh alike live alike: one program for all of them.
    alike = MetaGradient(discount=learner.discount, gae_decay=learner.gae_decay)
    policies, rounds = copies(alike, meta), []
    for number in range(learner.inner.steps + 1):
        rounds.append(live(alike, policies, tasks, number))
        if number < learner.inner.steps:
            policies = adapt(learner, meta, policies, rounds[-1])
    return meta, policies, tuple(rounds)


@functools.partial(jax.jit, static_argnums=0)
def _trusted(learner, damping, meta, rounds):
    learner = given(learner, trust=given(learner.trust, damping=damping))
    return learner.update(meta, learner.start(meta), rounds)


@functools.partial(jax.jit, static_argnums=0)
def _proximal(learner, kl_weight, meta, rounds):
    learner = given(learner, kl_weight=kl_weight)
    return learner.update(meta, learner.start(meta), rounds)


def stepped(learner, meta, rounds):
    """An outer step; those that differ in one number only are one program."""
    if isinstance(learner, MetaPPO):
        return _proximal(replace(learner, kl_weight=1.0), np.float32(learner.kl_weight), meta, rounds)
    alike = replace(learner, trust=replace(learner.trust, damping=1.0))
    return _trusted(alike, np.float32(learner.trust.damping), meta, rounds)


@functools.partial(jax.jit, static_argnums=0)
def _objective(learner, meta, rounds):
    return learner.objective(meta, rounds)


@functools.partial(jax.jit, static_argnums=0)
def valued(learner, meta, rounds):
    """The objective, and its slope."""
    return jax.value_and_grad(learner.objective)(meta, rounds)


def value_of(learner, meta, rounds):
    return float(valued(learner, meta, rounds)[0])


def objective_of(learner, meta, rounds):
    """The same, of a learner whose slope nobody asks for: it would take long to compile."""
    return float(_objective(learner, meta, rounds))


def slope_of(learner, meta, rounds):
    return flat(valued(learner, meta, rounds)[1])


@jax.jit
def noted(policy, data):
    """The same steps, with the log-probabilities that the policy gives them: those noted while acting are float32."""
    log_prob = jax.vmap(over_steps, (None, 0))(policy, data.steps.obs).log_prob(data.steps.action)
    return data._replace(steps=data.steps._replace(extras=log_prob))


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
    assert np.abs(flat(policies) - flat(copies(learner, meta))).max() > 1e-3


LEARNT = GradientSteps(rate=0.3, learnt_rates="tensor")


LEARNERS = (
    *(MetaTRPO(LEARNT, kind) for kind in ("log-likelihood", "ratio", "dice")),
    MetaTRPO(LEARNT, credit=True),
    MetaPPO(LEARNT),
)


@pytest.mark.parametrize("learner", LEARNERS)
def test_gradients_through_the_inner_step_are_those_of_finite_differences(learner, monkeypatch):
    meta, _, rounds = lived(learner)
    with jax.enable_x64(True):
        meta, rounds = jax.tree.map(lambda x: np.float64(x) if x.dtype == jnp.float32 else x, (meta, rounds))
        rounds = (noted(meta.weights, rounds[0]), *rounds[1:])
        slope = slope_of(learner, meta, rounds)
        monkeypatch.setattr(module, "dice", weighted)
        value = functools.partial(value_of, learner)
        if learner.surrogate == "dice":
            value = jax.jit(lambda meta, rounds: learner.objective(meta, rounds))  # anew, now that it is patched
        small_step = 1e-5
        for seed in range(2):
            rng = np.random.default_rng(seed)
            way = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape), meta)
            ahead, behind = (jax.tree.map(lambda x, y, d=d: x + d * y, meta, way) for d in (small_step, -small_step))
            difference = (float(value(ahead, rounds)) - float(value(behind, rounds))) / (2 * small_step)
            assert slope @ flat(way) == pytest.approx(difference, rel=1e-6, abs=1e-7)
    assert np.abs(slope).max() > 1e-3


def test_the_first_order_leaves_the_curvature_out():
    first = MetaTRPO(GradientSteps(rate=0.3, first_order=True))
    meta, policies, rounds = lived(LEARNER)
    slopes = [slope_of(learner, meta, rounds) for learner in (LEARNER, first)]
    assert not np.allclose(*slopes, rtol=1e-2)
    # To first order the slope is the mean of those of the adapted policies.

    @jax.jit
    @jax.grad
    def of_each(policies):
        return jnp.sum(jax.vmap(surrogate)(policies, rounds[-1])) / TASKS

    weights = flat(jax.tree.map(lambda x: np.sum(x, axis=0), of_each(policies)))
    np.testing.assert_allclose(slopes[1][: weights.size], weights, rtol=1e-4, atol=1e-6)


def test_without_a_rate_it_is_trpo_on_all_tasks():
    """Reference card of MB-MPO, O2."""
    meta, policies, rounds = lived(LEARNER, rate=0.0)
    jax.tree.map(np.testing.assert_array_equal, policies, copies(LEARNER, meta))
    moved, _, told = stepped(LEARNER, meta, rounds)
    pooled = Weighed(*jax.tree.map(lambda x: jnp.asarray(np.concatenate(x, axis=1)), tuple(rounds[-1])))
    policy, alone = jax.jit(trust_region_step, static_argnums=0)(LEARNER.trust, meta.weights, pooled)
    assert np.all(pooled.valid)  # or tasks would count alike whatever their episodes' lengths
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4), moved.weights, policy)
    assert told["kl"] == pytest.approx(float(alone["kl"]), rel=0.05)
    np.testing.assert_array_equal(flat(moved.rates), 0)


def test_an_accepted_step_keeps_its_bound_on_what_adapts():
    learner = replace(LEARNER, trust=MetaTRPO.trust)  # which hardly damps
    meta, _, rounds = lived(LEARNER)
    moved, _, told = stepped(learner, meta, rounds)
    assert int(told["rejected"]) == 0
    assert 0 < float(told["kl"]) <= learner.trust.max_kl
    assert float(told["surrogate_gain"]) > 0
    gain = value_of(LEARNER, moved, rounds) - value_of(LEARNER, meta, rounds)
    assert gain == pytest.approx(float(told["surrogate_gain"]), rel=1e-4)


def test_every_step_counts_if_it_shall():
    last = MetaTRPO(GradientSteps(rate=0.3, steps=2))
    every = replace(last, every_step=True)
    meta, _, rounds = lived(last)
    # At the weights that lived, every surrogate is the mean advantage, which is 0.
    moved = meta._replace(weights=jax.tree.map(lambda x: np.asarray(x) + np.float32(0.05), meta.weights))
    one, two = value_of(LEARNER, moved, rounds[:2]), objective_of(last, moved, rounds)
    assert abs(one - two) > 1e-4
    assert objective_of(every, moved, rounds) == pytest.approx((one + two) / 2, abs=1e-6)


def test_credit_for_sampling_rises_with_the_rewards_it_led_to():
    meta, _, rounds = lived(LEARNER)
    *_, last = rounds
    reward = np.zeros_like(last.steps.reward)
    reward[0] = 1  # the first task's steps pay, the others' do not
    only_first = last._replace(steps=last.steps._replace(reward=reward))
    with_credit = objective_of(replace(LEARNER, credit=True), meta, (rounds[0], only_first))
    without = value_of(LEARNER, meta, (rounds[0], only_first))

    @jax.jit
    def said(weights, steps):
        return jax.vmap(over_steps, (None, 0))(weights, steps.obs).log_prob(steps.action)

    log_prob = said(meta.weights, rounds[0].steps)
    valid = np.asarray(last.valid)
    share = valid[0].sum() / valid.sum()
    worth = np.array([1 - share, -share, -share]) / np.sqrt(share * (1 - share))
    each = [np.asarray(x)[np.asarray(v)].mean() for x, v in zip(log_prob, rounds[0].valid, strict=True)]
    assert with_credit - without == pytest.approx(np.mean(worth * each), rel=1e-3)


def test_proximal_steps_stop_where_ratios_are_clipped():
    learner = MetaPPO(INNER, clip=0.1, updates=3)
    meta, _, rounds = lived(learner)
    plain = objective_of(MetaTRPO(INNER, "ratio"), meta, rounds)
    assert value_of(learner, meta, rounds) == pytest.approx(plain, abs=1e-6)
    first, last = rounds
    unlikely = np.asarray(last.steps.extras) - np.float32(1)  # ratios of e, far beyond 1.1
    beyond = last._replace(steps=last.steps._replace(extras=unlikely), advantage=np.abs(last.advantage))
    np.testing.assert_array_equal(slope_of(learner, meta, (first, beyond)), 0)
    after, _, told = stepped(learner, meta, rounds)
    moved = np.abs(flat(after.weights) - flat(meta.weights))
    assert moved.max() == pytest.approx(3e-3, rel=0.05)  # Adam: the step size in every update, at first
    assert told["inner_kl"] >= 0


def test_straying_from_the_policy_that_sampled_has_its_price():
    meta, _, rounds = lived(LEARNER)
    free, dear = (stepped(MetaPPO(INNER, kl_weight=weight, updates=20), meta, rounds)[2] for weight in (0.0, 1e3))
    assert 0 < dear["inner_kl"] < 0.1 * float(free["inner_kl"])
    assert dear["surrogate_gain"] < free["surrogate_gain"]


def test_the_outer_step_goes_along_the_natural_gradient_through_the_inner_step():
    """Reference card of MB-MPO, O9: F is the Hessian of KL(π_old || π_θ'(θ)) with respect to θ."""
    meta, policies, rounds = lived(LEARNER)
    start, unravel = ravel_pytree(meta)
    data = rounds[-1]

    def kl(vector):
        said = [
            jax.vmap(over_steps)(each, data.steps.obs)
            for each in (policies, LEARNER.adapted(unravel(vector), rounds)[-1])
        ]
        return jnp.mean(jax.vmap(masked_mean)(said[0].kl(said[1]), data.valid))

    fisher, slope = jax.jit(jax.hessian(kl))(start), slope_of(LEARNER, meta, rounds)
    assert np.linalg.eigvalsh(fisher)[-1] > 0.1  # so that it matters beside the damping
    natural = np.linalg.solve(fisher + 0.1 * np.eye(start.size), slope)
    moved, _, told = stepped(LEARNER, meta, rounds)
    way = flat(moved) - flat(meta)
    assert told["rejected"] == 0
    assert natural @ way / np.linalg.norm(natural) / np.linalg.norm(way) == pytest.approx(1, abs=1e-3)
    longest = np.sqrt(2 * LEARNER.trust.max_kl / (natural @ slope)) * natural
    assert np.linalg.norm(way) == pytest.approx(np.linalg.norm(longest) * 0.8 ** float(told["backtracks"]), rel=1e-2)
