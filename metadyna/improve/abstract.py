"""Learning an abstract model and the Q-function that shares its state, from transitions (CRAR, see systems/crar.py).

Every loss has an optimiser of its own, and they are applied one after the other, so that each sees what those before it
did to the encoder; or all losses are added up for a single step, which encodes every observation once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from metadyna.errors import UserError
from metadyna.improve.ddqn import double_q_target
from metadyna.improve.descend import descend, rmsprop
from metadyna.models.abstract import (
    Abstract,
    discount_loss,
    range_loss,
    reward_loss,
    spread_loss,
    transition_loss,
    unrelated,
)
from metadyna.nets.layers import MLP
from metadyna.nets.sight import Sight
from metadyna.settings import Settings
from metadyna.types import Transition


class AbstractLearner(NamedTuple):
    """Weights, the frozen copy that values are learnt against, and one optimiser per loss."""

    weights: Abstract
    target: Abstract
    optimisers: dict[str, optax.OptState]
    updates: Int[Array, ""]


class Encoded(NamedTuple):
    """A batch of transitions and the encodings of its observations."""

    x: Float[Array, "B *abstract"]
    next_x: Float[Array, "B *abstract"]
    batch: Transition
    discount: Float[Array, "B"]
    """γ, or 0 where the MDP ended."""


Loss = Callable[[Abstract, Encoded], Array]

ValueTerm = Callable[[Abstract, Abstract, Encoded, Array], tuple[Array, dict[str, Array]]]
"""`term(weights, target, encoded, q_target [B]) -> (loss, metrics)`, added to the loss of the Q-function."""


@dataclass(frozen=True)
class AbstractLearning(Settings):
    """How an abstract model and its Q-function are learnt. The defaults are those of the authors' code (VinF/deer)."""

    learning_rate: Annotated[float, "(0, 1]"] = 5e-4
    """RMSprop's step size."""
    rate_decay: Annotated[float, "(0, 1]"] = 1.0
    """Factor on the step size after every `decay_period` updates."""
    decay_period: Annotated[int, "[1, 2000000000]"] = 2_000
    """Updates between two decays."""
    gradient_clip: Annotated[float, "(0, inf]"] = 1.0
    """Largest global L2 norm of a loss's gradient."""
    schedule: Literal["each", "joint"] = "each"
    """An optimiser step for each loss in turn, or one for their sum."""
    discount: Annotated[float, "[0, 1]"] = 0.9
    """γ per step."""
    batch: Annotated[int, "[2, 65536]"] = 32
    """Transitions per update, drawn uniformly with replacement."""
    target_period: Annotated[int, "[1, 2000000000]"] = 1_000
    """Updates between two refreshments of the frozen copy."""
    successive: Annotated[float, "[0, 100]"] = 1.0
    """β: what driving successive states apart counts beside other losses; with `each`, a factor on the step size."""
    directions: tuple[tuple[Annotated[float, "[-1000, 1000]"], ...] | None, ...] | None = None
    """Where each action should move the first abstract coordinates; None leaves an action, or all of them, alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for direction in self.directions or ():
            if direction is not None and not any(direction):
                raise UserError("AbstractLearning.directions holds one of length 0; None leaves an action alone")

    def start(self, weights: Abstract) -> AbstractLearner:
        """Start with the frozen copy equal to the weights."""
        if self.directions is not None:
            self._check_directions(self.directions, weights)
        names = (*self.losses, "value") if self.schedule == "each" else ("joint",)
        tree: Any = weights
        optimisers = {name: self._optimiser(name).init(tree) for name in names}
        return AbstractLearner(weights, jax.tree.map(jnp.copy, weights), optimisers, jnp.int32(0))

    @property
    def losses(self) -> Mapping[str, Loss]:
        """The losses of the model, in the order in which they are applied."""
        losses: dict[str, Loss] = {
            "transition": lambda w, e: transition_loss(w, e.x, e.batch.action, e.next_x, e.batch.discount),
            "reward": lambda w, e: reward_loss(w, e.x, e.batch.action, e.batch.reward),
            "discount": lambda w, e: discount_loss(w, e.x, e.batch.action, e.discount),
            "range": lambda w, e: range_loss(e.x),
            "unrelated": lambda w, e: spread_loss(e.x, unrelated(e.x)),
            "successive": lambda w, e: spread_loss(e.x, e.next_x, e.batch.discount),
        }
        if self.directions is not None:
            losses["direction"] = self._direction_loss
        return losses

    def update(
        self, learner: AbstractLearner, batch: Transition, see: Sight, term: ValueTerm | None = None
    ) -> tuple[AbstractLearner, dict[str, Array]]:
        """One round on a batch [B]; metrics are the losses, and what `term` tells."""
        refreshed = learner.updates % self.target_period == 0
        weights, optimisers, metrics = learner.weights, dict(learner.optimisers), {}

        def encode(weights: Abstract) -> Encoded:
            both = see(weights.encoder, jnp.concatenate([batch.obs, batch.next_obs]))
            x, next_x = jnp.split(both, 2)
            return Encoded(x, next_x, batch, self.discount * batch.discount)

        def refresh(weights: Abstract) -> Abstract:
            return jax.tree.map(lambda new, old: jnp.where(refreshed, new, old), weights, learner.target)

        def descend_on(name: str, loss: Callable[[Abstract], tuple[Array, dict[str, Array]]]) -> None:
            nonlocal weights
            slope, told = jax.grad(loss, has_aux=True)(weights)
            weights, optimisers[name] = descend(self._optimiser(name), weights, slope, optimisers[name])
            metrics.update(told)

        if self.schedule == "each":
            for name, loss in self.losses.items():
                descend_on(name, lambda w, name=name, loss=loss: _told(name, loss(w, encode(w))))
            target = refresh(weights)
            descend_on("value", lambda w: self._value_loss(w, target, encode(w), see, term))
        else:
            target = refresh(weights)

            def total(weights: Abstract) -> tuple[Array, dict[str, Array]]:
                encoded = encode(weights)
                value, told = self._value_loss(weights, target, encoded, see, term)
                for name, loss in self.losses.items():
                    part = loss(weights, encoded)
                    told[name] = part
                    value += part * (self.successive if name == "successive" else 1)
                return value, told

            descend_on("joint", total)
        return AbstractLearner(weights, target, optimisers, learner.updates + 1), metrics

    def _value_loss(
        self, weights: Abstract, target: Abstract, encoded: Encoded, see: Sight, term: ValueTerm | None
    ) -> tuple[Array, dict[str, Array]]:
        """Mean squared error of the double-Q target: the weights choose, the frozen copy evaluates."""
        next_online = jax.vmap(weights.value)(encoded.next_x)
        next_target = jax.vmap(target.value)(see(target.encoder, encoded.batch.next_obs))
        aim = double_q_target(encoded.batch.reward, encoded.discount, next_online, next_target)
        aim = jax.lax.stop_gradient(aim)
        values = jax.vmap(weights.value)(encoded.x)
        chosen = jnp.take_along_axis(values, encoded.batch.action[:, None], axis=1)[:, 0]
        loss = jnp.mean((chosen - aim) ** 2)
        metrics = {"value": loss, "q": jnp.mean(chosen)}
        if term is None:
            return loss, metrics
        added, told = term(weights, target, encoded, aim)
        return loss + added, {**metrics, **told}

    def _check_directions(self, directions: tuple[tuple[float, ...] | None, ...], weights: Abstract) -> None:
        if len(directions) != weights.actions:
            raise UserError(
                f"AbstractLearning.directions has {len(directions)} entries; there are {weights.actions} actions"
            )
        if not isinstance(weights.change, MLP):
            raise UserError("AbstractLearning.directions needs abstract states that are vectors, not maps")
        width = weights.change.layers[-1].bias.size
        longest = max((len(direction) for direction in directions if direction is not None), default=0)
        if longest > width:
            raise UserError(f"AbstractLearning.directions has one of length {longest}; abstract states have {width}")

    def _direction_loss(self, weights: Abstract, encoded: Encoded) -> Float[Array, ""]:
        """Minus the cosine between each action's predicted move and its direction (section 4.2 of the paper)."""
        total = jnp.float32(0)
        for action, direction in enumerate(self.directions or ()):
            if direction is None:
                continue
            moved = jax.vmap(weights.next, (0, None))(encoded.x, jnp.int32(action)) - encoded.x
            moved, wanted = moved[:, : len(direction)], jnp.array(direction)
            norms = jnp.sqrt(jnp.sum(moved**2, axis=1) + 1e-12) * jnp.linalg.norm(wanted)
            total -= jnp.mean(moved @ wanted / norms)
        return total

    def _optimiser(self, name: str) -> optax.GradientTransformation:
        rate = self.learning_rate * (self.successive if name == "successive" else 1)
        decayed = optax.exponential_decay(rate, self.decay_period, self.rate_decay, staircase=True)
        return optax.flatten(optax.chain(optax.clip_by_global_norm(self.gradient_clip), rmsprop(decayed)))


def _told(name: str, loss: Array) -> tuple[Array, dict[str, Array]]:
    return loss, {name: loss}
