"""GMAS: slopes by hand, by differences and by the text's recursion, whom they teach, and how much each depth counts."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna import envs
from metadyna.collect.device import DeviceCollector
from metadyna.data.source import Gathering
from metadyna.errors import UserError
from metadyna.experiments import presets
from metadyna.improve.abstract import AbstractLearning, Encoded
from metadyna.improve.slopes import distance
from metadyna.models.abstract import Abstract, SpatialHead, Vector, with_action
from metadyna.nets.convolutions import ConvNet
from metadyna.nets.layers import MLP, Linear, glorot
from metadyna.nets.pictures import Encoder
from metadyna.planning.acting import TreeActing
from metadyna.planning.tree import depth_values, planned_values
from metadyna.systems.crar import CRAR
from metadyna.systems.gmas import GMAS, Errors, FarDiscount, Foreseen, ModelError, Uniform, _rmsprop
from metadyna.types import Transition
from tests.arrays import flat, normal

KEY = jax.random.key(0)
KINDS = ("cosine", "l2")
NO_TRUNK = ConvNet((), (), jnp.tanh, False)


def linear(weight, bias=None):
    """A network without hidden layers, x W + b."""
    weight = np.asarray(weight, np.float32)
    bias = np.zeros(weight.shape[1], np.float32) if bias is None else np.asarray(bias, np.float32)
    return MLP((Linear(jnp.asarray(weight), jnp.asarray(bias)),), jnp.tanh)


def mlp(*widths, seed):
    """Weights of all sizes; as precise as JAX is told to be."""
    rng = np.random.default_rng(seed)
    layers = [
        Linear(jnp.asarray(rng.normal(size=(i, o)), float), jnp.asarray(rng.normal(size=o), float))
        for i, o in pairwise(widths)
    ]
    return MLP(tuple(layers), jnp.tanh)


def networks(width=3, actions=4, seed=0):
    """A random abstract model; observations are vectors of 5."""
    joined, seeds = width + actions, 10 * seed + np.arange(5)
    return Abstract(
        Encoder(NO_TRUNK, mlp(5, 4, width, seed=seeds[0])),
        mlp(joined, 6, width, seed=seeds[1]),
        mlp(joined, 6, 1, seed=seeds[2]),
        mlp(joined, 6, 1, seed=seeds[3]),
        mlp(width, 6, actions, seed=seeds[4]),
        actions,
    )


def see(encoder, obs):
    return jax.vmap(encoder.head)(obs)


@partial(jax.jit, static_argnums=0)
def plan_of(settings, planner, x, action, shares):
    return settings._planned(planner, x, action, shares)


def planned(planner, x, action, depth, breadth=2, shares=None):
    """Value and slope of a plan."""
    shares = np.full(depth + 1, 1 / (depth + 1)) if shares is None else np.asarray(shares)
    plan = plan_of(GMAS(depth=depth, breadth=breadth), planner, x, np.int32(action), jnp.asarray(shares))
    return jax.tree.map(np.asarray, plan)


@jax.jit
def judged(planner, x):
    return planner.value(x), jax.jacfwd(planner.value)(x)


# --- slopes by hand


def by_hand(reward, discount, bias=0.0, value=(0.0, 1.0)):
    """ρ = r·x, g = c·x + bias, x' = Mx, Q⁻ = q·x, whatever the action."""
    matrix = np.array([[1.0, 1.0], [0.0, 1.0]])
    none = np.zeros((2, 2))
    return Abstract(
        Encoder(NO_TRUNK, linear(np.eye(2))),
        linear(np.vstack([none, (matrix - np.eye(2)).T])),
        linear(np.concatenate([np.zeros(2), reward])[:, None]),
        linear(np.concatenate([np.zeros(2), discount])[:, None], [bias]),
        linear(np.stack([value, value], axis=1)),
        actions=2,
    )


