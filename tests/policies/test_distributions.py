"""Densities against quadrature and published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.policies.distributions import (
    normal_entropy,
    normal_kl,
    normal_log_prob,
    squashed_log_prob,
    squashed_normal,
)

SHAPES = [(0.0, 0.0), (1.0, -1.0), (-0.5, 0.4), (0.3, -3.0)]  # mean, log standard deviation


def vector(*numbers):
    return jnp.array(numbers, jnp.float32)


def grid(mean, log_std):
    """Points that reach 12 standard deviations from the mean."""
    return mean + np.exp(log_std) * np.linspace(-12, 12, 4001)


def along(log_prob, points, mean, log_std):
    """A log-density in one dimension at many points, in float64."""
    mean, log_std = (jnp.full((len(points), 1), x, jnp.float32) for x in (mean, log_std))
    return np.asarray(log_prob(jnp.asarray(points[:, None], jnp.float32), mean, log_std), np.float64)


def test_the_published_densities():
    """Cards of M3PO (T3) and MB-MPO (O4)."""
    assert normal_log_prob(vector(0.5), vector(0), vector(0)) == pytest.approx(-1.043939, abs=1e-6)
    assert squashed_log_prob(vector(0.5), vector(0), vector(0)) == pytest.approx(-0.8037095193, abs=2e-7)


@pytest.mark.parametrize(("mean", "log_std"), SHAPES)
def test_a_normal_density_has_its_mass_mean_and_spread(mean, log_std):
    x = grid(mean, log_std)
    density = np.exp(along(normal_log_prob, x, mean, log_std))
    assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-4)
    assert np.trapezoid(density * x, x) == pytest.approx(mean, abs=1e-4)
    assert np.trapezoid(density * (x - mean) ** 2, x) == pytest.approx(np.exp(2 * log_std), rel=1e-3)


@pytest.mark.parametrize(("mean", "log_std"), SHAPES)
def test_a_squashed_density_has_the_mass_of_what_was_squashed(mean, log_std):
    """Over actions, all of it and every part: the mass below tanh(u) is that of the Gaussian below u."""
    u = grid(mean, log_std)
    action = np.tanh(u)
    density = np.exp(along(squashed_log_prob, u, mean, log_std))
    gaussian = np.exp(-0.5 * ((u - mean) / np.exp(log_std)) ** 2) / np.sqrt(2 * np.pi) / np.exp(log_std)
    for cut in (1000, 2000, 2300, 4001):
        mass = np.trapezoid(gaussian[:cut], u[:cut])
        assert np.trapezoid(density[:cut], action[:cut]) == pytest.approx(mass, abs=2e-3)


@pytest.mark.parametrize("u", [-30.0, -5.0, 0.0, 5.0, 30.0])
def test_a_squashed_density_stays_finite_where_tanh_saturates(u):
    value, slope = jax.value_and_grad(squashed_log_prob)(vector(u), vector(0), vector(0))
    assert jnp.isfinite(value)
    # log p(u) - log(1 - tanh² u) tends to -u²/2 + 2|u| + constants.
    assert slope[0] == pytest.approx(-u + 2 * np.tanh(u), abs=1e-4)
    if abs(u) == 30:
        assert value == pytest.approx(-450 - 0.5 * np.log(2 * np.pi) + 60 - 2 * np.log(2), abs=1e-3)


def test_squashed_draws_follow_their_density():
    """The mean of the draws is that of the density, and the log-density that comes with a draw is its own."""
    mean, log_std = 0.4, -0.5
    u = grid(mean, log_std)
    density = np.exp(along(squashed_log_prob, u, mean, log_std))
    expected = np.trapezoid(density * np.tanh(u), np.tanh(u))
    action, log_prob = squashed_normal(jnp.full((20_000, 1), mean), jnp.full((20_000, 1), log_std), jax.random.key(0))
    assert jnp.all(jnp.abs(action) < 1)
    assert action.mean() == pytest.approx(expected, abs=0.02)
    again = along(squashed_log_prob, np.arctanh(np.asarray(action[:100, 0], np.float64)), mean, log_std)
    np.testing.assert_allclose(log_prob[:100], again, atol=1e-3)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0), (1, np.log(2)), 0.443147),
        ((1, np.log(2)), (0, 0), 1.306853),
        ((0, 0), (0.1, 0), 0.005),
        ((0.3, -1), (0.3, -1), 0),
    ],
)
def test_divergences(first, second, expected):
    arguments = [vector(x) for x in (*first, *second)]
    assert normal_kl(*arguments) == pytest.approx(expected, abs=1e-6)
    p, q = (along(normal_log_prob, grid(*first), *shape) for shape in (first, second))
    assert np.trapezoid(np.exp(p) * (p - q), grid(*first)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("mean", "log_std"), SHAPES)
def test_entropy(mean, log_std):
    p = along(normal_log_prob, grid(mean, log_std), mean, log_std)
    expected = -np.trapezoid(np.exp(p) * p, grid(mean, log_std))
    assert normal_entropy(vector(log_std)) == pytest.approx(expected, abs=1e-3)


def test_the_last_axis_is_summed_and_the_others_kept():
    rng = np.random.default_rng(0)
    x, mean, log_std, other, other_log_std = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(5))
    for function, arguments in [
        (normal_log_prob, (x, mean, log_std)),
        (squashed_log_prob, (x, mean, log_std)),
        (normal_kl, (mean, log_std, other, other_log_std)),
        (normal_entropy, (log_std,)),
    ]:
        alone = sum(function(*(a[:, d : d + 1] for a in arguments)) for d in range(3))
        np.testing.assert_allclose(function(*arguments), alone, rtol=1e-4, atol=1e-5)
