"""One optimiser step."""

from typing import Any, TypeVar

import optax

Weights = TypeVar("Weights")


def descend(
    optimiser: optax.GradientTransformation, weights: Weights, slope: Weights, state: optax.OptState
) -> tuple[Weights, optax.OptState]:
    """Move weights, a pytree of arrays of any kind, against their gradient."""
    moving: Any = weights
    against: Any = slope
    changes, state = optimiser.update(against, state, moving)
    moved: Any = optax.apply_updates(moving, changes)
    return moved, state
