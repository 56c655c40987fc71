"""Collecting from simulators that live on the host: a loop in Python around one compiled function that acts."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PRNGKeyArray

from metadyna.types import ActFn, Average, Collected, HostEnv, Metrics, TaskDistribution, TimeStep, Transition


@dataclass(frozen=True)
class HostCollector:
    """Steps B simulators; the same interface and the same meaning as `device.DeviceCollector`."""

    env: HostEnv
    tasks: TaskDistribution

    def episodes(self, act: ActFn, params: Any, carry: Any, tasks: Any, key: PRNGKeyArray) -> Transition:
        """Play one episode per task, [T, B] with T the horizon; steps after the end are padding."""
        return self._play(act, params, carry, jax.tree.map(np.asarray, tasks), key)

    def episodes_of_each(self, act: ActFn, params: Any, tasks: Any, count: int, key: PRNGKeyArray) -> Transition:
        """Play `count` episodes of every task [M], every task with weights of its own [M, ...]: [T, M, count].

        For agents without memory.
        """
        groups = jax.tree.leaves(tasks)[0].shape[0]
        tasks = jax.tree.map(lambda x: np.repeat(np.asarray(x), count, axis=0), tasks)
        played = self._play(act, params, (), tasks, key, groups)
        return jax.tree.map(lambda x: x.reshape(x.shape[0], groups, count, *x.shape[2:]), played)

    def _play(
        self, act: ActFn, params: Any, carry: Any, tasks: Any, key: PRNGKeyArray, groups: int | None = None
    ) -> Transition:
        batch = jax.tree.leaves(tasks)[0].shape[0]
        k_reset, k_act = jax.random.split(key)
        state, timestep = self.env.reset(tasks, _seeds(k_reset, batch), None, np.ones(batch, bool))
        running, steps = np.ones(batch, bool), []
        for time in range(self.env.spec.horizon):
            action, carry, extras = _act(act, params, carry, timestep, k_act, time, groups)
            state, after = self.env.step(tasks, state, np.asarray(action))
            steps.append(_transition(timestep, action, after, extras))
            timestep = after
            running &= ~after.last
            if not running.any():
                break
        padding = self.env.spec.horizon - len(steps)
        return jax.tree.map(lambda *x: jnp.asarray(_pad(np.stack(x), padding)), *steps)

    def begin(self, carry: Any, batch: int, key: PRNGKeyArray) -> Collected:
        """Start `batch` copies, each on a training task of its own."""
        k_task, k_reset = jax.random.split(key)
        tasks = self._sample(k_task, batch)
        state, timestep = self.env.reset(tasks, _seeds(k_reset, batch), None, np.ones(batch, bool))
        zeros = np.zeros(batch, np.float32), np.zeros(batch, np.int32)
        return Collected(tasks, state, timestep, carry, *zeros, _booked(np.zeros(0), np.zeros(0)))

    def collect(
        self, act: ActFn, params: Any, collected: Collected, key: PRNGKeyArray, steps: int
    ) -> tuple[Collected, Transition]:
        """Go on for `steps` steps: [steps, B]. Where an episode ends, the next begins on a new training task."""
        tasks, state, timestep = jax.tree.map(np.asarray, collected[:3])  # a checkpoint may have put them on a device
        carry = collected.carry
        returns, lengths = np.asarray(collected.returns), np.asarray(collected.lengths)
        ended, made = [], []
        for time in range(steps):
            action, carry, extras = _act(act, params, carry, timestep, key, time)
            state, after = self.env.step(tasks, state, np.asarray(action))
            made.append(_transition(timestep, action, after, extras))
            returns, lengths, timestep = returns + after.reward, lengths + 1, after
            if after.last.any():
                ended.append((returns[after.last], lengths[after.last]))
                returns, lengths = returns * ~after.last, lengths * ~after.last
                k_task, k_reset = jax.random.split(jax.random.fold_in(key, 2**31 + time))
                tasks = _where(after.last, self._sample(k_task, len(after.last)), tasks)
                state, fresh = self.env.reset(tasks, _seeds(k_reset, len(after.last)), state, after.last)
                timestep = _where(after.last, fresh, after)
        finished = _booked(*(np.concatenate(x) for x in zip(*ended, strict=True))) if ended else _booked(*_NONE)
        lengths = lengths.astype(np.int32)
        collected = Collected(tasks, state, timestep, carry, returns.astype(np.float32), lengths, finished)
        return collected, jax.tree.map(lambda *x: np.stack(x), *made)

    def repeat(self, step: Any, state: Any, keys: Key[Array, "times"]) -> tuple[Any, Metrics]:
        """Apply `step(state, key) -> (state, metrics)` once per key; adds the metrics up."""
        made = []
        for key in keys:
            state, metrics = step(state, key)
            made.append(metrics)
        return state, jax.tree.map(lambda *x: np.sum(np.stack(x), axis=0), *made)

    def _sample(self, key: PRNGKeyArray, batch: int) -> Any:
        return jax.tree.map(np.asarray, jax.vmap(self.tasks.sample)(jax.random.split(key, batch)))


@partial(jax.jit, static_argnums=(0, 6))
def _act(
    act: ActFn,
    params: Any,
    carry: Any,
    timestep: TimeStep,
    key: PRNGKeyArray,
    time: Int[Array, ""] | int,
    groups: int | None = None,
) -> tuple[Array, Any, Any]:
    """Act for all copies at once; in `groups` of equal size, each with weights of its own, where that is given."""
    batch = timestep.first.shape[0]
    keys = jax.random.split(jax.random.fold_in(key, time), batch)
    of_copies = jax.vmap(act, in_axes=(None, 0, 0, 0))
    if groups is None:
        return of_copies(params, carry, timestep, keys)
    seen = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), (carry, timestep, keys))
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), jax.vmap(of_copies)(params, *seen))


def _transition(before: TimeStep, action: Array, after: TimeStep, extras: Any) -> Transition:
    extras = jax.tree.map(np.asarray, extras)
    return Transition(before.obs, np.asarray(action), after.reward, after.discount, after.obs, after.last, extras)


def _seeds(key: PRNGKeyArray, batch: int) -> np.ndarray:
    """Words that seed the host's generators, one row per copy."""
    words = np.asarray(jax.random.key_data(key)).ravel()
    return np.column_stack([np.tile(words, (batch, 1)), np.arange(batch, dtype=np.uint32)])


def _where(chosen: np.ndarray, new: Any, old: Any) -> Any:
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
