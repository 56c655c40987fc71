"""SAC: targets by hand, who moves whom, the temperature, and two problems with known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadyna.errors import UserError
from metadyna.improve.sac import SAC, Critic, SACLearner
from metadyna.nets.layers import MLP, Linear
from metadyna.policies.distributions import squashed_log_prob
from metadyna.policies.squashed import perform, practise, sac_action
from metadyna.types import TimeStep, Transition

KEY = jax.random.key(0)
SMALL = SAC(widths=(8,), actor_rate=1e-2, critic_rate=1e-2, temperature_rate=1e-2, target_rate=0.25)
STILL = SAC(widths=(8,), actor_rate=1e-2, critic_rate=1e-12, temperature_rate=0.0)
"""Critics and temperature all but stand still."""


def random_batch(count=32, features=2, actions=2, seed=0):
    rng = np.random.default_rng(seed)
    obs, next_obs = (jnp.asarray(rng.normal(size=(count, features)), jnp.float32) for _ in range(2))
    action = jnp.asarray(rng.uniform(-1, 1, (count, actions)), jnp.float32)
    reward, last = jnp.asarray(rng.normal(size=count), jnp.float32), jnp.zeros(count, bool)
    return Transition(obs, action, reward, jnp.ones(count), next_obs, last)


def constant(network, *bias):
    """A network of the same shape that says `bias` whatever it is asked."""
    silent = jax.tree.map(jnp.zeros_like, network)
    last = Linear(silent.mlp.layers[-1].weight, jnp.array(bias, jnp.float32))
    return type(network)(MLP((*silent.mlp.layers[:-1], last), network.mlp.activation, silent.mlp.norms))


@functools.cache
def fresh(settings=SMALL, features=2, actions=2):
    return jax.jit(lambda key: settings.init(features, actions, key))(KEY)


@functools.cache
def updating(settings):
    return jax.jit(settings.update)


def update(learner, batch=None, key=KEY, settings=SMALL):
    return updating(settings)(learner, random_batch() if batch is None else batch, key)


def equal(one, other):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


# --- the critics' target


def expected_log_prob(mean, log_std):
    """Of a squashed Gaussian's own draws in two dimensions, by quadrature over one."""
    u = mean + np.exp(log_std) * np.linspace(-10, 10, 4001)
    gaussian = np.exp(-0.5 * ((u - mean) / np.exp(log_std)) ** 2) / np.sqrt(2 * np.pi) / np.exp(log_std)
    rows = [jnp.full((len(u), 1), x, jnp.float32) for x in (mean, log_std)]
    log_prob = squashed_log_prob(jnp.asarray(u[:, None], jnp.float32), *rows)
    return 2 * float(np.trapezoid(gaussian * np.asarray(log_prob, np.float64), u))


def gaussian_actor(mean, log_std):
    """The same whatever is observed."""
    return constant(fresh().actor, mean, mean, log_std, log_std)


@jax.jit
def target_of(learner, batch):
    return SMALL.critic_target(learner, batch, KEY)


def test_the_target_by_hand():
    """Slow critics that say 5 and 3, fast ones that say 100, next to no entropy bonus: r + γ · 3, or r at an end."""
    learner = fresh()
    one, other = learner.critics
    learner = learner._replace(
        actor=gaussian_actor(0.2, -1.0),
        critics=(constant(one, 100.0), constant(other, 100.0)),
        targets=(constant(one, 5.0), constant(other, 3.0)),
        log_temperature=jnp.float32(-30),
    )
    reward, discount = jnp.array([1.0, 2.0, -4.0]), jnp.array([1.0, 0.0, 1.0])
    last = jnp.array([False, True, True])  # the third by a time limit, which is no end
    reward, discount, last = (jnp.tile(x, 2000) for x in (reward, discount, last))
    target = target_of(learner, random_batch(6000)._replace(reward=reward, discount=discount, last=last))
    np.testing.assert_allclose(target, np.tile([1 + 0.99 * 3, 2, -4 + 0.99 * 3], 2000), rtol=1e-6)


