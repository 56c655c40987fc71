"""Windows: the latest steps that led to the present, of one episode, for models and policies that read a history."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from metadyna.types import TimeStep, Transition


class Window(NamedTuple):
    """Up to L steps of one episode, oldest first and the latest at the end; `valid` marks those there are."""

    steps: Transition
    """[L, ...]"""
    valid: Bool[Array, "L *batch"]


class History(NamedTuple):
    """What was observed last, and the steps of the episode that led there; of who does not look back, no window."""

    obs: PyTree
    window: Window | None = None


def nothing(shapes: Transition, length: int) -> History:
    """Remember nothing yet of steps of some shapes (`replay.transition_shapes`)."""
    steps = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)
    return History(jax.tree.map(lambda x: x[0], steps.obs), Window(steps, jnp.zeros(length, bool)))


def remember(history: History, timestep: TimeStep) -> History:
    """Take in the step that led to a time step; forget everything where an episode begins."""
    if history.window is None:
        return History(timestep.obs)
    made = Transition(
        history.obs, timestep.prev_action, timestep.reward, timestep.discount, timestep.obs, timestep.last
    )
    steps, valid = history.window
    steps = jax.tree.map(lambda old, new: jnp.concatenate([old[1:], new[None]]), steps, made)
    return History(timestep.obs, Window(steps, jnp.append(valid[1:], True) & ~timestep.first))


def whole_of(steps: Transition, there: Bool[Array, "L *batch"]) -> Window:
    """Of steps [L, ...] lived one after the other, as far as they are there, those of the last one's episode."""
    before = jnp.concatenate([steps.last[:-1], jnp.zeros_like(steps.last[:1])])
    ended_later = jnp.cumsum(before[::-1], axis=0)[::-1] > 0  # at this step or after it, and before the last
    return Window(steps, there & ~ended_later)
