"""TRPO against closed forms, dense linear algebra, and its own promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.errors import UserError
from metadyna.improve.trpo import TRPO, conjugate_gradient
from metadyna.policies import direct
from metadyna.policies.distributions import Normal
from metadyna.types import Box, EnvSpec
from tests.arrays import normal

KEY = jax.random.key(0)
SPEC = EnvSpec(Box((3,)), Box((2,), -1.0, 1.0), 10)


def bits(tree):
    return [np.asarray(leaf).view(np.uint32) for leaf in jax.tree.leaves(tree)]


def unchanged(one, other):
    for x, y in zip(bits(one), bits(other), strict=True):
        np.testing.assert_array_equal(x, y)


# --- closed forms


@pytest.mark.parametrize(
    ("cut", "tried"),
    [(1.0, 0), (0.5, 1)],
)
def test_the_published_step(cut, tried):
    """Card of MB-MPO, O7: F = diag(2, 8), g = (1, 1), δ = 0.01; the divergence is all of δ.

    It grows a little slower than its curvature says, lest rounding decides; where it grows faster, the step is cut.
    """
    fisher, start = jnp.array([2.0, 8.0]), jnp.array([3.0, -1.0])

    def kl(w):
        quadratic = 0.5 * jnp.sum(fisher * (w - start) ** 2)
        return quadratic + (30 if cut < 1 else -0.1) * quadratic**2

    settings = TRPO(max_kl=0.01, damping=0.0, shrink=0.5)
    weights, metrics = settings.update(start, jnp.sum, kl)
    np.testing.assert_allclose(weights - start, np.array([0.089443, 0.022361]) * cut, rtol=1e-4)
    assert metrics["kl"] == pytest.approx(float(kl(weights)), rel=1e-4)
    assert metrics["surrogate_gain"] == pytest.approx(0.111803 * cut, rel=1e-3)
    assert metrics["rejected"] == 0
    assert metrics["backtracks"] == tried


@pytest.mark.parametrize("seed", range(4))
def test_conjugate_gradients_solve_what_a_dense_solver_does(seed):
    rng = np.random.default_rng(seed)
    root, right = rng.normal(size=(5, 5)), rng.normal(size=5)
    matrix = root @ root.T + 0.5 * np.eye(5)
    dense = jnp.asarray(matrix, jnp.float32)
    for iterations in (5, 12, 50):  # on from the solution nothing goes wrong
        x, image = conjugate_gradient(lambda v: dense @ v, jnp.asarray(right, jnp.float32), iterations)
        np.testing.assert_allclose(x, np.linalg.solve(matrix, right), rtol=2e-4, atol=1e-4 if iterations > 5 else 2e-3)
        np.testing.assert_allclose(image, matrix @ np.asarray(x), rtol=2e-4, atol=1e-4)


def test_conjugate_gradients_do_best_with_few_iterations_and_stand_zeros():
    """After k steps the error in the matrix's norm is the least over the k-th Krylov space."""
    matrix, right = np.diag([1.0, 4.0, 9.0]), np.ones(3)
    x, image = conjugate_gradient(lambda v: jnp.asarray(matrix, jnp.float32) @ v, jnp.ones(3), 2)
    space = np.stack([right, matrix @ right], axis=1)
    best = space @ np.linalg.solve(space.T @ matrix @ space, space.T @ right)
    np.testing.assert_allclose(x, best, rtol=1e-5)
    np.testing.assert_allclose(image, matrix @ best, rtol=1e-5)
    for nothing in (
        conjugate_gradient(lambda v: v, jnp.zeros(3), 4),
        conjugate_gradient(lambda v: 0 * v, jnp.ones(3), 4),
    ):
        np.testing.assert_array_equal(nothing, 0)


def test_the_direction_is_the_natural_gradient_of_a_policy():
    """O9 and more: a policy N(θ₀ o, e^θ₁) has Fisher matrix diag(mean o² / σ², 2), by calculus and by `jax.hessian`."""
    obs = jnp.asarray(normal(50, 1) + 1)
    start = jnp.asarray(np.float32([0.7, -0.4]))
    slope = np.array([1.0, -3.0], np.float32)  # of the surrogate

    def policy(w):
        return Normal(w[0] * obs, jnp.full_like(obs, w[1]))

    def kl_of(said):
        return jnp.mean(policy(start).kl(said))

    @jax.jit
    def kl(w):
        return kl_of(policy(w))

    fisher = np.diag([np.mean(np.asarray(obs) ** 2) * np.exp(0.8), 2.0])
    np.testing.assert_allclose(jax.jit(jax.hessian(kl))(start), fisher, rtol=1e-5, atol=1e-5)
    for damping in (0.0, 0.5):
        damped = fisher + damping * np.eye(2)
        natural = np.linalg.solve(damped, slope)
        step = natural * np.sqrt(2e-4 / (slope @ natural))
        settings = TRPO(max_kl=1e-4, damping=damping)
        for divergence in ((kl,), (kl_of, policy)):  # of the weights, or of what the policy says
            weights, metrics = jax.jit(lambda w, d=divergence, s=settings: s.update(w, lambda w: w @ slope, *d))(start)
            shrunk = 0.8 ** float(metrics["backtracks"])
            assert shrunk > 0.5
            np.testing.assert_allclose(np.asarray(weights) - np.asarray(start), shrunk * step, rtol=2e-3)
            assert metrics["kl"] == pytest.approx(float(kl(weights)), rel=1e-3)


# --- a policy on random data


def negative_zeros(policy):
    """A bit in every array that comparing numbers would miss."""
    return jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(-0.0), policy)


