"""Acting on the values of a tree."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import jax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from metadyna.errors import UserError
from metadyna.models.abstract import Abstract
from metadyna.nets.sight import Sight
from metadyna.planning.tree import TreeModel, at_a_time, planned_values
from metadyna.policies.action_values import greedy_or_random
from metadyna.settings import Settings
from metadyna.types import Act, Carry, Collector, Params, Task, TimeStep, Trial

Root = Callable[[Params, Carry, TimeStep], tuple[TreeModel, PyTree, Carry]]
"""`root(params, carry, timestep)`: the model to expand, the state to expand from, and the memory to go on with."""


@dataclass(frozen=True)
class TreeActing(Settings):
    """Plan in a model at every step, to one depth per episode."""

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

    def trial(
        self, root: Root, params: Params, carry: Carry, collector: Collector, tasks: Task, key: PRNGKeyArray
    ) -> Trial:
        """An episode [T, N] of every task at each depth, from the same starts; `carry` [N] is the memory at first."""
        episodes = [
            collector.episodes(acting(root, depth, self.breadth, self.epsilon), params, carry, tasks, key).episodes
            for depth in self.depths
        ]
        return Trial.of(*episodes, names=tuple(f"depth {depth}" for depth in self.depths))


@cache
def look(see: Sight) -> Root:
    """Expand an abstract model from what its encoder makes of the latest observation, remembering nothing."""

    def root(model: Abstract, carry: Carry, timestep: TimeStep) -> tuple[Abstract, Float[Array, "*abstract"], Carry]:
        return model, see(model.encoder, timestep.obs[None])[0], carry

    return root


@cache
def acting(root: Root, depth: int, breadth: int, epsilon: float) -> Act:
    """ε-greedy on the planned values; the same function for the same four, so that it compiles once.

    On a CPU only so many trees grow at a time as fit its cache, however many copies act.
    """

    def values(params: Params, carry: Carry, timestep: TimeStep) -> tuple[Float[Array, "actions"], Carry]:
        model, x, carry = root(params, carry, timestep)
        return planned_values(model, x, depth, breadth), carry

    def act(
        params: Params, carry: Carry, timestep: TimeStep, key: PRNGKeyArray
    ) -> tuple[Int[Array, ""], Carry, tuple[()]]:
        actions = jax.eval_shape(values, params, carry, timestep)[0].shape[0]
        size = at_a_time(actions, min(breadth, actions), depth)
        planned, carry = _in_batches(values, size)(params, carry, timestep)
        return greedy_or_random(planned, epsilon, key), carry, ()

    return act


def _in_batches(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """A function that `vmap` applies to so many rows at a time, and not to all of them."""
    batched = custom_vmap(function)

    @batched.def_vmap
    def rule(axis_size: int, in_batched: PyTree, *arguments: PyTree) -> tuple[PyTree, PyTree]:
        del axis_size
        leaves, structure = jax.tree.flatten(arguments)
        chosen = jax.tree.leaves(in_batched)
        rows = [leaf for leaf, mapped in zip(leaves, chosen, strict=True) if mapped]

        def one(row: list[Array]) -> PyTree:
            each = iter(row)
            filled = [next(each) if mapped else leaf for leaf, mapped in zip(leaves, chosen, strict=True)]
            return function(*jax.tree.unflatten(structure, filled))

        made = jax.lax.map(one, rows, batch_size=size)
        return made, jax.tree.map(lambda _: True, made)

    return batched
