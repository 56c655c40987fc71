"""Gaussian ensembles: the card's numbers, a loss written out in loops, and members that keep to themselves."""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.errors import UserError
from metadyna.models.gaussian import (
    GaussianEnsemble,
    GaussianMLP,
    Standardiser,
    bound_log_variance,
    bounded_variance,
    swish,
)
from metadyna.nets.layers import num_parameters
from metadyna.nets.moments import Moments
from tests.arrays import normal

KEY = jax.random.key(0)
SMALL = GaussianEnsemble(members=3, elites=2, widths=(8, 6), weight_decay=(0.1, 0.2, 0.3))
PLAIN = replace(SMALL, weight_decay=(0.0, 0.0, 0.0), log_variance_penalty=0.0)
VARIANTS = {
    "MBPO": SMALL,
    "relu": replace(SMALL, activation="relu"),
    "fixed bounds": replace(SMALL, learned_bounds=False),
    "mean only": replace(SMALL, probabilistic=False),
    "standardised targets": replace(SMALL, standardise_targets=True),
    "linear": replace(SMALL, widths=(), weight_decay=(0.1,)),
}


@partial(jax.jit, static_argnums=(0, 1, 2))
def create(settings, inputs, outputs):
    return settings.create(inputs, outputs, KEY)


def made(settings, inputs=4, outputs=2):
    """An ensemble whose scales and bounds are not trivial."""
    # The same draw, whatever these two settings are.
    ensemble = create(replace(settings, learned_bounds=True, standardise_targets=False), inputs, outputs)
    places = lambda low, high, count: jnp.asarray(np.linspace(low, high, count, dtype=np.float32))  # noqa: E731
    further = np.linspace(0.0, 1.0, outputs, dtype=np.float32)
    weights = replace(
        ensemble.weights,
        max_log_variance=jnp.asarray(np.asarray(ensemble.weights.max_log_variance) + further),
        min_log_variance=jnp.asarray(np.asarray(ensemble.weights.min_log_variance) - further),
    )
    scale, target = Standardiser(places(-1.0, 2.0, inputs), places(0.5, 3.0, inputs)), ensemble.target_scale
    if settings.standardise_targets:
        target = Standardiser(places(1.0, 2.0, outputs), places(0.1, 4.0, outputs))
    ensemble = replace(ensemble, weights=weights, input_scale=scale, target_scale=target)
    return jax.tree.map(np.asarray, ensemble)


@partial(jax.jit, static_argnums=(0, 1))
def constant(settings, inputs, outputs):
    """Members [K] that put out the given numbers whatever they are shown."""
    columns = outputs.shape[1] // 2 if settings.probabilistic else outputs.shape[1]
    ensemble = settings.create(inputs, columns, KEY)
    weights = replace(ensemble.weights, members=jax.tree.map(jnp.zeros_like, ensemble.weights.members))
    bias = lambda ensemble: ensemble.weights.members.mlp.layers[-1].bias  # noqa: E731
    return eqx.tree_at(bias, replace(ensemble, weights=weights), outputs)


def batch(settings, n=5, inputs=4, outputs=2):
    return normal(settings.members, n, inputs), normal(settings.members, n, outputs, seed=1)


@partial(jax.jit, static_argnums=0)
def loss(settings, weights, ensemble, inputs, targets, valid):
    return settings.loss(replace(ensemble, weights=weights), (inputs, targets), valid)


@jax.jit
def predict_all(ensemble, inputs):
    return ensemble.predict_all(inputs)


# --- the card's numbers


@jax.jit
def bend(raw, low, high):
    return bound_log_variance(raw, low, high), bounded_variance(raw, low, high)


@pytest.mark.parametrize(
    ("raw", "bounded"),
    [  # card of planning, 7.2(2); card of M3PO, T4
        (-100.0, -10.0),
        (-20.0, -9.9999546011),
        (-10.0, -9.306867),
        (-5.0, -4.997336),
        (0.0, -0.4740040505),
        (0.5, -0.193092),
        (3.0, 0.4211400620),
        (100.0, 0.500028),
    ],
)
def test_log_variance_bends_into_its_bounds(raw, bounded):
    bounds = np.float32([-10.0]), np.float32([0.5])
    bent, variance = bend(np.float32([raw]), *bounds)
    assert bent.item() == pytest.approx(bounded, abs=2e-6)
    assert variance.item() == pytest.approx(np.exp(bounded), rel=1e-5)


