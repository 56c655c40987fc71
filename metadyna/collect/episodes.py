"""What episodes are made of: steps, and the masks, lengths and returns of padded ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from metadyna.types import TimeStep, Transition


def unseen(timestep: TimeStep) -> TimeStep:
    """What an agent may see of a time step."""
    return timestep._replace(hidden=())


def chosen(timestep: TimeStep, action: PyTree) -> TimeStep:
    """A time step that tells of the action as it was chosen: an environment may have clipped it."""
    return timestep._replace(prev_action=jax.tree.map(lambda x, y: y.astype(x.dtype), timestep.prev_action, action))


class Seen(NamedTuple):
    """What a collector that watches keeps of one time: the simulator's state, and what that hides from agents."""

    state: PyTree
    hidden: PyTree


def transition(before: TimeStep, action: PyTree, after: TimeStep, extras: PyTree, hidden: PyTree = ()) -> Transition:
    """The step between two time steps."""
    return Transition(before.obs, action, after.reward, after.discount, after.obs, after.last, extras, hidden)


def where_rows(chosen: Bool[Array, "B"], new: PyTree, old: PyTree) -> PyTree:
    """The rows of `new` where `chosen`, else those of `old`."""
    return jax.tree.map(jax.vmap(jnp.where), jax.tree.map(lambda _: chosen, new), new, old)


def flat(lived: PyTree) -> PyTree:
    """Steps [T, B, ...] as rows [T * B, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lived)


def swapped(lived: PyTree) -> PyTree:
    """Steps [T, B, ...] as sequences [B, T, ...], and back."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), lived)


def valid_steps(last: Bool[Array, "T *batch"]) -> Bool[Array, "T *batch"]:
    """Mark the steps of an episode up to and including the first `last`; the rest is padding."""
    ended = jnp.cumsum(last, axis=0)
    return ended - last == 0


def episode_lengths(last: Bool[Array, "T *batch"]) -> Int[Array, "*batch"]:
    """Steps until the first `last`, inclusive."""
    return jnp.sum(valid_steps(last), axis=0)


def episode_returns(episodes: Transition) -> Array:
    """Undiscounted return of each padded episode, [B]."""
    return jnp.sum(jnp.where(valid_steps(episodes.last), episodes.reward, 0.0), axis=0)


def previous_actions(action: Int[Array, "T *batch"]) -> Int[Array, "T1 *batch"]:
    """The action before each of the T + 1 observations of an episode; -1 before the first."""
    return jnp.concatenate([jnp.full_like(action[:1], -1), action])


def all_observations(episodes: Transition) -> Array:
    """The T + 1 observations of padded episodes: the first, then every successor, [T + 1, B, ...]."""
    return jnp.concatenate([episodes.obs[:1], episodes.next_obs])
