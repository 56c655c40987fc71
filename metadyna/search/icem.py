"""iCEM: CEM with noise that is correlated in time and elites that are kept (Pinneri et al. 2020, algorithm 1).

Reference implementation: martius-lab/iCEM. One difference: the shifted elites take the place of fresh samples instead
of being added to them, so that every real step scores the same number of sequences.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from metadyna.search import advance, box, moments, top
from metadyna.settings import Settings, check_ranges


class Kept(NamedTuple):
    """The search distribution, and the best sequences so far, best first.

    `scores` are −inf where a sequence has not been scored in this search. `shifted`: there was a real step before, so
    that `kept` holds its elites.
    """

    mean: Float[Array, "*batch H A"]
    spread: Float[Array, "*batch H A"]
    kept: Float[Array, "*batch kept H A"]
    scores: Float[Array, "*batch kept"]
    shifted: Bool[Array, "*batch"]
    low: Float[Array, "*batch H A"]
    high: Float[Array, "*batch H A"]


@dataclass(frozen=True)
class ICEM(Settings):
    """CEM for few samples: coloured noise, clipped to the box, and a memory of elites."""

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

    def init(self, shape: tuple[int, ...], low: ArrayLike, high: ArrayLike) -> Kept:
        """Start in the middle, with a standard deviation of a quarter of the box."""
        low, high = box(shape, low, high)
        middle, count = (low + high) / 2, max(1, int(self.keep * self.elites))
        kept, scores = jnp.broadcast_to(middle, (count, *shape)), jnp.full(count, -jnp.inf, middle.dtype)
        return Kept(middle, (high - low) / 4, kept, scores, jnp.asarray(False), low, high)

    def shift(self, state: Kept) -> Kept:
        """Shift mean and elites, repeating their last action; `ask` draws the elites' anew."""
        return state._replace(
            mean=advance(state.mean, state.mean[-1]),
            spread=(state.high - state.low) / 4,
            kept=advance(state.kept, state.kept[:, -1]),
            scores=jnp.full_like(state.scores, -jnp.inf),
            shifted=jnp.ones_like(state.shifted),
        )

    def ask(self, state: Kept, key: PRNGKeyArray, count: int, iteration: int) -> Float[Array, "N H A"]:
        """Draw `count` sequences; the first iteration contains the shifted elites, the last one the mean."""
        noise = coloured_noise(key, self.beta, (count, *state.mean.shape))
        drawn = state.mean[None] + noise * state.spread[None]
        candidates = jnp.clip(drawn, state.low[None], state.high[None])
        if iteration == 0:
            fresh = candidates[: len(state.kept)]
            elites = state.kept.at[:, -1].set(fresh[:, -1])
            candidates = candidates.at[: len(elites)].set(jnp.where(state.shifted, elites, fresh))
        if iteration == self.iterations - 1:
            candidates = candidates.at[-1].set(state.mean)
        return candidates

    def tell(self, state: Kept, candidates: Float[Array, "N H A"], scores: Float[Array, "N"]) -> Kept:
        """Move towards the elites; those kept compete with the score they had."""
        moves = jnp.any(jnp.isfinite(scores))
        # The kept come first: of equals the earlier is taken, so where nothing is usable they stay.
        pool = jnp.concatenate([state.kept, candidates])
        elites, scores = top(pool, jnp.concatenate([state.scores, scores]), self.elites)
        mean, variance = moments(elites, jnp.isfinite(scores))

        def move(old: Array, new: Array) -> Array:
            return jnp.where(moves, self.momentum * old + (1 - self.momentum) * new, old)

        mean = jnp.clip(move(state.mean, mean), state.low, state.high)  # only rounding leads out
        count = len(state.kept)
        return state._replace(
            mean=mean, spread=move(state.spread, jnp.sqrt(variance)), kept=elites[:count], scores=scores[:count]
        )

    def solution(self, state: Kept) -> Float[Array, "H A"]:
        """The best sequence of this search."""
        return state.kept[0]


def coloured_noise(key: PRNGKeyArray, beta: float, shape: tuple[int, ...]) -> Float[Array, "*batch H A"]:
    """Gaussian noise with power 1/f^β along time, the axis before the last; of unit variance at every step.

    All other axes are independent; the constant part has the power of the lowest frequency. Timmer & König 1995, as
    used by Pinneri et al. 2020, whose code leaves the constant part out when it scales, for more variance than 1.
    """
    steps = shape[-2]
    amplitude = jnp.maximum(jnp.abs(jnp.fft.fftfreq(steps)), 1 / steps) ** (-beta / 2)
    amplitude = amplitude / jnp.sqrt(jnp.mean(amplitude**2))
    amplitude = amplitude[: steps // 2 + 1].reshape((*(1 for _ in shape[:-2]), -1, 1))
    white = jax.random.normal(key, shape)
    return jnp.fft.irfft(jnp.fft.rfft(white, axis=-2) * amplitude, steps, axis=-2)
