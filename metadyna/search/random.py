"""Random shooting: the best of many uniform draws (Nagabandi et al. 2018; a baseline of PETS)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.search import Iteration, Point, finite_or_worst, leaf_keys, middle
from metadyna.settings import Settings


class Best(NamedTuple):
    """The best point of this search, and what it scored: −inf before any."""

    point: Point
    score: Float[Array, "*batch"]
    low: Point
    high: Point


@dataclass(frozen=True)
class RandomShooting(Settings):
    """Draw every entry uniformly in the box, independently; nothing is learnt from one search to the next."""

    candidates: Annotated[int, "[1, 100000000]"] = 2000
    """Points per search; PETS takes as many as CEM does in all its iterations."""

    @property
    def populations(self) -> tuple[int, ...]:
        """One iteration."""
        return (self.candidates,)

    @property
    def alike(self) -> bool:
        """There is only one iteration."""
        return True

    def init(self, low: Point, high: Point) -> Best:
        """Start in the middle of the box."""
        return Best(middle(low, high), jnp.asarray(-jnp.inf, float), low, high)

    def restart(self, state: Best, move: Callable[[Point], Point]) -> Best:
        """Forget the score, which belongs to the search before, so that any candidate beats the moved point."""
        return state._replace(point=move(state.point), score=jnp.full_like(state.score, -jnp.inf))

    def ask(self, state: Best, key: PRNGKeyArray, count: int, iteration: Iteration) -> Point:
        """Draw uniformly."""

        def draw(key: PRNGKeyArray, low: Array, high: Array) -> Array:
            return low[None] + jax.random.uniform(key, (count, *low.shape), low.dtype) * (high - low)[None]

        return jax.tree.map(draw, leaf_keys(key, state.low), state.low, state.high)

    def tell(self, state: Best, candidates: Point, scores: Float[Array, "N"]) -> Best:
        """Remember a better one."""
        scores = finite_or_worst(scores)
        best = jnp.argmax(scores)
        better = scores[best] > state.score
        point = jax.tree.map(lambda new, old: jnp.where(better, new[best], old), candidates, state.point)
        return state._replace(point=point, score=jnp.where(better, scores[best], state.score))

    def solution(self, state: Best) -> Point:
        """The best point of this search."""
        return state.point
