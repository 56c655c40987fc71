"""iCEM: CEM with noise that is correlated in time and elites that are kept (Pinneri et al. 2020, algorithm 1).

Reference implementation: martius-lab/iCEM. One difference: the shifted elites take the place of fresh samples instead
of being added to them, so that every real step scores the same number of sequences.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from metadyna.search import Iteration, Point, inside, leaf_keys, middle, moments, top
from metadyna.settings import Settings, check_ranges


class Kept(NamedTuple):
    """The search distribution, and the best points so far, best first.

    `scores` are −inf where a point has not been scored in this search. `moved`: there was a search before, so that
    `kept` holds its elites.
    """

    mean: Point
    spread: Point
    kept: Point
    scores: Float[Array, "*batch kept"]
    moved: Bool[Array, "*batch"]
    low: Point
    high: Point


@dataclass(frozen=True)
class ICEM(Settings):
    """CEM for few samples: coloured noise, clipped to the box, and a memory of elites.

    Points are sequences: axis 0 of every array is time.
    """

    population: Annotated[int, "[2, 1000000]"] = 40
    """Candidates in the first iteration."""
    elites: Annotated[int, "[1, 500000]"] = 10
    """Best candidates to which the Gaussian is fitted."""
    iterations: Annotated[int, "[1, 10000]"] = 3
    """Iterations per real step."""
    momentum: Annotated[float, "[0, 1)"] = 0.1
    """Share of the old mean and standard deviation that stays."""
    beta: Annotated[float, "[0, 100]"] = 2.5
    """Exponent of the noise: 0 is white, 2 a random walk. The paper takes 0.25 (cheetah) to 3.5 (relocate)."""
    keep: Annotated[float, "[0, 1]"] = 0.3
    """Share of the elites that lives on, in the next iteration and the next real step; the best one always does."""
    decay: Annotated[float, "[1, 1000000]"] = 1.25
    """Each iteration has this many times fewer candidates than the one before, but never under twice the elites."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, elites=f"[1, {self.population // 2}]")

    @property
    def populations(self) -> tuple[int, ...]:
        """Falling numbers."""
        counts = [self.population]
        while len(counts) < self.iterations:
            counts.append(max(2 * self.elites, int(counts[-1] / self.decay)))
        return tuple(counts)

    @property
    def alike(self) -> bool:
        """The first iteration, the last, and their sizes differ."""
        return False

    def init(self, low: Point, high: Point) -> Kept:
        """Start in the middle, with a standard deviation of a quarter of the box."""
        start, count = middle(low, high), max(1, int(self.keep * self.elites))
        kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), start)
        return Kept(start, _wide(low, high), kept, jnp.full(count, -jnp.inf, float), jnp.asarray(False), low, high)

    def restart(self, state: Kept, move: Callable[[Point], Point]) -> Kept:
        """Move mean and elites, whose last step `ask` draws anew."""
        return state._replace(
            mean=move(state.mean),
            spread=_wide(state.low, state.high),
            kept=jax.vmap(move)(state.kept),
            scores=jnp.full_like(state.scores, -jnp.inf),
            moved=jnp.ones_like(state.moved),
        )

    def ask(self, state: Kept, key: PRNGKeyArray, count: int, iteration: Iteration) -> Point:
        """Draw `count` points; the first iteration contains the moved elites, the last one the mean."""

        def draw(key: PRNGKeyArray, mean: Array, spread: Array, kept: Array, low: Array, high: Array) -> Array:
            noise = coloured_noise(key, self.beta, (count, *mean.shape))
            candidates = jnp.clip(mean[None] + noise * spread[None], low[None], high[None])
            if iteration == 0:
                fresh = candidates[: len(kept)]
                elites = kept.at[:, -1].set(fresh[:, -1])
                candidates = candidates.at[: len(elites)].set(jnp.where(state.moved, elites, fresh))
            if iteration == self.iterations - 1:
                candidates = candidates.at[-1].set(mean)
            return candidates

        parts = state.mean, state.spread, state.kept, state.low, state.high
        return jax.tree.map(draw, leaf_keys(key, state.mean), *parts)

    def tell(self, state: Kept, candidates: Point, scores: Float[Array, "N"]) -> Kept:
        """Move towards the elites; those kept compete with the score they had."""
        moves = jnp.any(jnp.isfinite(scores))
        # The kept come first: of equals the earlier is taken, so where nothing is usable they stay.
        pool = jax.tree.map(lambda *x: jnp.concatenate(x), state.kept, candidates)
        elites, scores = top(pool, jnp.concatenate([state.scores, scores]), self.elites)
        mean, variance = moments(elites, jnp.isfinite(scores))

        def move(old: Array, new: Array) -> Array:
            return jnp.where(moves, self.momentum * old + (1 - self.momentum) * new, old)

        count = len(state.scores)
        return state._replace(
            mean=inside(jax.tree.map(move, state.mean, mean), state.low, state.high),  # only rounding leads out
            spread=jax.tree.map(lambda old, new: move(old, jnp.sqrt(new)), state.spread, variance),
            kept=jax.tree.map(lambda x: x[:count], elites),
            scores=scores[:count],
        )

    def solution(self, state: Kept) -> Point:
        """The best point of this search."""
        return jax.tree.map(lambda x: x[0], state.kept)


def _wide(low: Point, high: Point) -> Point:
    return jax.tree.map(lambda low, high: (high - low) / 4, low, high)


def coloured_noise(key: PRNGKeyArray, beta: float, shape: tuple[int, ...]) -> Float[Array, "N H *A"]:
    """Gaussian noise with power 1/f^β along time, axis 1; of unit variance at every step.

    All other axes are independent; the constant part has the power of the lowest frequency. Timmer & König 1995, as
    used by Pinneri et al. 2020, whose code leaves the constant part out when it scales, for more variance than 1.
    """
    steps = shape[1]
    amplitude = jnp.maximum(jnp.abs(jnp.fft.fftfreq(steps)), 1 / steps) ** (-beta / 2)
    amplitude = amplitude / jnp.sqrt(jnp.mean(amplitude**2))
    amplitude = amplitude[: steps // 2 + 1].reshape((1, -1, *(1 for _ in shape[2:])))
    white = jax.random.normal(key, shape)
    return jnp.fft.irfft(jnp.fft.rfft(white, axis=1) * amplitude, steps, axis=1)
