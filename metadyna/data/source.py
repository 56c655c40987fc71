"""Where the transitions of a system that learns from a fixed data set come from."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from metadyna.data.datasets import random_transitions, read
from metadyna.settings import check_ranges
from metadyna.types import Collector, Transition


@dataclass(frozen=True)
class Gathering:
    """Random actions, gathered anew for every seed; or a Minari data set, the same for all."""

    transitions: int = 100_000
    """How many transitions random actions gather."""
    time_limit: int | None = None
    """Longest episode while gathering, in steps; None: episodes end only where the MDP does."""
    dataset: str | None = None
    """Id of a Minari data set to learn from instead of the two above; `metadyna collect` makes one."""

    def __post_init__(self) -> None:
        check_ranges(self, transitions="[1, 100000000]")
        if self.time_limit is not None:
            check_ranges(self, time_limit="[1, 2000000000]")

    def load(self, collector: Collector, key: PRNGKeyArray) -> Transition:
        """The transitions, [N, ...]; `UserError` where there are none to be had."""
        if self.dataset is not None:
            return jax.tree.map(jnp.asarray, _read(self.dataset, collector.env.spec, collector.env))
        return random_transitions(collector.env, collector.tasks, self.transitions, key, self.time_limit)


_read = functools.lru_cache(maxsize=1)(read)
"""A program is traced more than once for one set of data."""
