"""Policies that remember: a recurrent network reads all that was seen of a task, and a policy reads its state."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from metadyna.nets.inputs import Inputs
from metadyna.nets.recurrent import GRU
from metadyna.policies.direct import Policy, create
from metadyna.policies.distributions import Distribution
from metadyna.types import EnvSpec, TimeStep, Transition


class Seen(NamedTuple):
    """What the network is shown of every step: the observation, how the step before went, if an episode begins."""

    obs: Array
    prev_action: Array
    reward: Float[Array, "*batch"]
    first: Bool[Array, "*batch"]

    @staticmethod
    def of(timestep: TimeStep) -> "Seen":
        """While acting."""
        return Seen(timestep.obs, timestep.prev_action, timestep.reward, timestep.first)

    @staticmethod
    def during(steps: Transition) -> "Seen":
        """While learning from sequences [T, B] in which step follows step (`collect.trials.joined`)."""
        none = -1 if jnp.issubdtype(steps.action.dtype, jnp.integer) else 0
        before = (steps.action, none), (steps.reward, 0), (steps.last, True)
        shifted = [jnp.concatenate([jnp.full_like(x[:1], start), x[:-1]]) for x, start in before]
        return Seen(steps.obs, *shifted)


class Recall(eqx.Module):
    """A memory [width] of everything seen."""

    gru: GRU
    obs: Inputs = eqx.field(static=True)
    action: Inputs = eqx.field(static=True)

    @staticmethod
    def create(spec: EnvSpec, width: int, key: PRNGKeyArray) -> "Recall":
        """Draw the weights; `UserError` unless observations and actions are vectors of floats or of integers."""
        obs, action = Inputs.of(spec.observation), Inputs.of(spec.action)
        return Recall(GRU.create(obs.width + action.width + 2, width, key), obs, action)

    def initial(self, batch: int) -> Float[Array, "batch width"]:
        """Nothing remembered."""
        return self.gru.initial((batch,))

    def step(self, memory: Float[Array, "width"], seen: Seen) -> Float[Array, "width"]:
        """The memory of one copy after one more step."""
        return self.gru.step(memory, self._projected(seen))

    def over(self, seen: Seen) -> Float[Array, "T B width"]:
        """The memories after every step of B sequences, each from nothing."""
        return self.gru.unroll(self._projected(seen))

    def _projected(self, seen: Seen) -> Float[Array, "*batch gates"]:
        told = jnp.stack([seen.reward, seen.first.astype(jnp.float32)], axis=-1)
        action = seen.prev_action if self.action.sizes is None else seen.prev_action[..., None]
        inputs = jnp.concatenate([self.obs(seen.obs), self.action(action), told], axis=-1)
        bias = jnp.broadcast_to(self.gru.project.bias, (*inputs.shape[:-1], self.gru.project.bias.shape[0]))
        return inputs @ self.gru.project.weight + bias


class RecallingPolicy(eqx.Module):
    """A memory, and a policy that reads it."""

    recall: Recall
    policy: Policy

    @staticmethod
    def create(spec: EnvSpec, width: int, key: PRNGKeyArray, log_std: float = 0.0) -> "RecallingPolicy":
        """Draw the weights; at first all actions are about as likely."""
        k_recall, k_policy = jax.random.split(key)
        policy = create(spec, (), k_policy, log_std, read=Inputs(width))
        return RecallingPolicy(Recall.create(spec, width, k_recall), policy)

    def over(self, seen: Seen) -> Distribution:
        """The distributions over actions at every step of sequences [T, B]."""
        return jax.vmap(jax.vmap(self.policy))(self.recall.over(seen))


def practise(
    params: RecallingPolicy, memory: Float[Array, "width"], timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, Float[Array, "width"], Float[Array, ""]]:
    """Remember what is seen, and draw an action; its log-density is noted."""
    memory = params.recall.step(memory, Seen.of(timestep))
    action, log_prob = params.policy(memory).sample_with_log_prob(key)
    return action, memory, log_prob


def perform(
    params: RecallingPolicy, memory: Float[Array, "width"], timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, Float[Array, "width"], tuple[()]]:
    """Remember what is seen, and take the most likely action."""
    del key
    memory = params.recall.step(memory, Seen.of(timestep))
    return params.policy(memory).mode(), memory, ()
