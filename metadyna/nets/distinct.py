"""Finite observation spaces: embed each distinct observation once."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Distinct(NamedTuple):
    """The reachable observations of a finite space, and the row at which each stands."""

    rows: Int[np.ndarray, "N components"]
    row_of_code: Int[np.ndarray, "codes"]
    strides: Int[np.ndarray, "components"]

    @staticmethod
    def create(rows: Int[np.ndarray, "N components"], sizes: tuple[int, ...]) -> "Distinct":
        """List `rows` of a space whose component k has `sizes[k]` values."""
        strides = np.cumprod((1, *sizes[:0:-1]))[::-1].astype(np.int32)
        row_of_code = np.zeros(np.prod(sizes), np.int32)
        row_of_code[rows @ strides] = np.arange(len(rows))
        return Distinct(np.asarray(rows, np.int32), row_of_code, strides)

    def row(self, obs: Int[Array, "*batch components"]) -> Int[Array, "*batch"]:
        """Where an observation stands; 0 for one that cannot be reached."""
        return jnp.asarray(self.row_of_code)[obs @ self.strides]


def embed_distinct(
    embed: Callable[[Array], Array], distinct: Distinct, obs: Int[Array, "T B components"]
) -> Float[Array, "T B width"]:
    """Apply `embed` to every observation of a batch, computing it once per distinct observation.

    A city has 81 cells while a batch of episodes has some 700 steps. Where the space is larger than the batch the
    batch itself is embedded.
    """
    if len(distinct.rows) <= obs.shape[0] * obs.shape[1]:
        return jax.vmap(embed)(jnp.asarray(distinct.rows))[distinct.row(obs)]
    return jax.vmap(jax.vmap(embed))(obs)
