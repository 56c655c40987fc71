"""The vocabulary: what flows between environments, agents, models and learners.

Three kinds of values exist in this library. *Settings* are frozen dataclasses: hashable, both the configuration
and the part. *Weights* are Equinox modules whose every leaf is an array. *State* is a NamedTuple of arrays.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from metadyna.errors import UserError

Task = TypeVar("Task")
"""A pytree of arrays that fixes one MDP of a family: a goal, masses, a maze."""

EnvState = TypeVar("EnvState")
PyTree = Any


class Average(NamedTuple):
    """A mean in two parts, so that means of unequal, even empty, groups combine exactly."""

    total: Any
    weight: Any

    @staticmethod
    def of(values: Array) -> "Average":
        """The mean of all entries."""
        return Average(jnp.sum(values, dtype=jnp.float32), jnp.int32(jnp.size(values)))

    @staticmethod
    def over(values: Array, chosen: Array) -> "Average":
        """The mean of the entries where `chosen`."""
        return Average(jnp.sum(jnp.where(chosen, values, 0.0)), jnp.sum(chosen, dtype=jnp.int32))


Metrics = dict[str, Average]
"""Scalars by name, `group/quantity`."""


@dataclass(frozen=True)
class Discrete:
    """A vector of integers; component k lies in [0, sizes[k]). An action space has one component."""

    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one element."""
        return (len(self.sizes),)


@dataclass(frozen=True)
class Box:
    """An array of numbers of one shape and type, every entry in [low, high]."""

    shape: tuple[int, ...]
    low: float = -float("inf")
    high: float = float("inf")
    dtype: str = "float32"


Space = Discrete | Box


def sizes(space: Space | None) -> tuple[int, ...]:
    """Sizes of the components of a discrete space; `UserError` for any other, for methods that need one."""
    if not isinstance(space, Discrete):
        raise UserError(f"this method needs a discrete space, but the environment's is {space}")
    return space.sizes


@dataclass(frozen=True)
class EnvSpec:
    """What a system must know of an environment before the first step.

    `horizon` is the longest episode in steps. `num_problems` and `instruction` belong to families in which a task is
    a hidden problem (numbered, for systems that may look at the number during meta-training) and a visible
    instruction; both are None elsewhere.
    """

    observation: Space
    action: Space
    horizon: int
    num_problems: int | None = None
    instruction: Discrete | None = None


def box_sizes(spec: EnvSpec) -> tuple[int, int]:
    """Numbers observed and actions; `UserError` unless both spaces are boxes of one axis."""
    for what, space in (("observation", spec.observation), ("action", spec.action)):
        if not isinstance(space, Box) or len(space.shape) != 1 or space.dtype != "float32":
            raise UserError(f"this method needs vectors of floats, but the environment's {what} is {space}")
    return spec.observation.shape[0], spec.action.shape[0]


def num_actions(spec: EnvSpec) -> int:
    """How many actions there are to choose from; `UserError` unless the action is one number."""
    if not isinstance(spec.action, Discrete) or len(spec.action.sizes) != 1:
        raise UserError(f"this method chooses one of a few actions, but the environment's action is {spec.action}")
    return spec.action.sizes[0]


class TimeStep(NamedTuple):
    """What an agent may see at time t.

    `reward` is paid on arriving here (0 at a reset). `discount` is 0 where the MDP terminated, else 1. `first`: an
    episode begins, carries reset here. `last`: the episode stops here, for whatever reason. `prev_action` is the
    action that led here, -1 (or zeros) at a reset.
    """

    obs: Any
    reward: Float[Any, "*batch"]
    discount: Float[Any, "*batch"]
    first: Bool[Any, "*batch"]
    last: Bool[Any, "*batch"]
    prev_action: Any


class Transition(NamedTuple):
    """Experience, time-major [T, B, ...]; real and imagined alike.

    `discount` is 0 only where the MDP terminated and 1 at a time limit, so a truncated step is `last` with
    `discount` 1; γ is applied by the learner. `next_obs` is the true successor, never the observation after a reset.
    Where a collector pads an episode to a fixed length, the steps after the first `last` are padding
    (`episodes.valid_steps`). `extras` is what the policy noted: log-probabilities, values, carries.
    """

    obs: Any
    action: Any
    reward: Float[Any, "*batch"]
    discount: Float[Any, "*batch"]
    next_obs: Any
    last: Bool[Any, "*batch"]
    extras: PyTree = ()


class Collected(NamedTuple):
    """Where a collector has stopped between two calls: B copies in mid-episode, with task and memory each.

    `returns` and `lengths` [B] are those of the episodes under way; `finished` holds the averages over the episodes
    that ended in the latest call.
    """

    tasks: PyTree
    env: PyTree
    timestep: TimeStep
    carry: PyTree
    returns: Float[Any, "B"]
    lengths: Int[Any, "B"]
    finished: Metrics


@runtime_checkable
class Env(Protocol):
    """A family of MDPs in pure JAX: one copy, one task; `vmap` makes the batch."""

    @property
    def spec(self) -> EnvSpec:
        """Spaces and horizon."""
        ...

    def reset(self, task: Any, key: PRNGKeyArray) -> tuple[Any, TimeStep]:
        """Start an episode of `task`."""
        ...

    def step(self, task: Any, state: Any, action: Array, key: PRNGKeyArray) -> tuple[Any, TimeStep]:
        """Take one step. Stepping past `last` is allowed and meaningless; collectors mask it."""
        ...


