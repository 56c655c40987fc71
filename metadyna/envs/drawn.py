"""Test tasks of families that have no end of tasks."""

from dataclasses import dataclass
from typing import Annotated

import jax
from jaxtyping import PRNGKeyArray

from metadyna.settings import Settings
from metadyna.types import Task, TaskDistribution

TEST_SEED = 2**32 - 1
"""Root of the draws of test tasks."""


@dataclass(frozen=True)
class Drawn(Settings):
    """So many draws of the law of the training tasks, always the same ones; training meets them by accident alone."""

    law: TaskDistribution
    count: Annotated[int, "[1, 1000000]"]

    def sample(self, key: PRNGKeyArray) -> Task:
        """One of the draws."""
        return jax.tree.map(lambda x: x[jax.random.randint(key, (), 0, self.count)], self.enumerate())

    def enumerate(self) -> Task:
        """All of them."""
        return jax.vmap(self.law.sample)(jax.random.split(jax.random.key(TEST_SEED), self.count))
