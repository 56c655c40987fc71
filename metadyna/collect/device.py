"""Collectors: the only code that steps an environment."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key, PRNGKeyArray

from metadyna.types import ActFn, Average, Collected, Env, Metrics, TaskDistribution, TimeStep, Transition


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

    def episodes_of_each(self, act: ActFn, params: Any, tasks: Any, count: int, key: PRNGKeyArray) -> Transition:
        """Play `count` episodes of every task [M], every task with weights of its own [M, ...]: [T, M, count].

        For agents without memory.
        """
        keys = jax.random.split(key, (jax.tree.leaves(tasks)[0].shape[0], count))
        play = jax.vmap(self._episode, in_axes=(None, None, None, None, 0), out_axes=1)
        play = jax.vmap(play, in_axes=(None, 0, None, 0, 0), out_axes=1)
        return play(act, params, (), tasks, keys)

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

    def begin(self, carry: Any, batch: int, key: PRNGKeyArray) -> Collected:
        """Start `batch` copies, each on a training task of its own."""
        tasks, env, timestep = jax.vmap(self._start)(jax.random.split(key, batch))
        return fresh(tasks, env, timestep, carry)

    def collect(
        self, act: ActFn, params: Any, collected: Collected, key: PRNGKeyArray, steps: int
    ) -> tuple[Collected, Transition]:
        """Go on for `steps` steps: [steps, B]. Where an episode ends, the next begins on a new training task.

        The agent sees the first observation of the next episode with `first`; its `act` resets its memory there.
        """
        batch = collected.returns.shape[0]

        def one(copy: Collected, keys: Array) -> tuple[Collected, Transition]:
            action, carry, extras = act(params, copy.carry, copy.timestep, keys[0])
            env, after = self.env.step(copy.tasks, copy.env, action, keys[1])
            before = copy.timestep.obs
            transition = Transition(before, action, after.reward, after.discount, after.obs, after.last, extras)
            stayed, started = (copy.tasks, env, after), self._start(keys[2])
            tasks, env, timestep = jax.tree.map(lambda new, old: jnp.where(after.last, new, old), started, stayed)
            return copy._replace(tasks=tasks, env=env, timestep=timestep, carry=carry), transition

        def all_copies(collected: Collected, key: Array) -> tuple[Collected, Transition]:
            copies = collected._replace(finished={})
            copies, transition = jax.vmap(one)(copies, jax.random.split(key, (batch, 3)))
            return tally(copies._replace(finished=collected.finished), transition), transition

        return lax.scan(all_copies, collected._replace(finished=nothing_finished()), jax.random.split(key, steps))

    def repeat(self, step: Any, state: Any, keys: Key[Array, "times"]) -> tuple[Any, Metrics]:
        """Apply `step(state, key) -> (state, metrics)` once per key; adds the metrics up."""
        state, metrics = lax.scan(step, state, keys)
        return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

    def _start(self, key: PRNGKeyArray) -> tuple[Any, Any, TimeStep]:
        k_task, k_reset = jax.random.split(key)
        task = self.tasks.sample(k_task)
        return task, *self.env.reset(task, k_reset)


def fresh(tasks: Any, env: Any, timestep: TimeStep, carry: Any) -> Collected:
    """Copies that have just been reset."""
    batch = timestep.first.shape
    zeros = jnp.zeros(batch, jnp.float32), jnp.zeros(batch, jnp.int32)
    return Collected(tasks, env, timestep, carry, *zeros, nothing_finished())


def nothing_finished() -> Metrics:
    """The averages over no episodes."""
    none = Average(jnp.float32(0), jnp.int32(0))
    return {"train/episode_return": none, "train/episode_length": none}


def tally(collected: Collected, step: Transition) -> Collected:
    """Count one step [B] in, and book the episodes that ended with it."""
    returns, lengths = collected.returns + step.reward, collected.lengths + 1
    ended = {
        "train/episode_return": Average.over(returns, step.last),
        "train/episode_length": Average.over(lengths.astype(jnp.float32), step.last),
    }
    return collected._replace(
        returns=jnp.where(step.last, 0, returns),
        lengths=jnp.where(step.last, 0, lengths),
        finished=jax.tree.map(jnp.add, collected.finished, ended),
    )
