"""What a run computes, for all its seeds at once: initial states, chunks of iterations, evaluations."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from metadyna import envs
from metadyna.collect.device import DeviceCollector
from metadyna.collect.host import HostCollector
from metadyna.errors import UserError
from metadyna.provenance import machine
from metadyna.runs import seeds
from metadyna.runs.config import Config
from metadyna.runs.evaluate import Evaluation, evaluate
from metadyna.types import Average, Family, HostEnv, Metrics

EVALUATION_SEED = 2**31 - 1
"""Root of the keys of evaluation, the same for every run."""


class RunState(NamedTuple):
    """What a checkpoint holds, stacked over seeds. Keys are folded from `iteration`, never stored."""

    system: Any
    iteration: Int[Array, "seeds"]
    evaluated: Int[Array, "seeds"]
    stopped: Bool[Array, "seeds"]


class Marks(NamedTuple):
    """How far every seed is: its steps, how many evaluations were due, whether it has reached its target."""

    steps: Int[np.ndarray, "seeds"]
    evaluated: Int[np.ndarray, "seeds"]
    stopped: Bool[np.ndarray, "seeds"]


Running = Any
"""The states of all seeds while they run, in a form of the program's own (`Program.place`, `Program.stacked`)."""


class Program(ABC):
    """The compiled functions of one configuration."""

    collector: Any
    """Whatever steps the environment."""

    def __init__(self, config: Config, family: Family):
        self.config = config
        self.family = family

    @abstractmethod
    def init(self) -> Running:
        """Fresh states of all seeds."""

    @abstractmethod
    def place(self, state: RunState) -> Running:
        """Take a restored state up."""

    @abstractmethod
    def stacked(self, running: Running) -> RunState:
        """What a checkpoint holds of the states."""

    @abstractmethod
    def marks(self, running: Running) -> Marks:
        """How far every seed is."""

    @abstractmethod
    def marked(self, running: Running, marks: Marks) -> Running:
        """The states with other notes on evaluations and targets."""

    @abstractmethod
    def like(self) -> RunState:
        """Shapes of the state, for reading checkpoints."""

    @abstractmethod
    def chunk(self, running: Running) -> tuple[Running, Metrics, Any]:
        """`config.chunk` iterations of every seed that has not ended: states -> states, metrics, steps."""

    @abstractmethod
    def evaluate(self, running: Running, split: str = "test") -> Evaluation:
        """Evaluate every seed on every task of the split, with keys that are the same for every run."""

    def tasks(self, split: str) -> Any:
        """Every task of a split, stacked."""
        if split not in ("train", "test"):
            raise UserError(f"unknown split '{split}'; there are: train, test")
        return (self.family.train if split == "train" else self.family.test).enumerate()


def build(config: Config) -> Program:
    """Make the program for the kind of environment that the task has; `UserError` where JAX is set to 64 bits."""
    machine.refuse_64_bits()
    family = envs.make(config.task)
    return (HostProgram if isinstance(family.env, HostEnv) else DeviceProgram)(config, family)


