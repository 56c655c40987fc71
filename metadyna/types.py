"""The vocabulary: what flows between environments, agents, models and learners.

Three kinds of values exist in this library. *Settings* are frozen dataclasses: hashable, both the configuration
and the part. *Weights* are Equinox modules whose every leaf is an array. *State* is a NamedTuple of arrays.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree, UInt32

from metadyna.errors import UserError

Task = PyTree
"""Arrays that fix one MDP of a family: a goal, masses, a maze."""

Params = PyTree
"""What acting needs of what was learnt: weights, and nothing of replay or optimisers."""

Carry = PyTree
"""An agent's memory from one step to the next: arrays of a fixed shape."""

State = TypeVar("State")
Made = TypeVar("Made")


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
    """What a system must know of an environment before the first step; `horizon` is the longest episode in steps."""

    observation: Space
    action: Space
    horizon: int


def box(space: Space) -> Box:
    """A space of vectors of floats; `UserError` for any other."""
    if not isinstance(space, Box) or len(space.shape) != 1 or space.dtype != "float32":
        raise UserError(f"this method needs vectors of floats, but the environment has {space}")
    return space


def box_sizes(spec: EnvSpec) -> tuple[int, int]:
    """Numbers observed and actions; `UserError` unless both spaces are boxes of one axis."""
    return box(spec.observation).shape[0], box(spec.action).shape[0]


def problems(env: Any) -> "Problems":
    """The environment, if its tasks are hidden problems with an instruction; `UserError` for any other."""
    if not isinstance(env, Problems):
        raise UserError(
            f"this method needs hidden problems with an instruction that is shown, and {type(env).__name__} has none; "
            "choose a city or a kitchen"
        )
    return env


def num_actions(spec: EnvSpec) -> int:
    """How many actions there are to choose from; `UserError` unless the action is one number."""
    if not isinstance(spec.action, Discrete) or len(spec.action.sizes) != 1:
        raise UserError(f"this method chooses one of a few actions, but the environment's action is {spec.action}")
    return spec.action.sizes[0]


class TimeStep(NamedTuple):
    """What an agent may see at time t.

    `reward`, `discount` and `prev_action` tell how the step before went: what it paid on arriving here, 0 if the MDP
    terminated with it and else 1, and the action taken. Where an agent lives on after an episode, the first time step
    of the next one still tells how the last one ended; where nothing came before they are 0, 1, and -1 (or zeros).
    `first`: an episode begins. `last`: the episode stops here, for whatever reason.

    `hidden` is what a simulator knows and no agent may see, such as the task in force; collectors take it away before
    they ask an agent.
    """

    obs: PyTree
    reward: Float[Any, "*batch"]
    discount: Float[Any, "*batch"]
    first: Bool[Any, "*batch"]
    last: Bool[Any, "*batch"]
    prev_action: PyTree
    hidden: PyTree = ()

    def after(self, outcome: "Outcome") -> "TimeStep":
        """The same, telling of another step before."""
        return self._replace(reward=outcome.reward, discount=outcome.discount, prev_action=outcome.action)


class Outcome(NamedTuple):
    """How a step went: what the next time step tells of it."""

    reward: Float[Any, "*batch"]
    discount: Float[Any, "*batch"]
    action: PyTree

    @staticmethod
    def of(timestep: TimeStep) -> "Outcome":
        """The step that led to a time step."""
        return Outcome(timestep.reward, timestep.discount, timestep.prev_action)

    @staticmethod
    def none(action: Space, batch: int) -> "Outcome":
        """No step yet."""
        nothing = jnp.zeros((batch, *action.shape)) if isinstance(action, Box) else jnp.full(batch, -1, jnp.int32)
        return Outcome(jnp.zeros(batch), jnp.ones(batch), nothing)


class Transition(NamedTuple):
    """Experience, time-major [T, B, ...]; real and imagined alike.

    `discount` is 0 only where the MDP terminated and 1 at a time limit, so a truncated step is `last` with
    `discount` 1; γ is applied by the learner. `next_obs` is the true successor, never the observation after a reset.
    Where a collector pads an episode to a fixed length, the steps after the first `last` are padding, and `last` too
    (`episodes.valid_steps`). `extras` is what the policy noted: log-probabilities, values, carries. `hidden` is what
    the simulator hid before the step and after, where the collector was asked to watch.
    """

    obs: PyTree
    action: PyTree
    reward: Float[Any, "*batch"]
    discount: Float[Any, "*batch"]
    next_obs: PyTree
    last: Bool[Any, "*batch"]
    extras: PyTree = ()
    hidden: PyTree = ()


