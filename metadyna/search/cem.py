"""The cross-entropy method as PETS runs it (Chua et al. 2018, section 5; code: kchua/handful-of-trials)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.search import Iteration, Point, inside, leaf_keys, middle, moments, top
from metadyna.settings import Settings, check_ranges


class Gaussian(NamedTuple):
    """The search distribution; entries are independent."""

    mean: Point
    variance: Point
    low: Point
    high: Point


@dataclass(frozen=True)
class CEM(Settings):
    """Move a Gaussian, truncated so that it fits the box, towards the best of its samples."""

    population: Annotated[int, "[1, 1000000]"] = 400
    """Candidates per iteration."""
    elites: Annotated[int, "[1, 1000000]"] = 40
    """Best candidates to which the Gaussian is fitted."""
    iterations: Annotated[int, "[1, 10000]"] = 5
    """Iterations per real step."""
    momentum: Annotated[float, "[0, 1)"] = 0.1
    """Share of the old mean and variance that stays (0.1 in every PETS experiment)."""
    min_variance: Annotated[float, "[0, 1000000]"] = 0.001
    """The search stands still once every variance is below this, in squared units of the action."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, elites=f"[1, {self.population}]")

    @property
    def populations(self) -> tuple[int, ...]:
        """As many in each iteration."""
        return (self.population,) * self.iterations

    @property
    def alike(self) -> bool:
        """One computation, repeated."""
        return True

    def init(self, low: Point, high: Point) -> Gaussian:
        """Start in the middle, with a standard deviation of a quarter of the box."""
        return Gaussian(middle(low, high), _wide(low, high), low, high)

    def restart(self, state: Gaussian, move: Callable[[Point], Point]) -> Gaussian:
        """Move the mean; the variance starts anew."""
        return state._replace(mean=move(state.mean), variance=_wide(state.low, state.high))

    def ask(self, state: Gaussian, key: PRNGKeyArray, count: int, iteration: Iteration) -> Point:
        """Draw from the Gaussian truncated at two standard deviations, narrowed so that these lie in the box."""

        def draw(key: PRNGKeyArray, mean: Array, variance: Array, low: Array, high: Array) -> Array:
            room = jnp.minimum(mean - low, high - mean)
            spread = jnp.sqrt(jnp.minimum((room / 2) ** 2, variance))
            noise = jax.random.truncated_normal(key, -2.0, 2.0, (count, *spread.shape), spread.dtype)
            return jnp.clip(mean[None] + noise * spread[None], low[None], high[None])  # only rounding leads out

        return jax.tree.map(draw, leaf_keys(key, state.mean), *state)

    def tell(self, state: Gaussian, candidates: Point, scores: Float[Array, "N"]) -> Gaussian:
        """Move towards the elites' mean and population variance."""
        elites, scores = top(candidates, scores, self.elites)
        usable = jnp.isfinite(scores)
        mean, variance = moments(elites, usable)
        widest = jnp.max(jnp.stack([jnp.max(x) for x in jax.tree.leaves(state.variance)]))
        moves = jnp.any(usable) & (widest >= self.min_variance)

        def move(old: Array, new: Array) -> Array:
            return jnp.where(moves, self.momentum * old + (1 - self.momentum) * new, old)

        mean = inside(jax.tree.map(move, state.mean, mean), state.low, state.high)  # only rounding leads out
        return state._replace(mean=mean, variance=jax.tree.map(move, state.variance, variance))

    def solution(self, state: Gaussian) -> Point:
        """The mean, not the best sample: under a learned model the best is the one most over-estimated."""
        return state.mean


def _wide(low: Point, high: Point) -> Point:
    return jax.tree.map(lambda low, high: (high - low) ** 2 / 16, low, high)