@functools.cache
def problem():
    """A small policy, and its surrogate and divergence on random observations, actions and advantages."""

    def draw(key):
        k_policy, k_obs, k_action, k_advantage = jax.random.split(key, 4)
        policy = negative_zeros(direct.create(SPEC, (8,), k_policy, log_std=-0.5))
        obs = jax.random.normal(k_obs, (64, 3))
        said = jax.vmap(policy)(obs)
        action, old = said.sample_with_log_prob(k_action)
        advantage = jax.random.normal(k_advantage, (64,)) + action[:, 0]
        return policy, obs, said, action, advantage, old

    policy, obs, said, action, advantage, old = jax.jit(draw)(KEY)

    def surrogate(weights):
        return jnp.mean(jnp.exp(jax.vmap(weights)(obs).log_prob(action) - old) * advantage)

    def kl(weights):
        return jnp.mean(said.kl(jax.vmap(weights)(obs)))

    return policy, jax.jit(surrogate), jax.jit(kl)


@functools.cache
def stepped(max_kl):
    policy, surrogate, kl = problem()
    return jax.jit(lambda w: TRPO(max_kl=max_kl).update(w, surrogate, kl))(policy)


@pytest.mark.parametrize("max_kl", [0.01, 0.3])
def test_an_accepted_step_improves_within_the_bound(max_kl):  # O8
    policy, surrogate, kl = problem()
    weights, metrics = stepped(max_kl)
    assert metrics["rejected"] == 0
    gain = float(surrogate(weights) - surrogate(policy))
    assert gain > 0
    assert metrics["surrogate_gain"] == pytest.approx(gain, rel=1e-3)
    assert 0.2 * max_kl < kl(weights) <= max_kl
    assert metrics["kl"] == pytest.approx(float(kl(weights)), rel=1e-3)
    assert jax.tree.structure(weights) == jax.tree.structure(policy)


def test_a_natural_step_beats_a_plain_one_of_the_same_divergence():
    policy, surrogate, kl = problem()
    weights, _ = stepped(0.01)
    slope, allowed = jax.grad(surrogate)(policy), float(kl(weights))
    best = -jnp.inf
    for size in np.geomspace(1e-2, 10, 30):
        plain = jax.tree.map(lambda w, g, size=size: w + size * g, policy, slope)
        if kl(plain) <= allowed:
            best = max(best, surrogate(plain))
    assert surrogate(policy) < best < surrogate(weights)


def somewhere_else(weights):
    """Whether these are other weights than the policy's, without a gradient."""
    policy = problem()[0]
    moved = [jnp.any(x != y) for x, y in zip(jax.tree.leaves(weights), jax.tree.leaves(policy), strict=True)]
    return jax.lax.stop_gradient(jnp.any(jnp.array(moved)))


NAN = np.nan
SPOILT = {
    "always worse": (1, -1e3, 1, 0),
    "no number away from the start": (1, NAN, 1, 0),
    "no number anywhere": (NAN, 0, 1, 0),
    "no slope": (0, 0, 1, 0),
    "downhill all around": (1, -np.inf, 1, 0),
    "too far at any length": (1, 0, 1, 1),
    "a divergence that is no number": (1, 0, 1, NAN),
    "a curvature that is no number": (1, 0, NAN, 0),
}
"""What surrogate and divergence are multiplied by, and what is added away from the start."""


@functools.cache
def spoilt_step():
    _, surrogate, kl = problem()

    def step(weights, factor, more, kl_factor, kl_more):
        def worse(w):
            return factor * surrogate(w) + jnp.where(somewhere_else(w), more, 0)

        def farther(w):
            return kl_factor * kl(w) + jnp.where(somewhere_else(w), kl_more, 0)

        return TRPO(backtracks=4).update(weights, worse, farther)

    return jax.jit(step)


@pytest.mark.parametrize("case", SPOILT)
def test_a_rejected_step_leaves_every_bit(case):  # O8
    policy = problem()[0]
    weights, metrics = spoilt_step()(policy, *map(jnp.float32, SPOILT[case]))
    unchanged(weights, policy)
    assert metrics["rejected"] == 1
    assert metrics["surrogate_gain"] == 0
    assert metrics["backtracks"] == 3


def test_any_weights_will_do():
    """A dictionary of arrays of several shapes."""
    weights = {"a": np.ones((2, 3), np.float32), "b": np.float32(0), "c": (np.float32([0, 1]),)}
    target = jax.tree.map(lambda x: x + np.float32(0.3), weights)

    @jax.jit
    def distance(one, other):
        return sum(jnp.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))

    @jax.jit
    def step(start):
        return TRPO(max_kl=0.02).update(start, lambda w: -distance(w, target), lambda w: distance(w, weights))

    moved, metrics = step(weights)
    assert metrics["rejected"] == 0
    assert distance(moved, target) < distance(weights, target)
    assert distance(moved, weights) <= 0.02
    np.testing.assert_allclose(moved["a"], np.asarray(moved["a"])[0, 0] * np.ones((2, 3)))


@pytest.mark.parametrize(
    ("change", "interval"),
    [
        ({"max_kl": 0.0}, r"\(0, 1000\]"),
        ({"cg_iterations": 0}, r"\[1, 10000\]"),
        ({"damping": -0.1}, r"\[0, 1000000\]"),
        ({"backtracks": 0}, r"\[1, 1000\]"),
        ({"shrink": 1.0}, r"\(0, 1\)"),
    ],
)
def test_impossible_settings_name_the_range(change, interval):
    (name,) = change
    with pytest.raises(UserError, match=rf"TRPO\.{name} = .* {interval}"):
        TRPO(**change)
