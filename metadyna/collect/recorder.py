"""A collector that keeps the states that its episodes go through, which agents do not see but pictures need."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from metadyna.types import ActFn, Collector, EnvSpec, HostEnv, TimeStep, Transition


class Recorder:
    """Plays the same episodes as the collector it is made from; for trials, which do not train."""

    def __init__(self, collector: Any):
        self.env, self.tasks = collector.env, collector.tasks
        self.begin, self.collect, self.repeat = collector.begin, collector.collect, collector.repeat
        self._watched: Collector = replace(collector, env=_Watched(collector.env))
        self.states: list[Any] = []
        """Of each call: the states before the first and after every step, [T + 1, B]."""

    def episodes(self, act: ActFn, params: Any, carry: Any, tasks: Any, key: PRNGKeyArray) -> Transition:
        """One padded episode per task, [T, B], as without a recorder."""
        return self._keep(self._watched.episodes(_blindfolded(act), params, carry, tasks, key), lambda x: x)

    def episodes_of_each(self, act: ActFn, params: Any, tasks: Any, count: int, key: PRNGKeyArray) -> Transition:
        """As without a recorder, [T, M, count]; the states kept are those of every task's first episode."""
        made = self._watched.episodes_of_each(_blindfolded(act), params, tasks, count, key)
        return self._keep(made, lambda x: x[:, :, 0])

    def _keep(self, made: Transition, choose: Callable[[Any], Any]) -> Transition:
        (obs, first), (next_obs, later) = made.obs, made.next_obs
        self.states.append(jax.tree.map(lambda x, y: choose(jnp.concatenate([x[:1], y])), first, later))
        return made._replace(obs=obs, next_obs=next_obs)


def _blindfolded(act: ActFn) -> ActFn:
    """Act without seeing the state."""

    def acting(params: Any, carry: Any, timestep: TimeStep, key: PRNGKeyArray) -> Any:
        return act(params, carry, timestep._replace(obs=timestep.obs[0]), key)

    return acting


class _Watched(HostEnv):
    """An environment, pure or on the host, whose state is observed beside what agents observe."""

    def __init__(self, env: Any):
        self._env = env

    @property
    def spec(self) -> EnvSpec:
        """As it is: what agents observe."""
        return self._env.spec

    def reset(self, *args: Any, **kwargs: Any) -> tuple[Any, TimeStep]:
        """Start episodes."""
        return _show(*self._env.reset(*args, **kwargs))

    def step(self, *args: Any, **kwargs: Any) -> tuple[Any, TimeStep]:
        """Advance."""
        return _show(*self._env.step(*args, **kwargs))


def _show(state: Any, timestep: TimeStep) -> tuple[Any, TimeStep]:
    return state, timestep._replace(obs=(timestep.obs, state))
