"""An execution agent that plans: values at the leaves of a tree, in a model of what it reads (compare Oh et al. 2017).

    h = trunk(s, i, z);   the model:  (h, a) → h', r, g;   values Q(h, a) learnt as without a model
    acting:  the mean of Q⁰, …, Qᵈ of a tree that is grown from h (`planning/tree.py`)
    learning:  double DQN on Q  +  (r − r̂)² + (γ_t − ĝ)² + ‖h'(h, a) − sg h(s')‖² / width

Everything is conditioned on the context through h alone, so one model serves all hidden problems.
"""

from dataclasses import dataclass
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.adapt.decoupled import Attempt, Contexts
from metadyna.collect.episodes import valid_steps
from metadyna.collect.returns import masked_mean
from metadyna.improve.execution import value_loss
from metadyna.nets.layers import MLP
from metadyna.planning.tree import planned_values
from metadyna.policies.action_values import FeedForwardPolicy
from metadyna.settings import Settings
from metadyna.types import Problems, num_actions


class Imagined(eqx.Module):
    """The values and the model, as a tree asks for them (`planning.tree.TreeModel`)."""

    policy: FeedForwardPolicy
    model: MLP

    def step(self, x: Float[Array, "hidden"], action: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """Next h, reward, and discount in [0, 1]."""
        actions = self.policy.values.advantage.weight.shape[1]
        told = self.model(jnp.concatenate([x, jax.nn.one_hot(action, actions)]))
        return x + told[2:], told[0], jax.nn.sigmoid(told[1])

    def value(self, x: Float[Array, "hidden"]) -> Float[Array, "actions"]:
        """Q(h, ·)."""
        return self.policy.values(x)


@dataclass(frozen=True)
class Planned(Settings):
    """Values of the observation alone, planned with in a model that is learnt beside them, from whole episodes."""

    depth: Annotated[int, "[0, 12]"] = 2
    """d, steps planned ahead."""
    breadth: Annotated[int, "[1, 1024]"] = 3
    """Actions tried at every node below the root."""
    model_width: Annotated[int, "[1, 4096]"] = 128
    """Hidden units of the model."""

    whole = True

    def create(self, env: Problems, context: int, key: PRNGKeyArray) -> Imagined:
        """Draw the weights."""
        k_policy, k_model = jax.random.split(key)
        policy = FeedForwardPolicy.create(env.spec, env.instruction_space, context, k_policy)
        hidden = policy.trunk.layers[-1].weight.shape[1]
        return Imagined(policy, MLP.create((hidden + num_actions(env.spec), self.model_width, 2 + hidden), k_model))

    def initial(self, weights: Imagined, batch: int) -> tuple[()]:
        """No memory."""
        return ()

    def act(
        self,
        env: Problems,
        weights: Imagined,
        memory: tuple[()],
        obs: Array,
        instruction: Array,
        context: Float[Array, "context"],
    ) -> tuple[Float[Array, "actions"], tuple[()]]:
        """Planned values of one copy's observation."""
        x = weights.policy.hidden(obs, instruction, context)
        return planned_values(weights, x, self.depth, self.breadth), memory

    def losses(
        self, env: Problems, weights: Imagined, target: Imagined, attempts: Attempt, contexts: Contexts, discount: float
    ) -> dict[str, Float[Array, ""]]:
        """The temporal-difference error, and what the model gets wrong."""
        steps, valid = attempts.execute, valid_steps(attempts.execute.last)
        over = jax.vmap(jax.vmap(weights.policy.hidden), (0, None, None))
        x, after = (over(obs, attempts.instruction, contexts.online) for obs in (steps.obs, steps.next_obs))
        made, reward, onwards = jax.vmap(jax.vmap(weights.step))(x, steps.action)
        missed = jnp.mean((made - jax.lax.stop_gradient(after)) ** 2, axis=-1)
        wrong = (reward - steps.reward) ** 2 + (onwards - discount * steps.discount) ** 2 + missed
        values = value_loss(env, weights.policy, target.policy, attempts, contexts, discount)
        return {"td_loss": values, "model_loss": masked_mean(wrong, valid)}
