"""Evaluation: how well an agent does on tasks it has never seen, episode by episode of its adaptation."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.collect.episodes import episode_lengths, episode_returns
from metadyna.types import Collector, System


class Evaluation(NamedTuple):
    """One row per adaptation episode, one column per task."""

    returns: Float[Array, "episodes tasks"]
    lengths: Int[Array, "episodes tasks"]

    def metrics(self) -> dict[str, Array]:
        """Means over the tasks: of the last episode, which is what adaptation is for, and of each episode."""
        each = {}
        for i, (returns, lengths) in enumerate(zip(self.returns, self.lengths, strict=True)):
            each[f"eval/episode_{i}/return"] = jnp.mean(returns)
            each[f"eval/episode_{i}/length"] = jnp.mean(lengths)
        return {"eval/return": jnp.mean(self.returns[-1]), **each}


def evaluate(system: System, params: Any, collector: Collector, tasks: Any, key: PRNGKeyArray) -> Evaluation:
    """Let the agent adapt to each task [N] and act greedily; undiscounted returns."""
    episodes = system.trial(params, collector, tasks, key)
    return Evaluation(
        jnp.stack([episode_returns(episode) for episode in episodes]),
        jnp.stack([episode_lengths(episode.last) for episode in episodes]),
    )