@pytest.mark.parametrize(("log_variance", "expected"), [(0.0, 1.0), (np.log(4.0), 1.636294)])
def test_loss_of_an_error_of_one(log_variance, expected):  # card of planning, 7.2(3); T4
    settings = replace(PLAIN, max_log_variance=50.0, min_log_variance=-50.0)
    ensemble = constant(settings, 3, np.float32([[0.0, 0.0, log_variance, log_variance]] * 3))
    inputs, targets = np.ones((3, 5, 3), np.float32), np.ones((3, 5, 2), np.float32)
    told = loss(settings, ensemble.weights, ensemble, inputs, targets, np.ones(5, bool))
    assert told == pytest.approx(3 * expected, abs=1e-5)


@pytest.mark.parametrize("fan_in", [100, 400])
def test_initial_weights_are_a_normal_cut_at_two_deviations(fan_in):
    member = jax.jit(lambda key: GaussianMLP.create(fan_in, 50, key, widths=(300,)))(KEY)
    first, second = jax.tree.map(np.asarray, member).mlp.layers
    for weight, width in ((first.weight, fan_in), (second.weight, 300)):
        bound = 1 / width**0.5  # twice 1/(2 sqrt(fan_in))
        assert 0.99 * bound < np.abs(weight).max() <= bound
        assert np.std(weight) == pytest.approx(0.8796 * bound / 2, rel=0.01)  # 7.2(1)
    assert not first.bias.any()
    assert not second.bias.any()


def test_sizes_are_the_published_ones():
    make = lambda key: GaussianEnsemble().create(24, 18, key)  # noqa: E731
    ensemble = jax.eval_shape(make, KEY)  # card of planning, 2.6: half-cheetah, 128k MAC per row
    layers = ensemble.weights.members.mlp.layers
    assert sum(np.prod(layer.weight.shape[1:]) for layer in layers) == 24 * 200 + 3 * 200 * 200 + 200 * 36
    assert num_parameters(ensemble.weights.members) == 7 * (132_000 + 4 * 200 + 36)
    assert (ensemble.num_members, ensemble.num_inputs, ensemble.num_outputs) == (7, 24, 18)
    bounds = lambda weights: (weights.min_log_variance, weights.max_log_variance)  # noqa: E731
    low, high = jax.jit(lambda key: bounds(make(key).weights))(KEY)
    np.testing.assert_array_equal(low, np.full(18, -10, np.float32))
    np.testing.assert_array_equal(high, np.full(18, 0.5, np.float32))


# --- against loops in numpy


def reference(settings, ensemble, k, x):
    """Mean and bounded log-variance of member k for one row, in units of the loss."""
    leaves = jax.tree.map(np.float64, ensemble)
    h = (np.float64(x) - leaves.input_scale.mean) / leaves.input_scale.std
    layers = leaves.weights.members.mlp.layers
    for i, layer in enumerate(layers):
        h = h @ layer.weight[k] + layer.bias[k]
        if i < len(layers) - 1:
            h = np.maximum(h, 0) if settings.activation == "relu" else h / (1 + np.exp(-h))
    if not settings.probabilistic:
        return h, None
    mean, raw = np.split(h, 2)
    low, high = leaves.weights.min_log_variance, leaves.weights.max_log_variance
    bounded = high - np.log1p(np.exp(high - raw))
    return mean, low + np.log1p(np.exp(bounded - low))


