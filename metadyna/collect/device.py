"""Stepping pure environments inside the compiled program."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key, PRNGKeyArray, PyTree

from metadyna.collect.compute import compiled
from metadyna.collect.episodes import Seen, chosen, transition, unseen, where_rows
from metadyna.types import (
    Act,
    Average,
    Carry,
    Collected,
    Env,
    Metrics,
    Outcome,
    Params,
    Played,
    State,
    Task,
    TaskDistribution,
    TimeStep,
    Transition,
)


@dataclass(frozen=True)
class DeviceCollector:
    """Rolls pure environments out; `tasks` are the ones to train on.

    With `watch`, transitions keep what agents do not see: pairs of `episodes.Seen`, before and after the step.
    """

    env: Env
    tasks: TaskDistribution
    watch: bool = False

    def episodes(
        self, act: Act, params: Params, carry: Carry, tasks: Task, key: PRNGKeyArray, before: Outcome | None = None
    ) -> Played:
        """Play one episode per task, [T, B] with T the horizon.

        `carry` is the agent's memory at the start of each episode, batched [B] like `tasks`, and `before` how the last
        step of its last episode went. `act` speaks of one copy of the environment. Steps after the end are padding:
        they repeat it, and change nothing that the agent remembers.
        """
        batch = jax.tree.leaves(tasks)[0].shape[0]
        before = Outcome.none(self.env.spec.action, batch) if before is None else before
        keys = jax.random.split(key, batch)
        play = jax.vmap(self._episode, in_axes=(None, None, 0, 0, 0, 0), out_axes=(1, 0, 0))
        return Played(*play(act, params, carry, tasks, keys, before))

    def episodes_of_each(
        self, act: Act, params: Params, carry: Carry, tasks: Task, count: int, key: PRNGKeyArray
    ) -> Played:
        """Play `count` episodes of every task [M], every task with weights of its own [M, ...]: [T, M, count].

        `carry` is batched [M, count], and so are memories and outcomes after the episodes.
        """
        groups = jax.tree.leaves(tasks)[0].shape[0]
        keys = jax.random.split(key, (groups, count))
        before = Outcome.none(self.env.spec.action, count)
        play = jax.vmap(self._episode, in_axes=(None, None, 0, None, 0, 0), out_axes=(1, 0, 0))
        play = jax.vmap(play, in_axes=(None, 0, 0, 0, 0, None), out_axes=(1, 0, 0))
        return Played(*play(act, params, carry, tasks, keys, before))

    def _episode(
        self, act: Act, params: Params, carry: Carry, task: Task, key: PRNGKeyArray, before: Outcome
    ) -> tuple[Transition, Carry, Outcome]:
        def step(
            state: tuple[PyTree, TimeStep, Carry], keys: Array
        ) -> tuple[tuple[PyTree, TimeStep, Carry], Transition]:
            env_state, timestep, carry = state
            action, remembered, extras = act(params, carry, unseen(timestep), keys[0])
            next_state, after = self.env.step(task, env_state, action, keys[1])
            stay, go_on = (timestep, carry), (chosen(after, action), remembered)
            after, carry = jax.tree.map(lambda old, new: jnp.where(timestep.last, old, new), stay, go_on)
            hidden = (Seen(env_state, timestep.hidden), Seen(next_state, after.hidden)) if self.watch else ()
            return (next_state, after, carry), transition(timestep, action, after, extras, hidden)

        k_reset, k_steps = jax.random.split(key)
        env_state, timestep = self.env.reset(task, k_reset)
        keys = jax.random.split(k_steps, (self.env.spec.horizon, 2))
        (_, ended, carry), episode = lax.scan(step, (env_state, timestep.after(before), carry), keys)
        return episode, carry, Outcome.of(ended)

    def begin(self, carry: Carry, batch: int, key: PRNGKeyArray) -> Collected:
        """Start `batch` copies, each on a training task of its own."""
        tasks, env, timestep = jax.vmap(self._start)(jax.random.split(key, batch))
        return fresh(tasks, env, timestep, carry)

    def collect(
        self, act: Act, params: Params, collected: Collected, key: PRNGKeyArray, steps: int
    ) -> tuple[Collected, Transition]:
        """Go on for `steps` steps: [steps, B]. Where an episode ends, the next begins on a new training task.

        The agent sees the first observation of the next episode with `first`, and how the last step went; it is its
        own `act` that forgets there, or does not.
        """
        batch = collected.returns.shape[0]

        def one(copy: Collected, keys: Array) -> tuple[Collected, Transition]:
            action, carry, extras = act(params, copy.carry, unseen(copy.timestep), keys[0])
            env, after = self.env.step(copy.tasks, copy.env, action, keys[1])
            after = chosen(after, action)
            hidden = (Seen(copy.env, copy.timestep.hidden), Seen(env, after.hidden)) if self.watch else ()
            lived = transition(copy.timestep, action, after, extras, hidden)
            return copy._replace(env=env, timestep=after, carry=carry), lived

        def all_copies(collected: Collected, key: Array) -> tuple[Collected, Transition]:
            keys = jax.random.split(key, (batch, 3))
            copies, lived = jax.vmap(one)(collected._replace(finished={}), keys[:, :2])
            copies = self._restart(copies, keys[:, 2])
            return tally(copies._replace(finished=collected.finished), lived), lived

        return lax.scan(all_copies, collected._replace(finished=nothing_finished()), jax.random.split(key, steps))

    def scan(
        self, step: Callable[[State, Key[Array, ""]], tuple[State, PyTree]], state: State, keys: Key[Array, "times"]
    ) -> tuple[State, PyTree]:
        """Apply `step(state, key) -> (state, made)` once per key; stacks what was made."""
        return lax.scan(step, state, keys)

    def compute(self, function: Callable[..., Any], *arguments: PyTree, static: tuple = (), spend: bool = False) -> Any:
        """Compile and call `function(*static, *arguments)`; within a compiled chunk, part of it."""
        return compiled(function, len(static), donate=False)(*static, *arguments)

    def _restart(self, copies: Collected, keys: Key[Array, "B"]) -> Collected:
        """Begin the next episode of the copies that have ended theirs."""

        def restart(copies: Collected) -> Collected:
            stayed = copies.tasks, copies.env, copies.timestep
            tasks, env, timestep = jax.vmap(self._start)(keys)
            started = tasks, env, timestep.after(Outcome.of(copies.timestep))
            tasks, env, timestep = where_rows(copies.timestep.last, started, stayed)
            return copies._replace(tasks=tasks, env=env, timestep=timestep)

        return lax.cond(jnp.any(copies.timestep.last), restart, lambda copies: copies, copies)

    def _start(self, key: PRNGKeyArray) -> tuple[Task, PyTree, TimeStep]:
        k_task, k_reset = jax.random.split(key)
        task = self.tasks.sample(k_task)
        return task, *self.env.reset(task, k_reset)


def fresh(tasks: Task, env: PyTree, timestep: TimeStep, carry: Carry) -> Collected:
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
