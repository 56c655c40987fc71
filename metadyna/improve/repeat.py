"""Several updates in one compiled loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from metadyna.types import Average, Metrics

UpdateFn = Callable[[Any, PRNGKeyArray], tuple[Any, dict[str, Array]]]


def repeat_updates(update: UpdateFn, learner: Any, times: Int[Array, ""], key: PRNGKeyArray) -> tuple[Any, Metrics]:
    """Apply `update(learner, key)` a number of times that is only known at run time; average its metrics."""
    update = jax.jit(update)  # traced once for the shapes of its metrics and for the loop

    def again(i: Array, state: tuple[Any, dict[str, Array]]) -> tuple[Any, dict[str, Array]]:
        learner, totals = state
        learner, metrics = update(learner, jax.random.fold_in(key, i))
        return learner, jax.tree.map(jnp.add, totals, metrics)

    shapes = jax.eval_shape(update, learner, key)[1]
    totals = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    learner, totals = jax.lax.fori_loop(0, times, again, (learner, totals))
    return learner, {name: Average(total, times) for name, total in totals.items()}