@pytest.mark.parametrize("name", VARIANTS)
def test_predictions_equal_a_loop_over_rows(name):
    settings = VARIANTS[name]
    ensemble = made(settings)
    inputs, _ = batch(settings)
    noise = normal(settings.members, 5, 2, seed=2)
    told = jax.jit(lambda e, x, noise: (*e.predict(x), e.sample(x, noise), e.sample(x, None)))(ensemble, inputs, noise)
    mean, log_variance, drawn, without = map(np.asarray, told)
    np.testing.assert_array_equal(without, mean)
    for k, i in np.ndindex(inputs.shape[:2]):
        expected, log_expected = reference(settings, ensemble, k, inputs[k, i])
        expected = expected * ensemble.target_scale.std + ensemble.target_scale.mean
        np.testing.assert_allclose(mean[k, i], expected, rtol=1e-4, atol=1e-5)
        if log_expected is None:
            assert np.isneginf(log_variance[k, i]).all()
            np.testing.assert_array_equal(drawn[k, i], mean[k, i])
            continue
        log_expected = log_expected + 2 * np.log(ensemble.target_scale.std)
        np.testing.assert_allclose(log_variance[k, i], log_expected, rtol=1e-4, atol=1e-5)
        expected = expected + np.exp(log_expected / 2) * noise[k, i]
        np.testing.assert_allclose(drawn[k, i], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("valid", [[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], ids=["all", "some"])
def test_loss_equals_a_double_loop(name, valid):
    settings = VARIANTS[name]
    ensemble = made(settings)
    inputs, targets = batch(settings)
    total = 0.0
    for k in range(settings.members):
        errors = []
        for i in np.flatnonzero(valid):
            mean, log_variance = reference(settings, ensemble, k, inputs[k, i])
            for d in range(2):
                y = (targets[k, i, d] - ensemble.target_scale.mean[d]) / ensemble.target_scale.std[d]
                error = (mean[d] - y) ** 2
                errors.append(error if log_variance is None else error * np.exp(-log_variance[d]) + log_variance[d])
        total += np.mean(errors)
        for decay, layer in zip(settings.weight_decay, ensemble.weights.members.mlp.layers, strict=True):
            total += decay * 0.5 * (np.float64(layer.weight[k]) ** 2).sum()
    if settings.probabilistic and settings.learned_bounds:
        total += 0.01 * (ensemble.weights.max_log_variance.sum() - ensemble.weights.min_log_variance.sum())
    told = loss(settings, ensemble.weights, ensemble, inputs, targets, np.array(valid, bool))
    assert told == pytest.approx(float(total), rel=1e-5)


# --- gradients


slopes = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)


def gradients(settings, ensemble, inputs, targets):
    valid = np.ones(inputs.shape[1], bool)
    return jax.tree.map(np.asarray, slopes(settings, ensemble.weights, ensemble, inputs, targets, valid))


@pytest.mark.parametrize("name", ["MBPO", "mean only"])
def test_members_learn_from_their_own_rows_alone(name):
    settings = VARIANTS[name]
    ensemble = made(settings)
    inputs, targets = batch(settings)
    before = gradients(settings, ensemble, inputs, targets)
    other = np.float32([0, 1, 0])[:, None, None]
    after = gradients(settings, ensemble, inputs + other, targets + other)
    for old, new in zip(jax.tree.leaves(before.members), jax.tree.leaves(after.members), strict=True):
        np.testing.assert_array_equal(old[0], new[0])
        np.testing.assert_array_equal(old[2], new[2])
        assert not np.allclose(old[1], new[1])


def test_fixed_bounds_get_no_gradient_and_learnt_ones_do():
    inputs, targets = batch(SMALL)
    fixed = gradients(VARIANTS["fixed bounds"], made(SMALL), inputs, targets)
    assert not fixed.max_log_variance.any()
    assert not fixed.min_log_variance.any()
    learnt = gradients(SMALL, made(SMALL), inputs, targets)
    assert learnt.max_log_variance.all()
    assert learnt.min_log_variance.all()


def test_gradient_of_the_log_variance_is_that_of_the_likelihood():
    # Over a free variance (μ − y)² exp(−v) + v is least at v = log (μ − y)².
    slope = jax.jit(jax.grad(lambda v, error: error**2 * jnp.exp(-v) + v))
    for error in (0.1, 1.0, 3.0):
        below, above = (slope(np.float32(2 * np.log(error) + off), np.float32(error)).item() for off in (-0.1, 0.1))
        assert below < 0 < above


# --- ensembles


def test_every_leaf_is_an_array_and_members_differ():
    ensembles = []
    jax.eval_shape(lambda key: ensembles.append(SMALL.create(4, 2, key)), KEY)  # as they are before they are drawn
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(ensembles))
    mean, _ = predict_all(made(SMALL), np.ones((1, 4), np.float32))
    assert len(np.unique(np.asarray(mean)[:, 0, 0])) == SMALL.members


