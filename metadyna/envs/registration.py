"""Our tasks as Gymnasium environments: import this module, then `gymnasium.make("metadyna/city-5x5-v0")`.

`reset(options={"task": i})` chooses task i of the test split's enumeration, or of the train split's with
`"split": "train"`; without it every reset draws a task, of the train split where none is named.
"""

from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from metadyna import envs
from metadyna.errors import UserError
from metadyna.types import Box, Discrete, HostEnv, Space, TaskDistribution

PREFIX = "metadyna/"


class TaskEnv(gymnasium.Env):
    """One copy of a task family behind Gymnasium's interface."""

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's name and type

    def __init__(self, task: str):
        self._family = envs.make(task)
        self._env: Any = self._family.env
        spec = self._env.spec
        self.observation_space = _space(spec.observation)
        self.action_space = _action_space(spec.action)
        on_host = isinstance(self._env, HostEnv)
        functions: Any = (self._host_reset, self._host_step) if on_host else self._compiled()
        self._reset, self._step = functions
        self._state: Any = None
        self._task: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode of the chosen task, or of a training task drawn at random."""
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"task", "split"}
        if unknown:
            raise UserError(f"unknown reset option '{min(unknown)}'; there are: task, split")
        if "task" in options:
            self._task = self._chosen(options["task"], options.get("split", "test"))
        else:
            self._task = self._split(options.get("split", "train")).sample(self._key())
        self._state, timestep = self._reset(self._task, self._key())
        return self._observed(timestep.obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step; a time limit truncates, the end of the MDP terminates."""
        if self._state is None:
            raise UserError("step before reset")
        self._state, timestep = self._step(self._task, self._state, np.asarray(action), self._key())
        terminated = bool(timestep.discount == 0)
        return (
            self._observed(timestep.obs),
            float(timestep.reward),
            terminated,
            bool(timestep.last) and not terminated,
            {},
        )

    def _split(self, split: Any) -> TaskDistribution:
        if split not in ("train", "test"):
            raise UserError(f"unknown split '{split}'; there are: train, test")
        return self._family.train if split == "train" else self._family.test

    def _chosen(self, index: Any, split: Any) -> Any:
        tasks = self._split(split).enumerate()
        count = jax.tree.leaves(tasks)[0].shape[0]
        there = f"the {split} split has tasks 0 to {count - 1}"
        if not isinstance(index, int | np.integer):
            raise UserError(f"task {index!r} is not a number; {there}")
        if not 0 <= index < count:
            raise UserError(f"task {index} is out of range; {there}")
        return jax.tree.map(lambda x: x[index], tasks)

    def _key(self) -> Any:
        return jax.random.key(int(self.np_random.integers(2**32)))

    def _observed(self, obs: Any) -> np.ndarray:
        return np.asarray(obs).astype(self.observation_space.dtype)

    def _compiled(self) -> Any:
        step = jax.jit(self._env.step)

        def cast(task: Any, state: Any, action: np.ndarray, key: Any) -> Any:
            dtype = np.float32 if isinstance(self._env.spec.action, Box) else np.int32
            return step(task, state, action.astype(dtype), key)

        return jax.jit(self._env.reset), cast

    def _host_reset(self, task: Any, key: Any) -> Any:
        words = np.asarray(jax.random.key_data(key)).ravel()[None]
        state, timestep = self._env.reset(_batched(task), words, None, np.ones(1, bool))
        return state, jax.tree.map(lambda x: x[0], timestep)

    def _host_step(self, task: Any, state: Any, action: np.ndarray, key: Any) -> Any:
        del key
        state, timestep = self._env.step(_batched(task), state, action[None].astype(np.float32))
        return state, jax.tree.map(lambda x: x[0], timestep)


def _batched(task: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[None], task)


def _space(space: Space) -> spaces.Space:
    if isinstance(space, Discrete):
        return spaces.MultiDiscrete(list(space.sizes))
    dtype: Any = np.dtype(space.dtype)
    return spaces.Box(space.low, space.high, space.shape, dtype)


def _action_space(space: Space) -> spaces.Space:
    """One discrete action is a number in Gymnasium, not a vector of one."""
    if isinstance(space, Discrete) and len(space.sizes) == 1:
        return spaces.Discrete(space.sizes[0])
    return _space(space)


def register() -> None:
    """Tell Gymnasium of every task."""
    for task in envs.TASKS:
        name = f"{PREFIX}{task}-v0"
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=f"{__name__}:TaskEnv", kwargs={"task": task})


register()
