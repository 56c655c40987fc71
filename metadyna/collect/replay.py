"""Replay as pure functions over a ring of items.

An item is any pytree: a transition, a padded episode, a trial of several episodes. Per-task replay is `vmap` of these
functions over a leading task axis.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from metadyna.types import EnvSpec, Transition


class Ring(NamedTuple):
    """The newest items; `items` is stacked [capacity, ...], `added` counts all items ever added."""

    items: Any
    added: Int[Array, ""]


def init(example: Any, capacity: int) -> Ring:
    """Allocate room for `capacity` items shaped like `example` (arrays or shapes)."""
    items = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    return Ring(items, jnp.int32(0))


def full(items: Any) -> Ring:
    """A ring of exactly these items, stacked [capacity, ...]: a data set."""
    return Ring(items, jnp.int32(jax.tree.leaves(items)[0].shape[0]))


def capacity(ring: Ring) -> int:
    """How many items fit."""
    return jax.tree.leaves(ring.items)[0].shape[0]


def size(ring: Ring) -> Int[Array, ""]:
    """How many items are stored."""
    return jnp.minimum(ring.added, capacity(ring))


def add(ring: Ring, items: Any) -> Ring:
    """Add a batch of items, stacked on axis 0, over the oldest ones. A batch may not exceed the capacity."""
    count = jax.tree.leaves(items)[0].shape[0]
    if count > capacity(ring):
        raise ValueError(f"{count} items do not fit a ring of {capacity(ring)}")
    slots = (ring.added + jnp.arange(count)) % capacity(ring)
    stored = jax.tree.map(lambda store, new: store.at[slots].set(new), ring.items, items)
    return Ring(stored, ring.added + count)


def transition_shapes(spec: EnvSpec) -> Transition:
    """Shapes of one transition between boxes, to allocate room for."""
    obs = jax.ShapeDtypeStruct(spec.observation.shape, jnp.float32)
    action = jax.ShapeDtypeStruct(spec.action.shape, jnp.float32)
    number, truth = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
    return Transition(obs, action, number, number, obs, truth)


def add_where(ring: Ring, items: Any, chosen: Bool[Array, "count"]) -> Ring:
    """Add the chosen items of a batch; the others leave no gap. Of more than fit, the last are kept."""
    place = jnp.cumsum(chosen) - 1
    kept = chosen & (place >= jnp.sum(chosen) - capacity(ring))  # two items for one slot would have no order
    # A slot beyond the end is dropped.
    slots = jnp.where(kept, (ring.added + place) % capacity(ring), capacity(ring))
    stored = jax.tree.map(lambda store, new: store.at[slots].set(new, mode="drop"), ring.items, items)
    return Ring(stored, ring.added + jnp.sum(chosen))


def sample(ring: Ring, key: PRNGKeyArray, count: int) -> Any:
    """Draw items uniformly with replacement, stacked [count, ...]. The ring must not be empty."""
    return take(ring, jax.random.randint(key, (count,), 0, size(ring)))


def take(ring: Ring, slots: Int[Array, "count"]) -> Any:
    """The items in the given slots."""
    return jax.tree.map(lambda store: store[slots], ring.items)


def sample_steps(
    lengths: Int[Array, "capacity"], key: PRNGKeyArray, count: int
) -> tuple[Int[Array, "count"], Int[Array, "count"]]:
    """Draw (slot, time) uniformly over the steps of stored episodes; `lengths` is 0 in empty slots."""
    ends = jnp.cumsum(lengths)
    draws = jax.random.randint(key, (count,), 0, ends[-1])
    slots = jnp.searchsorted(ends, draws, side="right")
    return slots, draws - (ends - lengths)[slots]
