"""Distributions over actions: diagonal Gaussians, and Gaussians squashed into (-1, 1)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def normal_log_prob(
    x: Float[Array, "*batch dims"], mean: Float[Array, "*batch dims"], log_std: Float[Array, "*batch dims"]
) -> Float[Array, "*batch"]:
    """Log-density of a diagonal Gaussian."""
    z = (x - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * z**2 - log_std - HALF_LOG_2PI, axis=-1)


def normal_kl(
    mean: Float[Array, "*batch dims"],
    log_std: Float[Array, "*batch dims"],
    other_mean: Float[Array, "*batch dims"],
    other_log_std: Float[Array, "*batch dims"],
) -> Float[Array, "*batch"]:
    """KL(first || other) of diagonal Gaussians, in nats."""
    ratio = jnp.exp(2 * (log_std - other_log_std))
    shift = ((mean - other_mean) * jnp.exp(-other_log_std)) ** 2
    return jnp.sum(other_log_std - log_std + 0.5 * (ratio + shift - 1), axis=-1)


def normal_entropy(log_std: Float[Array, "*batch dims"]) -> Float[Array, "*batch"]:
    """Differential entropy of a diagonal Gaussian, in nats."""
    return jnp.sum(log_std + 0.5 + HALF_LOG_2PI, axis=-1)


def squashed_normal(
    mean: Float[Array, "*batch dims"], log_std: Float[Array, "*batch dims"], key: PRNGKeyArray
) -> tuple[Float[Array, "*batch dims"], Float[Array, "*batch"]]:
    """Draw a = tanh(u), u Gaussian, with its log-density."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    return jnp.tanh(u), squashed_log_prob(u, mean, log_std)


def squashed_log_prob(
    u: Float[Array, "*batch dims"], mean: Float[Array, "*batch dims"], log_std: Float[Array, "*batch dims"]
) -> Float[Array, "*batch"]:
    """Log-density of tanh(u) for a Gaussian u (Haarnoja et al. 2018, appendix C).

    log(1 - tanh² u) is written as 2 (log 2 - u - softplus(-2u)), which stays finite where tanh saturates.
    """
    stretch = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
    return normal_log_prob(u, mean, log_std) - jnp.sum(stretch, axis=-1)
