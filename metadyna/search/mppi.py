"""Model-predictive path integral control: the average of noisy sequences, weighted by their scores.

Williams et al. 2017 (information-theoretic MPC), without its term for the control's own cost; with the filtered noise
of PDDM (Nagabandi et al. 2019) as an option.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.search import Iteration, Point, inside, leaf_keys, middle
from metadyna.settings import Settings


class Mean(NamedTuple):
    """The point around which noise is drawn."""

    mean: Point
    low: Point
    high: Point


@dataclass(frozen=True)
class MPPI(Settings):
    """Add noise of a fixed size to a point and average, the better the heavier."""

    population: Annotated[int, "[1, 1000000]"] = 100
    """Candidates per iteration."""
    iterations: Annotated[int, "[1, 10000]"] = 1
    """Iterations per real step."""
    temperature: Annotated[float, "(0, 1000000]"] = 1.0
    """λ, in units of the score: the smaller, the more the best candidate decides."""
    noise: Annotated[float, "(0, 1000]"] = 1.0
    """Standard deviation of the noise, as a fraction of half the box."""
    smoothing: Annotated[float, "[0, 1)"] = 0.0
    """Share of a step's noise that comes from the step before, along axis 0: 1 − β of PDDM; 0 is white noise."""
    normalise: bool = False
    """Whether scores are divided by their standard deviation, so that the temperature has no unit."""

    @property
    def populations(self) -> tuple[int, ...]:
        """As many in each iteration."""
        return (self.population,) * self.iterations

    @property
    def alike(self) -> bool:
        """One computation, repeated."""
        return True

    def init(self, low: Point, high: Point) -> Mean:
        """Start in the middle of the box."""
        return Mean(middle(low, high), low, high)

    def restart(self, state: Mean, move: Callable[[Point], Point]) -> Mean:
        """Move the mean."""
        return state._replace(mean=move(state.mean))

    def ask(self, state: Mean, key: PRNGKeyArray, count: int, iteration: Iteration) -> Point:
        """Draw noise around the mean, and clip to the box."""

        def draw(key: PRNGKeyArray, mean: Array, low: Array, high: Array) -> Array:
            noise = jax.random.normal(key, (count, *mean.shape), mean.dtype)
            noise = smooth(noise, self.smoothing) if self.smoothing else noise
            spread = self.noise * (high - low) / 2
            return jnp.clip(mean[None] + spread[None] * noise, low[None], high[None])

        return jax.tree.map(draw, leaf_keys(key, state.mean), *state)

    def tell(self, state: Mean, candidates: Point, scores: Float[Array, "N"]) -> Mean:
        """Replace the mean by the weighted average of the candidates."""
        if self.normalise:
            scale = jnp.std(scores, where=jnp.isfinite(scores))
            scores = scores / jnp.where(scale > 0, scale, 1.0)
        weights = mppi_weights(scores, self.temperature)

        def average(candidates: Array, mean: Array) -> Array:
            return jnp.where(jnp.any(weights > 0), jnp.tensordot(weights, candidates, 1), mean)

        mean = jax.tree.map(average, candidates, state.mean)
        return state._replace(mean=inside(mean, state.low, state.high))  # only rounding leads out

    def solution(self, state: Mean) -> Point:
        """The weighted average."""
        return state.mean


def mppi_weights(scores: Float[Array, "N"], temperature: float) -> Float[Array, "N"]:
    """Softmax of (R − max R) / λ over the finite scores, 0 elsewhere; all 0 if there is none."""
    usable = jnp.isfinite(scores)
    scores = jnp.where(usable, scores, 0.0)
    best = jnp.max(scores, where=usable, initial=jnp.finfo(scores.dtype).min)
    weights = jnp.where(usable, jnp.exp((scores - best) / temperature), 0.0)
    return weights / jnp.maximum(jnp.sum(weights), 1.0)  # the best one's is 1


def smooth(noise: Float[Array, "N H *A"], share: float) -> Float[Array, "N H *A"]:
    """n_t = (1 − share) u_t + share n_{t−1} along time, from n_{−1} = 0."""
    steps = jnp.arange(noise.shape[1])
    lag = steps[:, None] - steps[None, :]
    weights = jnp.where(lag >= 0, (1 - share) * share ** jnp.maximum(lag, 0), 0.0)
    return jnp.einsum("ts,ns...->nt...", weights, noise)
