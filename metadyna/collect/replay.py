"""Replay as pure functions over a ring of items.

An item is any pytree: a transition, a padded episode, a trial of several episodes. Per-task replay is `vmap` of these
functions over a leading task axis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree, UInt32

from metadyna.collect.windows import Window, whole_of
from metadyna.types import Discrete, EnvSpec, Space, Transition


class Ring(NamedTuple):
    """The newest items, stacked [capacity, ...]: the next one goes to slot `next`, after so many full `laps`.

    Counted in laps, since the number of all items ever added need not fit into 32 bits.
    """

    items: PyTree
    next: Int[Array, ""]
    laps: Int[Array, ""]

    @property
    def added(self) -> Int[Array, ""]:
        """All items ever added, for rings of which it is known that these are less than 2³¹."""
        return self.laps * capacity(self) + self.next


def init(example: PyTree, capacity: int) -> Ring:
    """Allocate room for `capacity` items shaped like `example` (arrays or shapes)."""
    items = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    return Ring(items, jnp.int32(0), jnp.int32(0))


def full(items: PyTree) -> Ring:
    """A ring of exactly these items, stacked [capacity, ...]: a data set."""
    return Ring(items, jnp.int32(0), jnp.int32(1))


def capacity(ring: Ring) -> int:
    """How many items fit."""
    return jax.tree.leaves(ring.items)[0].shape[0]


def size(ring: Ring) -> Int[Array, ""]:
    """How many items are stored."""
    return jnp.where(ring.laps > 0, capacity(ring), ring.next)


def serials(ring: Ring) -> UInt32[Array, "capacity"]:
    """Which number every stored item had when it was added, modulo 2³²; meaningless in empty slots."""
    slot = jnp.arange(capacity(ring))
    lap = ring.laps - (slot >= ring.next)
    return lap.astype(jnp.uint32) * jnp.uint32(capacity(ring)) + slot.astype(jnp.uint32)


def add(ring: Ring, items: PyTree) -> Ring:
    """Add a batch of items, stacked on axis 0, over the oldest ones. A batch may not exceed the capacity."""
    count = jax.tree.leaves(items)[0].shape[0]
    if count > capacity(ring):
        raise ValueError(f"{count} items do not fit a ring of {capacity(ring)}")
    slots = (ring.next + jnp.arange(count)) % capacity(ring)
    stored = jax.tree.map(lambda store, new: store.at[slots].set(new), ring.items, items)
    return _moved(ring, stored, count)


def add_where(ring: Ring, items: PyTree, chosen: Bool[Array, "count"]) -> Ring:
    """Add the chosen items of a batch; the others leave no gap. Of more than fit, the last are kept."""
    place = jnp.cumsum(chosen) - 1
    kept = chosen & (place >= jnp.sum(chosen) - capacity(ring))  # two items for one slot would have no order
    # A slot beyond the end is dropped.
    slots = jnp.where(kept, (ring.next + place) % capacity(ring), capacity(ring))
    stored = jax.tree.map(lambda store, new: store.at[slots].set(new, mode="drop"), ring.items, items)
    return _moved(ring, stored, jnp.sum(chosen))


def _moved(ring: Ring, stored: PyTree, count: Int[Array, ""] | int) -> Ring:
    after = ring.next + count
    return Ring(stored, after % capacity(ring), ring.laps + after // capacity(ring))


def transition_shapes(spec: EnvSpec) -> Transition:
    """Shapes of one transition, to allocate room for."""
    number, truth = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
    obs, action = _shape(spec.observation), _shape(spec.action)
    if isinstance(spec.action, Discrete) and len(spec.action.sizes) == 1:
        action = jax.ShapeDtypeStruct((), jnp.int32)  # one choice is a number
    return Transition(obs, action, number, number, obs, truth)


def _shape(space: Space) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(space.shape, jnp.int32 if isinstance(space, Discrete) else jnp.dtype(space.dtype))


def sample(ring: Ring, key: PRNGKeyArray, count: int) -> PyTree:
    """Draw items uniformly with replacement, stacked [count, ...]. The ring must not be empty."""
    return take(ring, jax.random.randint(key, (count,), 0, size(ring)))


def take(ring: Ring, slots: Int[Array, "count"]) -> PyTree:
    """The items in the given slots."""
    return jax.tree.map(lambda store: store[slots], ring.items)


def windows(ring: Ring, key: PRNGKeyArray, count: int, length: int) -> Window:
    """Draw the last step of each of `count` windows uniformly over all that is stored, and what led to it.

    Items are one step of B copies each, [B, ...], in the order in which they were lived. A window [length, count]
    never reaches back over the end of an episode, nor beyond what is stored. Steps are gathered, not kept twice.
    """
    k_end, k_copy = jax.random.split(key)
    batch = jax.tree.leaves(ring.items)[0].shape[1]
    end = jax.random.randint(k_end, (count,), 0, size(ring))
    copy = jax.random.randint(k_copy, (count,), 0, batch)
    age = end[None] - jnp.arange(length - 1, -1, -1)[:, None]
    oldest = jnp.where(ring.laps > 0, ring.next, 0)
    slots = (oldest + jnp.maximum(age, 0)) % capacity(ring)
    steps = jax.tree.map(lambda store: store[slots, copy[None]], ring.items)
    return whole_of(steps, age >= 0)


def sample_steps(
    lengths: Int[Array, "capacity"], key: PRNGKeyArray, count: int
) -> tuple[Int[Array, "count"], Int[Array, "count"]]:
    """Draw (slot, time) uniformly over the steps of stored episodes; `lengths` is 0 in empty slots."""
    ends = jnp.cumsum(lengths)
    draws = jax.random.randint(key, (count,), 0, ends[-1])
    slots = jnp.searchsorted(ends, draws, side="right")
    return slots, draws - (ends - lengths)[slots]
