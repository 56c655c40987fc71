"""Collecting from simulators that live on the host: a loop in Python around one compiled function that acts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PRNGKeyArray, PyTree

from metadyna.collect.compute import compiled
from metadyna.collect.episodes import Seen, chosen, transition, unseen, where_rows
from metadyna.types import (
    Act,
    Average,
    Carry,
    Collected,
    HostEnv,
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
class HostCollector:
    """Steps B simulators; the same interface and the same meaning as `device.DeviceCollector`.

    With `donate` what is spent on a computation is overwritten, so nobody else may hold it.
    """

    env: HostEnv
    tasks: TaskDistribution
    watch: bool = False
    donate: bool = False

    def episodes(
        self, act: Act, params: Params, carry: Carry, tasks: Task, key: PRNGKeyArray, before: Outcome | None = None
    ) -> Played:
        """Play one episode per task, [T, B] with T the horizon; steps after the end are padding that repeats it."""
        return self._play(act, params, carry, jax.tree.map(np.asarray, tasks), key, before)

    def episodes_of_each(
        self, act: Act, params: Params, carry: Carry, tasks: Task, count: int, key: PRNGKeyArray
    ) -> Played:
        """Play `count` episodes of every task [M], every task with weights of its own [M, ...]: [T, M, count].

        `carry` is batched [M, count], and so are memories and outcomes after the episodes.
        """
        groups = jax.tree.leaves(tasks)[0].shape[0]
        tasks = jax.tree.map(lambda x: np.repeat(np.asarray(x), count, axis=0), tasks)
        carry = jax.tree.map(lambda x: x.reshape(groups * count, *x.shape[2:]), carry)
        episodes, *rest = self._play(act, params, carry, tasks, key, groups=groups)
        episodes = jax.tree.map(lambda x: x.reshape(x.shape[0], groups, count, *x.shape[2:]), episodes)
        carry, outcome = jax.tree.map(lambda x: x.reshape(groups, count, *x.shape[1:]), rest)
        return Played(episodes, carry, outcome)

    def _play(
        self,
        act: Act,
        params: Params,
        carry: Carry,
        tasks: Task,
        key: PRNGKeyArray,
        before: Outcome | None = None,
        groups: int | None = None,
    ) -> Played:
        batch = jax.tree.leaves(tasks)[0].shape[0]
        before = Outcome.none(self.env.spec.action, batch) if before is None else before
        k_reset, k_act = jax.random.split(key)
        state, timestep = self.env.reset(tasks, _seeds(k_reset, batch), None, np.ones(batch, bool))
        timestep, steps = timestep.after(jax.tree.map(np.asarray, before)), []
        for time in range(self.env.spec.horizon):
            action, carry, extras = _act(act, params, carry, unseen(timestep), k_act, time, groups)
            action = np.asarray(action)
            next_state, after = self.env.step(tasks, state, action)
            after = _where(timestep.last, timestep, chosen(after, action))
            steps.append(self._transition(state, timestep, action, next_state, after, extras))
            state, timestep = next_state, after
            if timestep.last.all():
                break
        padding = self.env.spec.horizon - len(steps)
        episodes = jax.tree.map(lambda *x: jnp.asarray(_pad(np.stack(x), padding)), *steps)
        return Played(episodes, carry, jax.tree.map(jnp.asarray, Outcome.of(timestep)))

    def begin(self, carry: Carry, batch: int, key: PRNGKeyArray) -> Collected:
        """Start `batch` copies, each on a training task of its own."""
        k_task, k_reset = jax.random.split(key)
        tasks = self._sample(k_task, batch)
        state, timestep = self.env.reset(tasks, _seeds(k_reset, batch), None, np.ones(batch, bool))
        zeros = np.zeros(batch, np.float32), np.zeros(batch, np.int32)
        return Collected(tasks, state, timestep, carry, *zeros, _booked(np.zeros(0), np.zeros(0)))

    def collect(
        self, act: Act, params: Params, collected: Collected, key: PRNGKeyArray, steps: int
    ) -> tuple[Collected, Transition]:
        """Go on for `steps` steps: [steps, B]. Where an episode ends, the next begins on a new training task."""
        tasks, state, timestep = jax.tree.map(np.asarray, collected[:3])  # a checkpoint may have put them on a device
        carry = collected.carry
        returns, lengths = np.asarray(collected.returns), np.asarray(collected.lengths)
        ended, made = [], []
        for time in range(steps):
            action, carry, extras = _act(act, params, carry, unseen(timestep), key, time)
            action = np.asarray(action)
            next_state, after = self.env.step(tasks, state, action)
            after = chosen(after, action)
            made.append(self._transition(state, timestep, action, next_state, after, extras))
            returns, lengths, state, timestep = returns + after.reward, lengths + 1, next_state, after
            if after.last.any():
                ended.append((returns[after.last], lengths[after.last]))
                returns, lengths = returns * ~after.last, lengths * ~after.last
                k_task, k_reset = jax.random.split(jax.random.fold_in(key, 2**31 + time))
                tasks = _where(after.last, self._sample(k_task, len(after.last)), tasks)
                state, fresh = self.env.reset(tasks, _seeds(k_reset, len(after.last)), state, after.last)
                timestep = _where(after.last, fresh.after(Outcome.of(after)), after)
        finished = _booked(*(np.concatenate(x) for x in zip(*ended, strict=True))) if ended else _booked(*_NONE)
        lengths = lengths.astype(np.int32)
        collected = Collected(tasks, state, timestep, carry, returns.astype(np.float32), lengths, finished)
        return collected, jax.tree.map(lambda *x: np.stack(x), *made)

    def scan(
        self, step: Callable[[State, Key[Array, ""]], tuple[State, PyTree]], state: State, keys: Key[Array, "times"]
    ) -> tuple[State, PyTree]:
        """Apply `step(state, key) -> (state, made)` once per key; stacks what was made."""
        made = []
        for key in keys:
            state, new = step(state, key)
            made.append(new)
        return state, jax.tree.map(lambda *x: np.stack(x), *made)

    def compute(self, function: Callable[..., Any], *arguments: PyTree, static: tuple = (), spend: bool = False) -> Any:
        """Compile and call `function(*static, *arguments)`."""
        return compiled(function, len(static), self.donate and spend)(*static, *arguments)

    def _transition(
        self, state: PyTree, before: TimeStep, action: PyTree, next_state: PyTree, after: TimeStep, extras: PyTree
    ) -> Transition:
        hidden = (Seen(state, before.hidden), Seen(next_state, after.hidden)) if self.watch else ()
        return transition(before, np.asarray(action), after, jax.tree.map(np.asarray, extras), hidden)

    def _sample(self, key: PRNGKeyArray, batch: int) -> Task:
        return jax.tree.map(np.asarray, _sample(self.tasks, key, batch))


@partial(jax.jit, static_argnums=(0, 2))
def _sample(tasks: TaskDistribution, key: PRNGKeyArray, batch: int) -> Task:
    return jax.vmap(tasks.sample)(jax.random.split(key, batch))


@partial(jax.jit, static_argnums=(0, 6))
def _act(
    act: Act,
    params: Params,
    carry: Carry,
    timestep: TimeStep,
    key: PRNGKeyArray,
    time: Int[Array, ""] | int,
    groups: int | None = None,
) -> tuple[PyTree, Carry, PyTree]:
    """Act for all copies at once; in `groups` of equal size, each with weights of its own, where that is given.

    A copy whose episode is over remembers nothing more.
    """
    batch = timestep.first.shape[0]
    keys = jax.random.split(jax.random.fold_in(key, time), batch)
    of_copies = jax.vmap(act, in_axes=(None, 0, 0, 0))
    if groups is None:
        action, remembered, extras = of_copies(params, carry, timestep, keys)
    else:
        seen = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), (carry, timestep, keys))
        made = jax.vmap(of_copies)(params, *seen)
        action, remembered, extras = jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), made)
    return action, where_rows(timestep.last, carry, remembered), extras


def _seeds(key: PRNGKeyArray, batch: int) -> np.ndarray:
    """Words that seed the host's generators, one row per copy."""
    words = np.asarray(jax.random.key_data(key)).ravel()
    return np.column_stack([np.tile(words, (batch, 1)), np.arange(batch, dtype=np.uint32)])


def _where(chosen: np.ndarray, new: PyTree, old: PyTree) -> PyTree:
    """Rows of `new` where `chosen`, else of `old`."""
    return jax.tree.map(lambda x, y: np.where(chosen.reshape(-1, *[1] * (np.ndim(x) - 1)), x, y), new, old)


_NONE = np.zeros(0, np.float32), np.zeros(0, np.int32)


def _booked(returns: np.ndarray, lengths: np.ndarray) -> dict[str, Average]:
    """The averages over episodes that have ended."""
    count = np.int32(len(returns))
    return {
        "train/episode_return": Average(np.float32(returns.sum()), count),
        "train/episode_length": Average(np.float32(lengths.sum()), count),
    }


def _pad(x: np.ndarray, steps: int) -> np.ndarray:
    """Repeat the last step."""
    return np.concatenate([x, np.repeat(x[-1:], steps, axis=0)])
