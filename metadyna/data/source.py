"""Where the transitions of a system that learns from a fixed data set come from."""

import functools
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from metadyna.data.datasets import random_transitions, read
from metadyna.errors import UserError
from metadyna.settings import Settings
from metadyna.types import Collector, HostEnv, Transition


@dataclass(frozen=True)
class Gathering(Settings):
    """Random actions, gathered anew for every seed; or a Minari data set, the same for all."""

    transitions: Annotated[int, "[1, 100000000]"] = 100_000
    """How many transitions random actions gather."""
    time_limit: Annotated[int, "[1, 2000000000]"] | None = None
    """Longest episode while gathering, in steps; None: episodes end only where the MDP does."""
    dataset: str | None = None
    """Id of a Minari data set to learn from instead of the two above; `metadyna collect` makes one."""

    def load(self, collector: Collector, key: PRNGKeyArray) -> Transition:
        """The transitions, [N, ...]; `UserError` where there are none to be had."""
        if self.dataset is not None:
            return jax.tree.map(jnp.asarray, _read(self.dataset, collector.env.spec, collector.env))
        if isinstance(collector.env, HostEnv):
            raise UserError(
                "random transitions are gathered from pure environments alone; name a data set to learn from"
            )
        return random_transitions(collector.env, collector.tasks, self.transitions, key, self.time_limit)


_read = functools.lru_cache(maxsize=1)(read)
"""A program is traced more than once for one set of data."""
