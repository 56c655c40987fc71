"""Trials: several episodes of one task, between which the agent keeps its memory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from metadyna.collect.episodes import valid_steps
from metadyna.types import Act, Carry, Collector, Outcome, Params, Played, Task, Transition


def live(
    collector: Collector, act: Act, params: Params, carry: Carry, tasks: Task, count: int, key: PRNGKeyArray
) -> Played:
    """Play `count` episodes of each task [N], one after the other: [T, N, count].

    The agent begins each episode with the memory [N] that the one before left it, and is told how that ended.
    """

    def play(at: tuple[Carry, Outcome], key: PRNGKeyArray) -> tuple[tuple[Carry, Outcome], Transition]:
        carry, before = at
        played = collector.episodes(act, params, carry, tasks, key, before)
        return (played.carry, played.outcome), played.episodes

    start = carry, Outcome.none(collector.env.spec.action, jax.tree.leaves(tasks)[0].shape[0])
    (carry, outcome), episodes = collector.scan(play, start, jax.random.split(key, count))
    return Played(jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), episodes), carry, outcome)


def joined(episodes: Transition) -> tuple[Transition, Bool[Array, "steps N"]]:
    """The episodes [T, N, K] of each task as one sequence, and which of its steps there are.

    Step follows step without a gap; what is left over comes last. `last` still marks the end of every episode.
    """
    valid = _end_to_end(valid_steps(episodes.last))
    order = jnp.argsort(~valid, axis=0, stable=True)

    def sort(x: Array) -> Array:
        x = _end_to_end(x)
        return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=0)

    return jax.tree.map(sort, episodes), jnp.take_along_axis(valid, order, axis=0)


def _end_to_end(x: Float[Array, "T N K *rest"] | Array) -> Array:
    """Episode after episode, [K * T, N, ...]."""
    return jnp.moveaxis(x, 2, 0).reshape(-1, x.shape[1], *x.shape[3:])
