"""Soft actor-critic with twin critics and automatic temperature (Haarnoja et al. 2018, arXiv 1812.05905)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from metadyna.improve.descend import descend
from metadyna.settings import Settings
from metadyna.types import Transition

CriticTerm = Callable[[Any, Transition, PRNGKeyArray], tuple[Float[Array, ""], dict[str, Array]]]
"""`term(critics, batch, key) -> (loss, metrics)`, added to the critics' loss: what an encoder among them also owes."""

Shown = Callable[[Any, PyTree], PyTree]
"""`shown(critics, obs)`: what the actor reads of observations [B, ...], for encoders that the critics alone move."""


def as_they_are(critics: Any, obs: PyTree) -> PyTree:
    """Show the actor the observations themselves."""
    del critics
    return obs


class SACLearner(NamedTuple):
    """Weights, slow critics and one optimiser state each for actor, critics and temperature."""

    actor: Any
    critics: Any
    targets: Any
    log_temperature: Float[Array, ""]
    actor_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    temperature_optimiser: optax.OptState
    updates: Int[Array, ""]


@dataclass(frozen=True)
class SAC(Settings):
    """One update of any actor and critics on a batch of transitions.

    `actor(obs)` is a distribution over actions in (-1, 1), `critics(obs, action)` are values [2] of one pair; both
    speak of one observation, which may have any structure.
    """

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

    def start(self, actor: Any, critics: Any) -> SACLearner:
        """Begin with these weights; the slow critics begin as copies."""
        log_temperature = jnp.log(jnp.float32(self.temperature))
        return SACLearner(
            actor,
            critics,
            jax.tree.map(jnp.copy, critics),
            log_temperature,
            optax.adam(self.actor_rate).init(actor),
            optax.adam(self.critic_rate).init(critics),
            optax.adam(self.temperature_rate).init(log_temperature),
            jnp.int32(0),
        )

    def update(
        self,
        learner: SACLearner,
        batch: Transition,
        key: PRNGKeyArray,
        term: CriticTerm | None = None,
        shown: Shown = as_they_are,
    ) -> tuple[SACLearner, dict[str, Float[Array, ""]]]:
        """One step for critics, actor and temperature on transitions [B, ...]."""
        k_next, k_actor = jax.random.split(key)
        learner, told = self._step_critics(learner, batch, k_next, term, shown)
        learner, told_actor = self._step_actor(learner, batch, k_actor, shown)
        told = {**told, **told_actor, "temperature": jnp.exp(learner.log_temperature)}
        learner = self._step_temperature(learner, batch, told["entropy"])
        targets = jax.tree.map(lambda old, new: old + self.target_rate * (new - old), learner.targets, learner.critics)
        return learner._replace(targets=targets, updates=learner.updates + 1), told

    def _step_critics(
        self, learner: SACLearner, batch: Transition, key: PRNGKeyArray, term: CriticTerm | None, shown: Shown
    ) -> tuple[SACLearner, dict[str, Float[Array, ""]]]:
        """Towards the soft target, and with whatever is added to the loss."""
        target = jax.lax.stop_gradient(self.critic_target(learner, batch, key, shown))

        def critic_loss(critics: Any) -> tuple[Array, dict[str, Array]]:
            values = jax.vmap(critics)(batch.obs, batch.action)
            loss = 0.5 * jnp.sum(jnp.mean((values - target[:, None]) ** 2, axis=0))  # eq. 5
            added, told = (0.0, {}) if term is None else term(critics, batch, jax.random.fold_in(key, 1))
            return loss + added, {"critic_loss": loss, **told, "value": jnp.mean(target)}

        slope, told = jax.grad(critic_loss, has_aux=True)(learner.critics)
        adam = optax.adam(self.critic_rate)
        critics, optimiser = descend(adam, learner.critics, slope, learner.critic_optimiser)
        return learner._replace(critics=critics, critic_optimiser=optimiser), told

    def _step_actor(
        self, learner: SACLearner, batch: Transition, key: PRNGKeyArray, shown: Shown
    ) -> tuple[SACLearner, dict[str, Float[Array, ""]]]:
        """Towards actions that the critics value, at the price of their certainty. eq. 9"""
        temperature, critics = jnp.exp(learner.log_temperature), learner.critics
        seen = jax.lax.stop_gradient(shown(critics, batch.obs))

        def actor_loss(actor: Any) -> tuple[Array, Array]:
            action, log_prob = jax.vmap(actor)(seen).sample_with_log_prob(key)
            return jnp.mean(temperature * log_prob - _least(critics, batch.obs, action)), log_prob  # eq. 9

        (loss, log_prob), slope = jax.value_and_grad(actor_loss, has_aux=True)(learner.actor)
        actor, optimiser = descend(optax.adam(self.actor_rate), learner.actor, slope, learner.actor_optimiser)
        told = {"actor_loss": loss, "entropy": -jnp.mean(log_prob)}
        return learner._replace(actor=actor, actor_optimiser=optimiser), told

    def _step_temperature(self, learner: SACLearner, batch: Transition, entropy: Float[Array, ""]) -> SACLearner:
        """The temperature rises while the entropy is below its target: -log α (log π + H). eq. 18"""
        wanted = -batch.action.shape[-1] if self.target_entropy is None else self.target_entropy
        adam, old = optax.adam(self.temperature_rate), learner.log_temperature
        log_temperature, optimiser = descend(adam, old, entropy - wanted, learner.temperature_optimiser)
        return learner._replace(log_temperature=log_temperature, temperature_optimiser=optimiser)

    def critic_target(
        self, learner: SACLearner, batch: Transition, key: PRNGKeyArray, shown: Shown = as_they_are
    ) -> Float[Array, "B"]:
        """r + γ (min Q'(s', a') - α log π(a'|s')) with a fresh a'; no future where the MDP terminated. eq. 5."""
        said = jax.vmap(learner.actor)(shown(learner.critics, batch.next_obs))
        action, log_prob = said.sample_with_log_prob(key)
        value = _least(learner.targets, batch.next_obs, action) - jnp.exp(learner.log_temperature) * log_prob
        return batch.reward + self.discount * batch.discount * value


def _least(critics: Any, obs: PyTree, action: Array) -> Float[Array, "B"]:
    return jnp.min(jax.vmap(critics)(obs, action), axis=-1)