@pytest.mark.parametrize(("depth", "slope"), [(0, (0, 1)), (1, (1, 0.9)), (2, (1.9, 1.71))])
def test_linear_slopes(depth, slope):  # O2
    planner, x = by_hand((1, 0), (0, 0), 0.9), np.float32([0.3, -2.0])
    alone = np.eye(3, dtype=np.float32)[depth]
    np.testing.assert_allclose(planned(planner, x, 1, 2, shares=alone)[1], slope, atol=1e-6)
    value, mean = planned(planner, x, 1, 2)
    np.testing.assert_allclose(mean, (0.966667, 1.203333), atol=1e-6)
    assert value == pytest.approx(float(mean @ x), abs=1e-6)  # all is linear


def test_a_discount_that_varies():  # O3
    planner, x = by_hand((1, 0), (0.1, 0.2)), np.float32([1.0, 2.0])
    value, slope = planned(planner, x, 0, 1, shares=[0.0, 1.0])
    assert value == pytest.approx(2.0, abs=1e-6)
    np.testing.assert_allclose(slope, (1.2, 0.9), atol=1e-6)


def test_where_nothing_changes_slopes_are_discounted():  # O4, T7: without the identity the factor would be 0.25
    model = networks()
    none = jax.tree.map(lambda x: jnp.asarray(np.zeros_like(x)), (model.change, model.reward))
    planner = replace(model, change=none[0], reward=none[1], discount=linear(np.zeros((7, 1)), [0.9]))
    x = np.float32([0.3, -1.0, 0.5])
    values, slopes = map(np.asarray, judged(planner, x))
    best, other = (int(i) for i in np.argsort(-values)[:2])
    slope = planned(planner, x, best, 3)[1]
    np.testing.assert_allclose(slope, 0.85975 * slopes[best], rtol=1e-5)
    cosine, l2 = jax.jit(lambda one, two: [distance(kind, one, two) for kind in KINDS])(slope, slopes[best])
    assert cosine == pytest.approx(0, abs=1e-6)
    assert l2 == pytest.approx(0.14025 * np.linalg.norm(slopes[best]), rel=1e-4)
    for depth in range(4):
        alone = np.eye(4, dtype=np.float32)[depth]
        np.testing.assert_allclose(planned(planner, x, best, 3, shares=alone)[1], 0.9**depth * slopes[best], rtol=1e-5)
    # what follows another action is the best again
    mean = (slopes[other] + (0.9 + 0.81 + 0.729) * slopes[best]) / 4
    np.testing.assert_allclose(planned(planner, x, other, 3)[1], mean, rtol=1e-5)


# --- against finite differences and the recursion of the text


@jax.jit
def derived(planner, x, action):
    """x', ρ, g, and their derivatives with the identity of the residual step."""
    change = lambda x: planner.change(with_action(x, action, planner.actions))  # noqa: E731
    slopes = [jax.jacfwd(f)(x, action) for f in (planner.pays, planner.goes_on)]
    return planner.step(x, action), (jnp.eye(x.size) + jax.jacfwd(change)(x), *slopes)


def recursion(planner, x, action, depth, breadth, gaps):
    """Qᵈ(x, a) and Gᵈ(x, a) of card 4.3; `gaps` collects by how much each choice was made."""
    if depth == 0:
        values, slopes = judged(planner, x)
        return float(values[action]), np.asarray(slopes[action])
    (following, *paid), slopes = derived(planner, x, np.int32(action))
    reward, discount, jacobian, of_reward, of_discount = map(np.asarray, (*paid, *slopes))
    values = np.asarray(judged(planner, following)[0])
    order = np.argsort(-values)
    gaps += list(values[order[breadth - 1 : breadth]] - values[order[breadth : breadth + 1]][: len(values) - breadth])
    later = [recursion(planner, following, int(each), depth - 1, breadth, gaps) for each in order[:breadth]]
    best, second = np.argsort([-value for value, _ in later])[:2]
    gaps.append(later[best][0] - later[second][0])
    value, slope = later[best]
    return float(reward + discount * value), of_reward + value * of_discount + discount * jacobian.T @ slope


