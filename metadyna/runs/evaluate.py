"""Evaluation: how well an agent does on tasks it has never seen, round by round of its adaptation."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.collect.episodes import episode_lengths, episode_returns
from metadyna.types import Collector, Params, Score, System, Task, Trial

LOGGED = 20
"""A trial of more rounds is logged by its first and its last."""


class Evaluation(eqx.Module):
    """One row per round of the trial, one column per task; a round of several episodes counts by their mean.

    `score` says what a trial is worth, `names` what the rounds are for. Several seeds are stacked before the rounds.
    """

    returns: Float[Array, "*seeds rounds tasks"]
    lengths: Float[Array, "*seeds rounds tasks"]
    names: tuple[str, ...] = eqx.field(static=True)
    score: Score = eqx.field(static=True)

    @property
    def scores(self) -> Float[Array, "*seeds tasks"]:
        """What the trial on each task is worth."""
        if self.score == "last":
            return self.returns[..., -1, :]
        return jnp.sum(self.returns, axis=-2) if self.score == "sum" else jnp.mean(self.returns, axis=-2)

    def metrics(self) -> dict[str, Float[Array, "*seeds"]]:
        """Means over the tasks: of the score, and of each round."""
        rounds = range(len(self.names)) if len(self.names) <= LOGGED else (0, len(self.names) - 1)
        each = {}
        for i in rounds:
            each[f"eval/episode_{i}/return"] = jnp.mean(self.returns[..., i, :], axis=-1)
            each[f"eval/episode_{i}/length"] = jnp.mean(self.lengths[..., i, :], axis=-1)
        return {"eval/return": jnp.mean(self.scores, axis=-1), **each}


def evaluate(system: System, params: Params, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Evaluation:
    """Let the agent adapt to each task [N] and act greedily; undiscounted returns."""
    return summary(system.trial(params, collector, tasks, key))


def summary(trial: Trial) -> Evaluation:
    """What a trial returned."""
    returns = jnp.mean(episode_returns(trial.episodes), axis=-1)
    lengths = jnp.mean(episode_lengths(trial.episodes.last).astype(jnp.float32), axis=-1)
    return Evaluation(returns.T, lengths.T, trial.names, trial.score)
