"""Recurrent networks."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.nets.layers import Linear

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


class GRU(eqx.Module):
    """Gated recurrent unit (Cho et al. 2014), with the reset gate after the product, as in PyTorch.

    As in `LSTM` the input projection is a map of its own, for a whole sequence at once.
    """

    project: Linear
    recurrent: Linear

    @staticmethod
    def create(inputs: int, width: int, key: PRNGKeyArray) -> "GRU":
        """Draw all weights uniformly in ±1/√width."""
        k_input, k_hidden = jax.random.split(key)
        return GRU(
            Linear.create(inputs, 3 * width, k_input, fan_in=width),
            Linear.create(width, 3 * width, k_hidden, fan_in=width),
        )

    def initial(self, batch: tuple[int, ...] = ()) -> Float[Array, "*batch width"]:
        """All zeros."""
        return jnp.zeros((*batch, self.recurrent.weight.shape[0]))

    def step(
        self, state: Float[Array, "*batch width"], projected: Float[Array, "*batch gates"]
    ) -> Float[Array, "*batch width"]:
        """Advance by one projected input."""
        reset, update, new = jnp.split(projected, 3, axis=-1)
        bias = jnp.broadcast_to(self.recurrent.bias, projected.shape)
        from_reset, from_update, from_new = jnp.split(state @ self.recurrent.weight + bias, 3, axis=-1)
        new = jnp.tanh(new + jax.nn.sigmoid(reset + from_reset) * from_new)
        update = jax.nn.sigmoid(update + from_update)
        return (1 - update) * new + update * state

    def unroll(
        self,
        projected: Float[Array, "T *batch gates"],
        initial: Float[Array, "*batch width"] | None = None,
        valid: Bool[Array, "T *batch"] | None = None,
    ) -> Float[Array, "T *batch width"]:
        """States after each of T steps, from `initial` or zeros; where a step is not valid the state stays."""

        def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            inputs, valid = now
            state = jnp.where(valid[..., None], self.step(state, inputs), state)
            return state, state

        valid = jnp.ones(projected.shape[:-1], bool) if valid is None else valid
        start = self.initial(projected.shape[1:-1]) if initial is None else initial
        return lax.scan(step, start, (projected, valid))[1]


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