@pytest.mark.parametrize(("depth", "breadth"), [(3, 2), (2, 4)])
def test_slopes_are_central_differences_and_those_of_the_recursion(depth, breadth):  # O13
    """In double precision, where no two actions are closer than a thousandth."""
    with jax.enable_x64(True):
        planner, checked = networks(), 0
        values = jax.jit(jax.vmap(lambda x: planned_values(planner, x, depth, breadth)))
        for x in 0.7 * np.random.default_rng(0).normal(size=(8, 3)):
            gaps, action = [], checked % 4
            each = [recursion(planner, jnp.asarray(x), action, d, breadth, gaps) for d in range(depth + 1)]
            if min(gaps, default=1) < 1e-3:
                continue
            value, slope = planned(planner, jnp.asarray(x), action, depth, breadth)
            assert slope.dtype == "float64"
            assert value == pytest.approx(np.mean([q for q, _ in each]), abs=1e-10)
            np.testing.assert_allclose(slope, np.mean([g for _, g in each], axis=0), atol=1e-10)
            step = 1e-5 * np.eye(3)
            beside = np.asarray(values(jnp.asarray(np.concatenate([x + step, x - step]))))[:, action]
            np.testing.assert_allclose(slope, (beside[:3] - beside[3:]) / 2e-5, rtol=1e-6, atol=1e-7)
            assert np.abs(slope).min() > 1e-3
            checked += 1
        assert checked >= 4


# --- the loss


def transitions(count=6, seed=0):
    rng = np.random.default_rng(seed)
    obs, next_obs, reward = (rng.normal(size=size).astype(np.float32) for size in ((count, 5), (count, 5), count))
    action, ended = rng.integers(0, 4, count), np.arange(count) == 1
    return Transition(*map(jnp.asarray, (obs, action, reward, np.float32(~ended), next_obs, ended)))


def encode(weights, batch):
    return Encoded(see(weights.encoder, batch.obs), see(weights.encoder, batch.next_obs), batch, 0.9 * batch.discount)


AIM = jnp.asarray(np.linspace(-1, 1, 6, dtype=np.float32))


def expected_loss(settings, weights, target, batch, count):
    """Eq. 7's second term, in reverse mode over reverse mode."""
    planner = replace(weights, value=target.value)
    x = see(weights.encoder, batch.obs)

    def plan(x, action):
        return jnp.mean(depth_values(planner, x, settings.depth, settings.breadth)[:, action])

    own = jax.vmap(lambda x, action: jax.grad(lambda x: weights.value(x)[action])(x))(x, batch.action)
    value, slope = jax.lax.stop_gradient(jax.vmap(jax.value_and_grad(plan))(x, batch.action))
    each = jax.vmap(partial(distance, settings.distance))(own, slope)
    cosine = jax.vmap(partial(distance, "cosine"))(own, slope)
    told = {
        "slope_distance": jnp.mean(each),
        "slope_cosine": jnp.mean(1 - cosine),
        "plan_error": jnp.mean(jnp.abs(value - AIM)),
    }
    return settings.alpha * jnp.sum(each * count) / len(x), told


