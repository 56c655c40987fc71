"""Networks: Equinox modules whose every leaf is an array.

Plain `jax.grad`, `jax.vmap`, `lax.scan` and optax apply to them with no filters, and an adapted network is again a
network. A module maps one example; `vmap` makes the batch. Initial weights are drawn as PyTorch draws them, since the
papers' learning rates were found with those scales: Linear and LSTM uniform in ±1/√fan_in, embeddings N(0, 1).
What `glorot` draws is as Keras draws it, for the papers that used that.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


class Linear(eqx.Module):
    """Affine map of the last axis of one example: x W + b."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, "outputs"]

    @staticmethod
    def create(inputs: int, outputs: int, key: PRNGKeyArray, fan_in: int | None = None) -> "Linear":
        """Draw weights and bias uniformly in ±1/√fan_in (default: `inputs`)."""
        bound = (fan_in or inputs) ** -0.5
        # Weight and bias in one draw, here and below: every draw adds to the time that a program takes to start.
        drawn = jax.random.uniform(key, (inputs + 1, outputs), minval=-bound, maxval=bound)
        return Linear(drawn[:-1], drawn[-1])

    @staticmethod
    def zeros(inputs: int, outputs: int) -> "Linear":
        """Nothing yet; see `glorot`."""
        return Linear(jnp.zeros((inputs, outputs)), jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "inputs"]) -> Float[Array, "outputs"]:
        """Map one example."""
        return x @ self.weight + self.bias

    def split(self, widths: Sequence[int]) -> list["Linear"]:
        """Cut the map of a concatenation into one map per part, so that f(x ⊕ y) = f₀(x) + f₁(y).

        The first part carries the bias. Parts that are constant over an episode, or that take few distinct values,
        are then mapped once instead of once per step.
        """
        pieces = jnp.split(self.weight, list(accumulate(widths[:-1])), axis=0)
        none = jnp.zeros_like(self.bias)
        return [Linear(piece, self.bias if i == 0 else none) for i, piece in enumerate(pieces)]


class LayerNorm(eqx.Module):
    """Subtract the mean of the features, divide by their standard deviation, scale and shift (Ba et al. 2016)."""

    scale: Float[Array, "width"]
    shift: Float[Array, "width"]

    @staticmethod
    def create(width: int) -> "LayerNorm":
        """Begin with no scale and no shift."""
        return LayerNorm(jnp.ones(width), jnp.zeros(width))

    def __call__(self, x: Float[Array, "width"]) -> Float[Array, "width"]:
        """Map one example."""
        centred = x - jnp.mean(x)
        return self.scale * centred * jax.lax.rsqrt(jnp.mean(centred**2) + 1e-5) + self.shift


class MLP(eqx.Module):
    """Linear layers with an activation between them, none after the last; optionally normalised before it."""

    layers: tuple[Linear, ...]
    activation: Callable = eqx.field(static=True)
    norms: tuple[LayerNorm, ...] = ()

    @staticmethod
    def create(
        widths: Sequence[int],
        key: PRNGKeyArray,
        activation: Callable[[Array], Array] = jax.nn.relu,
        layer_norm: bool = False,
    ) -> "MLP":
        """Build from the list of widths, inputs and outputs included."""
        keys = jax.random.split(key, len(widths) - 1)
        layers = tuple(Linear.create(i, o, k) for i, o, k in zip(widths[:-1], widths[1:], keys, strict=True))
        norms = tuple(LayerNorm.create(width) for width in widths[1:-1]) if layer_norm else ()
        return MLP(layers, activation, norms)

    def __call__(self, x: Float[Array, "inputs"]) -> Float[Array, "outputs"]:
        """Map one example."""
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            x = self.activation(self.norms[i](x) if self.norms else x)
        return self.layers[-1](x)


class Embedding(eqx.Module):
    """One learned row per integer."""

    table: Float[Array, "entries width"]

    @staticmethod
    def create(entries: int, width: int, key: PRNGKeyArray) -> "Embedding":
        """Draw rows from N(0, 1)."""
        return Embedding(jax.random.normal(key, (entries, width)))

    def __call__(self, index: Int[Array, ""]) -> Float[Array, "width"]:
        """Look one row up."""
        return self.table[index]


class DiscreteEncoder(eqx.Module):
    """Embeds a vector of integers: one table per component, concatenated, through a two-layer MLP."""

    tables: tuple[Embedding, ...]
    mlp: MLP

    @staticmethod
    def create(
        sizes: Sequence[int], width: int, key: PRNGKeyArray, entry: int = 32, hidden: int = 256
    ) -> "DiscreteEncoder":
        """Build for components of the given sizes: tables of width `entry`, one hidden layer, `width` outputs."""
        k_tables, k_mlp = jax.random.split(key)
        drawn = Embedding.create(sum(sizes), entry, k_tables).table
        tables = tuple(Embedding(rows) for rows in jnp.split(drawn, list(accumulate(sizes[:-1]))))
        return DiscreteEncoder(tables, MLP.create((entry * len(sizes), hidden, width), k_mlp))

    def __call__(self, x: Int[Array, "components"]) -> Float[Array, "width"]:
        """Embed one vector."""
        return self.mlp(jnp.concatenate([table(x[k]) for k, table in enumerate(self.tables)]))


class Dueling(eqx.Module):
    """Action values as V + A − mean A over the actions of the same state (Wang et al. 2016, eq. 9)."""

    value: Linear
    advantage: Linear

    @staticmethod
    def create(inputs: int, actions: int, key: PRNGKeyArray) -> "Dueling":
        """One linear head for V, one for A."""
        k_value, k_advantage = jax.random.split(key)
        return Dueling(Linear.create(inputs, 1, k_value), Linear.create(inputs, actions, k_advantage))

    def __call__(self, x: Float[Array, "inputs"]) -> Float[Array, "actions"]:
        """Values of one state."""
        return dueling(self.value(x)[0], self.advantage(x))


def dueling(value: Float[Array, ""], advantage: Float[Array, "actions"]) -> Float[Array, "actions"]:
    """Combine a state's value with its actions' advantages (Wang et al. 2016, eq. 9)."""
    return value + advantage - jnp.mean(advantage)


Network = TypeVar("Network", bound=eqx.Module)


def glorot(network: Network, key: PRNGKeyArray) -> Network:
    """Draw all kernels of a network uniformly in ±√(6 / (fan_in + fan_out)); what has one axis, such as a bias, stays.

    Glorot & Bengio 2010, eq. 16, which is what Keras starts from. One draw for all, since every draw adds to the time
    that a program takes to start.
    """
    leaves, structure = jax.tree.flatten(network)
    sizes = [leaf.size if leaf.ndim > 1 else 0 for leaf in leaves]
    drawn = jnp.split(jax.random.uniform(key, (sum(sizes),), minval=-1, maxval=1), list(accumulate(sizes[:-1])))

    def scaled(leaf: Array, values: Array) -> Array:
        *field, inputs, outputs = leaf.shape
        return values.reshape(leaf.shape) * (6 / (math.prod(field) * (inputs + outputs))) ** 0.5

    filled = [scaled(leaf, new) if leaf.ndim > 1 else leaf for leaf, new in zip(leaves, drawn, strict=True)]
    return jax.tree.unflatten(structure, filled)


def num_parameters(weights: eqx.Module) -> int:
    """Count the numbers in a network."""
    return sum(leaf.size for leaf in jax.tree.leaves(weights))
