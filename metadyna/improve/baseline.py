"""A value estimate without a learning rate: linear in features of observation and time (Duan et al. 2016)."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metadyna.nets.inputs import Inputs


class LinearBaseline(eqx.Module):
    """V(o, t) = w · (o, o², t, t², t³, 1), t in hundreds of steps; observations are clipped to ±10."""

    weights: Float[Array, "features"]
    inputs: Inputs = eqx.field(static=True)

    @staticmethod
    def zero(inputs: Inputs) -> "LinearBaseline":
        """Predict 0."""
        return LinearBaseline(jnp.zeros(2 * inputs.width + 4), inputs)

    def fit(
        self,
        obs: Array,
        time: Float[Array, "n"],
        returns: Float[Array, "n"],
        valid: Bool[Array, "n"],
        ridge: float = 1e-5,
    ) -> "LinearBaseline":
        """Least squares over the valid rows of [n, ...], with a ridge on standardised features.

        Powers of time differ by orders of magnitude, which would make the normal equations singular in float32.
        """
        weight = valid.astype(returns.dtype)[:, None]
        count = jnp.maximum(jnp.sum(weight), 1)
        x = _features(self.inputs(obs), time)[:, :-1]
        mean = jnp.sum(x * weight, axis=0) / count
        spread = jnp.sqrt(jnp.sum((x - mean[None]) ** 2 * weight, axis=0) / count)
        spread = jnp.where(spread < 1e-6, 1.0, spread)
        level = jnp.sum(returns * weight[:, 0]) / count
        z = (x - mean[None]) / spread[None] * weight
        gram = z.T @ z / count + ridge * jnp.eye(x.shape[1])
        slope = jnp.linalg.solve(gram, z.T @ ((returns - level) * weight[:, 0]) / count) / spread
        return LinearBaseline(jnp.concatenate([slope, (level - slope @ mean)[None]]), self.inputs)

    def __call__(self, obs: Array, time: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Predict returns-to-go of steps at `time` since their episode began."""
        return _features(self.inputs(obs), time) @ self.weights


def _features(obs: Array, time: Array) -> Array:
    obs, t = jnp.clip(obs, -10, 10), time[..., None] / 100
    return jnp.concatenate([obs, obs**2, t, t**2, t**3, jnp.ones_like(t)], axis=-1)
