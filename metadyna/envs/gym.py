"""Any Gymnasium environment as a task of this library, and every task of this library as a Gymnasium environment."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.wrappers import (
    HumanRendering,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    RecordVideo,
    TimeLimit,
)
from jaxtyping import Array, Bool, Float, Int32, UInt32

from metadyna.errors import UserError
from metadyna.types import Box, EnvSpec, HostEnv, TimeStep

PREFIX = "gym:"
DEFAULT_HORIZON = 1_000
"""Steps after which an episode is cut where the environment does not say."""

HOW_TO_KNOW = (
    "give your environment class a static method 'terminated(next_obs)' that returns a jax.numpy truth value "
    "(for an environment that never ends: 'return jnp.bool_(False)')"
)


class Episodes(NamedTuple):
    """What it takes to bring B simulators to where they are: the seeds of their episodes, and the actions since."""

    seed: UInt32[np.ndarray, "B words"]
    actions: Float[np.ndarray, "B horizon actions"]
    time: Int32[np.ndarray, "B"]


class GymEnv(HostEnv):
    """B copies of a user's environment with vectors of floats in and out.

    Gymnasium has no way to ask a simulator for its state, so the state kept here is the history of the episode under
    way, and a simulator that is not where the state says, as after a restart, is reset with the same seed and takes
    the same actions again. That is exact for every environment in which `reset(seed=...)` determines all that follows.

    Agents act in [-1, 1]; bounded actions are scaled to the environment's box. Raises `UserError` if the environment
    fails or returns what it did not announce; the message names it and the step.
    """

    def __init__(self, make: Callable[[], Any], name: str):
        self.name = name
        self._make = make
        self._simulators: dict[bytes, _Simulator] = {}  # by seed; the least recently used first
        self._room = 0  # how many to keep: training's and evaluation's
        self._free: list[gymnasium.Env] = []
        first: Any = self._new()
        observed, acted = first.observation_space, first.action_space
        for what, space in (("observation", observed), ("action", acted)):
            if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
                raise UserError(f"{name}: its {what} space is {space}; this library needs a Box with one axis")
        bounded = np.isfinite(acted.low) & np.isfinite(acted.high)
        low, high = np.where(bounded, acted.low, -1.0), np.where(bounded, acted.high, 1.0)
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._acted = acted
        self._spec = EnvSpec(Box(observed.shape), Box(acted.shape, -1.0, 1.0), _time_limit(first))
        self._known = {"reward": _own(first, name, "reward", 3), "terminated": _own(first, name, "terminated", 1)}
        self._free.append(first)

    @property
    def spec(self) -> EnvSpec:
        """Spaces and horizon."""
        return self._spec

    def reset(
        self, tasks: Any, seeds: UInt32[np.ndarray, "B words"], state: Episodes | None, where: Bool[np.ndarray, "B"]
    ) -> tuple[Episodes, TimeStep]:
        """Start new episodes in the copies `where`."""
        del tasks
        batch, size = len(where), self._spec.action.shape[0]
        if state is None:
            actions = np.zeros((batch, self._spec.horizon, size), np.float32)
            state = Episodes(np.zeros_like(seeds), actions, np.zeros(batch, np.int32))
        self._room = max(self._room, 2 * batch)
        seed, actions, time = (x.copy() for x in state)
        obs = np.zeros((batch, *self._spec.observation.shape), np.float32)
        for b in np.flatnonzero(where):
            self._release(seed[b].tobytes())
            seed[b], actions[b], time[b] = seeds[b], 0, 0
            obs[b] = self._start(seed[b])
        zeros = np.zeros(batch, np.float32)
        nothing = np.zeros((batch, size), np.float32)
        timestep = TimeStep(obs, zeros, zeros + 1, np.ones(batch, bool), np.zeros(batch, bool), nothing)
        return Episodes(seed, actions, time), timestep

    def step(self, tasks: Any, state: Episodes, action: Float[np.ndarray, "B actions"]) -> tuple[Episodes, TimeStep]:
        """Advance all copies. An episode that has ended stays where it is: it pays nothing more."""
        del tasks
        batch = len(state.time)
        action = np.asarray(action, np.float32)
        bad = np.flatnonzero(~np.isfinite(action).all(axis=1))
        if bad.size:
            step, sent = state.time[bad[0]] + 1, action[bad[0]].tolist()
            raise UserError(f"{self.name}: the agent's action at step {step} is not finite: {sent}")
        action = np.clip(action, -1, 1)
        obs = np.empty((batch, *self._spec.observation.shape), np.float32)
        reward, terminated, truncated = np.zeros(batch, np.float32), np.zeros(batch, bool), np.zeros(batch, bool)
        actions, time = state.actions.copy(), state.time + 1
        self._room = max(self._room, 2 * batch)
        for b in range(batch):
            simulator = self._find(state, b)
            obs[b], reward[b], terminated[b], truncated[b] = simulator.step(action[b])
            actions[b, state.time[b] % self._spec.horizon] = action[b]
        last = terminated | truncated | (time >= self._spec.horizon)
        timestep = TimeStep(obs, reward, 1 - terminated.astype(np.float32), np.zeros(batch, bool), last, action)
        return Episodes(state.seed, actions, time.astype(np.int32)), timestep

    def reward(self, task: Any, obs: Array, action: Array, next_obs: Array) -> Array:
        """The environment's own `reward(obs, action, next_obs)`, if it has one."""
        del task
        known = self._known["reward"]
        if isinstance(known, UserError):
            raise known
        if known is None:
            raise UserError(
                f"{self.name} does not say what a step pays as a function; give your environment class a static "
                "method 'reward(obs, action, next_obs)' in jax.numpy (actions in [-1, 1]), or choose a method that "
                "learns the reward, such as mbpo"
            )
        return known(obs, action, next_obs)

    def terminated(self, task: Any, next_obs: Array) -> Array:
        """The environment's own `terminated(next_obs)`, if it has one."""
        del task
        known = self._known["terminated"]
        if isinstance(known, UserError):
            raise known
        if known is None:
            raise UserError(f"{self.name} does not say when an episode ends as a function; {HOW_TO_KNOW}")
        return known(next_obs)

    def command(self, action: np.ndarray) -> np.ndarray:
        """What the environment is sent for an action in [-1, 1]."""
        # What is bounded on one side is not scaled, but must not leave the box either.
        command = np.clip(self._middle + self._half * action, self._acted.low, self._acted.high)
        return command.astype(self._acted.dtype)

    def _new(self) -> gymnasium.Env:
        try:
            made = self._make()
        except Exception as error:
            raise UserError(f"{self.name} cannot be made: {type(error).__name__}: {error}") from error
        if not isinstance(made, gymnasium.Env):
            raise UserError(f"{self.name} makes a {type(made).__name__}; it must return a gymnasium.Env")
        return made

    def _start(self, seed: np.ndarray) -> np.ndarray:
        self._release(seed.tobytes())
        while len(self._simulators) >= self._room:
            self._release(next(iter(self._simulators)))
        simulator = _Simulator(self, self._free.pop() if self._free else self._new())
        self._simulators[seed.tobytes()] = simulator
        return simulator.reset(seed)

    def _find(self, state: Episodes, b: int) -> "_Simulator":
        """The simulator that is where copy `b` is; brought there if it is not."""
        key = state.seed[b].tobytes()
        simulator = self._simulators.get(key)
        if simulator is None or not simulator.is_at(state.actions[b], state.time[b]):
            self._start(state.seed[b])
            simulator = self._simulators[key]
            for action in state.actions[b, : state.time[b]]:
                simulator.step(action)
        self._simulators[key] = self._simulators.pop(key)  # now the most recently used
        return simulator

    def _release(self, key: bytes) -> None:
        simulator = self._simulators.pop(key, None)
        if simulator is not None:
            self._free.append(simulator.env)


