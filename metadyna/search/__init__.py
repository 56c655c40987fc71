"""Black-box maximisers over any pytree of arrays: action sequences, latents, weights.

A search is a frozen dataclass of settings. It looks for the point inside a finite box that scores highest, without
gradients: `ask` proposes candidates, `tell` learns from their scores. A score that is not finite counts as −inf: such a
candidate never wins, is never averaged in and has no weight, and a population of them changes nothing.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

Point = PyTree
"""What is looked for: arrays, all in a box. Candidates have an axis [N] in front of every one."""

Score = Callable[[Point, PRNGKeyArray], Array]
"""`score(candidates, key) -> [N]`; higher is better."""

Iteration = int | Int[Array, ""]
"""Which iteration of a search; traced where all are alike."""

State = TypeVar("State")
"""What a search remembers: an array-only pytree."""


@runtime_checkable
class Search(Protocol[State]):
    """Maximise a black box inside a box."""

    @property
    def populations(self) -> tuple[int, ...]:
        """Candidates in each iteration."""
        ...

    @property
    def alike(self) -> bool:
        """Whether all iterations are one computation, so that `ask` takes a traced `iteration`."""
        ...

    def init(self, low: Point, high: Point) -> State:
        """Start in the middle of the box."""
        ...

    def restart(self, state: State, move: Callable[[Point], Point]) -> State:
        """Start another search from where the last one ended, all that it found being moved."""
        ...

    def ask(self, state: State, key: PRNGKeyArray, count: int, iteration: Iteration) -> Point:
        """Propose `count` candidates, all inside the box."""
        ...

    def tell(self, state: State, candidates: Point, scores: Float[Array, "N"]) -> State:
        """Learn from the scores of what was asked."""
        ...

    def solution(self, state: State) -> Point:
        """The answer so far, inside the box."""
        ...


def maximise(search: Search[Any], score: Score, state: State, key: PRNGKeyArray) -> State:
    """Run all iterations of one search; every iteration asks and scores with keys of its own."""

    def improve(state: State, count: int, iteration: Iteration, key: PRNGKeyArray) -> State:
        k_ask, k_score = jax.random.split(key)
        candidates = search.ask(state, k_ask, count, iteration)
        return search.tell(state, candidates, score(candidates, k_score))

    populations = search.populations
    keys = jax.random.split(key, len(populations))
    if search.alike:
        steps = jnp.arange(len(populations)), keys
        return lax.scan(lambda state, step: (improve(state, populations[0], *step), None), state, steps)[0]
    for i, count in enumerate(populations):
        state = improve(state, count, i, keys[i])
    return state


# --- what searches share


def middle(low: Point, high: Point) -> Point:
    """The middle of the box."""
    return jax.tree.map(lambda low, high: (low + high) / 2, low, high)


def inside(point: Point, low: Point, high: Point) -> Point:
    """Clip into the box."""
    return jax.tree.map(jnp.clip, point, low, high)


def leaf_keys(key: PRNGKeyArray, like: PyTree) -> PyTree:
    """A key for every array."""
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [key] if len(leaves) == 1 else list(jax.random.split(key, len(leaves))))


def finite_or_worst(scores: Float[Array, "N"]) -> Float[Array, "N"]:
    """Replace every score that is not finite by −inf: a model that has diverged, upwards too, is not believed."""
    return jnp.where(jnp.isfinite(scores), scores, -jnp.inf)


def top(candidates: Point, scores: Float[Array, "N"], count: int) -> tuple[Point, Float[Array, "K"]]:
    """The `count` best candidates, best first, with their scores; −inf, and last, where the score is not finite."""
    best_scores, best = lax.top_k(finite_or_worst(scores), count)
    return jax.tree.map(lambda x: x[best], candidates), best_scores


def moments(candidates: Point, usable: Bool[Array, "N"]) -> tuple[Point, Point]:
    """Mean and population variance of the usable candidates, entry by entry; 0 if there are none."""
    share = usable / jnp.maximum(jnp.sum(usable), 1)

    def average(x: Array) -> Array:
        return jnp.sum(share.reshape(-1, *[1] * (x.ndim - 1)) * x, axis=0)

    mean = jax.tree.map(average, candidates)
    return mean, jax.tree.map(lambda x, mean: average((x - mean[None]) ** 2), candidates, mean)
