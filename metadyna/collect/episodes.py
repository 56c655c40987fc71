"""What padded episodes are made of: masks, lengths, returns."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from metadyna.types import Transition


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