@runtime_checkable
class Act(Protocol):
    """How an agent acts: one copy of the environment, one step."""

    def __call__(
        self, params: Params, carry: Carry, timestep: TimeStep, key: PRNGKeyArray, /
    ) -> tuple[PyTree, Carry, PyTree]:
        """The action, the memory to go on with, and what is to be noted beside the step."""
        ...


class Played(NamedTuple):
    """Episodes that were played to their ends: padded, [T, B].

    `carry` [B] is the agent's memory after each one's last step and `outcome` [B] how that went, so that another
    episode may follow.
    """

    episodes: Transition
    carry: Carry
    outcome: Outcome


Score = Literal["last", "sum", "mean"]
"""What a trial is worth: the return of its last round, the sum over its rounds, or their mean."""


class Trial(eqx.Module):
    """All that an agent lived in N tasks while it adapted to each: rounds in order, each of E episodes (mostly one).

    The episodes of a round were played with the same knowledge, those of later rounds with more. `names` says what the
    rounds are for.
    """

    episodes: Transition
    """[T, N, rounds, E]"""
    names: tuple[str, ...] = eqx.field(static=True)
    score: Score = eqx.field(static=True, default="last")

    @staticmethod
    def of(*rounds: Transition, names: tuple[str, ...] = ("episode",), score: Score = "last") -> "Trial":
        """Of one episode [T, N] a round."""
        return Trial(jax.tree.map(lambda *x: jnp.stack(x, axis=2)[:, :, :, None], *rounds), names, score)


class Collected(NamedTuple):
    """Where a collector has stopped between two calls: B copies in mid-episode, with task and memory each.

    `returns` and `lengths` [B] are those of the episodes under way; `finished` holds the averages over the episodes
    that ended in the latest call.
    """

    tasks: Task
    env: PyTree
    timestep: TimeStep
    carry: Carry
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

    def reset(self, task: Task, key: PRNGKeyArray) -> tuple[PyTree, TimeStep]:
        """Start an episode of `task`."""
        ...

    def step(self, task: Task, state: PyTree, action: PyTree, key: PRNGKeyArray) -> tuple[PyTree, TimeStep]:
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
    def reset(
        self, tasks: Task, seeds: UInt32[np.ndarray, "B words"], state: PyTree, where: Bool[np.ndarray, "B"]
    ) -> tuple[PyTree, TimeStep]:
        """Start new episodes of `tasks` [B] in the copies `where` [B]; `state` is None at the first reset.

        `seeds` [B, words] are unsigned integers. The time step is that of a reset in every copy; only the copies
        `where` may use theirs.
        """

    @abstractmethod
    def step(self, tasks: Task, state: PyTree, action: PyTree) -> tuple[PyTree, TimeStep]:
        """Advance every copy. The time step is the true successor, also where the episode ends."""


@runtime_checkable
class Known(Protocol):
    """An environment whose reward and end are functions of what is observed, so that a model need not learn them.

    Both speak of one copy, in pure JAX. Actions lie in [-1, 1].
    """

    @property
    def spec(self) -> EnvSpec:
        """Spaces and horizon."""
        ...

    def reward(self, task: Task, obs: Array, action: Array, next_obs: Array) -> Float[Array, ""]:
        """What a step pays."""
        ...

    def terminated(self, task: Task, next_obs: Array) -> Bool[Array, ""]:
        """Whether the MDP ends on arriving at `next_obs`."""
        ...


@runtime_checkable
class Observed(Env, Protocol):
    """An environment of which an observation tells the whole state, but for how long the episode has lasted."""

    def state_of(self, task: Task, obs: PyTree) -> PyTree:
        """The state that shows as an observation, as if an episode began there."""
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
    def tiles(self) -> Float[np.ndarray, "kinds side side"]:
        """The pixels of every kind, [kinds, side, side]."""
        ...


