"""Learning a function from its slopes as well (Mitchell & Thrun 1993; GMAS): distances between gradients."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Distance = Literal["cosine", "l2", "squared-l2"]

Function = Callable[[Array], Array]
"""From an array to a number."""


def distance(kind: Distance, slope: Float[Array, "*shape"], target: Float[Array, "*shape"]) -> Float[Array, ""]:
    """How far two slopes are apart: 1 − cos ∈ [0, 2], ‖u − v‖₂ or ‖u − v‖₂². Finite, with its gradient, at zero."""
    if kind == "cosine":
        norms = jnp.maximum(_norm(slope, 1e-16), 1e-8) * jnp.maximum(_norm(target, 1e-16), 1e-8)
        return 1 - jnp.sum(slope * target) / norms
    if kind == "l2":
        return _norm(slope - target, 1e-12)
    return jnp.sum((slope - target) ** 2)


def slope_loss(
    function: Function, x: Float[Array, "*shape"], target: Float[Array, "*shape"], kind: Distance
) -> tuple[Float[Array, ""], Float[Array, "*shape"]]:
    """The distance between the slope of `function` at x and a constant target, and that slope.

    Differentiable, once, in whatever `function` and `x` depend on. With w = ∂distance/∂slope held constant, the
    gradient of the distance is that of the directional derivative of `function` along w: one forward-mode product
    inside the outer gradient, instead of reverse mode over reverse mode.
    """
    slope = jax.lax.stop_gradient(jax.grad(function)(x))
    value, direction = jax.value_and_grad(lambda u: distance(kind, u, target))(slope)
    along = jax.jvp(function, (x,), (jax.lax.stop_gradient(direction),))[1]
    return jax.lax.stop_gradient(value - along) + along, slope


def _norm(x: Array, guard: float) -> Array:
    return jnp.sqrt(jnp.sum(x**2) + guard)
