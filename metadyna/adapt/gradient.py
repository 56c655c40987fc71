"""Adaptation by gradient steps that can be differentiated through (MAML, Finn et al. 2017, arXiv 1703.03400)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metadyna.settings import Settings

Objective = Callable[[Any], Float[Array, ""]]
"""What a step raises, as a function of the weights alone."""


class Meta(NamedTuple):
    """What outer learning moves: the weights that adaptation starts from, and its step sizes."""

    weights: Any
    rates: Any
    """Step sizes [steps or 1] of every tensor of the weights, in the same structure."""


@dataclass(frozen=True)
class GradientSteps(Settings):
    """A few steps of plain gradient ascent from the meta-learnt weights: θ' = θ + α ∇J(θ)."""

    rate: Annotated[float, "[0, 1000]"] = 0.1
    """α, or what it is before it is learnt."""
    steps: Annotated[int, "[0, 100]"] = 1
    """Inner steps."""
    first_order: bool = False
    """Treat ∂θ'/∂θ as the identity: cheaper, and biased."""
    learnt_rates: Literal["none", "tensor", "step"] = "none"
    """Learn α too, one for every tensor (Meta-SGD), or for every tensor in every step (MAML++, arXiv 1810.09502)."""

    def start(self, weights: Any) -> Meta:
        """Begin with these weights and one rate for all."""
        count = max(1, self.steps) if self.learnt_rates == "step" else 1
        return Meta(weights, jax.tree.map(lambda _: jnp.full(count, self.rate, jnp.float32), weights))

    def step(self, weights: Any, rates: Any, number: int, objective: Objective, factor: float = 1.0) -> Any:
        """Take one step, the first being number 0; those beyond the last learnt rate use that one. `factor` scales it.

        Differentiable in `weights` and in what `objective` depends on, to second order unless `first_order`, and in
        `rates` where they are learnt.
        """
        slope = jax.grad(objective)(weights)
        if self.first_order:
            slope = jax.lax.stop_gradient(slope)
        if self.learnt_rates == "none":
            rates = jax.lax.stop_gradient(rates)
        return jax.tree.map(lambda w, s, r: w + factor * r[min(number, r.shape[0] - 1)] * s, weights, slope, rates)

    def path(self, meta: Meta, objectives: Sequence[Objective]) -> list[Any]:
        """θ⁰, θ¹, …: the weights before and after every step, one step on each objective."""
        path = [meta.weights]
        for number, objective in enumerate(objectives):
            path.append(self.step(path[-1], meta.rates, number, objective))
        return path
