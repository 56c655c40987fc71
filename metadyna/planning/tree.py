"""Planning by expanding a tree of a model to some depth (François-Lavet et al. 2019, section 3; Oh et al. 2017).

    Q⁰(x, a) = Q(x, a),    Qᵈ(x, a) = ρ(x, a) + g(x, a) max_{a' ∈ A*(x')} Qᵈ⁻¹(x', a'),    x' the model's next state

A*(x') are the few best actions by Q at x'. One tree gives Qᵈ for every d up to its depth, level by level: all nodes
of a level are one batch. Everything here is for one root; `vmap` makes the batch.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LEAVES = 64
"""Leaves of all the trees that grow at a time on a CPU: more do not fit its cache."""


@runtime_checkable
class TreeModel(Protocol):
    """What a tree needs of a model; states x are arrays of one shape."""

    def step(
        self, x: Float[Array, "*abstract"], action: Int[Array, ""]
    ) -> tuple[Float[Array, "*abstract"], Float[Array, ""], Float[Array, ""]]:
        """Next state, reward, and discount (γ, or what is left of it)."""
        ...

    def value(self, x: Float[Array, "*abstract"]) -> Float[Array, "actions"]:
        """Action values at a state, [actions]."""
        ...


def depth_values(
    model: TreeModel,
    x: Float[Array, "*abstract"],
    depth: int,
    breadth: int,
    actions: Int[Array, "roots"] | None = None,
) -> Float[Array, "depths roots"]:
    """Q⁰, …, Qᵈ of the given actions at `x` (default: all), expanding the `breadth` best at every later node.

    Differentiable in x: ties between equal actions go to the first, and which actions are expanded is a constant.
    """
    states, values = x[None], model.value(x)[None]
    expanded = (jnp.arange(values.shape[1]) if actions is None else actions)[None]
    levels = []
    for _ in range(depth):
        states, reward, discount = jax.vmap(jax.vmap(model.step, (None, 0)))(states, expanded)
        levels.append((jnp.take_along_axis(values, expanded, axis=1), reward, discount))
        states = states.reshape(-1, *x.shape)
        values = jax.vmap(model.value)(states)
        expanded = jax.lax.top_k(values, min(breadth, values.shape[1]))[1]
    # Backwards: `best` [nodes, 1 + levels below] holds max Q⁰, max Q¹, … of the level below.
    below = jnp.take_along_axis(values, expanded, axis=1)[..., None]
    for value, reward, discount in reversed(levels):
        best = _best(below).reshape(*reward.shape, -1)
        planned = reward[..., None] + discount[..., None] * best
        below = jnp.concatenate([value[..., None], planned], axis=-1)
    return below[0].T


def at_a_time(roots: int, breadth: int, depth: int) -> int:
    """How many trees to grow at once: the batch size of a `lax.map` over them."""
    if jax.default_backend() != "cpu":
        return 1 << 16  # as many as there are
    leaves = roots * breadth ** (depth - 1) if depth else 1
    return max(1, _LEAVES // leaves)


def planned_values(model: TreeModel, x: Float[Array, "*abstract"], depth: int, breadth: int) -> Float[Array, "actions"]:
    """What is acted on: the mean of Q⁰, …, Qᵈ for every action."""
    return jnp.mean(depth_values(model, x, depth, breadth), axis=0)


def _best(values: Float[Array, "nodes actions depths"]) -> Float[Array, "nodes depths"]:
    """The largest over the actions. By index, since the slope of `max` is shared among equals."""
    chosen = jnp.argmax(values, axis=1, keepdims=True)
    return jnp.take_along_axis(values, chosen, axis=1)[:, 0]
