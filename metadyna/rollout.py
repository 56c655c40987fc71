"""Collectors: the only code that steps an environment."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from metadyna.types import ActFn, Env, TaskDistribution, TimeStep, Transition


@dataclass(frozen=True)
class DeviceCollector:
    """Rolls pure environments out inside the compiled program.

    `tasks` are the ones to train on.
    """

    env: Env
    tasks: TaskDistribution

    def episodes(self, act: ActFn, params: Any, carry: Any, tasks: Any, key: PRNGKeyArray) -> Transition:
        """Play one episode per task, [T, B] with T the horizon; steps after the end are padding.

        `carry` is the agent's memory at the start of each episode, batched [B] like `tasks`. `act` speaks of one
        copy of the environment.
        """
        batch = jax.tree.leaves(tasks)[0].shape[0]
        keys = jax.random.split(key, batch)
        play = jax.vmap(self._episode, in_axes=(None, None, 0, 0, 0), out_axes=1)
        return play(act, params, carry, tasks, keys)

    def _episode(self, act: ActFn, params: Any, carry: Any, task: Any, key: PRNGKeyArray) -> Transition:
        def step(state: tuple[Any, TimeStep, Any], keys: Array) -> tuple[tuple[Any, TimeStep, Any], Transition]:
            env_state, timestep, carry = state
            action, carry, extras = act(params, carry, timestep, keys[0])
            env_state, after = self.env.step(task, env_state, action, keys[1])
            transition = Transition(timestep.obs, action, after.reward, after.discount, after.obs, after.last, extras)
            return (env_state, after, carry), transition

        k_reset, k_steps = jax.random.split(key)
        env_state, timestep = self.env.reset(task, k_reset)
        keys = jax.random.split(k_steps, (self.env.spec.horizon, 2))
        return lax.scan(step, (env_state, timestep, carry), keys)[1]


def valid_steps(last: Bool[Array, "T *batch"]) -> Bool[Array, "T *batch"]:
    """Mark the steps of an episode up to and including the first `last`; the rest is padding."""
    ended = jnp.cumsum(last, axis=0)
    return ended - last == 0


def episode_lengths(last: Bool[Array, "T *batch"]) -> Int[Array, "*batch"]:
    """Steps until the first `last`, inclusive."""
    return jnp.sum(valid_steps(last), axis=0)


def episode_returns(episodes: Transition) -> Array:
    """Undiscounted return of each padded episode, [B]."""
    return jnp.sum(jnp.where(valid_steps(episodes.last), episodes.reward, 0.0), axis=0)


def previous_actions(action: Int[Array, "T *batch"]) -> Int[Array, "T1 *batch"]:
    """The action before each of the T + 1 observations of an episode; -1 before the first."""
    return jnp.concatenate([jnp.full_like(action[:1], -1), action])


def all_observations(episodes: Transition) -> Array:
    """The T + 1 observations of padded episodes: the first, then every successor, [T + 1, B, ...]."""
    return jnp.concatenate([episodes.obs[:1], episodes.next_obs])
