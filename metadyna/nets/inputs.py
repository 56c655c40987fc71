"""From observations to the numbers that a network reads."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metadyna.errors import UserError
from metadyna.types import Box, Discrete, Space


@dataclass(frozen=True)
class Inputs:
    """How observations of one space are read: vectors as they are, integers as one-hot vectors end to end."""

    width: int = 0
    """Numbers read."""
    sizes: tuple[int, ...] | None = None
    """Sizes of the components where observations are integers."""

    @staticmethod
    def of(space: Space) -> "Inputs":
        """For a space of vectors; `UserError` for any other."""
        if isinstance(space, Discrete):
            return Inputs(sum(space.sizes), space.sizes)
        if not isinstance(space, Box) or len(space.shape) != 1 or space.dtype != "float32":
            raise UserError(f"this method needs vectors of floats or of integers, but the environment shows {space}")
        return Inputs(space.shape[0])

    def __call__(self, obs: Array) -> Float[Array, "*batch width"]:
        """Read observations of any batch."""
        if self.sizes is None:
            return obs
        return jnp.concatenate([jax.nn.one_hot(obs[..., k], size) for k, size in enumerate(self.sizes)], axis=-1)
