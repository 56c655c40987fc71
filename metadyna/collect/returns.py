"""Returns and advantages from rewards and values, and means over what is no padding."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


def gae(
    reward: Float[Array, "T *batch"],
    discount: Float[Array, "T *batch"],
    last: Bool[Array, "T *batch"],
    value: Float[Array, "T *batch"],
    next_value: Float[Array, "T *batch"],
    decay: float,
) -> Float[Array, "T *batch"]:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16); `decay` is λ.

    `discount` is γ, or 0 where the MDP terminated. `next_value` is that of the true successor, so an episode that was
    cut by a time limit is bootstrapped, and nothing flows over its `last` step into the next episode's.
    """
    error = reward + discount * next_value - value

    def back(later: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        error, discount, last = now
        advantage = error + decay * discount * jnp.where(last, 0, later)
        return advantage, advantage

    return lax.scan(back, jnp.zeros_like(error[0]), (error, discount, last), reverse=True)[1]


def rewards_to_go(
    reward: Float[Array, "T *batch"], discount: float, last: Bool[Array, "T *batch"]
) -> Float[Array, "T *batch"]:
    """Discounted sums of what follows within the episode."""

    def back(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, last = now
        total = reward + discount * jnp.where(last, 0, later)
        return total, total

    return lax.scan(back, jnp.zeros_like(reward[0]), (reward, last), reverse=True)[1]


def standardise(x: Float[Array, "*batch"], valid: Bool[Array, "*batch"] | None = None) -> Float[Array, "*batch"]:
    """Shift and scale to mean 0 and standard deviation 1 over the valid entries; the others become 0."""
    weight = jnp.ones_like(x) if valid is None else valid.astype(x.dtype)
    count = jnp.maximum(jnp.sum(weight), 1)
    mean = jnp.sum(x * weight) / count
    spread = jnp.sqrt(jnp.sum((x - mean) ** 2 * weight) / count)
    return (x - mean) / (spread + 1e-8) * weight


def masked_mean(values: Float[Array, "*batch"], valid: Bool[Array, "*batch"]) -> Float[Array, ""]:
    """Mean over the entries where `valid`; 0 if there are none."""
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)
