"""Networks: Equinox modules whose every leaf is an array.

Plain `jax.grad`, `jax.vmap`, `lax.scan` and optax apply to them with no filters, and an adapted network is again a
network. A module maps one example; `vmap` makes the batch. Initial weights are drawn as PyTorch draws them, since the
papers' learning rates were found with those scales: Linear and LSTM uniform in ±1/√fan_in, embeddings N(0, 1).
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray


class Linear(eqx.Module):
    """Affine map of the last axis of one example: x W + b."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, "outputs"]

    @staticmethod
    def create(inputs: int, outputs: int, key: PRNGKeyArray, fan_in: int | None = None) -> "Linear":
        """Draw weights and bias uniformly in ±1/√fan_in (default: `inputs`)."""
        bound = (fan_in or inputs) ** -0.5
        k_weight, k_bias = jax.random.split(key)
        return Linear(
            jax.random.uniform(k_weight, (inputs, outputs), minval=-bound, maxval=bound),
            jax.random.uniform(k_bias, (outputs,), minval=-bound, maxval=bound),
        )

    def __call__(self, x: Float[Array, "inputs"]) -> Float[Array, "outputs"]:
        """Map one example."""
        return x @ self.weight + self.bias

    def split(self, widths: Sequence[int]) -> list["Linear"]:
        """Cut the map of a concatenation into one map per part, so that f(x ⊕ y) = f₀(x) + f₁(y).

        The first part carries the bias. Parts that are constant over an episode, or that take few distinct values,
        are then mapped once instead of once per step.
        """
        cuts = [sum(widths[:i]) for i in range(1, len(widths))]
        pieces = jnp.split(self.weight, cuts, axis=0)
        none = jnp.zeros_like(self.bias)
        return [Linear(piece, self.bias if i == 0 else none) for i, piece in enumerate(pieces)]


class MLP(eqx.Module):
    """Linear layers with an activation between them, none after the last."""

    layers: tuple[Linear, ...]
    activation: Callable = eqx.field(static=True)

    @staticmethod
    def create(widths: Sequence[int], key: PRNGKeyArray, activation: Callable[[Array], Array] = jax.nn.relu) -> "MLP":
        """Build from the list of widths, inputs and outputs included."""
        keys = jax.random.split(key, len(widths) - 1)
        layers = tuple(Linear.create(i, o, k) for i, o, k in zip(widths[:-1], widths[1:], keys, strict=True))
        return MLP(layers, activation)

    def __call__(self, x: Float[Array, "inputs"]) -> Float[Array, "outputs"]:
        """Map one example."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
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
        k_mlp, *keys = jax.random.split(key, len(sizes) + 1)
        tables = tuple(Embedding.create(n, entry, k) for n, k in zip(sizes, keys, strict=True))
        return DiscreteEncoder(tables, MLP.create((entry * len(sizes), hidden, width), k_mlp))

    def __call__(self, x: Int[Array, "components"]) -> Float[Array, "width"]:
        """Embed one vector."""
        return self.mlp(jnp.concatenate([table(x[k]) for k, table in enumerate(self.tables)]))


LSTMState = tuple[Float[Array, "*batch width"], Float[Array, "*batch width"]]
"""(hidden, cell) of an LSTM."""


class LSTM(eqx.Module):
    """Long short-term memory in which the input projection is a map of its own.

    Only the hidden-to-hidden product depends on the step before, so `project` is applied to a whole sequence in one
    matrix product and `step` and `unroll` take projected inputs.
    """

    project: Linear
    recurrent: Linear

    @staticmethod
    def create(inputs: int, width: int, key: PRNGKeyArray) -> "LSTM":
        """Draw all weights uniformly in ±1/√width."""
        k_input, k_hidden = jax.random.split(key)
        return LSTM(
            Linear.create(inputs, 4 * width, k_input, fan_in=width),
            Linear.create(width, 4 * width, k_hidden, fan_in=width),
        )

    def initial(self, batch: tuple[int, ...] = ()) -> LSTMState:
        """All zeros."""
        zeros = jnp.zeros((*batch, self.recurrent.weight.shape[0]))
        return zeros, zeros

    def step(self, state: LSTMState, projected: Float[Array, "gates"]) -> LSTMState:
        """Advance one example by one projected input."""
        hidden, cell = state
        gates = projected + self.recurrent(hidden)
        in_gate, forget, update, out_gate = jnp.split(gates, 4)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(in_gate) * jnp.tanh(update)
        return jax.nn.sigmoid(out_gate) * jnp.tanh(cell), cell

    def unroll(self, projected: Float[Array, "T B gates"]) -> Float[Array, "T B width"]:
        """Hidden states after each of T steps from zeros, for B sequences at once."""

        def step(state: LSTMState, projected: Array) -> tuple[LSTMState, Array]:
            state = jax.vmap(self.step)(state, projected)
            return state, state[0]

        return lax.scan(step, self.initial((projected.shape[1],)), projected)[1]


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


def num_parameters(weights: eqx.Module) -> int:
    """Count the numbers in a network."""
    return sum(leaf.size for leaf in jax.tree.leaves(weights))
