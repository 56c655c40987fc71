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


class Conv(eqx.Module):
    """Convolution of one picture with stride 1, padded with zeros to the same size.

    A kernel of even size reaches one pixel further down and right than up and left, as in TensorFlow.
    """

    weight: Float[Array, "rows columns inputs outputs"]
    bias: Float[Array, "outputs"]

    @staticmethod
    def zeros(size: int, inputs: int, outputs: int) -> "Conv":
        """A size × size kernel with nothing in it yet; see `glorot`."""
        return Conv(jnp.zeros((size, size, inputs, outputs)), jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "height width inputs"]) -> Float[Array, "height width outputs"]:
        """Map one picture."""
        return convolve(x, self.weight, "SAME") + self.bias[None, None]


def convolve(
    x: Float[Array, "height width inputs"], kernel: Float[Array, "rows columns inputs outputs"], padding: str
) -> Float[Array, "new_height new_width outputs"]:
    """Correlate a picture with a kernel; `padding` is SAME (see `Conv`) or VALID.

    On a CPU as one product of all shifted copies with the kernel: the compiler's own convolution is an order of
    magnitude slower inside loops.
    """
    rows, columns, _, outputs = kernel.shape
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x[None], kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
    if padding == "SAME":
        above, left = (rows - 1) // 2, (columns - 1) // 2
        x = jnp.pad(x, ((above, rows - 1 - above), (left, columns - 1 - left), (0, 0)))
    height, width = x.shape[0] - rows + 1, x.shape[1] - columns + 1
    shifted = [x[i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, outputs)


def max_pool(x: Float[Array, "height width channels"], size: int) -> Float[Array, "rows columns channels"]:
    """The largest of each size × size square; height and width must be multiples of `size`."""
    height, width, channels = x.shape
    return x.reshape(height // size, size, width // size, size, channels).max(axis=(1, 3))


class ConvNet(eqx.Module):
    """Convolutions, each followed by its activation and a pooling (1: none); the last may stay linear."""

    layers: tuple[Conv, ...]
    pools: tuple[int, ...] = eqx.field(static=True)
    activation: Callable = eqx.field(static=True)
    linear_end: bool = eqx.field(static=True)

    @staticmethod
    def zeros(
        sizes: Sequence[int],
        channels: Sequence[int],
        pools: Sequence[int] = (),
        activation: Callable[[Array], Array] = jnp.tanh,
        linear_end: bool = False,
    ) -> "ConvNet":
        """Build from kernel sizes and the list of channels, that of the input included; see `glorot`."""
        layers = tuple(Conv.zeros(*each) for each in zip(sizes, channels[:-1], channels[1:], strict=True))
        return ConvNet(layers, tuple(pools) or (1,) * len(sizes), activation, linear_end)

    def __call__(self, x: Float[Array, "height width inputs"]) -> Float[Array, "rows columns outputs"]:
        """Map one picture."""
        for i, (layer, size) in enumerate(zip(self.layers, self.pools, strict=True)):
            x = layer(x)
            x = x if self.linear_end and i == len(self.layers) - 1 else self.activation(x)
            x = max_pool(x, size) if size > 1 else x
        return x


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
        return lstm_cell(projected + self.recurrent(hidden), cell)

    def unroll(
        self, projected: Float[Array, "T B gates"], lengths: Int[Array, "B"] | None = None
    ) -> Float[Array, "T B width"]:
        """Hidden states after each of T steps from zeros, for B sequences at once.

        Where a sequence's length is given, its states from there on mean nothing and must not be used.
        """
        inputs = projected + jnp.broadcast_to(self.recurrent.bias, projected.shape)
        if lengths is None or projected.shape[1] % _PARTS or jax.default_backend() != "cpu":
            return _unroll(self.recurrent.weight, inputs)
        # Longest first, so that the sequences still running at any time are the first rows.
        order = jnp.argsort(-lengths)
        running = jnp.sum(lengths[None, :] > jnp.arange(projected.shape[0])[:, None], axis=1)
        parts = -(-running * _PARTS // projected.shape[1])
        return _unroll_running(self.recurrent.weight, inputs[:, order], parts)[:, jnp.argsort(order)]


def lstm_cell(gates: Float[Array, "*batch gates"], cell: Float[Array, "*batch width"]) -> LSTMState:
    """New hidden and cell state from summed gate inputs (Hochreiter & Schmidhuber 1997; Gers et al. 2000)."""
    in_gate, forget, update, out_gate = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(in_gate) * jnp.tanh(update)
    return jax.nn.sigmoid(out_gate) * jnp.tanh(cell), cell


def _unroll(weight: Float[Array, "width gates"], inputs: Float[Array, "T B gates"]) -> Float[Array, "T B width"]:
    def step(state: LSTMState, inputs: Array) -> tuple[LSTMState, Array]:
        state = lstm_cell(inputs + state[0] @ weight, state[1])
        return state, state[0]

    zeros = jnp.zeros((inputs.shape[1], weight.shape[0]))
    return lax.scan(step, (zeros, zeros), inputs)[1]


_PARTS = 4
"""A batch of sequences shrinks by this fraction of its rows as they end."""


@jax.custom_vjp
def _unroll_running(
    weight: Float[Array, "width gates"], inputs: Float[Array, "T B gates"], parts: Int[Array, "T"]
) -> Float[Array, "T B width"]:
    """Unroll sequences sorted by falling length; at time t only the first `parts[t]` quarters of the rows are computed.

    On a CPU a step costs in proportion to its rows, and episodes are often half as long as their padding. The
    derivative is written as a loop of the same shape, since that of a `switch` would keep what every branch needs,
    and with one product for the weights at the end instead of one per step.
    """
    return _running_forward(weight, inputs, parts)[0]


def _running_forward(weight: Array, inputs: Array, parts: Array) -> tuple[Array, tuple[Array, ...]]:
    batch, width = inputs.shape[1], weight.shape[0]

    def rows(count: int) -> Callable[..., tuple[Array, Array, Array]]:
        def advance(hidden: Array, cell: Array, inputs: Array) -> tuple[Array, Array, Array]:
            gates = inputs[:count] + hidden[:count] @ weight
            new_hidden, new_cell = lstm_cell(gates, cell[:count])
            return _over(hidden, new_hidden), _over(cell, new_cell), _over(jnp.zeros_like(inputs), gates)

        return advance

    branches = [rows(part * batch // _PARTS) for part in range(_PARTS + 1)]

    def step(state: LSTMState, now: tuple[Array, Array]) -> tuple[LSTMState, tuple[Array, Array, Array]]:
        inputs, part = now
        hidden, cell, gates = lax.switch(part, branches, *state, inputs)
        return (hidden, cell), (hidden, state[1], gates)

    zeros = jnp.zeros((batch, width))
    hidden, cell_before, gates = lax.scan(step, (zeros, zeros), (inputs, parts))[1]
    return hidden, (weight, parts, hidden, cell_before, gates)


def _running_backward(kept: tuple[Array, ...], slope: Array) -> tuple[Array, Array, None]:
    weight, parts, hidden, cell_before, gates = kept
    batch, width = hidden.shape[1:]

    def rows(count: int) -> Callable[..., tuple[Array, Array, Array]]:
        def retreat(
            d_hidden: Array, d_cell: Array, slope: Array, cell: Array, gates: Array
        ) -> tuple[Array, Array, Array]:
            _, pull = jax.vjp(lstm_cell, gates[:count], cell[:count])
            d_gates, d_cell_before = pull((d_hidden[:count] + slope[:count], d_cell[:count]))
            d_hidden_before = d_gates @ weight.T
            return _over(d_hidden, d_hidden_before), _over(d_cell, d_cell_before), _over(jnp.zeros_like(gates), d_gates)

        return retreat

    branches = [rows(part * batch // _PARTS) for part in range(_PARTS + 1)]

    def step(state: LSTMState, now: tuple[Array, ...]) -> tuple[LSTMState, Array]:
        part, *rest = now
        d_hidden, d_cell, d_gates = lax.switch(part, branches, *state, *rest)
        return (d_hidden, d_cell), d_gates

    zeros = jnp.zeros((batch, width))
    d_gates = lax.scan(step, (zeros, zeros), (parts, slope, cell_before, gates), reverse=True)[1]
    d_weight = jnp.einsum("tbh,tbg->hg", hidden[:-1], d_gates[1:])
    return d_weight, d_gates, None


_unroll_running.defvjp(_running_forward, _running_backward)


def _over(whole: Array, first: Array) -> Array:
    """Replace the first rows."""
    return whole.at[: first.shape[0]].set(first)


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