class HostEnv(ABC):
    """B simulators behind numpy. Their state is a value: a pytree of arrays that says all that they will ever do.

    So nothing needs saving beside it, and stepping twice from one state gives one answer. An environment whose
    simulators cannot be set to a state keeps in it what is needed to bring them there again.
    """

    @property
    @abstractmethod
    def spec(self) -> EnvSpec:
        """Spaces and horizon."""

    @abstractmethod
    def reset(self, tasks: Any, seeds: Any, state: Any, where: Any) -> tuple[Any, TimeStep]:
        """Start new episodes of `tasks` [B] in the copies `where` [B]; `state` is None at the first reset.

        `seeds` [B, words] are unsigned integers. The time step is that of a reset in every copy; only the copies
        `where` may use theirs.
        """

    @abstractmethod
    def step(self, tasks: Any, state: Any, action: Any) -> tuple[Any, TimeStep]:
        """Advance every copy. The time step is the true successor, also where the episode ends."""


@runtime_checkable
class Known(Protocol):
    """An environment whose reward and end are functions of what is observed, so that a model need not learn them.

    Both speak of one copy, in pure JAX. Actions lie in [-1, 1].
    """

    def reward(self, task: Any, obs: Array, action: Array, next_obs: Array) -> Float[Array, ""]:
        """What a step pays."""
        ...

    def terminated(self, task: Any, next_obs: Array) -> Bool[Array, ""]:
        """Whether the MDP ends on arriving at `next_obs`."""
        ...


@runtime_checkable
class Pictured(Protocol):
    """An environment that is seen as a picture, of which an observation is all that there is to know.

    Observations are small, to be kept by the million; who learns from pixels draws them when they are needed.
    """

    @property
    def action_names(self) -> tuple[str, ...]:
        """What each action does, in a word."""
        ...

    def picture(self, obs: Array) -> Float[Array, "height width"]:
        """What one observation looks like, in shades of grey."""
        ...


@runtime_checkable
class Tiled(Protocol):
    """An environment whose observations are boards of tiles: each number on a board is a kind of tile."""

    @property
    def tiles(self) -> Any:
        """The pixels of every kind, [kinds, side, side]."""
        ...


@runtime_checkable
class TaskDistribution(Protocol):
    """Where tasks come from; train and test are two distributions."""

    def sample(self, key: PRNGKeyArray) -> Any:
        """Draw one task."""
        ...

    def enumerate(self) -> Any:
        """Every task of a finite split once, stacked [N]."""
        ...


class Family(NamedTuple):
    """A named benchmark: one environment and its train and test tasks.

    `references` maps a name (`optimal`, `walking`, `random`) to the mean undiscounted return of that policy over the
    test split, computed exactly.
    """

    name: str
    env: Any
    train: TaskDistribution
    test: TaskDistribution
    references: Any


@runtime_checkable
class Collector(Protocol):
    """Whatever steps an environment: compiled with the agent on a device, or a loop over host simulators."""

    @property
    def env(self) -> Any:
        """The environment."""
        ...

    @property
    def tasks(self) -> Any:
        """The training tasks."""
        ...

    def episodes(self, act: Any, params: Any, carry: Any, tasks: Any, key: PRNGKeyArray) -> Transition:
        """One padded episode per task, [T, B]."""
        ...

    def episodes_of_each(self, act: Any, params: Any, tasks: Any, count: int, key: PRNGKeyArray) -> Transition:
        """Some padded episodes per task [M], each task with weights of its own [M, ...]: [T, M, count]."""
        ...

    def begin(self, carry: Any, batch: int, key: PRNGKeyArray) -> Collected:
        """Start `batch` copies on training tasks; `carry` is the agent's memory, batched alike."""
        ...

    def collect(
        self, act: Any, params: Any, collected: Collected, key: PRNGKeyArray, steps: int
    ) -> tuple[Collected, Transition]:
        """Go on for some steps, resetting where an episode ends: [steps, B]."""
        ...

    def repeat(self, step: Any, state: Any, keys: Key[Array, "times"]) -> tuple[Any, Metrics]:
        """Apply `step(state, key) -> (state, metrics)`, which may collect, once per key; adds the metrics up."""
        ...


@runtime_checkable
class System(Protocol):
    """A method: a frozen dataclass of settings whose methods are pure."""

    @property
    def episode_names(self) -> tuple[str, ...]:
        """What the episodes of `trial` are for."""
        ...

    def init(self, collector: Any, key: PRNGKeyArray) -> Any:
        """Everything that training needs: weights, optimisers, replay, counters."""
        ...

    def iterate(self, state: Any, collector: Any, key: PRNGKeyArray) -> tuple[Any, Metrics]:
        """One round of the paper's pseudocode."""
        ...

    def params(self, state: Any) -> Any:
        """What acting needs: no replay, no optimiser."""
        ...

    def steps(self, state: Any) -> Int[Array, ""]:
        """Real environment steps so far; updates, for a system that learns from a data set."""
        ...

    def trial(self, params: Any, collector: Any, tasks: Any, key: PRNGKeyArray) -> tuple[Transition, ...]:
        """Adapt to each task [N] and act greedily: the episodes [T, N], in order."""
        ...


ActFn = Any
"""`act(params, carry, timestep, key) -> (action, carry, extras)` for one copy of the environment."""

Index = Int[Array, "*batch"]