@pytest.mark.parametrize("kind", KINDS)
def test_whom_the_slopes_teach_and_how(kind):  # O14, card 4.5
    """Q and, through x, the encoder; exactly nothing reaches what the target is made of."""
    settings = GMAS(distance=kind, alpha=0.7, depth=2)
    batch = transitions()

    def ours(weights, target):
        return settings._match(weights, target, encode(weights, batch), AIM, None)

    def plain(weights, target):
        return expected_loss(settings, weights, target, batch, 1)

    weights, target = networks(seed=0), networks(seed=1)
    (value, told), slopes = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(weights, target)
    (other, expected), plain_slopes = jax.jit(jax.value_and_grad(plain, has_aux=True))(weights, target)
    assert value == pytest.approx(float(other), rel=1e-4)
    assert {name: float(x) for name, x in told.items()} == pytest.approx(
        {name: float(x) for name, x in expected.items()}, rel=1e-4
    )
    taught, frozen = slopes
    for part in ("change", "reward", "discount"):
        assert not flat(getattr(taught, part)).any()
    assert not flat(frozen).any()
    for part in ("encoder", "value"):
        assert flat(getattr(taught, part)).any()
        for one, two in zip(*(jax.tree.leaves(getattr(s, part)) for s in (taught, plain_slopes)), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


def test_rows_of_a_batch_do_not_mix():  # O15
    settings = GMAS(depth=2, alpha=1.0, distance="l2")
    batch, weights, target = transitions(), networks(seed=0), networks(seed=1)

    @jax.jit
    def told(batch, aim):
        loss, metrics = settings._match(weights, target, encode(weights, batch), aim, None)
        return jnp.stack([loss, *metrics.values()])

    alone = np.stack([told(*jax.tree.map(lambda x, i=i: np.asarray(x)[i : i + 1], (batch, AIM))) for i in range(6)])
    np.testing.assert_allclose(told(batch, AIM), alone.mean(0), rtol=1e-5, atol=1e-6)
    assert np.ptp(alone, axis=0).min() > 0.1


# --- runs

LEARNING = AbstractLearning(batch=4, learning_rate=1e-3, target_period=2, schedule="joint")


class Dense(Vector):
    """An abstract state of a few numbers, without convolutions: they would take most of the time."""

    def create(self, picture, actions, key):
        encoder = Encoder(NO_TRUNK, mlp(np.prod(picture), 4, self.width, seed=5))
        return glorot(replace(networks(self.width, actions), encoder=encoder), key)


COMMON = {"form": Dense(width=3), "learning": LEARNING, "data": Gathering(transitions=40), "updates": 3}
SYSTEMS = {
    "CRAR": CRAR(**COMMON),
    "none": GMAS(**COMMON, alpha=0.0),
    "all": GMAS(**COMMON, alpha=1.0, depth=1, weighting=ModelError(), doubt=0.9),
}


@pytest.fixture(scope="module")
def runs():
    """Before and after two iterations on Catcher, and the metrics of the last."""
    family = envs.make("catcher")
    collector = DeviceCollector(family.env, family.train)

    def run(system):
        start = jax.jit(lambda key: system.init(collector, key))(KEY)
        again = jax.jit(lambda state, key: system.iterate(state, collector, key))
        middle, _ = again(start, jax.random.key(1))
        return start, *again(middle, jax.random.key(2))

    return {name: run(system) for name, system in SYSTEMS.items()}


def equal(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def test_without_slopes_it_is_crar_bit_for_bit(runs):  # O14
    for one, other in zip(runs["CRAR"], runs["none"], strict=True):
        assert equal(one, other)
    start, end, metrics = runs["none"]
    assert start.errors is None
    assert SYSTEMS["none"].steps(end) == 6
    assert SYSTEMS["none"].params(end) is end.learner.weights
    assert not equal(start.learner.weights, end.learner.weights)
    assert set(metrics) == set(runs["CRAR"][2])


def test_with_them_it_starts_from_the_same_and_ends_elsewhere(runs):
    (plain, plain_end, plain_metrics), (start, end, metrics) = runs["CRAR"], runs["all"]
    assert equal((plain.learner, plain.data), (start.learner, start.data))
    assert not equal(plain_end.learner.weights.value, end.learner.weights.value)
    assert not equal(plain_end.learner.weights.encoder, end.learner.weights.encoder)
    assert not equal(start.errors.weights, end.errors.weights)
    told = {f"train/{name}" for name in ("slope_distance", "slope_cosine", "plan_error", "foreseen_error")}
    assert set(metrics) == set(plain_metrics) | told
    assert all(np.isfinite(metric.total) and metric.weight == 3 for metric in metrics.values())


LARGE = [("crar", "paper"), ("crar", "fast"), ("gmas", "paper"), ("gmas", "model-error"), ("gmas", "far-discount")]


@pytest.mark.parametrize(("system", "name"), LARGE)
def test_the_presets_for_the_labyrinth_are_of_one_piece(system, name):
    """Convolutions, an optimiser for every loss: traced, not run."""
    config = presets.preset(system, name)
    family = envs.make(config.task)
    collector = DeviceCollector(family.env, family.train)
    state = jax.eval_shape(lambda key: config.system.init(collector, key), KEY)
    after, metrics = jax.eval_shape(lambda state, key: config.system.iterate(state, collector, key), state, KEY)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert state.learner.weights.value.__class__ is SpatialHead
    assert ("train/slope_cosine" in metrics) == (system == "gmas")


# --- how much each depth counts


@partial(jax.jit, static_argnums=0)
def shares_of(settings, errors, x, action):
    return settings._shares(errors, x, action)


def shares(settings, errors=None, count=5):
    return np.asarray(shares_of(settings, errors, normal(count, 3), np.arange(count) % 4))


@partial(jax.jit, static_argnums=0)
def judge(widths, key):
    return MLP.create(widths, key, jnp.tanh)


def foreseeing(*errors):
    """Ŵ₁, Ŵ₂, … that are the same everywhere."""
    return Errors(Foreseen(linear(np.zeros((7, len(errors))), errors), 4), None)


@pytest.mark.parametrize("depth", [0, 3])
def test_depths_count_the_same(depth):  # T4: D + 1 of them
    np.testing.assert_allclose(shares(GMAS(depth=depth)), np.full((5, depth + 1), 1 / (depth + 1)), rtol=1e-6)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_far_depths_count_less(rate):  # card 4.9 iii
    told = shares(GMAS(depth=3, weighting=FarDiscount(rate)))
    np.testing.assert_allclose(told.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(told[:, 1:] / told[:, :-1], rate, rtol=1e-6)


def test_depths_at_which_the_model_errs_count_less():  # card 4.9 ii
    settings = GMAS(depth=3, weighting=ModelError(temperature=0.5))
    told = shares(settings, foreseeing(0.5, 0.5, 3.0))
    expected = np.exp(-2 * np.array([0, 0.5, 0.5, 3.0]))
    np.testing.assert_allclose(told, np.tile(expected / expected.sum(), (5, 1)), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_before_anything_is_learnt_no_depth_counts_more_than_a_shallower_one(seed):
    errors = Errors(Foreseen(judge((7, 16, 3), jax.random.key(seed)), 4), None)
    told = shares(GMAS(depth=3, weighting=ModelError(temperature=0.1)), errors, count=50)
    assert np.all(told[:, 1:] <= told[:, :-1])
    assert np.any(told[:, 1:] < told[:, :-1])


def test_shares_teach_nobody():
    settings, errors = GMAS(depth=2, weighting=ModelError()), foreseeing(0.5, 1.0)
    x, action = np.ones((2, 3), np.float32), np.array([0, 1])
    first = lambda w, x: shares_of(settings, Errors(w, None), x, action)[0, 0]  # noqa: E731
    assert not flat(jax.jit(jax.grad(first, (0, 1)))(errors.weights, x)).any()


def test_a_slope_is_that_of_the_weighted_depths():
    """The plan of a match is built with the shares of its row."""
    batch, weights, target = transitions(), networks(seed=0), networks(seed=1)
    settings = GMAS(depth=1, alpha=1.0, distance="l2", weighting=ModelError(temperature=1.0))
    sure = [-50.0, 50.0]  # less than no error, so that both depths count the same; and a large one

    @jax.jit
    def told(bias):
        errors = Errors(Foreseen(MLP((Linear(jnp.zeros((7, 1)), bias[None]),), jnp.tanh), 4), None)
        return settings._match(weights, target, encode(weights, batch), AIM, errors)[1]["plan_error"]

    @jax.jit
    def plans(batch):
        planner, x = replace(weights, value=target.value), see(weights.encoder, batch.obs)
        return jax.vmap(lambda x, a: depth_values(planner, x, 1, 2)[:, a])(x, batch.action)

    values = np.asarray(plans(batch))
    for bias, plan in zip(sure, (values.mean(axis=1), values[:, 0]), strict=True):
        expected = np.abs(plan - np.asarray(AIM)).mean()
        assert told(np.float32(bias)) == pytest.approx(float(expected), rel=1e-5)


# Positions on a line, x; the second action is thought to lead half a unit further, the first nowhere.
STREAM = [  # x, action, next x, whether the MDP goes on
    (0.0, 0, 0.5, 1.0),  # misses by 0.25, squared
    (0.0, 1, 0.5, 1.0),  # right
    (0.5, 0, 0.0, 1.0),  # 0.25
    (0.5, 1, 1.5, 1.0),  # 0.25
    (1.5, 0, 0.0, 1.0),  # 2.25
    (1.5, 1, 9.0, 0.0),  # the end: nothing to predict
]


def adds_up(x, action, depth):
    """Ŵ_d: this step's error, and those of going on with the second action, the best."""
    if depth == 0:
        return 0.0
    following, alive = next((y, alive) for now, a, y, alive in STREAM if (now, a) == (x, action))
    return alive and (x + 0.5 * action - following) ** 2 + adds_up(following, 1, depth - 1)


def test_the_errors_of_a_known_model_are_learnt():
    x, action, next_x, alive = (np.array(column) for column in zip(*STREAM, strict=True))
    none, change = np.zeros((4, 1)), np.zeros((4, 2))
    change[1, 0] = 0.5
    encoder, best = Encoder(NO_TRUNK, linear(np.eye(2))), linear(np.zeros((2, 2)), [0, 1])
    model = Abstract(encoder, linear(change), linear(none), linear(none), best, 2)
    batch = Transition(*map(jnp.asarray, (x, action, 0 * x, alive, next_x, alive == 0)))
    settings = GMAS(depth=3, weighting=ModelError(temperature=0.1, learning_rate=2e-3))
    weights = Foreseen(judge((4, 32, 3), KEY), 2)
    rows = [jnp.asarray(np.stack([each, np.zeros(6)], axis=1)) for each in (x, next_x)]

    @jax.jit
    def learn(errors):
        def step(errors, _):
            errors, told = settings._learn_errors(settings.weighting, errors, model, *rows, batch)
            return errors, told["foreseen_error"]

        errors, losses = jax.lax.scan(step, errors, length=4000)
        return losses, jax.vmap(errors.weights)(rows[0], batch.action), settings._shares(errors, rows[0], batch.action)

    errors = Errors(weights, jax.jit(_rmsprop(settings.weighting).init)(weights))
    losses, foreseen, counts = map(np.asarray, learn(errors))
    expected = np.array([[adds_up(float(y), int(a), depth) for depth in range(4)] for y, a, *_ in STREAM])
    np.testing.assert_allclose(foreseen, expected, atol=0.06)
    assert losses[-1] < 5e-3 < losses[0]
    np.testing.assert_allclose(counts.sum(1), 1, rtol=1e-5)
    assert np.all(counts[1, :2] > 3 * counts[1, 2:])  # right for one step, wrong after two
    assert counts[4, 0] > 0.99


# --- doubt


@pytest.mark.parametrize(
    ("doubt", "trust"), [(None, [1, 1, 1, 1, 1]), (1.0, [1, 0.75, 0.5, 0.25, 0]), (0.25, [1, 0, 0, 0, 0])]
)
def test_slopes_count_less_where_the_plan_is_far_from_the_target(doubt, trust):  # card 4.9 i
    plan, aim = np.float32([1, 2, 3, 4, 5]), np.float32([1, 1, 5, 1, 1])
    told = jax.jit(GMAS(doubt=doubt)._trust)(plan, aim)
    np.testing.assert_allclose(told, trust, atol=1e-6)


def test_doubt_weighs_the_rows_of_the_loss_but_not_what_is_told():
    settings, batch = GMAS(depth=1, alpha=0.7, distance="l2", doubt=0.8), transitions()
    weights, target = networks(seed=0), networks(seed=1)
    loss, told = jax.jit(lambda: settings._match(weights, target, encode(weights, batch), AIM, None))()

    @jax.jit
    def plans(batch):
        planner, x = replace(weights, value=target.value), see(weights.encoder, batch.obs)
        return jax.vmap(lambda x, a: planned_values(planner, x, 1, 2)[a])(x, batch.action)

    doubtful = np.abs(np.asarray(plans(batch)) - np.asarray(AIM))
    count = np.maximum(0, 1 - doubtful / np.float32(np.quantile(doubtful, 0.8)))
    expected, other = jax.jit(lambda: expected_loss(settings, weights, target, batch, count))()
    assert loss == pytest.approx(float(expected), rel=1e-4)
    assert told["slope_distance"] == pytest.approx(float(other["slope_distance"]), rel=1e-4)
    assert 0 < (count == 0).sum() < 6


# --- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GMAS(alpha=-0.1), r"alpha = -0.1 .* \[0, 10*\]"),
        (lambda: GMAS(depth=13), r"depth = 13 .* \[0, 12\]"),
        (lambda: GMAS(breadth=0), r"breadth = 0 .* \[1, 1024\]"),
        (lambda: GMAS(depth=12, breadth=4), "breadth = 4 to the depth 12 is a tree too large"),
        (lambda: GMAS(updates=0), r"updates = 0 .* \[1, 1000000\]"),
        (lambda: GMAS(doubt=0.0), r"doubt = 0.0 .* \(0, 1\]"),
        (lambda: GMAS(doubt=1.5), r"doubt = 1.5 .* \(0, 1\]"),
        (lambda: GMAS(depth=0, weighting=ModelError()), "needs GMAS.depth of 1 or more"),
        (lambda: FarDiscount(0.0), r"rate = 0.0 .* \(0, 1\]"),
        (lambda: ModelError(temperature=0.0), r"temperature = 0.0 .* \(0, inf\]"),
        (lambda: ModelError(learning_rate=2.0), r"learning_rate = 2.0 .* \(0, 1\]"),
        (lambda: CRAR(updates=0), r"updates = 0 .* \[1, 1000000\]"),
        (lambda: TreeActing(depths=()), r"one or more depths in \[0, 12\]"),
        (lambda: TreeActing(depths=(0, 13)), r"depths\[1\] = 13 .* \[0, 12\]"),
        (lambda: TreeActing(depths=(-1,)), r"depths\[0\] = -1 .* \[0, 12\]"),
        (lambda: TreeActing(breadth=0), r"breadth = 0 .* \[1, 1024\]"),
        (lambda: TreeActing(depths=(0, 12), breadth=4), "breadth = 4 to the depth 12 is too large a tree"),
        (lambda: TreeActing(epsilon=1.5), r"epsilon = 1.5 .* \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_the_defaults_are_the_texts_and_hashable():  # card 1.6
    settings = GMAS()
    assert hash(settings) == hash(GMAS(weighting=Uniform()))
    assert (settings.alpha, settings.distance, settings.depth, settings.breadth) == (0.05, "cosine", 3, 2)
    assert settings.learning == AbstractLearning(learning_rate=1e-3)
    assert (settings.data.transitions, CRAR().data.transitions) == (100_000, 200_000)
    assert settings.acting.depths == (0, 1, 3, 5)