class DeviceProgram(Program):
    """A run whose environment is pure: whole chunks are one compiled program."""

    def __init__(self, config: Config, family: Family):
        super().__init__(config, family)
        self.collector = DeviceCollector(family.env, family.train)
        self.mesh = seeds.mesh(config.seeds)

    def init(self) -> RunState:
        """Fresh states of all seeds."""
        initial = seeds.over_seeds(self._init, self.mesh).lower(self._roots)
        # XLA works outside Python's lock: while it prepares the states, the chunk that needs them is traced.
        with ThreadPoolExecutor(1) as pool:
            state = pool.submit(lambda: initial.compile()(self._roots))
            self._compiled.trace(seeds.sharded(initial.out_info, self.mesh), self._roots, self._limits)
            return state.result()

    def place(self, state: RunState) -> RunState:
        """Put a restored state on the devices."""
        return seeds.place(state, self.mesh)

    def stacked(self, running: RunState) -> RunState:
        """The states themselves."""
        return running

    def marks(self, running: RunState) -> Marks:
        """How far every seed is."""
        steps = jax.vmap(self.config.system.steps)(running.system)
        return Marks(*map(np.asarray, (steps, running.evaluated, running.stopped)))

    def marked(self, running: RunState, marks: Marks) -> RunState:
        """The states with other notes on evaluations and targets."""
        evaluated, stopped = seeds.place((jnp.asarray(marks.evaluated), jnp.asarray(marks.stopped)), self.mesh)
        return running._replace(evaluated=evaluated, stopped=stopped)

    def like(self) -> RunState:
        """Shapes of the state, for reading checkpoints."""
        one = jax.eval_shape(self._init, jax.random.key(0))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.config.seeds, *x.shape), x.dtype), one)

    def chunk(self, running: RunState) -> tuple[RunState, Metrics, Int[Array, "seeds"]]:
        """`config.chunk` iterations of every seed that has not ended: states -> states, metrics, steps."""
        return self._compiled(running, self._roots, self._limits)

    @functools.cached_property
    def _compiled(self) -> jax.stages.Wrapped:
        return seeds.over_seeds(self._chunk, self.mesh, donate=True)

    @functools.cached_property
    def _limits(self) -> Int[Array, "seeds"]:
        """The length is an argument: a run that is extended finds its program in the cache."""
        return seeds.place(jnp.full(self.config.seeds, self.config.steps, jnp.int32), self.mesh)

    def evaluate(self, running: RunState, split: str = "test") -> Evaluation:
        """Evaluate every seed on every task of the split, with keys that are the same for every run."""
        self.tasks(split)
        return self._evaluations[split](running.system)

    @functools.cached_property
    def _evaluations(self) -> dict[str, Callable[[Any], Evaluation]]:
        def evaluation(split: str, system_state: Any) -> Evaluation:
            params = self.config.system.params(system_state)
            key = jax.random.key(EVALUATION_SEED)
            return evaluate(self.config.system, params, self.collector, self.tasks(split), key)

        return {split: seeds.over_seeds(functools.partial(evaluation, split), self.mesh) for split in ("train", "test")}

    @functools.cached_property
    def _roots(self) -> Array:
        numbers = np.arange(self.config.seed, self.config.seed + self.config.seeds, dtype=np.uint32)
        return seeds.place(jax.vmap(jax.random.key)(numbers), self.mesh)

    def _init(self, root: Array) -> RunState:
        system = self.config.system.init(self.collector, initial_key(root))
        return RunState(system, jnp.int32(0), jnp.int32(0), jnp.bool_(False))

    def _chunk(self, state: RunState, root: Array, limit: Int[Array, ""]) -> tuple[RunState, Metrics, Int[Array, ""]]:
        system = self.config.system

        def iterate(state: RunState, _: None) -> tuple[RunState, Metrics]:
            key = jax.random.fold_in(root, state.iteration)
            inner, metrics = system.iterate(state.system, self.collector, key)
            return state._replace(system=inner, iteration=state.iteration + 1), metrics

        @jax.jit  # traced once, for its shapes and for itself
        def go_on(state: RunState) -> tuple[RunState, Metrics]:
            state, metrics = jax.lax.scan(iterate, state, None, length=self.config.chunk)
            return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

        def rest(state: RunState) -> tuple[RunState, Metrics]:
            shapes = jax.eval_shape(go_on, state)[1]
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        ended = state.stopped | (system.steps(state.system) >= limit)
        state, metrics = jax.lax.cond(ended, rest, go_on, state)
        return state, metrics, system.steps(state.system)


