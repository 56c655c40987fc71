"""Learning an abstract model: every update against one written out, the optimisers by hand, and double-Q targets."""

import functools
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect import replay
from metadyna.errors import UserError
from metadyna.improve.abstract import AbstractLearning, Encoded
from metadyna.models.abstract import Abstract, Spatial, Vector
from metadyna.nets.convolutions import ConvNet
from metadyna.nets.layers import MLP, Linear
from metadyna.nets.pictures import Encoder
from metadyna.types import Transition
from tests.arrays import flat

KEY = jax.random.key(0)
ACTIONS, WIDTH = 3, 2
NO_TRUNK = ConvNet((), (), jnp.tanh, False)


def see(encoder, obs):
    """What is seen are vectors here: convolutions would take most of the time."""
    return jax.vmap(encoder.head)(obs)


def networks(seed=0):
    rng = np.random.default_rng(seed)

    def mlp(*widths):
        layers = [
            Linear(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((i, o), (o,))))
            for i, o in pairwise(widths)
        ]
        return MLP(tuple(layers), jnp.tanh)

    joined = ACTIONS + WIDTH
    judges = (mlp(joined, 4, 1), mlp(joined, 4, 1), mlp(WIDTH, 4, ACTIONS))
    return Abstract(Encoder(NO_TRUNK, mlp(5, 4, WIDTH)), mlp(joined, 4, WIDTH), *judges, ACTIONS)


def transitions(count=8, seed=0):
    rng = np.random.default_rng(seed)
    obs, next_obs = (np.float32(rng.normal(size=(count, 5))) for _ in range(2))
    action, reward = np.int32(rng.integers(0, ACTIONS, count)), np.float32(rng.normal(size=count))
    ended = np.arange(count) % 4 == 1
    return Transition(obs, action, reward, np.float32(~ended), next_obs, ended)


# --- updates written out: card 3.2 and 3.3


def codes(weights, batch):
    return see(weights.encoder, batch.obs), see(weights.encoder, batch.next_obs)


def with_actions(x, action):
    return jnp.concatenate([jax.nn.one_hot(action, ACTIONS), x], axis=1)


def apart(x, y):
    squared = jnp.sum((x - y) ** 2, axis=1)
    return jnp.exp(-5 * jnp.sqrt(jnp.clip(squared, 1e-6, 10)))


def transition(settings, weights, target, batch):
    x, y = codes(weights, batch)
    predicted = x + jax.vmap(weights.change)(with_actions(x, batch.action))
    return jnp.mean(batch.discount[:, None] * (predicted - y) ** 2)


def reward(settings, weights, target, batch):
    told = jax.vmap(weights.reward)(with_actions(codes(weights, batch)[0], batch.action))[:, 0]
    return jnp.mean((batch.reward - told) ** 2)


def discount(settings, weights, target, batch):
    told = jax.vmap(weights.discount)(with_actions(codes(weights, batch)[0], batch.action))[:, 0]
    return jnp.mean((settings.discount * batch.discount - told) ** 2)


def range_(settings, weights, target, batch):
    return jnp.mean(jnp.clip(jnp.max(codes(weights, batch)[0] ** 2, axis=1) - 1, 0, 100))


def unrelated(settings, weights, target, batch):
    x = codes(weights, batch)[0]
    return jnp.mean(apart(x, x[np.arange(len(x)) - 1]))


def successive(settings, weights, target, batch):
    return jnp.mean(batch.discount * apart(*codes(weights, batch)))


def direction(settings, weights, target, batch):
    x = codes(weights, batch)[0]
    total = 0.0
    for action, wanted in enumerate(settings.directions):
        if wanted is not None:
            moved = jax.vmap(weights.change)(with_actions(x, jnp.full(len(x), action)))
            norms = jnp.linalg.norm(moved, axis=1) * np.linalg.norm(wanted)
            total -= jnp.mean(moved @ jnp.array(wanted) / norms)
    return total


