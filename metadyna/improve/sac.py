"""Soft actor-critic with twin critics and automatic temperature (Haarnoja et al. 2018, arXiv 1812.05905)."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.improve.descend import descend
from metadyna.nets.layers import MLP
from metadyna.policies.distributions import squashed_normal
from metadyna.policies.squashed import Actor
from metadyna.settings import Settings, Widths
from metadyna.types import Transition


class Critic(eqx.Module):
    """Q(features, action)."""

    mlp: MLP

    def __call__(self, x: Float[Array, "features"], action: Float[Array, "actions"]) -> Float[Array, ""]:
        """Value one pair."""
        return self.mlp(jnp.concatenate([x, action]))[0]


class SACLearner(NamedTuple):
    """Weights, slow critics and one optimiser state each for actor, critics and temperature."""

    actor: Actor
    critics: tuple[Critic, Critic]
    targets: tuple[Critic, Critic]
    log_temperature: Float[Array, ""]
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    temperature_optimiser: optax.OptState
    updates: Int[Array, ""]


@dataclass(frozen=True)
class SAC(Settings):
    """Networks and one update on a batch of transitions."""

    widths: Widths = (256, 256)
    """Hidden layers of actor and critics."""
    layer_norm: bool = False
    """Normalise the critics' hidden layers."""
    actor_rate: Annotated[float, "(0, 1]"] = 3e-4
    """Adam's step size for the actor."""
    critic_rate: Annotated[float, "(0, 1]"] = 3e-4
    """Adam's step size for the critics."""
    temperature_rate: Annotated[float, "[0, 1]"] = 3e-4
    """Adam's step size for the log-temperature; 0 keeps it."""
    temperature: Annotated[float, "(0, 1000000]"] = 1.0
    """α at first: the price of entropy in units of reward."""
    target_entropy: Annotated[float, "[-1000000, 1000000]"] | None = None
    """Entropy in nats that the temperature steers to; None: minus the number of actions."""
    discount: Annotated[float, "[0, 1]"] = 0.99
    """γ per step."""
    target_rate: Annotated[float, "(0, 1]"] = 0.005
    """τ: how far the slow critics move per update."""
    batch: Annotated[int, "[1, 1000000]"] = 256
    """Transitions per update."""

    def init(self, features: int, actions: int, key: PRNGKeyArray) -> SACLearner:
        """Draw all weights; the slow critics begin as copies."""
        k_actor, *k_critics = jax.random.split(key, 3)
        actor = Actor(MLP.create((features, *self.widths, 2 * actions), k_actor))
        one, other = (
            Critic(MLP.create((features + actions, *self.widths, 1), k, layer_norm=self.layer_norm)) for k in k_critics
        )
        log_temperature = jnp.log(jnp.float32(self.temperature))
        parts: Any = actor, (one, other)
        return SACLearner(
            actor,
            (one, other),
            jax.tree.map(jnp.copy, (one, other)),
            log_temperature,
            optax.adam(self.actor_rate).init(parts[0]),
            optax.adam(self.critic_rate).init(parts[1]),
            optax.adam(self.temperature_rate).init(log_temperature),
            jnp.int32(0),
        )

    def update(
        self, learner: SACLearner, batch: Transition, key: PRNGKeyArray
    ) -> tuple[SACLearner, dict[str, Float[Array, ""]]]:
        """One step for critics, actor and temperature on transitions [B, ...] whose `obs` are features."""
        k_next, k_actor = jax.random.split(key)
        temperature = jnp.exp(learner.log_temperature)

        target = jax.lax.stop_gradient(self.critic_target(learner, batch, k_next))
        critic_loss, slope = jax.value_and_grad(_critic_loss)(learner.critics, batch, target)
        adam = optax.adam(self.critic_rate)
        critics, critic_optimiser = descend(adam, learner.critics, slope, learner.critic_optimiser)

        (actor_loss, log_prob), slope = jax.value_and_grad(_actor_loss, has_aux=True)(
            learner.actor, critics, temperature, batch.obs, k_actor
        )
        adam = optax.adam(self.actor_rate)
        actor, actor_optimiser = descend(adam, learner.actor, slope, learner.actor_optimiser)

        # -log α (log π + H): the temperature rises while the entropy is below its target. eq. 18
        wanted = -batch.action.shape[-1] if self.target_entropy is None else self.target_entropy
        slope = -(jnp.mean(log_prob) + wanted)
        adam, old = optax.adam(self.temperature_rate), learner.log_temperature
        log_temperature, temperature_optimiser = descend(adam, old, slope, learner.temperature_optimiser)

        metrics = {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "entropy": -jnp.mean(log_prob),
            "temperature": temperature,
            "value": jnp.mean(target),
        }
        learner = SACLearner(
            actor,
            critics,
            jax.tree.map(lambda new, old: old + self.target_rate * (new - old), critics, learner.targets),
            log_temperature,
            actor_optimiser,
            critic_optimiser,
            temperature_optimiser,
            learner.updates + 1,
        )
        return learner, metrics

    def critic_target(self, learner: SACLearner, batch: Transition, key: PRNGKeyArray) -> Float[Array, "B"]:
        """r + γ (min Q'(s', a') - α log π(a'|s')) with a fresh a'; no future where the MDP terminated. eq. 5."""
        mean, log_std = jax.vmap(learner.actor)(batch.next_obs)
        action, log_prob = squashed_normal(mean, log_std, key)
        value = _least(learner.targets, batch.next_obs, action) - jnp.exp(learner.log_temperature) * log_prob
        return batch.reward + self.discount * batch.discount * value


def _critic_loss(critics: tuple[Critic, Critic], batch: Transition, target: Array) -> Float[Array, ""]:
    values = [jax.vmap(critic)(batch.obs, batch.action) for critic in critics]
    return sum((0.5 * jnp.mean((value - target) ** 2) for value in values), jnp.float32(0))  # eq. 5


def _actor_loss(
    actor: Actor, critics: tuple[Critic, Critic], temperature: Array, obs: Array, key: PRNGKeyArray
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    mean, log_std = jax.vmap(actor)(obs)
    action, log_prob = squashed_normal(mean, log_std, key)
    return jnp.mean(temperature * log_prob - _least(critics, obs, action)), log_prob  # eq. 9


def _least(critics: tuple[Critic, Critic], obs: Array, action: Array) -> Float[Array, "B"]:
    one, other = (jax.vmap(critic)(obs, action) for critic in critics)
    return jnp.minimum(one, other)