class HostProgram(Program):
    """A run whose simulators live on the host: Python iterates, and only what a system hands to `compute` is compiled.

    Seeds take a thread each, as many as there are cores to use; the simulators and the compiled functions run outside
    Python's lock. Each has a state of its own, whose memory its iterations use again, after one copy per chunk: if a
    simulator breaks, what was before the chunk is still there.
    """

    def __init__(self, config: Config, family: Family):
        super().__init__(config, family)
        self.collector = _hosted(family)

    @functools.cached_property
    def _collectors(self) -> list[HostCollector]:
        """One per seed, with simulators of its own: two threads may not step the same ones."""
        others = [envs.make(self.config.task) for _ in range(1, self.config.seeds)]
        return [self.collector, *map(_hosted, others)]

    def init(self) -> list[RunState]:
        """Fresh states of all seeds."""
        return [self._init(*each) for each in zip(self._collectors, self._roots, strict=True)]

    def place(self, state: RunState) -> list[RunState]:
        """Take the seeds apart."""
        return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(self.config.seeds)]

    def stacked(self, running: list[RunState]) -> RunState:
        """Put the seeds together."""
        return _stack(running)

    def marks(self, running: list[RunState]) -> Marks:
        """How far every seed is."""
        each = [(self.config.system.steps(one.system), one.evaluated, one.stopped) for one in running]
        return Marks(*(np.stack([np.asarray(x) for x in column]) for column in zip(*each, strict=True)))

    def marked(self, running: list[RunState], marks: Marks) -> list[RunState]:
        """The states with other notes on evaluations and targets."""
        notes = zip(running, map(jnp.asarray, marks.evaluated), map(jnp.asarray, marks.stopped), strict=True)
        return [one._replace(evaluated=evaluated, stopped=stopped) for one, evaluated, stopped in notes]

    def like(self) -> RunState:
        """Shapes of the state, for reading checkpoints."""
        one = self._init(self.collector, self._roots[0])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.config.seeds, *x.shape), x.dtype), one)

    def chunk(self, running: list[RunState]) -> tuple[list[RunState], Metrics, np.ndarray]:
        """`config.chunk` iterations of every seed that has not ended: states -> states, metrics, steps."""
        states, metrics = zip(*self._each(self._chunk, running), strict=True)
        names = {name for one in metrics for name in one}
        none = Average(np.float32(0), np.int32(0))
        totals = {name: _stack([one.get(name, none) for one in metrics]) for name in sorted(names)}
        return list(states), totals, self.marks(list(states)).steps

    def evaluate(self, running: list[RunState], split: str = "test") -> Evaluation:
        """Evaluate every seed on every task of the split, with keys that are the same for every run."""
        tasks = self.tasks(split)

        def one(params: Any, collector: HostCollector, root: Array) -> Evaluation:
            del root
            return evaluate(self.config.system, params, collector, tasks, jax.random.key(EVALUATION_SEED))

        return _stack(self._each(one, [self.config.system.params(state.system) for state in running]))

    def _each(self, function: Callable[..., Any], parts: list[Any]) -> list[Any]:
        """Apply a function to every seed's part, its collector and its root key, in threads."""
        with ThreadPoolExecutor(min(self.config.seeds, machine.usable_cores())) as pool:
            return list(pool.map(function, parts, self._collectors, self._roots))

    @functools.cached_property
    def _roots(self) -> list[Array]:
        return [jax.random.key(self.config.seed + i) for i in range(self.config.seeds)]

    def _init(self, collector: HostCollector, root: Array) -> RunState:
        system = self.config.system.init(collector, initial_key(root))
        return RunState(system, jnp.int32(0), jnp.int32(0), jnp.bool_(False))

    def _chunk(self, state: RunState, collector: HostCollector, root: Array) -> tuple[RunState, Metrics]:
        system: Any = self.config.system
        inner, first = state.system, int(state.iteration)
        if state.stopped or system.steps(inner) >= self.config.steps:
            return state, {}
        inner, made = jax.tree.map(_copy, inner), []
        for iteration in range(first, first + self.config.chunk):
            inner, metrics = system.iterate(inner, collector, _fold_in(root, iteration))
            made.append(metrics)
        state = state._replace(system=inner, iteration=jnp.int32(first + self.config.chunk))
        return state, jax.tree.map(lambda *x: np.sum(np.stack(x), axis=0), *made)


def _hosted(family: Family) -> HostCollector:
    return HostCollector(family.env, family.train, donate=True)


_fold_in = jax.jit(jax.random.fold_in)
"""A tenth of a millisecond less than uncompiled, in every iteration."""


def initial_key(root: Array) -> Array:
    """Key of a run's initial state: iterations fold in 0, 1, 2, …, so it takes the last number there is."""
    return jax.random.fold_in(root, 2**32 - 1)


def _stack(seeds: Any) -> Any:
    """One pytree of several, on a new axis 0; numpy stays numpy."""
    return jax.tree.map(lambda *x: _stack_leaf(*x) if isinstance(x[0], jax.Array) else np.stack(x), *seeds)


def _copy(x: Any) -> Any:
    return jnp.copy(x) if isinstance(x, jax.Array) else x


@jax.jit  # one copy, where `jnp.stack` on its own makes three of a replay
def _stack_leaf(*x: Array) -> Array:
    return jnp.stack(x)