def value(settings, weights, target, batch):
    x, y = codes(weights, batch)
    rows = np.arange(len(x))
    choice = jnp.argmax(jax.vmap(weights.value)(y), axis=1)
    later = jax.vmap(target.value)(see(target.encoder, batch.next_obs))[rows, choice]
    aim = jax.lax.stop_gradient(batch.reward + settings.discount * batch.discount * later)
    error = jax.vmap(weights.value)(x)[rows, batch.action] - aim
    return jnp.mean(error**2) + 0.1 * jnp.mean(error**2 * x[:, 0])


def term(weights, target, encoded, aim):
    """What is added in these tests."""
    told = jnp.take_along_axis(jax.vmap(weights.value)(encoded.x), encoded.batch.action[:, None], 1)[:, 0]
    return 0.1 * jnp.mean((told - aim) ** 2 * encoded.x[:, 0]), {"aim": jnp.mean(aim)}


MODEL_LOSSES = {
    "transition": transition,
    "reward": reward,
    "discount": discount,
    "range": range_,
    "unrelated": unrelated,
    "successive": successive,
}


def losses_of(settings):
    return MODEL_LOSSES if settings.directions is None else {**MODEL_LOSSES, "direction": direction}


def loss_of(name, settings, weights, target, batch):
    if name != "joint":
        return {**losses_of(settings), "value": value}[name](settings, weights, target, batch)
    counts = {"successive": settings.successive}
    parts = (*losses_of(settings), "value")
    return sum(counts.get(part, 1) * loss_of(part, settings, weights, target, batch) for part in parts)


slope_of = jax.jit(jax.value_and_grad(loss_of, 2), static_argnums=(0, 1))


