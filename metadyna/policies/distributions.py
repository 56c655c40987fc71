"""Distributions over actions and latents, as values: pytrees of arrays with any batch axes in front.

Each has `sample`, `log_prob` in nats, `entropy`, `kl` to another of its kind, and `mode`. Densities of vectors are
summed over the last axis.
"""

import math
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
"""Gauss-Hermite quadrature: E[f(n)], n standard normal, is Σ w f(x) / √(2π)."""


_SHARPNESS = 10.0
"""How suddenly `bend` turns at the ends of a range."""


def bend(x: Float[Array, "..."], low: float, high: float) -> Float[Array, "..."]:
    """Keep a parameter within a range: as it is between the ends, softly held at them.

    Where it was clipped it would have no slope, and once beyond an end never come back.
    """
    below = high - jax.nn.softplus(_SHARPNESS * (high - x)) / _SHARPNESS
    return low + jax.nn.softplus(_SHARPNESS * (below - low)) / _SHARPNESS


@runtime_checkable
class Distribution(Protocol):
    """What policies say, and losses read."""

    def sample(self, key: PRNGKeyArray) -> Array:
        """Draw once for every entry of the batch."""
        ...

    def sample_with_log_prob(self, key: PRNGKeyArray) -> tuple[Array, Float[Array, "*batch"]]:
        """Draw, with the log-density of what was drawn."""
        ...

    def log_prob(self, x: Array) -> Float[Array, "*batch"]:
        """Log-density, or log-probability."""
        ...

    def entropy(self) -> Float[Array, "*batch"]:
        """In nats; differential for densities."""
        ...

    def kl(self, other: PyTree) -> Float[Array, "*batch"]:
        """KL(self || other) in nats."""
        ...

    def mode(self) -> Array:
        """The most likely value."""
        ...


class Normal(eqx.Module):
    """A diagonal Gaussian."""

    mean: Float[Array, "*batch dims"]
    log_std: Float[Array, "*batch dims"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch dims"]:
        """Draw, differentiable in both parameters."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def sample_with_log_prob(self, key: PRNGKeyArray) -> tuple[Float[Array, "*batch dims"], Float[Array, "*batch"]]:
        """Draw, with the log-density of what was drawn."""
        x = self.sample(key)
        return x, self.log_prob(x)

    def log_prob(self, x: Float[Array, "*batch dims"]) -> Float[Array, "*batch"]:
        """Log-density."""
        z = (x - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - HALF_LOG_2PI, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy."""
        return jnp.sum(self.log_std + 0.5 + HALF_LOG_2PI, axis=-1)

    def kl(self, other: "Normal") -> Float[Array, "*batch"]:
        """KL(self || other)."""
        ratio = jnp.exp(2 * (self.log_std - other.log_std))
        shift = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return jnp.sum(other.log_std - self.log_std + 0.5 * (ratio + shift - 1), axis=-1)

    def mode(self) -> Float[Array, "*batch dims"]:
        """The mean."""
        return self.mean


class TanhNormal(eqx.Module):
    """The hyperbolic tangent of a diagonal Gaussian, in (-1, 1) (Haarnoja et al. 2018, appendix C)."""

    normal: Normal

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch dims"]:
        """Draw, differentiable in the parameters."""
        return jnp.tanh(self.normal.sample(key))

    def sample_with_log_prob(self, key: PRNGKeyArray) -> tuple[Float[Array, "*batch dims"], Float[Array, "*batch"]]:
        """Draw, with the log-density of what was drawn; finite where tanh saturates."""
        u = self.normal.sample(key)
        return jnp.tanh(u), self.log_prob_before(u)

    def log_prob(self, x: Float[Array, "*batch dims"]) -> Float[Array, "*batch"]:
        """Log-density; what is at the bounds counts as just inside."""
        return self.log_prob_before(jnp.arctanh(jnp.clip(x, -1 + 1e-6, 1 - 1e-6)))

    def log_prob_before(self, u: Float[Array, "*batch dims"]) -> Float[Array, "*batch"]:
        """Log-density of tanh(u)."""
        return self.normal.log_prob(u) - jnp.sum(_log_stretch(u), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy, by quadrature: that of the Gaussian plus E[log(1 - tanh² u)]."""
        nodes, weights = (jnp.asarray(x, self.normal.mean.dtype) for x in (_NODES, _WEIGHTS / math.sqrt(2 * math.pi)))
        u = self.normal.mean[..., None] + jnp.exp(self.normal.log_std)[..., None] @ nodes[None]
        return self.normal.entropy() + jnp.sum(_log_stretch(u) @ weights, axis=-1)

    def kl(self, other: "TanhNormal") -> Float[Array, "*batch"]:
        """KL(self || other): that of the Gaussians, since both go through one bijection."""
        return self.normal.kl(other.normal)

    def mode(self) -> Float[Array, "*batch dims"]:
        """The squashed mean, which is the median; the density itself may peak at the bounds."""
        return jnp.tanh(self.normal.mean)


def _log_stretch(u: Array) -> Array:
    """log(1 - tanh² u), written as 2 (log 2 - u - softplus(-2u)), which stays finite where tanh saturates."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


class Categorical(eqx.Module):
    """One of a few classes, by number."""

    logits: Float[Array, "*batch classes"]

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """Draw a class."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def sample_with_log_prob(self, key: PRNGKeyArray) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
        """Draw, with the log-probability of what was drawn."""
        x = self.sample(key)
        return x, self.log_prob(x)

    def log_prob(self, x: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Log-probability of a class."""
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), x[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        """In nats."""
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(_weighed(log_probs, log_probs), axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """KL(self || other)."""
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.sum(_weighed(log_probs, log_probs - jax.nn.log_softmax(other.logits)), axis=-1)

    def mode(self) -> Int[Array, "*batch"]:
        """The most likely class; the first of equals."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


def _weighed(log_probs: Array, values: Array) -> Array:
    """p · value, and 0 where p is."""
    return jnp.where(jnp.isneginf(log_probs), 0.0, jnp.exp(log_probs) * jnp.where(jnp.isneginf(log_probs), 0.0, values))


class OneHot(eqx.Module):
    """One of a few classes, as a vector of 0 and 1 through which gradients pass straight to the probabilities.

    Bengio et al. 2013, arXiv 1308.3432; the latents of DreamerV2 (Hafner et al. 2021).
    """

    logits: Float[Array, "*batch classes"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch classes"]:
        """Draw; the derivative is that of the probabilities."""
        drawn = jax.nn.one_hot(Categorical(self.logits).sample(key), self.logits.shape[-1], dtype=self.logits.dtype)
        probs = jax.nn.softmax(self.logits)
        return drawn + probs - jax.lax.stop_gradient(probs)

    def sample_with_log_prob(self, key: PRNGKeyArray) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch"]]:
        """Draw, with the log-probability of what was drawn."""
        x = self.sample(key)
        return x, self.log_prob(jax.lax.stop_gradient(x))

    def log_prob(self, x: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
        """Log-probability of a one-hot vector."""
        return jnp.sum(x * jax.nn.log_softmax(self.logits), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """In nats."""
        return Categorical(self.logits).entropy()

    def kl(self, other: "OneHot") -> Float[Array, "*batch"]:
        """KL(self || other)."""
        return Categorical(self.logits).kl(Categorical(other.logits))

    def mode(self) -> Float[Array, "*batch classes"]:
        """The most likely class."""
        return jax.nn.one_hot(jnp.argmax(self.logits, axis=-1), self.logits.shape[-1], dtype=self.logits.dtype)
