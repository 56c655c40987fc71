"""The vocabulary: what flows between environments, agents, models and learners.

Three kinds of values exist in this library. *Settings* are frozen dataclasses: hashable, both the configuration
and the part. *Weights* are Equinox modules whose every leaf is an array. *State* is a NamedTuple of arrays.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.errors import UserError

Task = TypeVar("Task")
"""A pytree of arrays that fixes one MDP of a family: a goal, masses, a maze."""

EnvState = TypeVar("EnvState")
PyTree = Any


class Average(NamedTuple):
    """A mean in two parts, so that means of unequal, even empty, groups combine exactly."""

    total: Array
    weight: Array

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
    """An array of floats of one shape, every entry in [low, high]."""

    shape: tuple[int, ...]
    low: float = -float("inf")
    high: float = float("inf")


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


class TimeStep(NamedTuple):
    """What an agent may see at time t.

    `reward` is paid on arriving here (0 at a reset). `discount` is 0 where the MDP terminated, else 1. `first`: an
    episode begins, carries reset here. `last`: the episode stops here, for whatever reason. `prev_action` is the
    action that led here, -1 (or zeros) at a reset.
    """

    obs: Array
    reward: Float[Array, "*batch"]
    discount: Float[Array, "*batch"]
    first: Bool[Array, "*batch"]
    last: Bool[Array, "*batch"]
    prev_action: Array


class Transition(NamedTuple):
    """Experience, time-major [T, B, ...]; real and imagined alike.

    `discount` is 0 only where the MDP terminated and 1 at a time limit, so a truncated step is `last` with
    `discount` 1; γ is applied by the learner. `next_obs` is the true successor, never the observation after a reset.
    Where a collector pads an episode to a fixed length, the steps after the first `last` are padding
    (`rollout.valid_steps`). `extras` is what the policy noted: log-probabilities, values, carries.
    """

    obs: Array
    action: Array
    reward: Float[Array, "*batch"]
    discount: Float[Array, "*batch"]
    next_obs: Array
    last: Bool[Array, "*batch"]
    extras: PyTree = ()


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
    env: Env
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
        """Real environment steps so far."""
        ...

    def trial(self, params: Any, collector: Any, tasks: Any, key: PRNGKeyArray) -> tuple[Transition, ...]:
        """Adapt to each task [N] and act greedily: the episodes [T, N], in order."""
        ...


ActFn = Any
"""`act(params, carry, timestep, key) -> (action, carry, extras)` for one copy of the environment."""

Index = Int[Array, "*batch"]