def test_the_target_adds_the_entropy_at_its_price():
    """γ α H in the mean, over many fresh actions."""
    learner = fresh()
    one, other = learner.critics
    learner = learner._replace(
        actor=gaussian_actor(0.4, -0.5),
        targets=(constant(one, 0.0), constant(other, 0.0)),
        log_temperature=jnp.log(jnp.float32(2)),
    )
    batch = random_batch(6000)
    bonus = np.asarray(target_of(learner, batch) - batch.reward)
    assert bonus.std() > 0.5
    assert bonus.mean() == pytest.approx(-0.99 * 2 * expected_log_prob(0.4, -0.5), abs=0.1)


def test_the_critics_learn_the_mean_square_error_of_both():
    """At constants 5 and 3 against targets of 1: 0.5 · 16 + 0.5 · 4; each takes its own way down."""
    learner = fresh()
    one, other = learner.critics
    learner = learner._replace(critics=(constant(one, 5.0), constant(other, 3.0)))
    batch = random_batch()._replace(reward=jnp.ones(32), discount=jnp.zeros(32))
    moved, metrics = update(learner, batch)
    assert metrics["critic_loss"] == pytest.approx(10, rel=1e-5)
    assert metrics["value"] == pytest.approx(1)
    steps = [moved.critics[i].mlp.layers[-1].bias[0] - (5.0, 3.0)[i] for i in (0, 1)]
    np.testing.assert_allclose(steps, -0.01, rtol=1e-2)  # Adam's first step is its step size


# --- who moves whom


def test_slow_critics_follow_by_their_rate():
    learner = fresh()
    assert equal(learner.critics, learner.targets)
    for x, y in zip(jax.tree.leaves(learner.critics), jax.tree.leaves(learner.targets), strict=True):
        assert x.unsafe_buffer_pointer() != y.unsafe_buffer_pointer()
    for i in range(2):
        moved, _ = update(learner, key=jax.random.key(i))
        expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, learner.targets, moved.critics)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), moved.targets, expected)
        assert moved.updates == i + 1
        learner = moved


def test_the_actor_does_not_move_the_critics():
    """Where nothing follows, they learn the same whatever the policy is."""
    learner, batch = fresh(), random_batch()._replace(discount=jnp.zeros(32))
    other = learner._replace(actor=gaussian_actor(1.0, 1.0), log_temperature=jnp.float32(2))
    one, two = update(learner, batch)[0], update(other, batch)[0]
    assert equal(one.critics, two.critics)
    assert equal(one.targets, two.targets)
    assert not equal(one.critics, learner.critics)


def test_the_critics_error_does_not_move_the_actor():
    """It moves by the values of the new critics alone, not by what they were taught: no first step tells how far off
    they were. Rewards are moved by a common amount, so that Adam's first step is the same."""
    learner, batch = fresh(), random_batch()._replace(discount=jnp.zeros(32))
    one, two = (update(learner, batch._replace(reward=batch.reward + shift))[0] for shift in (100, 200))
    for x, y in zip(jax.tree.leaves(one.critics), jax.tree.leaves(two.critics), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
    for x, y in zip(jax.tree.leaves(one.actor), jax.tree.leaves(two.actor), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
    assert not equal(one.actor, learner.actor)
    np.testing.assert_allclose(one.log_temperature, two.log_temperature)


def test_slow_critics_do_not_move_the_actor():
    """It asks the fast ones."""
    learner, batch = fresh(), random_batch()._replace(discount=jnp.zeros(32))
    spoilt = learner._replace(targets=jax.tree.map(lambda x: x + 9, learner.targets))
    assert equal(update(learner, batch)[0].actor, update(spoilt, batch)[0].actor)


def test_the_actor_asks_the_critics_as_they_have_just_become():
    """Its slope is that at critics which stand still where the learning ones have arrived."""

    def slope(learner):
        return optax.tree_utils.tree_get(learner.actor_optimiser, "mu")

    learner, batch = fresh(), random_batch()
    for i in range(5):  # the critics' steps are small
        learner = update(learner, batch, jax.random.key(i))[0]._replace(actor_optimiser=learner.actor_optimiser)
    moved, _ = update(learner, batch)
    now, before = (
        slope(update(learner._replace(critics=critics), batch, settings=STILL)[0])
        for critics in (moved.critics, learner.critics)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), slope(moved), now)
    assert max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (now, before)), strict=True)) > 1e-4


