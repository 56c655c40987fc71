"""Deep Q-learning: double, dueling, with a target network (van Hasselt et al. 2016; Wang et al. 2016)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from metadyna.collect.returns import masked_mean
from metadyna.improve.descend import descend
from metadyna.settings import Settings

LossFn = Callable[[Any], tuple[Array, dict[str, Array]]]


class DDQNLearner(NamedTuple):
    """A network that is trained against a slow copy of itself."""

    weights: Any
    target: Any
    optimiser: optax.OptState
    updates: Int[Array, ""]


@dataclass(frozen=True)
class DDQN(Settings):
    """Schedule of one Q-learner. Steps are environment steps of the agent that owns it."""

    learning_rate: Annotated[float, "(0, 1]"] = 1e-4
    """Adam's step size."""
    gradient_clip: Annotated[float, "(0, inf]"] = 10.0
    """Largest global L2 norm of a gradient."""
    discount: Annotated[float, "[0, 1]"] = 0.99
    """γ per step."""
    batch: Annotated[int, "[1, 65536]"] = 32
    """Items (episodes, or transitions) per update."""
    update_every: Annotated[int, "[1, 2000000000]"] = 4
    """Environment steps per update, once warm."""
    warmup: Annotated[int, "[0, 2000000000]"] = 500
    """Episodes collected before the first update."""
    target_period: Annotated[int, "[1, 2000000000]"] = 5_000
    """Environment steps between moves of the target network."""
    target_rate: Annotated[float, "(0, 1]"] = 1.0
    """How far the target moves towards the weights: 1 copies them, less is a Polyak average."""
    epsilon_start: Annotated[float, "[0, 1]"] = 1.0
    """Probability of a random action at the first step."""
    epsilon_end: Annotated[float, "[0, 1]"] = 0.01
    """Probability of a random action once annealed."""
    epsilon_steps: Annotated[int, "[1, 2000000000]"] = 250_000
    """Environment steps over which epsilon falls linearly."""

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """Adam on clipped gradients, as one vector: a network of many small layers compiles to far fewer operations."""
        return optax.flatten(optax.chain(optax.clip_by_global_norm(self.gradient_clip), optax.adam(self.learning_rate)))

    def start(self, weights: Any) -> DDQNLearner:
        """Start with the target equal to the weights."""
        # A copy, so that no buffer is shared when the state is donated.
        target = jax.tree.map(jnp.copy, weights)
        return DDQNLearner(weights, target, self.optimiser.init(weights), jnp.int32(0))

    def epsilon(self, steps: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Exploration rate after `steps` actions."""
        slope = (self.epsilon_start - self.epsilon_end) / self.epsilon_steps
        return jnp.maximum(self.epsilon_end, self.epsilon_start - slope * steps)

    def updates_due(self, before: Int[Array, ""], after: Int[Array, ""], episodes: Int[Array, ""]) -> Int[Array, ""]:
        """Updates owed for the environment steps from `before` to `after`; none until warm."""
        due = after // self.update_every - before // self.update_every
        return jnp.where(episodes >= self.warmup, due, 0)

    def update(self, learner: DDQNLearner, loss: LossFn) -> tuple[DDQNLearner, dict[str, Array]]:
        """One optimiser step on `loss(weights) -> (scalar, metrics)`; moves the target where its period is over."""
        gradients, metrics = jax.grad(loss, has_aux=True)(learner.weights)
        weights, optimiser = descend(self.optimiser, learner.weights, gradients, learner.optimiser)
        updates = learner.updates + 1
        period = max(1, self.target_period // self.update_every)

        def moved() -> Any:
            return (
                weights
                if self.target_rate == 1
                else optax.incremental_update(weights, learner.target, self.target_rate)
            )

        target = jax.lax.cond(updates % period == 0, moved, lambda: learner.target)
        return DDQNLearner(weights, target, optimiser, updates), metrics


def double_q_target(
    reward: Float[Array, "*batch"],
    discount: Float[Array, "*batch"],
    next_online: Float[Array, "*batch actions"],
    next_target: Float[Array, "*batch actions"],
) -> Float[Array, "*batch"]:
    """r + γ Q_target(s', argmax_a Q_online(s', a)); `discount` is γ, or 0 where the MDP terminated.

    van Hasselt et al. 2016, eq. 4.
    """
    best = jnp.argmax(next_online, axis=-1, keepdims=True)
    return reward + discount * jnp.take_along_axis(next_target, best, axis=-1)[..., 0]


def td_loss(
    values: Float[Array, "*batch actions"],
    action: Int[Array, "*batch"],
    target: Float[Array, "*batch"],
    valid: Bool[Array, "*batch"],
) -> Float[Array, ""]:
    """Mean squared temporal-difference error over the valid steps; no gradient flows into `target`."""
    chosen = jnp.take_along_axis(values, action[..., None], axis=-1)[..., 0]
    return masked_mean((chosen - jax.lax.stop_gradient(target)) ** 2, valid)
