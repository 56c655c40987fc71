"""Exploring for the sake of execution: what is lived in one trial, and who makes a context of it.

A trial is an exploration episode, then an execution episode on the same hidden problem, which is told an instruction
and a context. Systems put together a source of contexts and an execution agent; each is a settings object that brings
its own weights and losses.
"""

from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.collect.episodes import swapped
from metadyna.nets.distinct import Distinct
from metadyna.types import Problems, Transition, sizes

Weights = TypeVar("Weights")
Memory = TypeVar("Memory")


class Attempt(NamedTuple):
    """What was lived in B trials; episodes are [B, T, ...] as they are stored, [T, B, ...] as they are learnt from."""

    problem: Int[Array, "B"]
    instruction: Int[Array, "B components"]
    explore: Transition
    execute: Transition

    def swapped(self) -> "Attempt":
        """Episodes with their first two axes exchanged."""
        return self._replace(explore=swapped(self.explore), execute=swapped(self.execute))


class Lesson(NamedTuple):
    """What a context may be made of: each problem's number, and its exploration [T, B] with the steps that count."""

    problem: Int[Array, "B"]
    explore: Transition
    valid: Bool[Array, "T B"]


class Contexts(NamedTuple):
    """The contexts of a batch, those that the target network is told, and what the source has to learn itself."""

    online: Float[Array, "B width"]
    slow: Float[Array, "B width"]
    losses: dict[str, Float[Array, ""]]


@runtime_checkable
class ContextSource(Protocol[Weights]):
    """Who makes contexts, vectors of some width. `lived` rows are made of exploration alone, as all are at test."""

    @property
    def width(self) -> int:
        """Numbers in a context."""
        ...

    @property
    def explores(self) -> bool:
        """Whether exploration has anything to tell."""
        ...

    def create(self, env: Problems, key: PRNGKeyArray) -> Weights:
        """Draw the weights."""
        ...

    def lived(self, iteration: Int[Array, ""] | int, batch: int) -> Bool[Array, "B"]:
        """Which rows of a batch of training are made of exploration alone."""
        ...

    def infer(
        self, env: Problems, weights: Weights, lesson: Lesson, lived: Bool[Array, "B"], key: PRNGKeyArray | None
    ) -> Float[Array, "B width"]:
        """Contexts to act with; without noise where there is no key."""
        ...

    def learn(
        self,
        env: Problems,
        weights: Weights,
        target: Weights,
        lesson: Lesson,
        lived: Bool[Array, "B"],
        key: PRNGKeyArray,
    ) -> Contexts:
        """Contexts to learn with, and the source's own losses."""
        ...

    def distances(self, env: Problems, weights: Weights, lesson: Lesson) -> Float[Array, "T1 B"]:
        """How far what is known after 0, 1, …, T steps of exploration is from what there is to know."""
        ...


@runtime_checkable
class Execution(Protocol[Weights, Memory]):
    """Who executes: action values, given an instruction and a context."""

    @property
    def whole(self) -> bool:
        """Whether it learns from whole episodes, or from single steps as episodes of T = 1."""
        ...

    def create(self, env: Problems, context: int, key: PRNGKeyArray) -> Weights:
        """Draw the weights."""
        ...

    def initial(self, weights: Weights, batch: int) -> Memory:
        """Empty memories [B]."""
        ...

    def act(
        self,
        env: Problems,
        weights: Weights,
        memory: Memory,
        obs: Array,
        instruction: Array,
        context: Float[Array, "context"],
    ) -> tuple[Float[Array, "actions"], Memory]:
        """Values that one copy acts on, and its memory."""
        ...

    def losses(
        self, env: Problems, weights: Weights, target: Weights, attempts: Attempt, contexts: Contexts, discount: float
    ) -> dict[str, Float[Array, ""]]:
        """What is to fall, on episodes [T, B]."""
        ...


def distinct(env: Problems) -> Distinct:
    """The observations of a family of problems, each to be embedded once."""
    return Distinct.create(env.observations, sizes(env.spec.observation))
