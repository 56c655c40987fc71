"""Adaptation by gradient steps: closed forms on quadratics, and what is differentiated through."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.adapt.gradient import GradientSteps
from metadyna.errors import UserError

GOALS = jnp.array([1.0, 3.0])


def quadratic(goal):
    return lambda weights: -0.5 * jnp.sum((weights - goal) ** 2)


def outer(settings, rates, theta):
    """Mean over goals of the objective after adaptation, whose gradient is asked for."""

    def after(goal):
        meta = settings.start(theta)._replace(rates=rates)
        return quadratic(goal)(settings.path(meta, [quadratic(goal)] * settings.steps)[-1])

    return jnp.mean(jax.vmap(after)(GOALS))


@pytest.mark.parametrize(("first_order", "slope"), [(False, 1.62), (True, 1.8)])
def test_the_meta_gradient_on_quadratics(first_order, slope):
    """Reference card of MB-MPO, O1: (1 - α)² (mean goal - θ), and a factor 1 - α less in the first order."""
    settings = GradientSteps(rate=0.1, first_order=first_order)
    theta = jnp.float32(0)
    rates = settings.start(theta).rates
    adapted = [settings.path(settings.start(theta), [quadratic(goal)])[-1] for goal in GOALS]
    np.testing.assert_allclose(adapted, [0.1, 0.3], rtol=1e-6)
    assert jax.grad(partial(outer, settings, rates))(theta) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_every_step_shrinks_the_distance_by_the_same_factor(steps):
    settings = GradientSteps(rate=0.25, steps=steps)
    path = settings.path(settings.start(jnp.array([4.0, -4.0])), [quadratic(0.0)] * steps)
    np.testing.assert_allclose(path, [[4 * 0.75**i, -4 * 0.75**i] for i in range(steps + 1)], rtol=1e-6)
    slope = jax.grad(partial(outer, settings, settings.start(jnp.float32(0)).rates))(jnp.float32(0))
    assert slope == pytest.approx(0.75 ** (2 * steps) * 2, rel=1e-5)


def test_without_a_rate_nothing_is_adapted():
    settings = GradientSteps(rate=0.0)
    assert settings.path(settings.start(jnp.float32(1)), [quadratic(3.0)])[-1] == 1
    slope = jax.grad(partial(outer, settings, settings.start(jnp.float32(0)).rates))(jnp.float32(0))
    assert slope == pytest.approx(2.0)  # that of the mean objective itself


@pytest.mark.parametrize(("learnt", "shape"), [("none", (1,)), ("tensor", (1,)), ("step", (2,))])
def test_rates_are_learnt_where_they_shall_be(learnt, shape):
    settings = GradientSteps(rate=0.1, steps=2, learnt_rates=learnt)
    rates = settings.start(jnp.float32(0)).rates
    assert rates.shape == shape
    slope = jax.grad(lambda r: outer(settings, r, jnp.float32(0)))(rates)
    # After two steps θ - g is -g (1 - α₀)(1 - α₁), and d/dα₀ of -½ (…)² is g² (1 - α₀)(1 - α₁)².
    each = np.mean(np.square(GOALS)) * 0.9**3
    wanted = {"none": [0.0], "tensor": [2 * each], "step": [each, each]}[learnt]
    np.testing.assert_allclose(slope, wanted, rtol=1e-5)


def test_every_tensor_has_a_rate_and_later_steps_use_the_last():
    settings = GradientSteps(rate=0.5, steps=2, learnt_rates="step")
    weights = {"a": jnp.ones((2, 3)), "b": jnp.ones(())}
    meta = settings.start(weights)
    assert {name: rate.shape for name, rate in meta.rates.items()} == {"a": (2,), "b": (2,)}
    rates = {"a": jnp.array([0.1, 0.2]), "b": jnp.array([0.3, 0.4])}

    def total(w):
        return jnp.sum(w["a"]) + w["b"]

    for number, (a, b) in [(0, (1.1, 1.3)), (1, (1.2, 1.4)), (7, (1.2, 1.4))]:
        moved = settings.step(weights, rates, number, total)
        np.testing.assert_allclose(moved["a"], a, rtol=1e-6)
        assert moved["b"] == pytest.approx(b, rel=1e-6)
    assert settings.step(weights, rates, 0, total, factor=0.5)["b"] == pytest.approx(1.15)


@pytest.mark.parametrize(("settings", "named"), [
    ({"rate": -1.0}, "GradientSteps.rate"),
    ({"steps": -1}, "GradientSteps.steps"),
])  # fmt: skip
def test_impossible_settings_are_refused(settings, named):
    with pytest.raises(UserError, match=named):
        GradientSteps(**settings)
