"""Random shooting: the best of many uniform draws (Nagabandi et al. 2018; a baseline of PETS)."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.search import Iteration, advance, box, finite_or_worst
from metadyna.settings import Settings


class Best(NamedTuple):
    """The best sequence of this search, and what it scored: −inf before any."""

    sequence: Float[Array, "*batch H A"]
    score: Float[Array, "*batch"]
    low: Float[Array, "*batch H A"]
    high: Float[Array, "*batch H A"]


@dataclass(frozen=True)
class RandomShooting(Settings):
    """Draw every action uniformly in the box, independently; nothing is learnt from one step to the next."""

    candidates: Annotated[int, "[1, 100000000]"] = 2000
    """Sequences per real step; PETS takes as many as CEM does in all its iterations."""

    @property
    def populations(self) -> tuple[int, ...]:
        """One iteration."""
        return (self.candidates,)

    @property
    def alike(self) -> bool:
        """There is only one iteration."""
        return True

    def init(self, shape: tuple[int, ...], low: ArrayLike, high: ArrayLike) -> Best:
        """Start in the middle of the box."""
        low, high = box(shape, low, high)
        return Best((low + high) / 2, jnp.asarray(-jnp.inf, float), low, high)

    def shift(self, state: Best) -> Best:
        """Forget the score, which belongs to the step before, so that any candidate beats the shifted sequence."""
        middle = (state.low[-1] + state.high[-1]) / 2
        return state._replace(sequence=advance(state.sequence, middle), score=jnp.full_like(state.score, -jnp.inf))

    def ask(self, state: Best, key: PRNGKeyArray, count: int, iteration: Iteration) -> Float[Array, "N H A"]:
        """Draw uniformly."""
        drawn = jax.random.uniform(key, (count, *state.low.shape), state.low.dtype)
        return state.low[None] + drawn * (state.high - state.low)[None]

    def tell(self, state: Best, candidates: Float[Array, "N H A"], scores: Float[Array, "N"]) -> Best:
        """Remember a better one."""
        scores = finite_or_worst(scores)
        best = jnp.argmax(scores)
        better = scores[best] > state.score
        return state._replace(
            sequence=jnp.where(better, candidates[best], state.sequence),
            score=jnp.where(better, scores[best], state.score),
        )

    def solution(self, state: Best) -> Float[Array, "H A"]:
        """The best sequence of this search."""
        return state.sequence
