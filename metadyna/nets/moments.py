"""Running mean and variance, merged batch by batch (Chan et al. 1979)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of everything seen so far."""

    number: Float[Array, ""]
    mean: Float[Array, "*shape"]
    squares: Float[Array, "*shape"]

    @staticmethod
    def empty(shape: tuple[int, ...] = ()) -> "Moments":
        """Nothing seen."""
        return Moments(jnp.float32(0), jnp.zeros(shape), jnp.zeros(shape))

    def add(self, batch: Float[Array, "n *shape"]) -> "Moments":
        """See a batch."""
        n = batch.shape[0]
        # Relative to the first row: the mean of equal numbers is then exact, however large they are.
        mean = batch[0] + jnp.mean(batch - batch[:1], axis=0)
        shift, count = mean - self.mean, self.number + n
        squares = self.squares + jnp.sum((batch - mean[None]) ** 2, axis=0) + shift**2 * (self.number * n / count)
        return Moments(count, self.mean + shift * (n / count), squares)

    @property
    def std(self) -> Float[Array, "*shape"]:
        """Standard deviation; 1 where nothing has varied yet, so that a constant does no harm."""
        std = jnp.sqrt(self.squares / jnp.maximum(self.number, 1))
        return jnp.where(std < 1e-6, 1.0, std)

    def normalise(self, x: Float[Array, "*batch"], limit: float = 10.0) -> Float[Array, "*batch"]:
        """Shift and scale to mean 0 and standard deviation 1, within ± `limit`."""
        mean, std = (jnp.broadcast_to(m, x.shape) for m in (self.mean, self.std))
        return jnp.clip((x - mean) / std, -limit, limit)
