"""Distances between slopes and their gradients: the card's numbers, and reverse mode over reverse mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.improve.slopes import distance, slope_loss
from metadyna.nets.layers import MLP

KEY = jax.random.key(0)
KINDS = ("cosine", "l2", "squared-l2")


def network(shape, key=KEY):
    """A function of an array, as random as its weights."""
    mlp = MLP.create((int(np.prod(shape)), 6, 1), key, jnp.tanh)
    return jax.tree.map(lambda w: 2 * w, mlp)


def apply(weights, x):
    return weights(x.reshape(-1))[0]


# --- distances


@pytest.mark.parametrize(("kind", "expected"), [("cosine", 1 - 0.5**0.5), ("l2", 1.0), ("squared-l2", 1.0)])
def test_distances_by_hand(kind, expected):  # O5
    u, v = jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])
    assert distance(kind, u, v) == pytest.approx(expected, abs=1e-6)
    assert distance(kind, v, u) == pytest.approx(expected, abs=1e-6)


def test_a_cosine_has_no_length_and_the_others_have():
    u, v = jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([[0.5, 1.0], [3.0, 1.0]])
    norms = np.linalg.norm(u) * np.linalg.norm(v)
    for scale in (1.0, 7.0):
        assert distance("cosine", scale * u, v) == pytest.approx(1 - 1.5 / norms, abs=1e-6)
        assert distance("cosine", u, scale * v) == pytest.approx(1 - 1.5 / norms, abs=1e-6)
    assert distance("cosine", u, -u) == pytest.approx(2, abs=1e-6)
    assert distance("l2", u, v) == pytest.approx(14.25**0.5)  # a norm, not its square: card 5, row 18
    assert distance("squared-l2", u, v) == pytest.approx(14.25)
    assert distance("l2", 3 * u, 3 * v) == pytest.approx(3 * 14.25**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_distances_and_their_gradients_are_finite_everywhere(kind):  # O5, P11
    nothing, something = jnp.zeros(3), jnp.array([1.0, -2.0, 0.5])
    measure = jax.jit(jax.value_and_grad(lambda u, v: distance(kind, u, v)))
    for u, v in [
        (something, something),
        (something, nothing),
        (nothing, something),
        (nothing, nothing),
        (1e-12 * something, something),
        (1e12 * something, something),
    ]:
        value, slope = measure(u, v)
        assert jnp.isfinite(value)
        assert jnp.isfinite(slope).all()
    value, slope = measure(something, something)
    assert value == pytest.approx(0, abs=2e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    assert measure(something, nothing)[0] == pytest.approx({"cosine": 1, "l2": 5.25**0.5, "squared-l2": 5.25}[kind])


# --- their gradients in what has the slope


@pytest.mark.parametrize(("kind", "expected"), [("l2", 0.423017), ("squared-l2", 0.0788705)])
def test_a_hyperbolic_tangent_by_hand(kind, expected):  # O9
    def loss(w, x):
        value, slope = slope_loss(lambda x: jnp.tanh(w * x), x, jnp.float32(0.3), kind)
        return value, slope

    (value, slope), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.float32(0.5), jnp.float32(1))
    assert slope == pytest.approx(0.393224, abs=1e-6)
    assert value == pytest.approx({"l2": 0.093224, "squared-l2": 0.093224**2}[kind], abs=1e-6)
    assert gradient == pytest.approx(expected, abs=1e-6)
    along_x = jax.grad(lambda x: loss(jnp.float32(0.5), x)[0])(jnp.float32(1))
    curvature = -2 * 0.25 * np.tanh(0.5) / np.cosh(0.5) ** 2  # ∂²tanh(wx)/∂x²
    assert along_x == pytest.approx(curvature * {"l2": 1, "squared-l2": 2 * 0.093224}[kind], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_reverse_over_reverse(kind):  # O9, card 4.6
    keys, shape = jax.random.split(KEY, 4), (2, 3)
    weights = jax.vmap(lambda key: network(shape, key))(keys)
    x, target = jax.random.normal(KEY, (2, 4, *shape))

    def ours(weights, x, target):
        return slope_loss(lambda x: apply(weights, x), x, target, kind)[0]

    def plain(weights, x, target):
        return distance(kind, jax.grad(apply, 1)(weights, x), target)

    one, other = (jax.jit(jax.vmap(jax.value_and_grad(f, (0, 1))))(weights, x, target) for f in (ours, plain))
    for fast, slow in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=2e-4, atol=1e-5)
    value, (by_weights, by_x) = one
    assert np.all(np.asarray(value) > 0.01)
    for layer in by_weights.layers:
        assert np.abs(layer.weight).max() > 1e-3
    assert not by_weights.layers[-1].bias.any()  # a slope does not depend on it
    assert np.abs(by_x).max() > 1e-3


def test_the_slope_is_told_and_nothing_flows_through_it_or_the_target():
    weights, x, target = network((3,)), jnp.array([0.3, -1.0, 0.7]), jnp.array([1.0, 0.0, -1.0])

    def told(weights, x, target):
        return slope_loss(lambda x: apply(weights, x), x, target, "l2")

    slope, through = jax.jit(jax.value_and_grad(lambda *args: told(*args)[1][0], (0, 1, 2)))(weights, x, target)
    assert slope == pytest.approx(float(jax.grad(apply, 1)(weights, x)[0]), abs=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(through))
    assert not jax.jit(jax.grad(lambda target: told(weights, x, target)[0]))(target).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("curvature", [0.0, 2.0])
def test_where_a_function_is_flat_gradients_are_finite(kind, curvature):  # O5, P11
    def loss(curvature, x, target):
        return slope_loss(lambda x: jnp.sum(curvature * x**2), x, target, kind)[0]

    differentiate = jax.jit(jax.value_and_grad(loss, (0, 1)))
    for target in (jnp.zeros(3), jnp.ones(3)):
        told = differentiate(jnp.float32(curvature), jnp.zeros(3), target)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(told))
        assert (curvature * target).any() == told[1][1].any()  # to bend towards a slope that there should be
