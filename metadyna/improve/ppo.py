"""Proximal policy optimisation: the clipped surrogate (Schulman et al. 2017, arXiv 1707.06347)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from metadyna.collect.returns import masked_mean, standardise
from metadyna.improve.descend import descend
from metadyna.policies.distributions import Distribution
from metadyna.settings import Settings

LossFn = Callable[[Any, PyTree], tuple[Float[Array, ""], dict[str, Array]]]
"""`loss(weights, rows) -> (scalar, metrics)`."""


class OnPolicyBatch(NamedTuple):
    """Experience with what learning on it needs: rows [n, ...], or sequences [n, T, ...]."""

    obs: PyTree
    action: PyTree
    log_prob: Float[Array, "*n"]
    advantage: Float[Array, "*n"]
    value_target: Float[Array, "*n"]


class PPOLearner(NamedTuple):
    """Weights and optimiser."""

    weights: Any
    optimiser: optax.OptState
    updates: Int[Array, ""]


@dataclass(frozen=True)
class PPO(Settings):
    """Several epochs of minibatches on one batch of fresh experience, for any weights."""

    learning_rate: Annotated[float, "(0, 1]"] = 3e-4
    """Adam's step size."""
    clip: Annotated[float, "(0, 1)"] = 0.2
    """ε: probability ratios beyond 1 ± ε earn nothing more."""
    epochs: Annotated[int, "[1, 10000]"] = 10
    """Passes over the batch."""
    minibatches: Annotated[int, "[1, 100000]"] = 32
    """Updates per pass."""
    value_weight: Annotated[float, "[0, 1000000]"] = 0.5
    """Weight of the value loss."""
    entropy_weight: Annotated[float, "[0, 1000000]"] = 0.0
    """Weight of the entropy bonus, in nats."""
    gradient_clip: Annotated[float, "(0, inf]"] = 0.5
    """Largest global L2 norm of a gradient."""

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """Adam on clipped gradients."""
        return optax.chain(optax.clip_by_global_norm(self.gradient_clip), optax.adam(self.learning_rate, eps=1e-5))

    def start(self, weights: Any) -> PPOLearner:
        """Begin with these weights."""
        return PPOLearner(weights, self.optimiser.init(weights), jnp.int32(0))

    def update(
        self, learner: PPOLearner, batch: PyTree, loss: LossFn, key: PRNGKeyArray
    ) -> tuple[PPOLearner, dict[str, Float[Array, ""]]]:
        """Make all passes over a batch [n, ...]; rows that do not fill a minibatch sit a pass out. Metrics are means.

        A row is what is never cut: a step, or a sequence over which `loss` runs a memory.
        """
        rows = jax.tree.leaves(batch)[0].shape[0]
        size = rows // self.minibatches

        def minibatch(learner: PPOLearner, chosen: Array) -> tuple[PPOLearner, dict[str, Array]]:
            part = jax.tree.map(lambda x: x[chosen], batch)
            slope, metrics = jax.grad(loss, has_aux=True)(learner.weights, part)
            weights, optimiser = descend(self.optimiser, learner.weights, slope, learner.optimiser)
            return PPOLearner(weights, optimiser, learner.updates + 1), metrics

        def epoch(learner: PPOLearner, key: Array) -> tuple[PPOLearner, dict[str, Array]]:
            order = jax.random.permutation(key, rows)[: size * self.minibatches]
            return jax.lax.scan(minibatch, learner, order.reshape(self.minibatches, size))

        learner, metrics = jax.lax.scan(epoch, learner, jax.random.split(key, self.epochs))
        return learner, jax.tree.map(jnp.mean, metrics)

    def loss(
        self,
        said: Distribution,
        value: Float[Array, "*n"],
        batch: OnPolicyBatch,
        valid: Bool[Array, "*n"] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Clipped surrogate, value regression and entropy (eq. 7 and 9), of what a network now says and estimates.

        Advantages are standardised over the minibatch; steps that are not valid do not count.
        """
        valid = jnp.ones(value.shape, bool) if valid is None else valid
        log_ratio = said.log_prob(batch.action) - batch.log_prob
        surrogate = clipped_surrogate(log_ratio, standardise(batch.advantage, valid), self.clip)
        value_loss = masked_mean((value - batch.value_target) ** 2, valid)
        entropy = masked_mean(said.entropy(), valid)
        loss = -masked_mean(surrogate, valid) + self.value_weight * value_loss - self.entropy_weight * entropy
        kl = masked_mean(jnp.expm1(log_ratio) - log_ratio, valid)  # unbiased, and never negative (Schulman 2020)
        return loss, {"value_loss": value_loss, "entropy": entropy, "kl": kl}


def clipped_surrogate(
    log_ratio: Float[Array, "*batch"], advantage: Float[Array, "*batch"], clip: float
) -> Float[Array, "*batch"]:
    """min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), ρ = π / π_old. eq. 7"""
    ratio = jnp.exp(log_ratio)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