class ByHand:
    """The same learner, one loss and one optimiser after the other, with everything in the open."""

    def __init__(self, settings, weights, order=None):
        self.settings, self.weights, self.target, self.updates, self.squares = settings, weights, weights, 0, {}
        each = (*losses_of(settings), "target", "value")
        self.order = order or {"each": each, "joint": ("target", "joint")}[settings.schedule]

    def update(self, batch):
        told = {}
        for name in self.order:
            if name == "target":
                self.target = self.weights if self.updates % self.settings.target_period == 0 else self.target
            else:
                told[name], slope = slope_of(name, self.settings, self.weights, self.target, batch)
                self.weights = self._descend(name, slope)
        self.updates += 1
        return told

    def _descend(self, name, slope):
        settings = self.settings
        slope = flat(slope)
        slope = slope * min(1, settings.gradient_clip / np.linalg.norm(slope))
        self.squares[name] = 0.9 * self.squares.get(name, 0) + 0.1 * slope**2
        rate = settings.learning_rate * settings.rate_decay ** (self.updates // settings.decay_period)
        rate *= settings.successive if name == "successive" else 1
        moved = flat(self.weights) - rate * slope / (np.sqrt(self.squares[name]) + 1e-4)
        leaves, structure = jax.tree.flatten(self.weights)
        parts = np.split(np.float32(moved), np.cumsum([leaf.size for leaf in leaves])[:-1])
        return structure.unflatten([part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])


EACH = AbstractLearning(
    learning_rate=1e-2,
    rate_decay=0.5,
    decay_period=2,
    gradient_clip=0.3,
    target_period=2,
    successive=0.2,
    directions=((1.0, 0.0), None, (-1.0, 2.0)),
)
JOINT = replace(EACH, schedule="joint", directions=None, target_period=3)


start = jax.jit(AbstractLearning.start, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def updated(settings, learner, batch):
    return settings.update(learner, batch, see, term)


def far(one, other):
    """Largest difference of two sets of weights."""
    return np.abs(flat(one) - flat(other)).max()


@pytest.mark.parametrize("settings", [EACH, JOINT], ids=["each", "joint"])
def test_updates_are_those_written_out(settings):
    """Several, so that optimisers remember, rates decay and the frozen copy is refreshed and kept."""
    learner, hand = start(settings, networks()), ByHand(settings, networks())
    for i in range(5):
        batch = transitions(seed=i)
        batch = batch._replace(reward=batch.reward * np.float32(10**i))  # where gradients grow, clipping shows
        learner, metrics = updated(settings, learner, batch)
        told = hand.update(batch)
        assert int(learner.updates) == i + 1
        assert far(learner.weights, hand.weights) < 2e-5
        assert far(learner.target, hand.target) < 2e-5
        assert far(learner.weights, learner.target) > 1e-3
        assert set(metrics) == {*losses_of(settings), "value", "q", "aim"}
        if settings.schedule == "each":
            del told["value"]  # of which the metric is without the term
            assert {name: float(metrics[name]) for name in told} == pytest.approx(
                {name: float(loss) for name, loss in told.items()}, rel=1e-4, abs=1e-6
            )
        assert all(float(metrics[name]) != 0 for name in metrics)


def test_another_order_is_not_the_same():
    """The test above tells: which weights a loss sees depends on those before it."""
    losses, ends = tuple(losses_of(EACH)), []
    for order in (None, (*losses, "value", "target"), (*reversed(losses), "target", "value")):
        hand = ByHand(EACH, networks(), order)
        for i in range(2):
            hand.update(transitions(seed=i))
        ends.append(hand.weights)
    assert far(ends[0], ends[1]) > 1e-3
    assert far(ends[0], ends[2]) > 1e-3


def test_the_frozen_copy_is_refreshed_at_the_first_update_and_every_period():
    learner, refreshed = start(JOINT, networks())._replace(target=networks(1)), []
    for _ in range(8):
        before, (learner, _) = learner, updated(JOINT, learner, transitions())
        refreshed.append(far(learner.target, before.weights) == 0)
        assert refreshed[-1] or far(learner.target, before.target) == 0
    assert refreshed == [True, False, False, True, False, False, True, False]


def test_at_first_the_frozen_copy_equals_the_weights_but_shares_no_memory():
    learner = AbstractLearning().start(networks())
    for x, y in zip(jax.tree.leaves(learner.weights), jax.tree.leaves(learner.target), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.unsafe_buffer_pointer() != y.unsafe_buffer_pointer()
    assert list(learner.optimisers) == [*MODEL_LOSSES, "value"]
    assert list(AbstractLearning(schedule="joint").start(networks()).optimisers) == ["joint"]


# --- the optimiser


@functools.partial(jax.jit, static_argnums=(0, 2))
def steps(settings, gradients, name="reward"):
    """What an optimiser makes of one gradient after the other."""
    optimiser = settings._optimiser(name)
    state, taken = optimiser.init(gradients[0]), []
    for gradient in gradients:
        change, state = optimiser.update(gradient, state)
        taken.append(change)
    return taken


def test_the_first_step_by_hand():  # P6: ε of 1e-4 beside the root; inside it would be 1e-2 there
    gradient = {"a": np.float32([1e-3, -0.5]), "b": np.float32([[1e-6]])}
    (step,) = steps(AbstractLearning(learning_rate=0.01), [gradient])
    for name, g in gradient.items():
        expected = -0.01 * g / (np.sqrt(0.1 * g**2) + 1e-4)
        np.testing.assert_allclose(step[name], expected, rtol=1e-5)


def test_all_of_a_gradient_is_shortened_together():
    """‖(3, 4, 12)‖ = 13 becomes 1, and (0.3, 0.4, 0) stays: the first step tells how large they were."""
    long, short = ({"a": np.float32(x[:2]), "b": np.float32(x[2:])} for x in ([3.0, 4.0, 12.0], [0.3, 0.4, 0.0]))
    settings = AbstractLearning(learning_rate=1.0)
    for gradients, clipped in (([long, short], [1 / 13, 1]), ([short, long], [1, 1 / 13])):
        second = steps(settings, gradients)[1]
        first, last = (g["a"] * scale for g, scale in zip(gradients, clipped, strict=True))
        square = 0.9 * 0.1 * first**2 + 0.1 * last**2
        np.testing.assert_allclose(second["a"], -last / (np.sqrt(square) + 1e-4), rtol=1e-5)
    freely = steps(replace(settings, gradient_clip=100.0), [short, long])[1]["b"]
    assert freely == pytest.approx(-12 / (0.1**0.5 * 12 + 1e-4), rel=1e-5)


def test_rates_fall_in_stairs_and_successive_states_have_their_own():
    settings = AbstractLearning(learning_rate=0.5, rate_decay=0.1, decay_period=2, successive=0.2)
    for name, scale in (("reward", 1), ("successive", 0.2)):
        taken = np.concatenate(steps(settings, [np.float32([0.5])] * 5, name))
        sizes = np.sqrt((1 - 0.9 ** np.arange(1, 6)) * 0.25) + 1e-4
        np.testing.assert_allclose(-taken * sizes, scale * 0.25 * np.array([1, 1, 0.1, 0.1, 0.01]), rtol=1e-5)
    still = steps(AbstractLearning(successive=0.0), [np.float32([0.5])] * 3, "successive")
    assert not np.any(still)


# --- the target of the values


def linear(*columns):
    """A network without hidden layers."""
    bias = np.zeros(len(columns), np.float32)
    return MLP((Linear(jnp.asarray(np.transpose(columns), jnp.float32), jnp.asarray(bias)),), jnp.tanh)


def tabular(values, swapped=False):
    """Action values of two states, which are seen as unit vectors, and encoded as such, or swapped."""
    encoder = Encoder(NO_TRUNK, linear([0, 1], [1, 0]) if swapped else linear([1, 0], [0, 1]))
    silent = linear([0] * 6)
    return Abstract(encoder, linear([0] * 6, [0] * 6), silent, silent, linear(*np.transpose(values)), 4)


@jax.jit
def value_and_slopes(online, frozen, batch):
    def loss(online, frozen, x, next_x):
        encoded = Encoded(x, next_x, batch, 0.9 * batch.discount)
        return AbstractLearning()._value_loss(online, frozen, encoded, see, None)

    return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(online, frozen, batch.obs, batch.next_obs)


@pytest.mark.parametrize(("alive", "expected"), [(1.0, 0.0225), (0.0, 0.36)], ids=["goes on", "ended"])
def test_the_loss_of_the_values_by_hand(alive, expected):  # O8; the frozen encoder has swapped the states
    online, frozen = tabular([[0, 0.5, 0, 0], [1, 2, 3, 0]]), tabular([[5, 1, 0.5, 9], [7, 7, 7, 7]], swapped=True)
    obs, next_obs = np.float32([[1.0, 0.0]]), np.float32([[0.0, 1.0]])
    reward, discount, last = np.float32([-0.1]), np.float32([alive]), np.array([False])
    batch = Transition(obs, np.int32([1]), reward, discount, next_obs, last)
    (value, metrics), slopes = value_and_slopes(online, frozen, batch)
    assert value == pytest.approx(expected, rel=1e-5)
    assert metrics == {"value": pytest.approx(expected, rel=1e-5), "q": pytest.approx(0.5)}
    error = 2 * (0.5 - (-0.1 + 0.9 * alive * 0.5))  # plain maxima would aim at 8
    of_values = np.zeros((2, 4))
    of_values[0, 1] = error
    np.testing.assert_allclose(slopes[0].value.layers[0].weight, of_values, atol=1e-6)
    np.testing.assert_allclose(slopes[2], [[0.5 * error, 2 * error]], atol=1e-6)
    assert not flat((slopes[1], slopes[3])).any()


# --- directions


def test_directions_by_hand():
    """Minus the cosine between where an action leads and where it should, summed over those that should."""
    moves = [[1, 0], [0, 1], [3, 4], [0, 0]]
    change = linear(*np.transpose([*moves, [0, 0], [0, 0]]))
    model = replace(tabular(np.zeros((2, 4))), change=change)
    x = np.float32([[0.0, 0.0], [5.0, -3.0]])
    nowhere = [None] * 4

    def loss(**wanted):
        directions = tuple({**dict(enumerate(nowhere)), **{int(a[1:]): v for a, v in wanted.items()}}.values())
        encoded = Encoded(x, x, transitions(2), np.ones(2, np.float32))
        return jax.jit(AbstractLearning(directions=directions).losses["direction"])(model, encoded)

    assert loss(a0=(2.0, 0.0)) == pytest.approx(-1)
    assert loss(a0=(0.0, 1.0)) == pytest.approx(0, abs=1e-6)
    assert loss(a2=(1.0, 0.0)) == pytest.approx(-0.6)
    assert loss(a2=(-7.0,)) == pytest.approx(1)  # the first coordinate alone
    assert loss(a0=(1.0, 0.0), a1=(0.0, -1.0), a2=(4.0, 3.0)) == pytest.approx(-1 + 1 - 24 / 25)
    assert loss(a3=(1.0, 0.0)) == 0
    assert loss() == 0
    assert "direction" not in AbstractLearning().losses


# --- data and settings


def test_batches_are_drawn_by_rows_evenly_and_with_replacement():
    numbers = np.arange(4, dtype=np.float32)
    data = transitions(4)._replace(reward=numbers, obs=numbers[:, None])
    draw = jax.jit(lambda data, key: replay.sample(replay.full(data), key, 4000))
    drawn, other = (jax.tree.map(np.asarray, draw(data, jax.random.key(seed))) for seed in (0, 1))
    np.testing.assert_array_equal(drawn.obs[:, 0], drawn.reward)
    np.testing.assert_allclose(np.bincount(np.asarray(drawn.reward, int)) / 4000, 0.25, atol=0.03)
    assert not np.array_equal(drawn.reward, other.reward)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate = 0.0 .* \(0, 1\]"),
        ({"rate_decay": 1.5}, r"rate_decay = 1.5 .* \(0, 1\]"),
        ({"decay_period": 0}, r"decay_period = 0 .* \[1, 2000000000\]"),
        ({"gradient_clip": 0.0}, r"gradient_clip = 0.0 .* \(0, inf\]"),
        ({"discount": 1.1}, r"discount = 1.1 .* \[0, 1\]"),
        ({"batch": 1}, r"batch = 1 .* \[2, 65536\]"),
        ({"target_period": 0}, r"target_period = 0 .* \[1, 2000000000\]"),
        ({"successive": -1.0}, r"successive = -1.0 .* \[0, 100\]"),
        ({"directions": ((0.0, 0.0), None)}, "length 0"),
        ({"directions": ((), None)}, "length 0"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(change, message):
    with pytest.raises(UserError, match=message) as refused:
        AbstractLearning(**change)
    assert "\n" not in str(refused.value)


def test_directions_must_be_as_many_as_actions():
    with pytest.raises(UserError, match="2 entries; there are 3 actions"):
        AbstractLearning(directions=(None, None)).start(networks())


@pytest.mark.parametrize(
    ("form", "direction", "message"),
    [(Vector(2), (1.0, 0.0, 0.0), "one of length 3; abstract states have 2"), (Spatial(), (1.0,), "vectors, not maps")],
)
def test_directions_must_fit_the_abstract_state(form, direction, message):
    weights = jax.eval_shape(lambda key: form.create((12, 12), 1, key), KEY)
    with pytest.raises(UserError, match=message):
        AbstractLearning(directions=(direction,)).start(weights)


def test_settings_are_hashable():
    assert hash(AbstractLearning()) == hash(AbstractLearning())
    assert hash(EACH) != hash(JOINT)
