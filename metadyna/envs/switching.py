"""Tasks that change while an episode goes on, and say nothing of it: a wrapper around any family, pure or on the host.

An episode begins with the task it is given; when the law says so, another, maybe the same, is drawn in its place. Both
are decided by words that are drawn at the reset and kept in the state, so that nothing an agent does changes what comes
when, and a state that was saved in between goes on as if it had not been. The next episode begins with its own task
and its own words: an agent that lives on meets a change there too, wherever its collector draws a task per episode.

`TimeStep.hidden` tells who watches which task is in force. An observation does not, and so a switching environment is
neither `types.Observed` nor `types.Problems`, whatever it is made of. Rewards and ends that are known (`types.Known`)
stay so, since they are asked without a task: one that depends on it cannot be told from what is observed.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

from metadyna.settings import Settings, check_ranges
from metadyna.types import Env, EnvSpec, HostEnv, Known, Task, TaskDistribution, TimeStep

Steps = Annotated[int, "[1, 1000000000]"]
"""For how long a task is in force, in steps of the environment."""

APART = 0x7A5C
"""Sets the words apart from all else that is drawn with the key or the seed of a reset."""


@dataclass(frozen=True)
class Every(Settings):
    """A change every `period` steps, counted from the start of the episode."""

    period: Steps

    def stay(self, key: PRNGKeyArray) -> Int[Array, ""]:
        """For how many steps a task is in force."""
        del key
        return jnp.int32(self.period)


@dataclass(frozen=True)
class Jitter(Settings):
    """A change after `low` to `high` steps, every number of them equally likely."""

    low: Steps
    high: Steps

    def __post_init__(self) -> None:
        """The ends must be in order."""
        super().__post_init__()
        check_ranges(self, high=f"[{self.low}, 1000000000]")

    def stay(self, key: PRNGKeyArray) -> Int[Array, ""]:
        """For how many steps a task is in force."""
        return jax.random.randint(key, (), self.low, self.high + 1)


@dataclass(frozen=True)
class Never(Settings):
    """No change within an episode: the environment as it is."""

    def stay(self, key: PRNGKeyArray) -> Int[Array, ""]:
        """For longer than any episode lasts."""
        del key
        return jnp.int32(2**31 - 1)


Law = Every | Jitter | Never
"""When tasks change."""


class Course(NamedTuple):
    """How far a sequence of tasks has come: the task in force in the step to be taken, and what decides the rest."""

    task: Task
    words: UInt32[Any, "*batch 2"]
    switches: Int[Any, "*batch"]
    """Changes since the episode began."""
    left: Int[Any, "*batch"]
    """Steps until the next change."""


class InForce(NamedTuple):
    """What is hidden at a time: the task in force in the step taken from there, and what the environment hides."""

    task: Task
    switches: Int[Any, "*batch"]
    """Changes since the episode began: a task drawn anew may be the one before."""
    hidden: PyTree


class SwitchingState(NamedTuple):
    """State of the environment, and of its tasks."""

    env: PyTree
    course: Course

    def shown(self, timestep: TimeStep) -> TimeStep:
        """The environment's time step, with the task in force hidden in it."""
        return timestep._replace(hidden=InForce(self.course.task, self.course.switches, timestep.hidden))


@dataclass(frozen=True)
class Changes(Settings):
    """Which tasks come, and when."""

    tasks: TaskDistribution
    law: Law

    def begin(self, task: Task, words: UInt32[Array, "2"]) -> Course:
        """The sequence that begins with `task`; its words decide what follows."""
        _, k_stay = _keys(words, jnp.int32(0))
        return Course(task, words, jnp.int32(0), self.law.stay(k_stay))

    def advance(self, course: Course) -> Course:
        """One step on."""
        k_task, k_stay = _keys(course.words, course.switches + 1)
        stayed = course._replace(left=course.left - 1)
        changed = Course(self.tasks.sample(k_task), course.words, course.switches + 1, self.law.stay(k_stay))
        return jax.tree.map(partial(jnp.where, stayed.left == 0), changed, stayed)


def _keys(words: UInt32[Array, "2"], number: Int[Array, ""]) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """What draws one of the tasks, and how long it is in force."""
    k_task, k_stay = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), number))
    return k_task, k_stay


