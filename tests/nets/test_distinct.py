"""Distinct observations: every row is found, and looking up equals embedding."""

import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs import GRIDS, make
from metadyna.nets.distinct import Distinct, embed_distinct

ROWS = np.array([[0, 1, 0], [2, 0, 3], [1, 1, 2]])
SIZES = (3, 2, 4)


@pytest.mark.parametrize("name", GRIDS)
def test_every_observation_of_a_family_has_a_row_of_its_own(name):
    env = make(name).env
    distinct = Distinct.create(env.observations, env.spec.observation.sizes)
    assert distinct.row(jnp.asarray(env.observations)).tolist() == list(range(len(env.observations)))


@pytest.mark.parametrize("sizes", [(3,), (3, 2), (2, 3, 4), (1, 5, 1, 2)])
def test_codes_number_a_full_space_without_gaps(sizes):
    rows = np.array(list(np.ndindex(sizes)))
    distinct = Distinct.create(rows, sizes)
    assert sorted((rows @ distinct.strides).tolist()) == list(range(np.prod(sizes)))
    np.testing.assert_array_equal(distinct.row(jnp.asarray(rows)), np.arange(len(rows)))


def test_rows_keep_the_batch_shape():
    distinct = Distinct.create(ROWS, SIZES)
    obs = jnp.asarray(ROWS)[jnp.array([[2, 0], [1, 1], [0, 2], [2, 2]])]
    assert distinct.row(obs).tolist() == [[2, 0], [1, 1], [0, 2], [2, 2]]


@pytest.mark.parametrize(("steps", "looked_up"), [(1, False), (3, True)])
def test_embedding_by_look_up_or_directly_is_the_same(steps, looked_up):
    distinct = Distinct.create(ROWS, SIZES)

    def embed(x):
        return jnp.stack([x[0] * 10.0 + x[1], x[2] * 1.0])

    obs = jnp.asarray(ROWS)[jnp.arange(steps)[:, None]]
    expected = np.stack([ROWS[:steps, 0] * 10.0 + ROWS[:steps, 1], ROWS[:steps, 2]], axis=-1)[:, None]
    np.testing.assert_array_equal(embed_distinct(embed, distinct, obs), expected)
    # An observation that is not listed stands at row 0, which tells the two ways apart.
    unlisted = jnp.broadcast_to(jnp.array([2, 1, 1]), obs.shape)
    found = [1.0, 0.0] if looked_up else [21.0, 1.0]
    assert (embed_distinct(embed, distinct, unlisted) == jnp.array(found)[None, None]).all()