@runtime_checkable
class Problems(Protocol):
    """An environment whose tasks are hidden problems, each with an instruction that is shown.

    Problems are numbered, for methods that may look at the number while they meta-train.
    """

    @property
    def spec(self) -> EnvSpec:
        """Spaces and horizon."""
        ...

    @property
    def num_problems(self) -> int:
        """How many there are."""
        ...

    @property
    def num_relevant(self) -> int:
        """How many values `relevant` takes."""
        ...

    @property
    def instruction_space(self) -> Discrete:
        """What instructions look like."""
        ...

    @property
    def observations(self) -> Int[np.ndarray, "N components"]:
        """Every distinct observation, [N, components]."""
        ...

    def problem(self, task: Task) -> Int[Array, "*batch"]:
        """The number of a task's problem."""
        ...

    def instruction(self, task: Task) -> Int[Array, "*batch components"]:
        """What an agent is told of a task."""
        ...

    def relevant(self, problem: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """The part of a problem's number that decides how to act."""
        ...

    def otherwise(self, task: Task, key: PRNGKeyArray) -> Task:
        """The same problem with an instruction drawn anew."""
        ...


@runtime_checkable
class TaskDistribution(Protocol):
    """Where tasks come from; train and test are two distributions."""

    def sample(self, key: PRNGKeyArray) -> Task:
        """Draw one task."""
        ...

    def enumerate(self) -> Task:
        """Every task of a finite split once, stacked [N]."""
        ...


class Family(NamedTuple):
    """A named benchmark: one environment, an `Env` or a `HostEnv`, and its train and test tasks.

    `references` maps a name (`optimal`, `walking`, `random`) to the mean undiscounted return of that policy over the
    test split, computed exactly.
    """

    name: str
    env: Any
    train: TaskDistribution
    test: TaskDistribution
    references: Callable[[], dict[str, float]]


@runtime_checkable
class Collector(Protocol):
    """Whatever steps an environment: compiled with the agent on a device, or a loop over host simulators."""

    @property
    def env(self) -> Env | HostEnv:
        """The environment."""
        ...

    @property
    def tasks(self) -> TaskDistribution:
        """The training tasks."""
        ...

    def episodes(
        self, act: Act, params: Params, carry: Carry, tasks: Task, key: PRNGKeyArray, before: Outcome | None = None
    ) -> Played:
        """One padded episode per task [B]; `before` is how the last step of the agent's last episode went."""
        ...

    def episodes_of_each(
        self, act: Act, params: Params, carry: Carry, tasks: Task, count: int, key: PRNGKeyArray
    ) -> Played:
        """Some padded episodes per task [M], each task with weights of its own [M, ...]: [T, M, count]."""
        ...

    def begin(self, carry: Carry, batch: int, key: PRNGKeyArray) -> Collected:
        """Start `batch` copies on training tasks; `carry` is the agent's memory, batched alike."""
        ...

    def collect(
        self, act: Act, params: Params, collected: Collected, key: PRNGKeyArray, steps: int
    ) -> tuple[Collected, Transition]:
        """Go on for some steps, resetting where an episode ends: [steps, B]."""
        ...

    def scan(
        self, step: Callable[[State, Key[Array, ""]], tuple[State, PyTree]], state: State, keys: Key[Array, "times"]
    ) -> tuple[State, PyTree]:
        """Apply `step(state, key) -> (state, made)`, which may collect, once per key; stacks what was made."""
        ...

    def compute(
        self, function: Callable[..., Made], *arguments: PyTree, static: tuple = (), spend: bool = False
    ) -> Made:
        """Compile and call `function(*static, *arguments)`, which does not collect.

        With `spend` the first argument is not needed any more, and may not be read again: whoever made the collector
        has decided whether its memory is then used for the result.
        """
        ...


@runtime_checkable
class System(Protocol[State]):
    """A method: a frozen dataclass of settings whose methods are pure."""

    __dataclass_fields__: ClassVar[dict[str, Field]]

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Everything that training needs: weights, optimisers, replay, counters."""
        ...

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """One round of the paper's pseudocode."""
        ...

    def params(self, state: State) -> Params:
        """What acting needs: no replay, no optimiser."""
        ...

    def steps(self, state: State) -> Int[Array, ""]:
        """Real environment steps so far; updates, for a system that learns from a data set."""
        ...

    def trial(self, params: Params, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """Adapt to each task [N] and act greedily."""
        ...
