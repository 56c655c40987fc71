"""The linear baseline against functions that it can represent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.improve.baseline import LinearBaseline
from metadyna.nets.inputs import Inputs

EVERY = jnp.ones(400, bool)


@jax.jit
def fit(obs, time, returns, valid):
    """Of observations as wide as they come."""
    return LinearBaseline.zero(Inputs(obs.shape[1])).fit(obs, time, returns, valid)


def data(observed=3, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    obs = jnp.asarray(rng.uniform(-1.7, 1.7, (400, observed)) * scale, jnp.float32)
    return obs, jnp.asarray(rng.integers(0, 200, 400), jnp.float32)


def representable(obs, time):
    """Linear in the observation, its square, and time up to its cube."""
    o, t = np.asarray(obs), np.asarray(time) / 100
    return jnp.asarray(2 * o[:, 0] - o[:, 1] ** 2 + 0.5 * o[:, 2] + 3 * t - 2 * t**3 + 7, jnp.float32)


@pytest.mark.parametrize("level", [0.0, 5.0, -1e4])
def test_constant_returns_are_predicted_everywhere(level):
    """Card of MB-MPO, O14."""
    obs, time = data()
    baseline = fit(obs, time, jnp.full(400, level), EVERY)
    other = data(scale=3, seed=1)
    np.testing.assert_allclose(baseline(*other), level, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_a_function_of_its_features_is_recovered(scale):
    """On data it has not seen, too."""
    obs, time = data(scale=scale)
    baseline = fit(obs, time, representable(obs, time), EVERY)
    for seed in (0, 1):
        obs, time = data(scale=scale, seed=seed)
        np.testing.assert_allclose(baseline(obs, time), representable(obs, time), atol=0.02)


def test_the_fit_is_that_of_least_squares():
    """Where the returns are no function of the features, against numpy in float64."""
    obs, time = data()
    returns = jnp.asarray(np.random.default_rng(2).normal(size=400), jnp.float32)
    o, t = np.asarray(obs, np.float64), np.asarray(time, np.float64)[:, None] / 100
    features = np.concatenate([o, o**2, t, t**2, t**3, np.ones_like(t)], axis=1)
    expected = features @ np.linalg.lstsq(features, np.asarray(returns), rcond=None)[0]
    np.testing.assert_allclose(fit(obs, time, returns, EVERY)(obs, time), expected, atol=2e-3)


def test_masked_rows_do_not_count():
    """Whatever they hold: the fit is that of the other rows, wherever those lie."""
    obs, time = data()
    valid = jnp.asarray(np.random.default_rng(1).random(400) < 0.5)
    returns = representable(obs, time)
    spoilt = (jnp.where(valid[:, None], obs, 1e6), jnp.where(valid, time, 1e4), jnp.where(valid, returns, -1e8))
    baseline = fit(*spoilt, valid)
    np.testing.assert_allclose(baseline(obs, time), returns, atol=0.02)
    order = np.argsort(~np.asarray(valid), kind="stable")
    moved = fit(*(x[order] for x in (*spoilt, valid)))
    np.testing.assert_allclose(moved(obs, time), baseline(obs, time), atol=1e-2)


def test_no_rows_at_all_predict_nothing_bad():
    obs, time = data()
    baseline = fit(obs, time, representable(obs, time), ~EVERY)
    np.testing.assert_array_equal(baseline(obs, time), 0)


@pytest.mark.parametrize("constant", [0.0, 1.0, -9.0, 1e6])
def test_constant_and_repeated_features_are_harmless(constant):
    obs, time = data()
    obs = jnp.concatenate([obs, jnp.full((400, 1), constant), obs[:, :1]], axis=1)
    baseline = fit(obs, time, representable(obs, time), EVERY)
    assert jnp.isfinite(baseline.weights).all()
    np.testing.assert_allclose(baseline(obs, time), representable(obs, time), atol=0.05)


def test_one_time_only_is_harmless():
    obs, _ = data()
    time = jnp.full(400, 17.0)
    baseline = fit(obs, time, representable(obs, time), EVERY)
    np.testing.assert_allclose(baseline(obs, time), representable(obs, time), atol=0.02)


def test_far_observations_are_clipped():
    obs, time = data()
    baseline = fit(obs, time, representable(obs, time), EVERY)
    np.testing.assert_array_equal(baseline(obs * 1e9, time), baseline(jnp.sign(obs) * 10, time))


def test_before_any_fit_it_predicts_0_for_any_batch():
    baseline = LinearBaseline.zero(Inputs(3))
    np.testing.assert_array_equal(baseline(jnp.ones((4, 5, 3)), jnp.ones((4, 5))), np.zeros((4, 5)))
    obs, time = data()
    fitted = fit(obs, time, representable(obs, time), EVERY)
    assert fitted.weights.shape == baseline.weights.shape
    shaped = fitted(obs.reshape(20, 20, 3), time.reshape(20, 20))
    np.testing.assert_allclose(shaped.ravel(), fitted(obs, time), rtol=1e-5, atol=1e-4)