def test_the_actors_loss_falls_on_fixed_critics():
    """With the same noise every time, and critics and temperature that all but stand still."""
    learner, losses = fresh()._replace(log_temperature=jnp.log(jnp.float32(0.1))), []
    start = learner
    for _ in range(15):
        learner, metrics = update(learner, settings=STILL)
        losses.append(float(metrics["actor_loss"]))
        assert metrics["temperature"] == pytest.approx(0.1)
    assert np.all(np.diff(losses) < 0)
    assert equal(start.critics, learner.critics)
    assert equal(start.log_temperature, learner.log_temperature)


def test_the_actor_goes_where_the_lower_critic_rises():
    """One says 3 a, the other -a: the lower one is -a for positive actions and 3 a for negative ones; so to 0."""
    into = jnp.zeros((4, 8)).at[2, :2].set(jnp.array([1.0, -1.0]))
    one, other = (
        Critic(MLP((Linear(into, jnp.zeros(8)), Linear(out, jnp.zeros(1))), jax.nn.relu))
        for out in (jnp.zeros((8, 1)).at[:2, 0].set(jnp.array([a, -a])) for a in (3.0, -1.0))
    )
    action = jnp.array([0.5, 0.9])
    assert (one(jnp.ones(2), action), other(jnp.ones(2), action)) == (1.5, -0.5)
    for start in (1.0, -1.0):
        actor = gaussian_actor(start, -3.0)
        learner = fresh()._replace(actor=actor, critics=(one, other), log_temperature=jnp.float32(-9))
        for i in range(200):
            learner, _ = update(learner, key=jax.random.key(i), settings=STILL)
        mean, _ = learner.actor(jnp.zeros(2))
        assert mean[0] == pytest.approx(0, abs=0.2)


# --- the temperature


@pytest.mark.parametrize(("entropy", "sign"), [(0.5, -1), (-1.5, -1), (-2.5, 1), (-9.0, 1)])
def test_the_temperature_steers_the_entropy(entropy, sign):
    """Card of M3PO, T16: it falls while the entropy is above its target, minus the number of actions, else rises."""
    log_std = entropy / 2 - 0.5 * np.log(2 * np.pi * np.e)  # before squashing, which takes little
    learner = fresh()._replace(actor=gaussian_actor(0.0, log_std))
    moved, metrics = update(learner)
    assert np.sign(-expected_log_prob(0.0, log_std) + 2) == -sign
    assert metrics["entropy"] == pytest.approx(-expected_log_prob(0.0, log_std), abs=0.5)
    assert moved.log_temperature - learner.log_temperature == pytest.approx(0.01 * sign, rel=1e-3)
    assert metrics["temperature"] == pytest.approx(1)


# --- acting


def test_acting():
    actor = fresh().actor
    timestep = TimeStep(jnp.array([0.3, -2.0]), *(jnp.float32(0),) * 2, *(jnp.bool_(False),) * 2, jnp.zeros(2))
    mean, log_std = actor(timestep.obs)
    assert perform(actor, (), timestep, KEY)[0] == pytest.approx(np.tanh(np.asarray(mean)))
    keys = jax.random.split(KEY, 4000)
    drawn, uniform = (
        np.asarray(jax.jit(jax.vmap(lambda k, r=r: practise((actor, r), (), timestep, k)[0]))(keys))[:, 0]
        for r in (jnp.bool_(False), jnp.bool_(True))
    )
    assert np.arctanh(drawn).mean() == pytest.approx(float(mean[0]), abs=0.08)
    assert np.arctanh(drawn).std() == pytest.approx(float(jnp.exp(log_std[0])), rel=0.05)
    assert uniform.mean() == pytest.approx(0, abs=0.05)
    assert uniform.std() == pytest.approx(3**-0.5, rel=0.05)
    assert -1 < uniform.min() < -0.95
    one, other = (sac_action(actor, timestep.obs, KEY, stochastic=s) for s in (True, False))
    assert not np.allclose(one, other)


def test_the_spread_is_bounded():
    for raw, expected in ((-90.0, -20), (90.0, 2), (0.5, 0.5)):
        assert gaussian_actor(0.0, raw)(jnp.ones(2))[1].tolist() == [expected] * 2


# --- learning


