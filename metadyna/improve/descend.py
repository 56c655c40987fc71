"""Optimiser steps."""

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


def rmsprop(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """RMSprop as Keras has it: ε is added outside the root."""
    return optax.rmsprop(rate, decay=0.9, eps=1e-4, initial_scale=0.0, eps_in_sqrt=False)