def _layers(env: gymnasium.Env) -> list[gymnasium.Env]:
    """An environment and all that it is wrapped around, the outermost first."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _time_limit(env: gymnasium.Env) -> int:
    """The smallest of all time limits: of the registration, and of every `TimeLimit` around the environment."""
    limits = [getattr(layer, "_max_episode_steps", None) for layer in _layers(env) if isinstance(layer, TimeLimit)]
    limits.append(env.spec.max_episode_steps if env.spec else None)
    return min((limit for limit in limits if limit), default=DEFAULT_HORIZON)


_HARMLESS = (TimeLimit, OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, RecordVideo, HumanRendering)
"""Wrappers that pass on the numbers that they are given."""


def _own(env: gymnasium.Env, name: str, method: str, arguments: int) -> Callable[..., Any] | UserError | None:
    """The function by that name of the outermost layer that has it, or a complaint if what it would be given is not
    what it was written for: a wrapper around that layer changes the numbers."""
    between: list[str] = []
    unheard = (gymnasium.RewardWrapper, gymnasium.ActionWrapper) if method == "terminated" else ()
    for layer in _layers(env):
        found = getattr(layer, method, None)
        if callable(found) and _takes(found, arguments):
            if not between:
                return found
            return UserError(
                f"{name}: '{method}' of {type(layer).__name__} is written for what that environment shows, but the "
                f"wrapper {between[0]} around it changes this; give {between[0]} a '{method}' of its own"
            )
        if isinstance(layer, gymnasium.Wrapper) and not isinstance(layer, (*_HARMLESS, *unheard)):
            between.append(type(layer).__name__)
    return None


def _takes(function: Callable[..., Any], arguments: int) -> bool:
    """Whether a function can be called with so many arguments; Gymnasium's own `reward(reward)` is another one."""
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except (TypeError, ValueError):
        return False
    return True


