"""Black-box maximisers over action sequences.

A search is a frozen dataclass of settings. It looks for the array [H, A] (H steps, A action dimensions) inside a
finite box that scores highest, without gradients: `ask` proposes candidates, `tell` learns from their scores. A score
that is not finite counts as −inf: such a candidate never wins, is never averaged in and has no weight, and a
population of them changes nothing.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Score = Callable[[Array, PRNGKeyArray], Array]
"""`score(candidates [N, H, A], key) -> [N]`; higher is better."""

Iteration = int | Int[Array, ""]
"""Which iteration of a search; traced where all are alike."""


@runtime_checkable
class Search(Protocol):
    """Maximise a black box inside a box; the state S is an array-only pytree."""

    @property
    def populations(self) -> tuple[int, ...]:
        """Candidates in each iteration."""
        ...

    @property
    def alike(self) -> bool:
        """Whether all iterations are one computation, so that `ask` takes a traced `iteration`."""
        ...

    def init(self, shape: tuple[int, ...], low: ArrayLike, high: ArrayLike) -> Any:
        """Start an episode in the middle of the box; `low` and `high` broadcast to `shape` [H, A]."""
        ...

    def shift(self, state: Any) -> Any:
        """Start the search of the next real step from the solution, one step on."""
        ...

    def ask(self, state: Any, key: PRNGKeyArray, count: int, iteration: Any) -> Float[Array, "N H A"]:
        """Propose `count` candidates, all inside the box."""
        ...

    def tell(self, state: Any, candidates: Float[Array, "N H A"], scores: Float[Array, "N"]) -> Any:
        """Learn from the scores of what was asked."""
        ...

    def solution(self, state: Any) -> Float[Array, "H A"]:
        """The answer so far, inside the box."""
        ...


def maximise(search: Search, score: Score, state: Any, key: PRNGKeyArray) -> Any:
    """Run all iterations of one search; every iteration asks and scores with keys of its own."""

    def improve(state: Any, count: int, iteration: int | Array, key: PRNGKeyArray) -> Any:
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


def box(shape: tuple[int, ...], low: ArrayLike, high: ArrayLike) -> tuple[Float[Array, "H A"], Float[Array, "H A"]]:
    """Both bounds, for every entry."""
    return jnp.broadcast_to(jnp.asarray(low, float), shape), jnp.broadcast_to(jnp.asarray(high, float), shape)


def advance(sequences: Float[Array, "*batch H A"], tail: Float[Array, "*batch A"]) -> Float[Array, "*batch H A"]:
    """Drop the first step, which has been taken, and append `tail`."""
    return jnp.roll(sequences, -1, axis=-2).at[..., -1, :].set(tail)


def finite_or_worst(scores: Float[Array, "N"]) -> Float[Array, "N"]:
    """Replace every score that is not finite by −inf: a model that has diverged, upwards too, is not believed."""
    return jnp.where(jnp.isfinite(scores), scores, -jnp.inf)


def top(
    candidates: Float[Array, "N H A"], scores: Float[Array, "N"], count: int
) -> tuple[Float[Array, "K H A"], Float[Array, "K"]]:
    """The `count` best candidates, best first, with their scores; −inf, and last, where the score is not finite."""
    best_scores, best = lax.top_k(finite_or_worst(scores), count)
    return candidates[best], best_scores


def moments(
    candidates: Float[Array, "N H A"], usable: Bool[Array, "N"]
) -> tuple[Float[Array, "H A"], Float[Array, "H A"]]:
    """Mean and population variance of the usable candidates, entry by entry; 0 if there are none."""
    share = (usable / jnp.maximum(jnp.sum(usable), 1))[:, None, None]
    mean = jnp.sum(share * candidates, axis=0)
    return mean, jnp.sum(share * (candidates - mean[None]) ** 2, axis=0)
