"""Networks: the published sizes, PyTorch's initial scales, and the identities that fast paths rely on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.adapt.context import ProblemEncoder, TrajectoryDecoder
from metadyna.envs.gridworld import CityGrid
from metadyna.nets.convolutions import Conv, ConvNet, convolve, max_pool
from metadyna.nets.layers import (
    MLP,
    DiscreteEncoder,
    Dueling,
    Embedding,
    LayerNorm,
    Linear,
    dueling,
    glorot,
    num_parameters,
)
from metadyna.nets.pictures import Encoder
from metadyna.nets.recurrent import GRU, LSTM
from metadyna.policies.action_values import ExplorePolicy, FeedForwardPolicy, RecurrentPolicy
from metadyna.systems.dream import DREAM, ExecuteNets

KEY = jax.random.key(0)


def jitted(make):
    """What a function of nothing makes, compiled as one."""
    return jax.tree.map(np.asarray, jax.jit(make)())


@jax.jit
def said(network, x):
    return network(x)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CITY = CityGrid(distractors=True)
DISTRACTION, GOAL = CITY.spec, CITY.instruction_space  # observation (9, 9, 4), goal (9, 9), 576 problems


def execution(system):
    """What an execution agent learns."""
    policy = system.execution.create(CITY, system.context.width, KEY)
    return ExecuteNets(policy, system.context.create(CITY, KEY))


# Card of DREAM, 3.8: counts of the published networks without the 64 -> 9 head (585) that its code builds in each
# of them but never uses. So the execution agent's 383,082 is policy 167,306 + f 20,544 + decoder 195,232.
SIZES = {
    "state encoder": (lambda: DiscreteEncoder.create((9, 9, 4), 64, KEY), 41_984),
    "goal encoder": (lambda: DiscreteEncoder.create((9, 9), 64, KEY), 33_664),
    "explore": (lambda: ExplorePolicy.create(DISTRACTION, KEY), 81_258),
    "f": (lambda: ProblemEncoder.create(576, 64, KEY), 20_544),
    "decoder": (lambda: TrajectoryDecoder.create((9, 9, 4), 9, 64, KEY), 215_776 - 20_544),
    "execute, recurrent": (lambda: execution(DREAM()), 383_082),
}

MODULES = {
    "linear": lambda: Linear.create(3, 2, KEY),
    "mlp": lambda: MLP.create((3, 4, 2), KEY),
    "normalised mlp": lambda: MLP.create((3, 4, 4, 2), KEY, layer_norm=True),
    "layer norm": lambda: LayerNorm.create(3),
    "embedding": lambda: Embedding.create(3, 2, KEY),
    "encoder": lambda: DiscreteEncoder.create((3, 4), 2, KEY),
    "lstm": lambda: LSTM.create(3, 2, KEY),
    "gru": lambda: GRU.create(3, 2, KEY),
    "convolution": lambda: glorot(Conv.zeros(2, 3, 2), KEY),
    "convolutions": lambda: glorot(ConvNet.zeros((2, 1), (1, 3, 2), pools=(2, 1)), KEY),
    "dueling": lambda: Dueling.create(3, 2, KEY),
    "explore": lambda: ExplorePolicy.create(DISTRACTION, KEY),
    "recurrent": lambda: RecurrentPolicy.create(DISTRACTION, GOAL, 8, KEY),
    "feed-forward": lambda: FeedForwardPolicy.create(DISTRACTION, GOAL, 8, KEY),
    "problem encoder": lambda: ProblemEncoder.create(576, 8, KEY, hidden=16),
    "decoder": lambda: TrajectoryDecoder.create((9, 9, 4), 9, 8, KEY),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name):
    make, expected = SIZES[name]
    assert num_parameters(jax.eval_shape(make)) == expected


@pytest.mark.parametrize("name", MODULES)
def test_every_leaf_is_an_array(name):
    modules = []
    jax.eval_shape(lambda: modules.append(MODULES[name]()))  # as they are before they are drawn
    leaves = jax.tree.leaves(modules)
    assert leaves
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves)


def test_plain_transformations_apply_to_networks():
    weights = jitted(lambda: MLP.create((3, 4, 2), KEY))
    gradients = jax.jit(jax.grad(lambda w: jnp.sum(w(jnp.ones(3)))))(weights)
    stepped = jax.tree.map(lambda w, g: w - np.asarray(g), weights, gradients)
    np.testing.assert_allclose(stepped.layers[1].bias, weights.layers[1].bias - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (lambda: Linear.create(100, 400, KEY), 0.1),
        (lambda: Linear.create(100, 400, KEY, fan_in=25), 0.2),
        (lambda: LSTM.create(4, 100, KEY), 0.1),
        (lambda: GRU.create(4, 100, KEY), 0.1),
    ],
    ids=["linear", "linear with fan-in", "lstm", "gru"],
)
def test_weights_start_uniform_within_their_bound(make, bound):
    tensors = jax.tree.leaves(jitted(make))
    values = np.concatenate([np.ravel(tensor) for tensor in tensors])
    for tensor in tensors:  # no tensor is left out, or drawn on a scale of its own
        assert 0.95 * bound < np.abs(tensor).max() <= bound
    assert values.std() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert values.mean() == pytest.approx(0, abs=0.02 * bound)


def test_embeddings_start_normal():
    table = jitted(lambda: Embedding.create(100, 100, KEY)).table
    assert table.mean() == pytest.approx(0, abs=0.03)
    assert table.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_initial_tensors_are_drawn_independently(kind):
    memory = jitted(lambda: kind.create(8, 8, KEY))
    assert not np.allclose(memory.project.weight, memory.recurrent.weight)
    assert not np.allclose(memory.project.weight[0], memory.project.bias)


@pytest.mark.parametrize("widths", [(5,), (2, 3), (1, 3, 1)])
def test_the_parts_of_a_split_map_sum_to_the_whole(widths):
    x = random(5)

    @jax.jit
    def both(key, x):
        linear, parts = Linear.create(5, 4, key), jnp.split(x, np.cumsum(widths)[:-1])
        return sum(part(value) for part, value in zip(linear.split(widths), parts, strict=True)), linear(x)

    np.testing.assert_allclose(*both(KEY, x), atol=1e-6)


def test_an_mlp_is_affine_after_its_last_activation():
    mlp = jitted(lambda: MLP.create((3, 4, 2), KEY))
    (w0, b0), (w1, b1) = [(layer.weight, layer.bias) for layer in mlp.layers]
    x = np.array([1.0, -2.0, 0.5], np.float32)
    np.testing.assert_allclose(said(mlp, x), np.maximum(x @ w0 + b0, 0) @ w1 + b1, atol=1e-6)


def test_a_layer_norm_gives_mean_0_and_deviation_1_before_scale_and_shift():
    x, norm = random(100) * 5 + 3, jitted(lambda: LayerNorm.create(100))
    y = np.asarray(said(norm, x))
    np.testing.assert_allclose(y, (x - x.mean()) / x.std(), atol=1e-5)
    np.testing.assert_allclose(said(norm, 7 * x - 2), y, atol=1e-5)
    scale, shift = np.arange(100, dtype=np.float32), -np.ones(100, np.float32)
    moved = LayerNorm(jnp.asarray(scale), jnp.asarray(shift))
    np.testing.assert_allclose(said(moved, x), scale * y - 1, rtol=1e-5)
    slopes = jax.jit(jax.value_and_grad(lambda x: jnp.sum(LayerNorm.create(3)(x) ** 2)))
    constant, slope = map(np.asarray, slopes(np.ones(3, np.float32)))
    assert constant == 0
    assert np.isfinite(slope).all()


def test_a_normalised_mlp_normalises_before_every_activation_and_draws_the_same_weights():
    plain, mlp = jitted(lambda: [MLP.create((3, 8, 8, 2), KEY, jnp.tanh, layer_norm=norm) for norm in (False, True)])
    jax.tree.map(np.testing.assert_array_equal, plain.layers, mlp.layers)
    assert len(mlp.norms) == 2
    assert num_parameters(mlp) - num_parameters(plain) == 2 * 2 * 8
    x = np.array([1.0, -2.0, 0.5], np.float32)
    hidden = x
    for layer in mlp.layers[:-1]:
        hidden = hidden @ layer.weight + layer.bias
        hidden = np.tanh((hidden - hidden.mean()) / hidden.std())
    expected = hidden @ mlp.layers[-1].weight + mlp.layers[-1].bias
    np.testing.assert_allclose(said(mlp, x), expected, atol=1e-3)
    first, *others = mlp.layers
    huge = MLP((jax.tree.map(lambda w: 1e4 * w, first), *others), jnp.tanh, mlp.norms)
    np.testing.assert_allclose(said(huge, x), expected, atol=1e-3)


def test_a_discrete_encoder_reads_every_component():
    encoder = jitted(lambda: DiscreteEncoder.create((3, 4), 8, KEY))
    outputs = {tuple(np.asarray(said(encoder, np.int32(x))).round(5).tolist()) for x in np.ndindex(3, 4)}
    assert len(outputs) == 12


@jax.jit
def _projections(memory, inputs):
    return jax.vmap(jax.vmap(memory.project))(inputs)


def projections(memory, inputs):
    """Inputs [T, B] as a memory takes them."""
    return np.asarray(_projections(memory, inputs))


@jax.jit
def stepped(memory, state, projected):
    return memory.step(state, projected)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(lstm, inputs):
    """Hochreiter & Schmidhuber 1997 with forget gates, one sequence: i, f, g, o = x W + h U + b."""
    hidden = cell = np.zeros(lstm.recurrent.weight.shape[0])
    outputs = []
    for x in inputs:
        gates = x @ np.asarray(lstm.project.weight) + np.asarray(lstm.project.bias)
        gates = gates + hidden @ np.asarray(lstm.recurrent.weight) + np.asarray(lstm.recurrent.bias)
        i, f, g, o = np.split(gates, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        outputs.append(hidden)
    return np.array(outputs)


def test_an_lstm_unrolls_to_its_formula_and_to_its_steps():
    lstm, inputs = jitted(lambda: LSTM.create(3, 4, KEY)), 3 * random(7, 2, 3)
    projected = projections(lstm, inputs)
    unrolled = np.asarray(jax.jit(lambda lstm, projected: lstm.unroll(projected))(lstm, projected))
    for b in range(2):
        np.testing.assert_allclose(unrolled[:, b], lstm_by_hand(lstm, inputs[:, b]), atol=1e-5)
        state = jitted(lambda: lstm.initial())
        for t in range(7):
            state = stepped(lstm, state, projected[t, b])
            np.testing.assert_allclose(state[0], unrolled[t, b], atol=1e-6)


def gru_by_hand(gru, inputs, hidden):
    """Cho et al. 2014 as PyTorch has it: r, z, n = x W + b and h U + c, of which r weighs the n of h."""
    outputs = []
    for x in inputs:
        of_input = x @ np.asarray(gru.project.weight) + np.asarray(gru.project.bias)
        of_hidden = hidden @ np.asarray(gru.recurrent.weight) + np.asarray(gru.recurrent.bias)
        (r, z, n), (hr, hz, hn) = np.split(of_input, 3), np.split(of_hidden, 3)
        n = np.tanh(n + sigmoid(r + hr) * hn)
        z = sigmoid(z + hz)
        hidden = (1 - z) * n + z * hidden
        outputs.append(hidden)
    return np.array(outputs)


def test_a_gru_unrolls_to_its_formula_and_to_its_steps():
    """From zeros, where every episode begins, and from any other state."""
    gru, inputs, elsewhere = jitted(lambda: GRU.create(3, 4, KEY)), 3 * random(7, 2, 3), random(2, 4, seed=1)
    zeros, projected = jitted(lambda: gru.initial((2,))), projections(gru, inputs)
    assert not zeros.any()
    unroll = jax.jit(lambda gru, *arguments: gru.unroll(*arguments))
    for state, arguments in ((zeros, ()), (elsewhere, (elsewhere,))):
        unrolled = np.asarray(unroll(gru, projected, *arguments))
        for b in range(2):
            expected = gru_by_hand(gru, inputs[:, b], state[b])
            np.testing.assert_allclose(unrolled[:, b], expected, atol=1e-5)
        for t in range(7):
            state = stepped(gru, state, projected[t])
            np.testing.assert_allclose(state, unrolled[t], atol=1e-6)


def test_a_gru_waits_through_steps_that_are_not_valid():
    """What they hold does not matter, even NaN; the others follow one another as if alone."""
    gru, projected = jitted(lambda: GRU.create(3, 4, KEY)), random(6, 2, 12)
    valid = np.array([[True, False], [False, True], [True, True], [False, False], [True, True], [True, False]])
    unroll = jax.jit(lambda gru, projected, valid: gru.unroll(projected, valid=valid))
    unrolled = np.asarray(unroll(gru, np.where(valid[..., None], projected, np.float32(np.nan)), valid))
    for b in range(2):
        state = jitted(lambda: gru.initial())
        for t in range(6):
            state = stepped(gru, state, projected[t, b]) if valid[t, b] else state
            np.testing.assert_allclose(unrolled[t, b], state, atol=1e-6)


def test_the_dueling_mean_is_per_state():
    value, advantage = np.float32([1.0, 2.0]), np.float32([[1.0, -1.0], [3.0, 1.0]])
    combined = jax.jit(jax.vmap(dueling))(value, advantage)
    np.testing.assert_allclose(combined, [[2, 0], [3, 1]])  # the published code's batch mean gives [[1, -1], [4, 2]]


def test_dueling_heads_give_values_of_the_given_mean():
    @jax.jit
    def both(key, x):
        heads = Dueling.create(3, 5, key)
        return heads(x), heads.value(x)[0]

    values, mean = map(np.asarray, both(KEY, np.float32([1.0, 2.0, 3.0])))
    np.testing.assert_allclose(values.mean(), mean, atol=1e-6)
    assert np.ptp(values) > 0.01


@jax.jit
@partial(jax.grad, argnums=(0, 1), has_aux=True)
def differentiate(lstm, projected, counts, lengths):
    hidden = jnp.where(counts, lstm.unroll(projected, lengths), 0.0)
    return jnp.sum(jnp.sin(3 * hidden)), hidden


@pytest.mark.parametrize("lengths", [[20] * 8, [1] * 8, [20, 3, 7, 1, 12, 12, 5, 9], [4, 0, 0, 0, 0, 0, 0, 2]])
def test_unrolling_only_the_running_sequences_changes_neither_values_nor_gradients(lengths):
    """Against the plain scan, on the steps that count; the derivative there is JAX's own."""
    lstm, projected, lengths = jitted(lambda: LSTM.create(3, 6, KEY)), random(20, 8, 24), np.int32(lengths)
    counts = (np.arange(20)[:, None] < lengths[None])[..., None]
    running, running_values = differentiate(lstm, projected, counts, lengths)
    plain, plain_values = differentiate(lstm, projected, counts, None)
    np.testing.assert_allclose(running_values, plain_values, atol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(running), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --- pictures


@jax.jit
def correlations(x, kernel, bias):
    """Ours and JAX's own, same size and valid."""
    own = [
        jax.lax.conv_general_dilated(x[None], kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
        for padding in ("SAME", "VALID")
    ]
    return (Conv(kernel, bias)(x) - bias[None, None], convolve(x, kernel, "VALID")), own


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(4, 7), (3, 3)])
def test_convolutions_are_those_of_jax(size, height, width):
    ours, own = correlations(random(height, width, 2), random(size, size, 2, 5, seed=1), random(5, seed=2))
    for one, other in zip(ours, own, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_kernel_of_two_reaches_down_and_to_the_right():  # card of CRAR, 3.1
    conv = Conv(jnp.asarray(np.ones((2, 2, 1, 1), np.float32)), jnp.asarray(np.float32([10])))
    x = np.float32([[1, 2], [3, 4]])[..., None]
    np.testing.assert_array_equal(np.asarray(said(conv, x))[..., 0], [[20, 16], [17, 14]])


def test_pooling_takes_the_largest_of_each_square():
    x = random(6, 9, 2)
    expected = [
        [[x[3 * i : 3 * i + 3, 3 * j : 3 * j + 3, k].max() for k in range(2)] for j in range(3)] for i in range(2)
    ]
    pooled = jax.jit(max_pool, static_argnums=1)
    np.testing.assert_array_equal(pooled(x, 3), expected)
    np.testing.assert_array_equal(pooled(x, 1), x)


@pytest.mark.parametrize("linear_end", [False, True])
def test_convolutions_are_activated_and_then_pooled(linear_end):
    zeros = partial(ConvNet.zeros, (2, 1, 3), (1, 4, 3, 2), (1, 2, 3), linear_end=linear_end)
    x = random(6, 12, 1)

    @jax.jit
    def both(key, x):
        net = jax.tree.map(lambda w: w + 0.1, glorot(zeros(), key))
        y = max_pool(jnp.tanh(net.layers[1](jnp.tanh(net.layers[0](x)))), 2)
        y = net.layers[2](y)
        return net(x), max_pool(y if linear_end else jnp.tanh(y), 3)

    ours, expected = both(KEY, x)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert ours.shape == (1, 2, 2)
    assert jax.eval_shape(lambda x: ConvNet.zeros((1,), (1, 2))(x), x).shape == (6, 12, 2)


def test_glorot_weights_start_uniform_within_the_bounds_of_their_layers_and_biases_at_zero():
    """Glorot & Bengio 2010, eq. 16: ±√(6 / (fan_in + fan_out)), a kernel's field counted on both sides."""

    @jax.jit
    def drawn(key):
        dense = MLP((Linear.zeros(60, 90),), jnp.tanh)
        return glorot(Encoder(ConvNet.zeros((1, 2, 3), (30, 100, 40, 20)), dense), key)

    one, other = (jax.tree.map(np.asarray, drawn(jax.random.key(seed))) for seed in (0, 1))
    assert not np.allclose(one.head.layers[0].weight, other.head.layers[0].weight)
    layers = (*one.trunk.layers, one.head.layers[0])
    for layer, fans in zip(layers, (130, 4 * 140, 9 * 60, 150), strict=True):
        bound = (6 / fans) ** 0.5
        weight = layer.weight
        assert 0.99 * bound < np.abs(weight).max() <= bound * (1 + 1e-6)
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert weight.mean() == pytest.approx(0, abs=0.04 * bound)
        assert not np.any(layer.bias)
    first = [np.ravel(layer.weight)[:3000] for layer in layers]
    assert np.abs(np.corrcoef(first) - np.eye(4)).max() < 0.08


def test_glorot_leaves_what_has_one_axis():
    def make():
        norm = LayerNorm(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
        layers = Linear.zeros(2, 2), Linear(jnp.zeros((2, 2)), jnp.array([5.0, 6.0]))
        return glorot(MLP(layers, jnp.tanh, (norm,)), KEY)

    drawn = jitted(make)
    np.testing.assert_array_equal(drawn.layers[1].bias, [5, 6])
    np.testing.assert_array_equal(drawn.norms[0].scale, [1, 2])
    assert np.abs(drawn.layers[1].weight).min() > 0
