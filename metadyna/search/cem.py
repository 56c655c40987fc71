"""The cross-entropy method as PETS runs it (Chua et al. 2018, section 5; code: kchua/handful-of-trials)."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.search import Iteration, advance, box, moments, top
from metadyna.settings import Settings, check_ranges


class Gaussian(NamedTuple):
    """The search distribution; entries are independent."""

    mean: Float[Array, "*batch H A"]
    variance: Float[Array, "*batch H A"]
    low: Float[Array, "*batch H A"]
    high: Float[Array, "*batch H A"]


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
    tail: Literal["zero", "middle"] = "zero"
    """The mean of the step that comes into sight: zero, clipped into the box (PETS), or the box's middle (mbrl-lib)."""

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

    def init(self, shape: tuple[int, ...], low: ArrayLike, high: ArrayLike) -> Gaussian:
        """Start in the middle, with a standard deviation of a quarter of the box."""
        low, high = box(shape, low, high)
        return Gaussian((low + high) / 2, (high - low) ** 2 / 16, low, high)

    def shift(self, state: Gaussian) -> Gaussian:
        """Shift the mean; the variance starts anew at every real step."""
        low, high = state.low[-1], state.high[-1]
        tail = (low + high) / 2 if self.tail == "middle" else jnp.clip(jnp.zeros_like(low), low, high)
        return state._replace(mean=advance(state.mean, tail), variance=(state.high - state.low) ** 2 / 16)

    def ask(self, state: Gaussian, key: PRNGKeyArray, count: int, iteration: Iteration) -> Float[Array, "N H A"]:
        """Draw from the Gaussian truncated at two standard deviations, narrowed so that these lie in the box."""
        room = jnp.minimum(state.mean - state.low, state.high - state.mean)
        spread = jnp.sqrt(jnp.minimum((room / 2) ** 2, state.variance))
        noise = jax.random.truncated_normal(key, -2.0, 2.0, (count, *spread.shape), spread.dtype)
        candidates = state.mean[None] + noise * spread[None]
        return jnp.clip(candidates, state.low[None], state.high[None])  # only rounding leads out

    def tell(self, state: Gaussian, candidates: Float[Array, "N H A"], scores: Float[Array, "N"]) -> Gaussian:
        """Move towards the elites' mean and population variance."""
        elites, scores = top(candidates, scores, self.elites)
        usable = jnp.isfinite(scores)
        mean, variance = moments(elites, usable)
        moves = jnp.any(usable) & (jnp.max(state.variance) >= self.min_variance)

        def move(old: Array, new: Array) -> Array:
            return jnp.where(moves, self.momentum * old + (1 - self.momentum) * new, old)

        mean = jnp.clip(move(state.mean, mean), state.low, state.high)  # only rounding leads out
        return state._replace(mean=mean, variance=move(state.variance, variance))

    def solution(self, state: Gaussian) -> Float[Array, "H A"]:
        """The mean, not the best sample: under a learned model the best is the one most over-estimated."""
        return state.mean
