"""Acting on the values of a tree."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from metadyna.errors import UserError
from metadyna.models.abstract import Abstract
from metadyna.nets.sight import look, sight
from metadyna.planning.tree import at_a_time, planned_values
from metadyna.policies.action_values import greedy_or_random
from metadyna.settings import Settings
from metadyna.types import Collector, TimeStep, Transition


@dataclass(frozen=True)
class TreeActing(Settings):
    """Plan in an abstract model at every step, to one depth per episode."""

    depths: tuple[Annotated[int, "[0, 12]"], ...] = (0, 1, 3)
    """Planning depths of evaluation, an episode of every task each; 0 asks the Q-function alone. The last one's return
    is the score."""
    breadth: Annotated[int, "[1, 1024]"] = 2
    """Actions tried at every node below the root, the best by Q."""
    epsilon: Annotated[float, "[0, 1]"] = 0.1
    """Probability of a random action."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.depths:
            raise UserError("TreeActing.depths is empty; name one or more depths in [0, 12]")
        if self.breadth ** max(0, max(self.depths) - 1) > 4_096:
            raise UserError(f"TreeActing.breadth = {self.breadth} to the depth {max(self.depths)} is too large a tree")

    @property
    def names(self) -> tuple[str, ...]:
        """What the episodes are for."""
        return tuple(f"depth {depth}" for depth in self.depths)

    def trial(self, model: Abstract, collector: Collector, tasks: Any, key: PRNGKeyArray) -> tuple[Transition, ...]:
        """An episode [T, N] of every task at each depth, from the same starts."""
        keys = jax.random.split(key, jax.tree.leaves(tasks)[0].shape[0])
        return tuple(self._episodes(model, depth, collector, tasks, keys) for depth in self.depths)

    def _episodes(self, model: Abstract, depth: int, collector: Collector, tasks: Any, keys: Array) -> Transition:
        see = sight(collector.env)

        def act(model: Abstract, carry: Any, timestep: TimeStep, key: PRNGKeyArray) -> tuple[Int[Array, ""], Any, Any]:
            x = look(see, model.encoder, timestep.obs)
            return greedy_or_random(planned_values(model, x, depth, self.breadth), self.epsilon, key), carry, ()

        def one(each: tuple[Any, PRNGKeyArray]) -> Transition:
            task, key = each
            episode = collector.episodes(act, model, (), jax.tree.map(lambda x: x[None], task), key)
            return jax.tree.map(lambda x: x[:, 0], episode)

        batch = at_a_time(model.actions, min(self.breadth, model.actions), depth)
        episodes = jax.lax.map(one, (tasks, keys), batch_size=batch)
        return jax.tree.map(partial(jnp.swapaxes, axis1=0, axis2=1), episodes)
