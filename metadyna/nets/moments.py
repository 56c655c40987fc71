"""Running mean and variance, merged batch by batch (Chan et al. 1979)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of everything seen so far."""

    number: Float[Array, ""]
    mean: Float[Array, "*shape"]
    squares: Float[Array, "*shape"]

    @staticmethod
    def empty(shape: tuple[int, ...] = ()) -> "Moments":
        """Nothing seen."""
        return Moments(jnp.float32(0), jnp.zeros(shape), jnp.zeros(shape))

    def add(self, batch: Float[Array, "n *shape"], valid: Bool[Array, "n"] | None = None) -> "Moments":
        """See a batch, or the `valid` rows of it; what the others hold does not matter."""
        valid = jnp.ones(batch.shape[0], bool) if valid is None else valid
        chosen, number = valid.reshape(-1, *[1] * (batch.ndim - 1)), jnp.sum(valid, dtype=jnp.float32)
        # Relative to one of the rows: the mean of equal numbers is then exact, however large they are.
        origin = batch[jnp.argmax(valid)]
        shifted = jnp.where(chosen, batch - origin[None], 0.0)
        mean = origin + jnp.sum(shifted, axis=0) / jnp.maximum(number, 1)
        deviation = jnp.where(chosen, batch - mean[None], 0.0)
        count = self.number + number
        share, before = number / jnp.maximum(count, 1), self.number > 0
        shift = jnp.where(before, mean - self.mean, 0.0)
        mean = jnp.where(before, self.mean + shift * share, mean)
        squares = self.squares + jnp.sum(deviation**2, axis=0) + shift**2 * (self.number * share)
        seen = Moments(count, mean, squares)
        return jax.tree.map(lambda new, old: jnp.where(number > 0, new, old), seen, self)

    @property
    def std(self) -> Float[Array, "*shape"]:
        """Standard deviation; 1 where nothing has varied yet, so that a constant does no harm."""
        std = jnp.sqrt(self.squares / jnp.maximum(self.number, 1))
        return jnp.where(std < 1e-6, 1.0, std)

    def normalise(self, x: Float[Array, "*batch"], limit: float = 10.0) -> Float[Array, "*batch"]:
        """Shift and scale to mean 0 and standard deviation 1, within ± `limit`."""
        mean, std = (jnp.broadcast_to(m, x.shape) for m in (self.mean, self.std))
        return jnp.clip((x - mean) / std, -limit, limit)