class _Simulator:
    """One environment in mid-episode, watched."""

    def __init__(self, owner: GymEnv, env: gymnasium.Env):
        self.owner = owner
        self.env = env
        self.time = 0
        self.actions = np.zeros((owner.spec.horizon, *owner.spec.action.shape), np.float32)
        self.ended: np.ndarray | None = None

    def is_at(self, actions: np.ndarray, time: Any) -> bool:
        return bool(self.time == time) and np.array_equal(self.actions, actions)

    def reset(self, seed: np.ndarray) -> np.ndarray:
        number = int(np.random.SeedSequence(seed.tolist()).generate_state(1)[0])
        try:
            obs, _ = self.env.reset(seed=number)
        except Exception as error:
            raise UserError(f"{self.owner.name} failed at reset: {type(error).__name__}: {error}") from error
        return self._checked(obs, "reset")

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        self.actions[self.time % len(self.actions)] = action
        self.time += 1
        if self.ended is not None:  # padding after the end
            return self.ended, 0.0, True, False
        where = f"step {self.time}"
        try:
            obs, reward, terminated, truncated, _ = self.env.step(self.owner.command(action))
        except Exception as error:
            raise UserError(f"{self.owner.name} failed at {where}: {type(error).__name__}: {error}") from error
        obs = self._checked(obs, where)
        try:
            number = float(reward)
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number):
            raise UserError(f"{self.owner.name}: the reward at {where} is {reward!r}; it must be a finite number")
        terminated = self._truth("terminated", terminated, where)
        truncated = self._truth("truncated", truncated, where)
        if terminated or truncated:
            self.ended = obs
        return obs, number, terminated, truncated

    def _truth(self, what: str, value: Any, where: str) -> bool:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "biu":
            raise UserError(f"{self.owner.name}: '{what}' at {where} is {value!r}; it must be True or False")
        return bool(array.item())

    def _checked(self, obs: Any, where: str) -> np.ndarray:
        wanted = self.owner.spec.observation.shape
        try:
            with np.errstate(over="ignore"):  # infinity is reported below
                array = np.asarray(obs, np.float32)
        except (TypeError, ValueError):
            raise UserError(f"{self.owner.name}: the observation at {where} is not an array of numbers") from None
        if array.shape != wanted:
            raise UserError(f"{self.owner.name}: the observation at {where} has shape {array.shape}, not {wanted}")
        bad = np.flatnonzero(~np.isfinite(array))
        if bad.size:
            number = f"number {bad[0]} is {array[bad[0]]}"
            raise UserError(f"{self.owner.name}: the observation at {where} is not finite: {number}")
        return array


def from_name(name: str) -> GymEnv:
    """Build from `gym:module:factory`, where `factory()` returns a gymnasium.Env; `gym::Id-v0` is a registered one."""
    parts = name.removeprefix(PREFIX).split(":")
    if len(parts) != 2 or not parts[1] or parts[0].startswith("."):
        raise UserError(f"'{name}' should be gym:MODULE:FACTORY, such as gym:myrobot:make_env, or gym::Pendulum-v1")
    module, factory = parts
    if not module:
        return GymEnv(lambda: gymnasium.make(factory), name)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # what is being written lies in the working folder, not among the packages
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"'{name}': module '{module}' cannot be imported: {error}") from error
    if not hasattr(found, factory):
        raise UserError(f"'{name}': module '{module}' has no '{factory}'")
    make = getattr(found, factory)
    if not callable(make):
        raise UserError(f"'{name}': '{factory}' is a {type(make).__name__}; it must be a function or a class")
    return GymEnv(make, name)
