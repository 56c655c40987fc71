"""DDQN: targets and schedules against hand-computed numbers, and the five probes."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadyna.collect import replay
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import valid_steps
from metadyna.envs.probes import PROBES, values
from metadyna.errors import UserError
from metadyna.improve.ddqn import DDQN, double_q_target, td_loss
from metadyna.improve.repeat import repeat_updates
from metadyna.nets.layers import MLP
from metadyna.policies.action_values import greedy_or_random

KEY = jax.random.key(0)
NOTHING = np.zeros(2, np.float32)


def pull_to(value):
    """A loss whose gradient at w is w − value."""
    return lambda weights: (0.5 * jnp.sum((weights - value) ** 2), {"distance": jnp.sum(jnp.abs(weights - value))})


def descend(settings, learner, value, times):
    step = jax.jit(lambda learner: settings.update(learner, pull_to(value))[0])
    history = [learner]
    for _ in range(times):
        history.append(step(history[-1]))
    return history


# --- the card's oracles


@pytest.mark.parametrize(("discount", "expected"), [(0.99, 2.87), (0.0, -0.1)], ids=["goes on", "terminated"])
def test_the_target_network_judges_the_online_choice(discount, expected):  # O8
    target = jax.jit(double_q_target)(
        np.float32(-0.1), np.float32(discount), np.float32([1.0, 2.0, 0.0]), np.float32([5.0, 3.0, 9.0])
    )
    assert target == pytest.approx(expected, abs=1e-6)


def test_targets_of_a_batch_do_not_mix():
    online = np.float32([[[1.0, 2.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    slow = np.float32([[[10.0, 20.0], [30.0, 40.0]], [[50.0, 60.0], [70.0, 80.0]]])
    nothing, discount = np.zeros((2, 2), np.float32), np.float32([[1.0, 0.5], [0.0, 1.0]])
    target = jax.jit(double_q_target)(nothing, discount, online, slow)
    np.testing.assert_allclose(target, [[20, 15], [0, 70]])


@pytest.mark.parametrize(
    ("steps", "epsilon"), [(0, 1.0), (1, 0.99999604), (125_000, 0.505), (250_000, 0.01), (10**6, 0.01)]
)
def test_epsilon_falls_linearly(steps, epsilon):  # O9
    assert jax.jit(DDQN.epsilon, static_argnums=0)(DDQN(), np.int32(steps)) == pytest.approx(epsilon, abs=1e-7)


@functools.partial(jax.jit, static_argnums=2)
def chosen(action_values, epsilon, draws):
    return jax.vmap(lambda key: greedy_or_random(action_values, epsilon, key))(jax.random.split(KEY, draws))


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
def test_the_greedy_action_keeps_its_share(epsilon):  # O9
    draws = 9000
    shares = np.bincount(chosen(np.eye(9, dtype=np.float32)[4], np.float32(epsilon), draws), minlength=9) / draws
    expected = np.full(9, epsilon / 9)
    expected[4] += 1 - epsilon
    np.testing.assert_allclose(shares, expected, atol=4 * 0.5 / draws**0.5 if 0 < epsilon < 1 else 0.015)
    if epsilon == 0:
        assert shares[4] == 1


# --- losses


def test_the_td_loss_averages_the_chosen_errors_of_valid_steps():
    predicted = np.float32([[1.0, 5.0], [2.0, 6.0], [np.inf, 7.0]])
    action, target = np.int32([1, 0, 0]), np.float32([4.0, 5.0, 0.0])
    valid = np.array([True, True, False])
    assert float(jax.jit(td_loss)(predicted, action, target, valid)) == (1 + 9) / 2
    predicted[2, 0] = 100
    gradient = jax.jit(jax.grad(td_loss))(predicted, action, target, valid)
    np.testing.assert_allclose(gradient, [[0, 1], [-3, 0], [0, 0]])


def test_no_gradient_reaches_the_target():
    predicted, action, valid = np.ones((3, 2), np.float32), np.zeros(3, np.int32), np.ones(3, bool)
    gradient = jax.jit(jax.grad(td_loss, argnums=2))(predicted, action, np.arange(3, dtype=np.float32), valid)
    assert not np.any(gradient)


# --- schedules


def updates_due(settings, *counts):
    return int(due_of(settings, *map(np.int32, counts)))


due_of = jax.jit(DDQN.updates_due, static_argnums=0)


@pytest.mark.parametrize(
    ("before", "after", "episodes", "due"),
    [
        (0, 3, 9, 0),
        (0, 4, 9, 1),
        (3, 4, 9, 1),
        (4, 7, 9, 0),
        (7, 21, 9, 4),
        (0, 400, 4, 0),
        (0, 400, 5, 100),
    ],
)
def test_updates_follow_the_steps_once_warm(before, after, episodes, due):
    assert updates_due(DDQN(update_every=4, warmup=5), before, after, episodes) == due


@pytest.mark.parametrize("every", [1, 3, 4])
def test_no_cut_of_the_steps_loses_an_update(every):
    settings = DDQN(update_every=every, warmup=0)
    marks = np.cumsum(np.random.default_rng(0).integers(0, 9, 50))
    due = [updates_due(settings, a, b, 1) for a, b in pairwise(marks)]
    assert sum(due) == marks[-1] // every - marks[0] // every


@pytest.mark.parametrize(
    ("period", "every", "moves"), [(12, 4, {3, 6}), (1, 1, {1, 2, 3, 4, 5, 6}), (3, 4, range(1, 7))]
)
def test_the_target_moves_when_its_period_is_over(period, every, moves):
    settings = DDQN(target_period=period, update_every=every, learning_rate=0.1)
    history = descend(settings, settings.start(jnp.asarray(NOTHING)), 1.0, 6)
    moved = {n for n in range(1, 7) if not np.array_equal(history[n].target, history[n - 1].target)}
    assert moved == set(moves)
    assert [learner.updates.item() for learner in history] == list(range(7))
    for n in moved:
        np.testing.assert_array_equal(history[n].target, history[n].weights)


def test_the_target_may_follow_as_a_polyak_average():
    settings = DDQN(target_period=1, update_every=1, target_rate=0.25, learning_rate=0.1)
    history = descend(settings, settings.start(jnp.asarray(NOTHING)), 1.0, 3)
    for old, new in pairwise(history):
        expected = 0.75 * np.asarray(old.target) + 0.25 * np.asarray(new.weights)
        np.testing.assert_allclose(new.target, expected, rtol=1e-6)


def test_the_target_starts_equal_in_buffers_of_its_own():
    weights = jax.jit(lambda key: MLP.create((2, 3, 2), key))(KEY)
    learner = DDQN().start(weights)
    for weight, target in zip(jax.tree.leaves(learner.weights), jax.tree.leaves(learner.target), strict=True):
        np.testing.assert_array_equal(weight, target)
        assert weight.unsafe_buffer_pointer() != target.unsafe_buffer_pointer()


@pytest.mark.parametrize("norm", [5.0, 20.0, 2000.0])
def test_gradients_are_clipped_to_their_global_norm(norm):
    settings = DDQN(gradient_clip=10.0)
    gradients = {"a": np.float32([0.6 * norm]), "b": np.float32([0.0, 0.8 * norm])}

    @jax.jit
    def update(gradients):
        def loss(weights):
            return sum(jnp.sum(weights[name] * gradients[name]) for name in weights), {}

        return settings.update(settings.start({"a": jnp.zeros(1), "b": jnp.zeros(2)}), loss)

    (learner, _) = update(gradients)
    # After one step Adam's first moment is 0.1 g: what Adam was given, before it normalises.
    given = optax.tree_utils.tree_get(learner.optimiser, "mu")
    whole = np.concatenate([gradients["a"], gradients["b"]])
    np.testing.assert_allclose(given, 0.1 * min(norm, 10.0) / norm * whole, rtol=1e-5)


@pytest.mark.parametrize("times", [0, 1, 5])
def test_repeated_updates_equal_single_ones(times):
    settings = DDQN(learning_rate=0.1)
    start = settings.start(jnp.asarray(NOTHING))

    def update(learner, key):
        return settings.update(learner, pull_to(jax.random.normal(key)))

    learner, metrics = jax.jit(lambda times: repeat_updates(update, start, times, KEY))(np.int32(times))
    expected, distances = start, []
    alone = jax.jit(lambda learner, i: update(learner, jax.random.fold_in(KEY, i)))
    for i in range(times):
        expected, noted = alone(expected, i)
        distances.append(float(noted["distance"]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), learner, expected)
    assert int(learner.updates) == times
    assert int(metrics["distance"].weight) == times
    assert metrics["distance"].total == pytest.approx(sum(distances), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "interval"),
    [
        ({"learning_rate": 0.0}, r"\(0, 1\]"),
        ({"gradient_clip": 0.0}, r"\(0, inf\]"),
        ({"discount": 1.01}, r"\[0, 1\]"),
        ({"discount": float("nan")}, r"\[0, 1\]"),
        ({"batch": 0}, r"\[1, 65536\]"),
        ({"update_every": 0}, r"\[1, 2000000000\]"),
        ({"warmup": -1}, r"\[0, 2000000000\]"),
        ({"target_period": 0}, r"\[1, 2000000000\]"),
        ({"target_rate": 0.0}, r"\(0, 1\]"),
        ({"epsilon_start": 1.5}, r"\[0, 1\]"),
        ({"epsilon_end": -0.1}, r"\[0, 1\]"),
        ({"epsilon_steps": 0}, r"\[1, 2000000000\]"),
    ],
)
def test_impossible_settings_name_the_range(change, interval):
    (name,) = change
    with pytest.raises(UserError, match=rf"DDQN\.{name} = .* {interval}"):
        DDQN(**change)


# --- probes


class Anything:
    """Probes ignore their task."""

    def sample(self, key):
        return jnp.int32(0)

    def enumerate(self):
        return jnp.zeros(1, jnp.int32)


def learn(probe, settings, iterations=300, episodes=8):
    """DDQN on a probe: collect, store, update; the learnt value of every (number, action)."""
    numbers, actions = len(probe.rewards), len(probe.rewards[0])
    collector = DeviceCollector(probe, Anything())

    def q_values(weights, obs):
        return weights(jax.nn.one_hot(obs[0], numbers))

    def act(params, carry, timestep, key):
        weights, epsilon = params
        return greedy_or_random(q_values(weights, timestep.obs), epsilon, key), carry, ()

    def loss(weights, target, batch):
        batch_values = jax.vmap(jax.vmap(q_values, (None, 0)), (None, 0))
        online, slow = batch_values(weights, batch.next_obs), batch_values(target, batch.next_obs)
        goal = double_q_target(batch.reward, settings.discount * batch.discount, online, slow)
        valid = jnp.swapaxes(valid_steps(jnp.swapaxes(batch.last, 0, 1)), 0, 1)
        error = td_loss(batch_values(weights, batch.obs), batch.action, goal, valid)
        return error, {"td_loss": error}

    def iterate(state, key):
        learner, ring, steps = state
        k_play, k_update = jax.random.split(key)
        params = learner.weights, settings.epsilon(steps)
        played = collector.episodes(act, params, jnp.zeros(episodes), jnp.zeros(episodes), k_play).episodes
        ring = replay.add(ring, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), played))
        after = steps + episodes * probe.horizon
        due = settings.updates_due(steps, after, ring.added)

        def update(learner, key):
            batch = replay.sample(ring, key, settings.batch)
            return settings.update(learner, lambda weights: loss(weights, learner.target, batch))

        learner, _ = repeat_updates(update, learner, due, k_update)
        return (learner, ring, after), None

    @jax.jit
    def learnt(key):
        weights = MLP.create((numbers, 16, actions), jax.random.key(1))
        params = weights, jnp.float32(1)
        played = jax.eval_shape(
            lambda: collector.episodes(act, params, jnp.zeros(episodes), jnp.zeros(episodes), key).episodes
        )
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype), played)
        state = settings.start(weights), replay.init(one, 256), jnp.int32(0)
        (learner, _, _), _ = jax.lax.scan(iterate, state, jax.random.split(key, iterations))
        return jax.vmap(lambda number: q_values(learner.weights, number[None]))(jnp.arange(numbers))

    return learnt(KEY)


@pytest.mark.parametrize("name", PROBES)
def test_probes(name):
    settings = DDQN(
        learning_rate=1e-2,
        discount=0.9,
        warmup=16,
        target_period=40,
        epsilon_end=0.2,
        epsilon_steps=1_000,
    )
    np.testing.assert_allclose(learn(PROBES[name], settings), values(PROBES[name], 0.9), atol=0.05)