def test_the_best_are_the_elites_in_their_order():
    ensemble = eqx.tree_at(lambda ensemble: ensemble.elites, made(SMALL), np.array([2, 0], np.int32))

    @jax.jit
    def told(ensemble, inputs):
        best = ensemble.best()
        return ensemble.predict_all(inputs), best.predict_all(inputs), best.best().elites

    every, chosen, elites = told(ensemble, normal(5, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a)[[2, 0]], b, rtol=1e-6), every, chosen)
    np.testing.assert_array_equal(elites, [0, 1])


def test_same_rows_for_all_members_or_rows_of_their_own():
    ensemble = made(SMALL)
    inputs = normal(5, 4)
    each = jax.jit(lambda ensemble, inputs: ensemble.predict(inputs))(ensemble, np.stack([inputs] * 3))
    jax.tree.map(np.testing.assert_array_equal, predict_all(ensemble, inputs), each)


# --- scales


@jax.jit
def scaled(values, chosen, rows):
    """A scale, rows on it, and the same rows back again."""
    scale = Standardiser.of(Moments.empty(values.shape[1:]).add(values, chosen))
    rows = jax.vmap(scale)(rows)
    return scale, rows, jax.vmap(scale.undo)(rows)


def test_scales_are_those_of_the_chosen_rows():
    values = np.random.default_rng(0).normal([1000.0, -2.0], [1.0, 30.0], (50, 2)).astype(np.float32)
    chosen = np.arange(50) % 3 != 0
    shown = np.where(chosen[:, None], values, np.float32(np.nan))
    scale, rows, back = scaled(shown, chosen, values[chosen])
    np.testing.assert_allclose(scale.mean, values[chosen].mean(0), rtol=1e-5)
    np.testing.assert_allclose(scale.std, values[chosen].std(0), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(rows).mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(back, values[chosen], rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, 1e-8])
def test_a_constant_column_keeps_its_scale(value):  # P10
    scale, row, _ = scaled(np.full((1000, 1), value, np.float32), None, np.float32([[value]]))
    assert scale.std.item() == 1
    np.testing.assert_allclose(scale.mean, value, rtol=1e-6)
    assert row.item() == pytest.approx(0, abs=1e-4)


# --- settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": 0}, r"members = 0 .* \[1, 1024\]"),
        ({"elites": 8}, r"elites = 8 .* \[1, 7\]"),
        ({"learning_rate": 0.0}, r"learning_rate = 0.0 .* \(0, 1\]"),
        ({"max_log_variance": -11.0}, r"max_log_variance = -11.0 .* \(-10.0, 50\]"),
        ({"log_variance_penalty": -1.0}, r"log_variance_penalty = -1.0 .* \[0, 10*\]"),
        ({"widths": (200, 0, 200, 200)}, r"widths\[1\] = 0 is out of range"),
        ({"widths": (200,)}, "must be 2 numbers"),
        ({"weight_decay": (0.0, 0.0, 0.0, 0.0, -1.0)}, r"weight_decay\[4\] = -1.0 is out of range"),
    ],
)
def test_impossible_settings_say_what_would_be_right(change, message):
    with pytest.raises(UserError, match=message):
        GaussianEnsemble(**change)


def test_settings_are_hashable():
    assert hash(GaussianEnsemble()) == hash(GaussianEnsemble())


def test_swish_is_x_times_its_sigmoid_and_so_is_its_slope():
    x = jnp.linspace(-60.0, 60.0, 241)
    np.testing.assert_allclose(swish(x), jax.nn.swish(x), atol=3e-6)  # 0 below -16
    slope, expected = (jax.vmap(jax.grad(f))(x) for f in (swish, jax.nn.swish))
    np.testing.assert_allclose(slope, expected, atol=1e-5)