@dataclass(frozen=True)
class Switching(Settings):
    """A pure environment whose task changes."""

    env: Env
    changes: Changes

    @property
    def spec(self) -> EnvSpec:
        """Spaces and horizon."""
        return self.env.spec

    def reset(self, task: Task, key: PRNGKeyArray) -> tuple[SwitchingState, TimeStep]:
        """Start an episode that begins with `task`, as the environment would with this key."""
        words = jax.random.bits(jax.random.fold_in(key, APART), (2,), jnp.uint32)
        env, timestep = self.env.reset(task, key)
        state = SwitchingState(env, self.changes.begin(task, words))
        return state, state.shown(timestep)

    def step(
        self, task: Task, state: SwitchingState, action: PyTree, key: PRNGKeyArray
    ) -> tuple[SwitchingState, TimeStep]:
        """Take one step of the task in force; with which one the episode began does not matter any more."""
        del task
        env, timestep = self.env.step(state.course.task, state.env, action, key)
        state = SwitchingState(env, self.changes.advance(state.course))
        return state, state.shown(timestep)


@dataclass(frozen=True)
class HostSwitching(Settings, HostEnv):
    """Simulators on the host whose tasks change, each copy's by words of its own."""

    env: HostEnv
    changes: Changes

    @property
    def spec(self) -> EnvSpec:
        """Spaces and horizon."""
        return self.env.spec

    def reset(
        self,
        tasks: Task,
        seeds: UInt32[np.ndarray, "B words"],
        state: SwitchingState | None,
        where: Bool[np.ndarray, "B"],
    ) -> tuple[SwitchingState, TimeStep]:
        """Start episodes that begin with `tasks` in the copies `where`, as the environment would with these seeds."""
        # Children of a seed are numpy's way to draw apart from what the seed itself draws.
        words = np.stack([np.random.SeedSequence(seed, spawn_key=(APART,)).generate_state(2) for seed in seeds])
        course = jax.tree.map(np.asarray, _begin(self.changes, tasks, words))
        if state is not None:
            course = jax.tree.map(partial(_rows, where), course, state.course)
        env, timestep = self.env.reset(course.task, seeds, None if state is None else state.env, where)
        state = SwitchingState(env, course)
        return state, state.shown(timestep)

    def step(
        self, tasks: Task, state: SwitchingState, action: Float[np.ndarray, "B actions"]
    ) -> tuple[SwitchingState, TimeStep]:
        """Advance every copy by a step of its task in force."""
        del tasks
        course = state.course
        env, timestep = self.env.step(course.task, state.env, action)
        if (course.left > 1).all():  # most steps change nothing, and asking the device takes as long as a robot's step
            course = course._replace(left=course.left - 1)
        else:
            course = jax.tree.map(np.asarray, _advance(self.changes, course))
        state = SwitchingState(env, course)
        return state, state.shown(timestep)


class _Ends:
    """An environment of which what is observed tells whether the MDP ends."""

    env: Any

    def terminated(self, task: Task, next_obs: Array) -> Bool[Array, ""]:
        """Whether the MDP ends on arriving at `next_obs`, whatever the task."""
        del task
        return self.env.terminated(None, next_obs)


class _Known(_Ends):
    """One of which it also tells what a step pays."""

    def reward(self, task: Task, obs: Array, action: Array, next_obs: Array) -> Float[Array, ""]:
        """What a step pays, whatever the task."""
        del task
        return self.env.reward(None, obs, action, next_obs)


class KnownSwitching(Switching, _Known):
    """A pure environment that is `types.Known` and whose task changes."""


class EndingHostSwitching(HostSwitching, _Ends):
    """Simulators whose tasks change, of which what is observed tells whether the MDP ends."""


class KnownHostSwitching(HostSwitching, _Known):
    """Simulators that are `types.Known` and whose tasks change."""


def switched(env: Env | HostEnv, changes: Changes) -> Switching | HostSwitching:
    """Make the task of an environment change; what its observations tell of reward and end, they still tell."""
    if isinstance(env, HostEnv):
        ends = callable(getattr(env, "terminated", None))
        kind = KnownHostSwitching if isinstance(env, Known) else EndingHostSwitching if ends else HostSwitching
        return kind(env, changes)
    kind = KnownSwitching if isinstance(env, Known) else Switching
    return kind(env, changes)


@partial(jax.jit, static_argnums=0)
def _begin(changes: Changes, tasks: Task, words: UInt32[Any, "B 2"]) -> Course:
    return jax.vmap(changes.begin)(tasks, words)


@partial(jax.jit, static_argnums=0)
def _advance(changes: Changes, course: Course) -> Course:
    return jax.vmap(changes.advance)(course)


def _rows(chosen: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Rows of `new` where `chosen`, else of `old`."""
    return np.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)
