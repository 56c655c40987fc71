"""A value estimate without a learning rate: linear in features of observation and time (Duan et al. 2016)."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class LinearBaseline(eqx.Module):
    """V(o, t) = w · (o, o², t, t², t³, 1), t in hundreds of steps; observations are clipped to ±10."""

    weights: Float[Array, "features"]

    @staticmethod
    def zero(observed: int) -> "LinearBaseline":
        """Predict 0."""
        return LinearBaseline(jnp.zeros(2 * observed + 4))

    @staticmethod
    def fit(
        obs: Float[Array, "n observed"],
        time: Float[Array, "n"],
        returns: Float[Array, "n"],
        valid: Bool[Array, "n"],
        ridge: float = 1e-5,
    ) -> "LinearBaseline":
        """Least squares over the valid rows, with a ridge on standardised features.

        Powers of time differ by orders of magnitude, which would make the normal equations singular in float32.
        """
        weight = valid.astype(obs.dtype)[:, None]
        count = jnp.maximum(jnp.sum(weight), 1)
        x = _features(obs, time)[:, :-1]
        mean = jnp.sum(x * weight, axis=0) / count
        spread = jnp.sqrt(jnp.sum((x - mean[None]) ** 2 * weight, axis=0) / count)
        spread = jnp.where(spread < 1e-6, 1.0, spread)
        level = jnp.sum(returns * weight[:, 0]) / count
        z = (x - mean[None]) / spread[None] * weight
        gram = z.T @ z / count + ridge * jnp.eye(x.shape[1])
        slope = jnp.linalg.solve(gram, z.T @ ((returns - level) * weight[:, 0]) / count) / spread
        return LinearBaseline(jnp.concatenate([slope, (level - slope @ mean)[None]]))

    def __call__(self, obs: Float[Array, "*batch observed"], time: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Predict returns-to-go of steps at `time` since their episode began."""
        return _features(obs, time) @ self.weights


def _features(obs: Array, time: Array) -> Array:
    obs, t = jnp.clip(obs, -10, 10), time[..., None] / 100
    return jnp.concatenate([obs, obs**2, t, t**2, t**3, jnp.ones_like(t)], axis=-1)
