"""Proximal policy optimisation: the clipped surrogate (Schulman et al. 2017, arXiv 1707.06347)."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.collect.returns import standardise
from metadyna.improve.descend import descend
from metadyna.nets.layers import MLP
from metadyna.policies.distributions import normal_entropy, normal_log_prob
from metadyna.policies.gaussian import GaussianPolicy
from metadyna.settings import Settings, Widths


class ActorCritic(NamedTuple):
    """Policy and value network, moved by one optimiser."""

    policy: GaussianPolicy
    value: MLP


class OnPolicyBatch(NamedTuple):
    """Rows of experience [n, ...] with what learning on it needs."""

    obs: Float[Array, "n observed"]
    action: Float[Array, "n actions"]
    log_prob: Float[Array, "n"]
    advantage: Float[Array, "n"]
    value_target: Float[Array, "n"]


class PPOLearner(NamedTuple):
    """Weights and optimiser."""

    weights: ActorCritic
    optimiser: optax.OptState
    updates: Int[Array, ""]


@dataclass(frozen=True)
class PPO(Settings):
    """Networks, and several epochs of minibatches on one batch of fresh experience."""

    widths: Widths = (64, 64)
    """Hidden layers of policy and value network, with tanh."""
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
    log_std: Annotated[float, "[-5, 2]"] = 0.0
    """Log standard deviation of a fresh policy."""

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """Adam on clipped gradients."""
        return optax.chain(optax.clip_by_global_norm(self.gradient_clip), optax.adam(self.learning_rate, eps=1e-5))

    def init(self, observed: int, actions: int, key: PRNGKeyArray) -> PPOLearner:
        """Draw policy and value network."""
        k_policy, k_value = jax.random.split(key)
        policy = GaussianPolicy.create(observed, actions, self.widths, k_policy, self.log_std)
        weights = ActorCritic(policy, MLP.create((observed, *self.widths, 1), k_value, jax.nn.tanh))
        moving: Any = weights
        return PPOLearner(weights, self.optimiser.init(moving), jnp.int32(0))

    def train(
        self, learner: PPOLearner, batch: OnPolicyBatch, key: PRNGKeyArray
    ) -> tuple[PPOLearner, dict[str, Float[Array, ""]]]:
        """Make all passes over a batch; rows that do not fill a minibatch sit a pass out. Metrics are means."""
        rows = batch.log_prob.shape[0]
        size = rows // self.minibatches

        def minibatch(learner: PPOLearner, chosen: Array) -> tuple[PPOLearner, dict[str, Array]]:
            part = jax.tree.map(lambda x: x[chosen], batch)
            slope, metrics = jax.grad(self.loss, has_aux=True)(learner.weights, part)
            weights, optimiser = descend(self.optimiser, learner.weights, slope, learner.optimiser)
            return PPOLearner(weights, optimiser, learner.updates + 1), metrics

        def epoch(learner: PPOLearner, key: Array) -> tuple[PPOLearner, dict[str, Array]]:
            order = jax.random.permutation(key, rows)[: size * self.minibatches]
            return jax.lax.scan(minibatch, learner, order.reshape(self.minibatches, size))

        learner, metrics = jax.lax.scan(epoch, learner, jax.random.split(key, self.epochs))
        return learner, jax.tree.map(jnp.mean, metrics)

    def loss(self, weights: ActorCritic, batch: OnPolicyBatch) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Clipped surrogate, value regression and entropy (eq. 7 and 9); advantages standardised per minibatch."""
        mean, log_std = jax.vmap(weights.policy)(batch.obs)
        log_ratio = normal_log_prob(batch.action, mean, log_std) - batch.log_prob
        surrogate = clipped_surrogate(log_ratio, standardise(batch.advantage), self.clip)
        value_loss = jnp.mean((jax.vmap(weights.value)(batch.obs)[:, 0] - batch.value_target) ** 2)
        entropy = jnp.mean(normal_entropy(log_std))
        loss = -jnp.mean(surrogate) + self.value_weight * value_loss - self.entropy_weight * entropy
        kl = jnp.mean(jnp.expm1(log_ratio) - log_ratio)  # unbiased, and never negative (Schulman 2020)
        return loss, {"value_loss": value_loss, "entropy": entropy, "kl": kl}


def clipped_surrogate(
    log_ratio: Float[Array, "*batch"], advantage: Float[Array, "*batch"], clip: float
) -> Float[Array, "*batch"]:
    """min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), ρ = π / π_old. eq. 7"""
    ratio = jnp.exp(log_ratio)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def values(network: Any, obs: Float[Array, "*batch observed"]) -> Float[Array, "*batch"]:
    """Values of any batch of observations."""
    flat = jax.vmap(network)(obs.reshape(-1, obs.shape[-1]))
    return flat.reshape(obs.shape[:-1])