def two_states(count=512):
    """From state 0 to state 1 for nothing but -(a + 0.5)², from there to the end for 1 - (a - 0.5)²."""
    k_state, k_action = jax.random.split(KEY)
    state = jax.random.randint(k_state, (count,), 0, 2)
    action = jax.random.uniform(k_action, (count, 1), minval=-1, maxval=1)
    reward = jnp.where(state == 0, -((action[:, 0] + 0.5) ** 2), 1 - (action[:, 0] - 0.5) ** 2)
    discount = (state == 0).astype(jnp.float32)
    return Transition(jax.nn.one_hot(state, 2), action, reward, discount, jax.nn.one_hot(1 + 0 * state, 2), state == 1)


def test_two_states_are_solved():
    """From random actions; each state is a bandit too. The value of the first is that of the second, discounted."""
    settings = SAC(
        widths=(32, 32), actor_rate=3e-3, critic_rate=3e-3, temperature=0.02, temperature_rate=0.0, discount=0.9,
        target_rate=0.05,
    )  # fmt: skip
    data = two_states()

    def again(learner, key):
        k_rows, k_update = jax.random.split(key)
        rows = jax.random.randint(k_rows, (64,), 0, 512)
        return settings.update(learner, jax.tree.map(lambda x: x[rows], data), k_update)

    learn = jax.jit(lambda learner: jax.lax.scan(again, learner, jax.random.split(KEY, 500)))
    learner, metrics = learn(fresh(settings, 2, 1))
    assert isinstance(learner, SACLearner)
    assert all(jnp.isfinite(x).all() for x in metrics.values())
    best = [float(sac_action(learner.actor, state, KEY, stochastic=False)[0]) for state in jnp.eye(2)]
    np.testing.assert_allclose(best, [-0.5, 0.5], atol=0.1)
    # A Gaussian of precision 2 / α pays -α / 2 for its spread and earns α H, both small here.
    worth = 1 - 0.01 + 0.02 * 0.5 * np.log(2 * np.pi * np.e * 0.01)
    q_values = [float(learner.critics[0](s, jnp.array([a]))) for s, a in zip(jnp.eye(2), (-0.5, 0.5), strict=True)]
    np.testing.assert_allclose(q_values, [0.9 * worth, 1], atol=0.1)


def test_the_temperature_finds_the_price_of_its_entropy():
    """On r = -(a - 0.5)² alone the policy ends with the mean 0.5 and about the entropy that it is told to have.

    Its critics are normalised, which is theirs alone.
    """
    settings = SAC(
        widths=(32,), layer_norm=True, actor_rate=3e-3, critic_rate=3e-3, temperature=0.1, temperature_rate=1e-2,
        target_entropy=-0.5,
    )  # fmt: skip
    assert len(fresh(settings, 1, 1).critics[0].mlp.norms) == 1
    assert fresh(settings, 1, 1).actor.mlp.norms == ()

    def again(learner, key):
        k_action, k_update = jax.random.split(key)
        action = jax.random.uniform(k_action, (64, 1), minval=-1, maxval=1)
        ones = jnp.ones((64, 1))
        reward = -((action[:, 0] - 0.5) ** 2)
        batch = Transition(ones, action, reward, jnp.zeros(64), ones, jnp.ones(64, bool))
        return settings.update(learner, batch, k_update)

    learn = jax.jit(lambda learner: jax.lax.scan(again, learner, jax.random.split(KEY, 600)))
    learner, metrics = learn(fresh(settings, 1, 1))
    assert sac_action(learner.actor, jnp.ones(1), KEY, stochastic=False)[0] == pytest.approx(0.5, abs=0.1)
    assert metrics["entropy"][-200:].mean() == pytest.approx(-0.5, abs=0.1)
    assert 0 < metrics["temperature"][-1] < 0.1


@pytest.mark.parametrize(
    ("change", "interval"),
    [
        ({"actor_rate": 0.0}, r"\(0, 1\]"),
        ({"critic_rate": 2.0}, r"\(0, 1\]"),
        ({"temperature_rate": -0.1}, r"\[0, 1\]"),
        ({"temperature": 0.0}, r"\(0, \d+\]"),
        ({"discount": 1.01}, r"\[0, 1\]"),
        ({"target_rate": 0.0}, r"\(0, 1\]"),
        ({"batch": 0}, r"\[1, 1000000\]"),
    ],
)
def test_impossible_settings_name_the_range(change, interval):
    (name,) = change
    with pytest.raises(UserError, match=rf"SAC\.{name} = .* {interval}"):
        SAC(**change)
