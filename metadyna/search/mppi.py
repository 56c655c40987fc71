"""Model-predictive path integral control: the average of noisy sequences, weighted by their scores.

Williams et al. 2017 (information-theoretic MPC), without its term for the control's own cost; with the filtered noise
of PDDM (Nagabandi et al. 2019) as an option.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.search import Iteration, advance, box
from metadyna.settings import Settings


class Mean(NamedTuple):
    """The sequence around which noise is drawn."""

    mean: Float[Array, "*batch H A"]
    low: Float[Array, "*batch H A"]
    high: Float[Array, "*batch H A"]


@dataclass(frozen=True)
class MPPI(Settings):
    """Add noise of a fixed size to the sequence and average, the better the heavier."""

    population: Annotated[int, "[1, 1000000]"] = 100
    """Candidates per iteration."""
    iterations: Annotated[int, "[1, 10000]"] = 1
    """Iterations per real step."""
    temperature: Annotated[float, "(0, 1000000]"] = 1.0
    """λ, in units of the score: the smaller, the more the best candidate decides."""
    noise: Annotated[float, "(0, 1000]"] = 1.0
    """Standard deviation of the noise, as a fraction of half the box."""
    smoothing: Annotated[float, "[0, 1)"] = 0.0
    """Share of a step's noise that comes from the step before: 1 − β of PDDM; 0 is white noise."""
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

    def init(self, shape: tuple[int, ...], low: ArrayLike, high: ArrayLike) -> Mean:
        """Start in the middle of the box."""
        low, high = box(shape, low, high)
        return Mean((low + high) / 2, low, high)

    def shift(self, state: Mean) -> Mean:
        """Shift the mean; the step that comes into sight starts at zero, clipped into the box."""
        tail = jnp.clip(jnp.zeros_like(state.low[-1]), state.low[-1], state.high[-1])
        return state._replace(mean=advance(state.mean, tail))

    def ask(self, state: Mean, key: PRNGKeyArray, count: int, iteration: Iteration) -> Float[Array, "N H A"]:
        """Draw noise around the mean, and clip to the box."""
        noise = jax.random.normal(key, (count, *state.mean.shape), state.mean.dtype)
        spread = self.noise * (state.high - state.low) / 2
        candidates = state.mean[None] + spread[None] * smooth(noise, self.smoothing)
        return jnp.clip(candidates, state.low[None], state.high[None])

    def tell(self, state: Mean, candidates: Float[Array, "N H A"], scores: Float[Array, "N"]) -> Mean:
        """Replace the mean by the weighted average of the candidates."""
        if self.normalise:
            scale = jnp.std(scores, where=jnp.isfinite(scores))
            scores = scores / jnp.where(scale > 0, scale, 1.0)
        weights = mppi_weights(scores, self.temperature)
        mean = jnp.where(jnp.any(weights > 0), jnp.tensordot(weights, candidates, 1), state.mean)
        return state._replace(mean=jnp.clip(mean, state.low, state.high))  # only rounding leads out

    def solution(self, state: Mean) -> Float[Array, "H A"]:
        """The weighted average."""
        return state.mean


def mppi_weights(scores: Float[Array, "N"], temperature: float) -> Float[Array, "N"]:
    """Softmax of (R − max R) / λ over the finite scores, 0 elsewhere; all 0 if there is none."""
    usable = jnp.isfinite(scores)
    scores = jnp.where(usable, scores, 0.0)
    best = jnp.max(scores, where=usable, initial=jnp.finfo(scores.dtype).min)
    weights = jnp.where(usable, jnp.exp((scores - best) / temperature), 0.0)
    return weights / jnp.maximum(jnp.sum(weights), 1.0)  # the best one's is 1


def smooth(noise: Float[Array, "N H A"], share: float) -> Float[Array, "N H A"]:
    """n_t = (1 − share) u_t + share n_{t−1} along time, from n_{−1} = 0."""
    steps = jnp.arange(noise.shape[1])
    lag = steps[:, None] - steps[None, :]
    weights = jnp.where(lag >= 0, (1 - share) * share ** jnp.maximum(lag, 0), 0.0)
    return jnp.einsum("ts,nsa->nta", weights, noise)
