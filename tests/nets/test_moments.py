"""Running moments against numpy's, in float64, over everything that was fed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.nets.moments import Moments

ADD = jax.jit(Moments.add)


def fed(data, *cuts):
    moments = Moments.empty(data.shape[1:])
    for batch in np.split(data, cuts):
        moments = ADD(moments, jnp.asarray(batch))
    return moments


def drawn(offset, scale, rows=300):
    return (offset + scale * np.random.default_rng(0).standard_normal((rows, 3))).astype(np.float32)


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2, 100), (299,), (150, 151, 260)])
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (-3, 1e-3), (1e4, 0.1), (1e4, 100), (0, 1e4)])
def test_moments_are_those_of_all_batches_together(offset, scale, cuts):
    data = drawn(offset, scale)
    moments, exact = fed(data, *cuts), data.astype(np.float64)
    assert moments.number == len(data)
    # What float32 resolves is a share of the size of the numbers, here of the offset too.
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=3e-7, atol=1e-6 * scale)
    np.testing.assert_allclose(moments.std, exact.std(axis=0), rtol=1e-3 if offset == 1e4 else 1e-5)


def test_moments_of_numbers_and_of_arrays():
    data = drawn(1, 2, rows=24)
    for shape in ((), (3, 2)):
        shaped = data[:, 0] if shape == () else data.reshape(-1, *shape)
        moments = fed(shaped, 5)
        assert moments.std.shape == shape
        np.testing.assert_allclose(moments.mean, shaped.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(moments.std, shaped.std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("cuts", [(), (1,), (7, 50, 51)])
@pytest.mark.parametrize("constant", [0.0, 0.1, -123.4, 1e4, 9876.543])
def test_a_constant_column_does_no_harm(constant, cuts):
    """Rounding must not pass for a spread, or the first small deviation would be blown up."""
    data = drawn(0, 1)
    data[:, 1] = constant
    moments = fed(data, *cuts)
    assert moments.std[1] == 1
    np.testing.assert_allclose(moments.normalise(jnp.asarray(data))[:, 1], 0, atol=1e-2)
    assert np.ptp(moments.normalise(jnp.asarray(data))[:, 0]) > 3


def test_normalised_data_have_mean_0_and_deviation_1_within_the_limit():
    data = drawn(5, 3)
    y = np.asarray(fed(data).normalise(jnp.asarray(data)))
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=0), 1, rtol=1e-5)
    far = fed(data).normalise(jnp.array([1e6, 5.0, -1e6]))
    assert far[0] == 10
    assert far[2] == -10
    assert fed(data).normalise(jnp.array([1e6, 5.0, -1e6]), limit=2.5)[2] == -2.5


def test_before_any_data_normalising_changes_nothing():
    x = jnp.array([[0.5, -2.0, 3.0]])
    np.testing.assert_array_equal(Moments.empty((3,)).normalise(x), x)
