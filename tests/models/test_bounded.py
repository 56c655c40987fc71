"""Imagination stays near the data."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.models.bounded import Nearby, Scaled
from metadyna.models.gaussian import GaussianEnsemble, Standardiser
from metadyna.models.imagine import branch
from metadyna.models.worlds import Meaning, Predictor

KEY = jax.random.key(0)
MEAN, STD = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.1, 2.0, 1.0])


def ensemble(probabilistic=False):
    made = GaussianEnsemble(
        members=2, elites=2, widths=(8,), weight_decay=(0.0, 0.0), probabilistic=probabilistic
    ).create(3, 2, KEY)
    return replace(made, input_scale=Standardiser(MEAN, STD))


@pytest.mark.parametrize("probabilistic", [False, True])
def test_nothing_changes_within_the_bound(probabilistic):
    models = ensemble(probabilistic)
    near = Nearby(models, 1e4)
    assert isinstance(near, Predictor)
    assert isinstance(models, Scaled)
    assert (near.num_members, near.num_outputs) == (2, 2)
    inputs, noise = jax.random.normal(KEY, (2, 5, 3)), jax.random.normal(KEY, (2, 5, 2))
    for given in (None, noise):
        np.testing.assert_allclose(near.sample(inputs, given), models.sample(inputs, given), atol=1e-5)
    assert isinstance(near.best().predictor, type(models))


def test_what_runs_away_stops_at_the_bound():
    """Members that add 1 and -3 to everything, in every step."""
    models = ensemble()
    models = replace(models, weights=jax.tree.map(jnp.zeros_like, models.weights))
    bias = lambda models: models.weights.members.mlp.layers[-1].bias  # noqa: E731
    models = eqx.tree_at(bias, models, jnp.broadcast_to(jnp.array([[1.0], [-3.0]]), (2, 2)))
    meaning = Meaning(reward=lambda obs, action, next_obs: next_obs[0])

    def stay(params, carry, timestep, key):
        return jnp.zeros(1), carry, ()

    for member, edge in ((0, MEAN[:2] + 3 * STD[:2]), (1, MEAN[:2] - 3 * STD[:2])):
        near = Nearby(models.only(jnp.int32(member)), 3.0)
        made = branch(meaning.world(near), stay, (), jnp.zeros((4, 2)), 20, KEY)
        np.testing.assert_allclose(made.next_obs[-1], jnp.broadcast_to(edge, (4, 2)), rtol=1e-6)
        assert made.reward[-1, 0] == pytest.approx(float(edge[0]), rel=1e-6)
    free = branch(meaning.world(models.only(jnp.int32(0))), stay, (), jnp.zeros((4, 2)), 20, KEY)
    np.testing.assert_allclose(free.next_obs[-1], 20, rtol=1e-6)
