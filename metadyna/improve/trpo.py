"""Trust-region policy optimisation (Schulman et al. 2015): a natural gradient step within a bound on the divergence."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from metadyna.settings import Settings

Objective = Callable[[Any], Float[Array, ""]]


def _itself(weights: Any) -> Any:
    return weights


class _Search(NamedTuple):
    """A line search: how many lengths were tried, where the last one leads, and whether it was accepted."""

    tries: Int[Array, ""]
    moved: Float[Array, "n"]
    gain: Float[Array, ""]
    divergence: Float[Array, ""]
    done: Bool[Array, ""]


@dataclass(frozen=True)
class TRPO(Settings):
    """One step on any weights, for any surrogate and divergence."""

    max_kl: Annotated[float, "(0, 1000]"] = 0.01
    """δ: bound on the mean KL divergence of a step, in nats."""
    cg_iterations: Annotated[int, "[1, 10000]"] = 10
    """Conjugate gradient iterations."""
    damping: Annotated[float, "[0, 1000000]"] = 1e-2
    """Added to the diagonal of the Fisher matrix."""
    backtracks: Annotated[int, "[1, 1000]"] = 15
    """Step lengths that are tried."""
    shrink: Annotated[float, "(0, 1)"] = 0.8
    """Each is this fraction of the one before."""

    def update(
        self, weights: Any, surrogate: Objective, kl: Objective, policy: Callable[[Any], Any] = _itself
    ) -> tuple[Any, dict[str, Float[Array, ""]]]:
        """Raise `surrogate(weights)` while `kl(policy(weights))`, 0 and least at the start, stays within the bound.

        `policy` is what the divergence is of: arrays such as the means and deviations at all observations. A step that
        does not improve, breaks the bound or is not finite at any tried length leaves the weights as they are, bit for
        bit, and counts as rejected.
        """
        start, unravel = ravel_pytree(weights)
        value, slope = jax.value_and_grad(lambda w: surrogate(unravel(w)))(start)
        # At its minimum the Hessian of the KL divergence is JᵀMJ, J the derivative of what the policy says and M the
        # divergence's curvature in that: the Fisher matrix. What does not depend on the direction is computed once.
        # appendix C.1
        said, push = jax.linearize(lambda w: policy(unravel(w)), start)
        pull = jax.linear_transpose(push, start)

        def fisher(direction: Array) -> Array:
            bent = jax.jvp(jax.grad(kl), (said,), (push(direction),))[1]
            return pull(bent)[0] + self.damping * direction

        direction, image = conjugate_gradient(fisher, slope, self.cg_iterations)
        longest = jnp.sqrt(2 * self.max_kl / jnp.maximum(direction @ image, 1e-12))  # appendix C

        def try_next(search: _Search) -> _Search:
            moved = start + longest * self.shrink**search.tries * direction
            there = unravel(moved)
            gain, divergence = surrogate(there) - value, kl(policy(there))
            done = (gain > 0) & (divergence <= self.max_kl) & jnp.all(jnp.isfinite(moved))
            return _Search(search.tries + 1, moved, gain, divergence, done)

        def searching(search: _Search) -> Array:
            return (search.tries < self.backtracks) & ~search.done

        nothing = _Search(jnp.int32(0), start, jnp.float32(0), jnp.float32(0), jnp.bool_(False))
        found = lax.while_loop(searching, try_next, nothing)
        metrics = {
            "surrogate_gain": jnp.where(found.done, found.gain, 0.0),
            "kl": jnp.where(found.done, found.divergence, 0.0),
            "rejected": 1.0 - found.done,
            "backtracks": found.tries - 1.0,
        }
        return unravel(jnp.where(found.done, found.moved, start)), metrics


def conjugate_gradient(
    product: Callable[[Float[Array, "n"]], Float[Array, "n"]], right: Float[Array, "n"], iterations: int
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Solve A x = right for a positive definite A that is known by its products (Hestenes and Stiefel 1952).

    Returns x and A x, which is `right` but for the residual.
    """

    def refine(_: Any, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, residual, direction, squared = state
        image = product(direction)
        curvature = direction @ image
        # Solved, or not positive definite to float32: stay.
        length = jnp.where(curvature > 0, squared / jnp.where(curvature > 0, curvature, 1), 0)
        x, residual = x + length * direction, residual - length * image
        new = residual @ residual
        ratio = jnp.where(squared > 0, new / jnp.where(squared > 0, squared, 1), 0)
        return x, residual, residual + ratio * direction, new

    start = jnp.zeros_like(right), right, right, right @ right
    x, residual, _, _ = lax.fori_loop(0, iterations, refine, start)
    return x, right - residual
