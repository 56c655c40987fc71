"""SAC: targets by hand, who moves whom, the temperature, and two problems with known answers."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metadyna.errors import UserError
from metadyna.improve.sac import SAC, SACLearner
from metadyna.nets.layers import MLP, Linear
from metadyna.policies.acting import perform, practise_or_guess
from metadyna.policies.distributions import Normal, TanhNormal
from metadyna.policies.squashed import ActorCritic, Critic, TwinCritic
from metadyna.types import TimeStep, Transition

KEY = jax.random.key(0)
SMALL = SAC(actor_rate=1e-2, critic_rate=1e-2, temperature_rate=1e-2, target_rate=0.25)
STILL = SAC(actor_rate=1e-2, critic_rate=1e-12, temperature_rate=0.0)
"""Critics and temperature all but stand still."""
NETWORKS = ActorCritic(widths=(8,))


def random_batch(count=32, features=2, actions=2, seed=0):
    rng = np.random.default_rng(seed)
    obs, next_obs = (np.float32(rng.normal(size=(count, features))) for _ in range(2))
    action = np.float32(rng.uniform(-1, 1, (count, actions)))
    reward, last = np.float32(rng.normal(size=count)), np.zeros(count, bool)
    return Transition(obs, action, reward, np.ones(count, np.float32), next_obs, last)


def ended(**change):
    """A batch after which nothing follows."""
    return random_batch()._replace(discount=np.zeros(32, np.float32), **change)


def constant(network, *bias):
    """A network of the same shape that says `bias` whatever it is asked."""
    silent = jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, np.float32)), network)
    last = Linear(silent.mlp.layers[-1].weight, jnp.asarray(np.float32(bias)))
    return type(network)(MLP((*silent.mlp.layers[:-1], last), network.mlp.activation, silent.mlp.norms))


@functools.cache
def fresh():
    return jax.jit(lambda key: SMALL.start(*NETWORKS.create(2, 2, key)))(KEY)


@jax.jit
def said(actor, obs):
    """Mean, log standard deviation, and the likeliest action."""
    told = actor(obs)
    return told.normal.mean, told.normal.log_std, told.mode()


@jax.jit
def valued(critics, obs, action):
    return critics(obs, action)


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
    rows = [jnp.asarray(np.full((len(u), 1), x, np.float32)) for x in (mean, log_std)]
    log_prob = jax.jit(TanhNormal.log_prob_before)(TanhNormal(Normal(*rows)), np.float32(u[:, None]))
    return 2 * np.trapezoid(gaussian * np.float64(log_prob), u)


def saying(one, other):
    """Critics that value everything the same."""
    critics = fresh().critics
    return TwinCritic(constant(critics.one, one), constant(critics.other, other))


def gaussian_actor(mean, log_std):
    """The same whatever is observed."""
    return constant(fresh().actor, mean, mean, log_std, log_std)


@jax.jit
def target_of(learner, batch):
    return SMALL.critic_target(learner, batch, KEY)


def test_the_target_by_hand():
    """Slow critics that say 5 and 3, fast ones that say 100, next to no entropy bonus: r + γ · 3, or r at an end."""
    learner = fresh()
    learner = learner._replace(
        actor=gaussian_actor(0.2, -1.0),
        critics=saying(100.0, 100.0),
        targets=saying(5.0, 3.0),
        log_temperature=np.float32(-30),
    )
    reward, discount = np.float32([1.0, 2.0, -4.0]), np.float32([1.0, 0.0, 1.0])
    last = np.array([False, True, True])  # the third by a time limit, which is no end
    reward, discount, last = (np.tile(x, 2000) for x in (reward, discount, last))
    target = target_of(learner, random_batch(6000)._replace(reward=reward, discount=discount, last=last))
    np.testing.assert_allclose(target, np.tile([1 + 0.99 * 3, 2, -4 + 0.99 * 3], 2000), rtol=1e-6)


def test_the_target_adds_the_entropy_at_its_price():
    """γ α H in the mean, over many fresh actions."""
    learner = fresh()
    learner = learner._replace(
        actor=gaussian_actor(0.4, -0.5),
        targets=saying(0.0, 0.0),
        log_temperature=np.log(np.float32(2)),
    )
    batch = random_batch(6000)
    bonus = np.asarray(target_of(learner, batch)) - batch.reward
    assert bonus.std() > 0.5
    assert bonus.mean() == pytest.approx(-0.99 * 2 * expected_log_prob(0.4, -0.5), abs=0.1)


def test_the_critics_learn_the_mean_square_error_of_both():
    """At constants 5 and 3 against targets of 1: 0.5 · 16 + 0.5 · 4; each takes its own way down."""
    learner = fresh()
    learner = learner._replace(critics=saying(5.0, 3.0))
    moved, metrics = update(learner, ended(reward=np.ones(32, np.float32)))
    assert metrics["critic_loss"] == pytest.approx(10, rel=1e-5)
    assert metrics["value"] == pytest.approx(1)
    critics = moved.critics.one, moved.critics.other
    steps = [np.asarray(critic.mlp.layers[-1].bias) - was for critic, was in zip(critics, (5, 3), strict=True)]
    np.testing.assert_allclose(steps, -0.01, rtol=1e-2)  # Adam's first step is its step size


# --- who moves whom


def test_slow_critics_follow_by_their_rate():
    learner = fresh()
    assert equal(learner.critics, learner.targets)
    for x, y in zip(jax.tree.leaves(learner.critics), jax.tree.leaves(learner.targets), strict=True):
        assert x.unsafe_buffer_pointer() != y.unsafe_buffer_pointer()
    for i in range(2):
        moved, _ = update(learner, key=jax.random.key(i))
        both = (jax.tree.map(np.asarray, x) for x in (learner.targets, moved.critics))
        expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, *both)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), moved.targets, expected)
        assert int(moved.updates) == i + 1
        learner = moved


def test_the_actor_does_not_move_the_critics():
    """Where nothing follows, they learn the same whatever the policy is."""
    learner, batch = fresh(), ended()
    other = learner._replace(actor=gaussian_actor(1.0, 1.0), log_temperature=np.float32(2))
    one, two = update(learner, batch)[0], update(other, batch)[0]
    assert equal(one.critics, two.critics)
    assert equal(one.targets, two.targets)
    assert not equal(one.critics, learner.critics)


def test_the_critics_error_does_not_move_the_actor():
    """It moves by the values of the new critics alone, not by what they were taught: no first step tells how far off
    they were. Rewards are moved by a common amount, so that Adam's first step is the same."""
    learner, batch = fresh(), ended()
    one, two = (update(learner, batch._replace(reward=batch.reward + np.float32(shift)))[0] for shift in (100, 200))
    for x, y in zip(jax.tree.leaves(one.critics), jax.tree.leaves(two.critics), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
    for x, y in zip(jax.tree.leaves(one.actor), jax.tree.leaves(two.actor), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
    assert not equal(one.actor, learner.actor)
    np.testing.assert_allclose(one.log_temperature, two.log_temperature)


def test_slow_critics_do_not_move_the_actor():
    """It asks the fast ones."""
    learner, batch = fresh(), ended()
    spoilt = learner._replace(targets=jax.tree.map(lambda x: np.asarray(x) + np.float32(9), learner.targets))
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
    now, before = ([np.asarray(x) for x in jax.tree.leaves(tree)] for tree in (now, before))
    assert max(np.abs(x - y).max() for x, y in zip(now, before, strict=True)) > 1e-4


def test_the_actors_loss_falls_on_fixed_critics():
    """With the same noise every time, and critics and temperature that all but stand still."""
    learner, losses = fresh()._replace(log_temperature=np.log(np.float32(0.1))), []
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
    into = np.zeros((4, 8), np.float32)
    into[2, :2] = 1, -1

    def critic(slope):
        out = np.zeros((8, 1), np.float32)
        out[:2, 0] = slope, -slope
        layers = ((into, np.zeros(8, np.float32)), (out, np.zeros(1, np.float32)))
        return Critic(MLP(tuple(Linear(*map(jnp.asarray, layer)) for layer in layers), jax.nn.relu))

    critics = TwinCritic(critic(3), critic(-1))
    np.testing.assert_array_equal(valued(critics, np.ones(2, np.float32), np.float32([0.5, 0.9])), [1.5, -0.5])
    for start in (1.0, -1.0):
        actor = gaussian_actor(start, -3.0)
        learner = fresh()._replace(actor=actor, critics=critics, log_temperature=np.float32(-9))
        for i in range(200):
            learner, _ = update(learner, key=jax.random.key(i), settings=STILL)
        assert np.asarray(said(learner.actor, np.zeros(2, np.float32))[0])[0] == pytest.approx(0, abs=0.2)


# --- the temperature


@pytest.mark.parametrize(("entropy", "sign"), [(0.5, -1), (-1.5, -1), (-2.5, 1), (-9.0, 1)])
def test_the_temperature_steers_the_entropy(entropy, sign):
    """Card of M3PO, T16: it falls while the entropy is above its target, minus the number of actions, else rises."""
    log_std = entropy / 2 - 0.5 * np.log(2 * np.pi * np.e)  # before squashing, which takes little
    learner = fresh()._replace(actor=gaussian_actor(0.0, log_std))
    moved, metrics = update(learner)
    assert np.sign(-expected_log_prob(0.0, log_std) + 2) == -sign
    assert metrics["entropy"] == pytest.approx(-expected_log_prob(0.0, log_std), abs=0.5)
    assert float(moved.log_temperature) - float(learner.log_temperature) == pytest.approx(0.01 * sign, rel=1e-3)
    assert metrics["temperature"] == pytest.approx(1)


# --- acting


def test_acting():
    actor, obs = fresh().actor, np.float32([0.3, -2.0])
    timestep = TimeStep(obs, *(np.float32(0),) * 2, *(np.bool_(False),) * 2, np.zeros(2, np.float32))
    mean, log_std, _ = map(np.asarray, said(actor, obs))
    assert jax.jit(perform)(actor, (), timestep, KEY)[0] == pytest.approx(np.tanh(mean))

    @jax.jit
    def acted(actor, guess, timestep):
        keys = jax.random.split(KEY, 4000)
        return jax.vmap(lambda key: practise_or_guess((actor, guess), (), timestep, key)[0])(keys)[:, 0]

    drawn, uniform = (np.asarray(acted(actor, guess, timestep)) for guess in (False, True))
    assert np.arctanh(drawn).mean() == pytest.approx(mean[0], abs=0.08)
    assert np.arctanh(drawn).std() == pytest.approx(np.exp(log_std[0]), rel=0.05)
    assert uniform.mean() == pytest.approx(0, abs=0.05)
    assert uniform.std() == pytest.approx(3**-0.5, rel=0.05)
    assert -1 < uniform.min() < -0.95


def test_the_spread_is_bounded():
    for raw, expected in ((-90.0, -20), (90.0, 2), (0.5, 0.5)):
        log_std = said(gaussian_actor(0.0, raw), np.ones(2, np.float32))[1]
        np.testing.assert_allclose(log_std, [expected] * 2, atol=1e-5)


# --- networks of any kind


class Remembered(eqx.Module):
    """Critics with an encoder of their own, of observations that are pairs of a place and something hidden."""

    encoder: MLP
    critics: TwinCritic

    def see(self, obs):
        place, secret = obs
        return jnp.concatenate([place, self.encoder(secret)])

    def __call__(self, obs, action):
        return self.critics(self.see(obs), action)


def test_an_encoder_learns_from_the_critics_and_their_term_and_not_from_the_actor():
    """As in PEARL: the actor reads what the encoder shows, and its loss moves nothing but itself."""
    secret = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    batch = ended()
    batch = batch._replace(obs=(batch.obs, secret), next_obs=(batch.obs, secret))

    @jax.jit
    def begun(key):
        actor, critics = NETWORKS.create(2 + 3, 2, key)
        return SMALL.start(actor, Remembered(MLP.create((4, 8, 3), key), critics))

    def shown(critics, obs):
        return jax.vmap(critics.see)(obs)

    @jax.jit
    def updated(learner, weight, batch):
        def term(critics, batch, key):
            price = jnp.sum(critics.encoder.layers[-1].bias)
            return weight * price, {"price": price}

        return SMALL.update(learner, batch, KEY, term, shown)

    start = begun(KEY)
    plain, _ = updated(start, 0.0, batch)
    moved_actor = jax.tree.map(lambda x: np.asarray(x) + np.float32(1), start.actor)
    other, _ = updated(start._replace(actor=moved_actor), 0.0, batch)
    moved_targets = jax.tree.map(lambda x: np.asarray(x) + np.float32(1), start.targets)
    unread, _ = updated(start._replace(targets=moved_targets), 0.0, batch)  # as nothing follows
    priced, told = updated(start, 3.0, batch)
    assert equal(plain.critics, other.critics)
    assert equal(plain.actor, unread.actor)
    assert not equal(plain.critics.encoder, start.critics.encoder)
    assert not equal(plain.actor, start.actor)
    assert "price" in told
    before, after = (np.asarray(each.critics.encoder.layers[-1].bias) for each in (start, priced))
    assert (after < before).all()


# --- learning


def two_states(count=512):
    """From state 0 to state 1 for nothing but -(a + 0.5)², from there to the end for 1 - (a - 0.5)²."""
    rng = np.random.default_rng(0)
    state, action = rng.integers(0, 2, count), np.float32(rng.uniform(-1, 1, (count, 1)))
    reward = np.where(state == 0, -((action[:, 0] + 0.5) ** 2), 1 - (action[:, 0] - 0.5) ** 2)
    obs, next_obs = (np.eye(2, dtype=np.float32)[x] for x in (state, 1 + 0 * state))
    return Transition(obs, action, reward, np.float32(state == 0), next_obs, state == 1)


def test_two_states_are_solved():
    """From random actions; each state is a bandit too. The value of the first is that of the second, discounted."""
    settings = SAC(
        actor_rate=3e-3, critic_rate=3e-3, temperature=0.02, temperature_rate=0.0, discount=0.9,
        target_rate=0.05,
    )  # fmt: skip

    @jax.jit
    def learn(key, data):
        def again(learner, key):
            k_rows, k_update = jax.random.split(key)
            rows = jax.random.randint(k_rows, (64,), 0, 512)
            return settings.update(learner, jax.tree.map(lambda x: x[rows], data), k_update)

        start = settings.start(*ActorCritic(widths=(32, 32)).create(2, 1, key))
        return jax.lax.scan(again, start, jax.random.split(key, 500))

    learner, metrics = learn(KEY, two_states())
    assert isinstance(learner, SACLearner)
    assert all(np.isfinite(np.asarray(x)).all() for x in metrics.values())
    states = np.eye(2, dtype=np.float32)
    best = [float(said(learner.actor, state)[2][0]) for state in states]
    np.testing.assert_allclose(best, [-0.5, 0.5], atol=0.1)
    # A Gaussian of precision 2 / α pays -α / 2 for its spread and earns α H, both small here.
    worth = 1 - 0.01 + 0.02 * 0.5 * np.log(2 * np.pi * np.e * 0.01)
    pairs = zip(states, np.float32([[-0.5], [0.5]]), strict=True)
    q_values = [float(valued(learner.critics.one, *pair)) for pair in pairs]
    np.testing.assert_allclose(q_values, [0.9 * worth, 1], atol=0.1)


def test_the_temperature_finds_the_price_of_its_entropy():
    """On r = -(a - 0.5)² alone the policy ends with the mean 0.5 and about the entropy that it is told to have.

    Its critics are normalised, which is theirs alone.
    """
    settings = SAC(
        actor_rate=3e-3, critic_rate=3e-3, temperature=0.1, temperature_rate=1e-2,
        target_entropy=-0.5,
    )  # fmt: skip

    def again(learner, key):
        k_action, k_update = jax.random.split(key)
        action = jax.random.uniform(k_action, (64, 1), minval=-1, maxval=1)
        ones = jnp.ones((64, 1))
        reward = -((action[:, 0] - 0.5) ** 2)
        batch = Transition(ones, action, reward, jnp.zeros(64), ones, jnp.ones(64, bool))
        return settings.update(learner, batch, k_update)

    @jax.jit
    def learn(key):
        start = settings.start(*ActorCritic(widths=(32,), layer_norm=True).create(1, 1, key))
        return jax.lax.scan(again, start, jax.random.split(key, 600))

    learner, metrics = jax.tree.map(np.asarray, learn(KEY))
    assert len(learner.critics.one.mlp.norms) == 1
    assert learner.actor.mlp.norms == ()
    assert said(learner.actor, np.ones(1, np.float32))[2] == pytest.approx(0.5, abs=0.1)
    assert metrics["entropy"][-200:].mean() == pytest.approx(-0.5, abs=0.1)
    assert 0 < metrics["temperature"][-1] < 0.1


@pytest.mark.parametrize(
    ("change", "interval"),
    [
        ({"actor_rate": 0.0}, r"\(0, 1\]"),
        ({"critic_rate": 2.0}, r"\(0, 1\]"),
        ({"temperature_rate": -0.1}, r"\[0, 1\]"),
        ({"temperature": 0.0}, r"\(0, 1000000\]"),
        ({"discount": 1.01}, r"\[0, 1\]"),
        ({"target_rate": 0.0}, r"\(0, 1\]"),
        ({"batch": 0}, r"\[1, 1000000\]"),
    ],
)
def test_impossible_settings_name_the_range(change, interval):
    (name,) = change
    with pytest.raises(UserError, match=rf"SAC\.{name} = .* {interval}"):
        SAC(**change)
