"""Imagination: particles with known spreads, true dynamics in place of learnt ones, and candidates that must lose."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_lengths, episode_returns, valid_steps
from metadyna.errors import UserError
from metadyna.models.gaussian import GaussianEnsemble
from metadyna.models.imagine import branch, open_loop_errors, sequence_returns
from metadyna.models.worlds import Meaning, Predictor, World, known_world, learnt_world
from metadyna.types import Box, EnvSpec, Known, TimeStep, Transition
from tests.arrays import normal, replaced, uniform
from tests.models.test_gaussian import constant

KEY = jax.random.key(0)
STEADY = GaussianEnsemble(members=2, elites=2, widths=(), weight_decay=(0.0,), probabilistic=False)
LEARNT = GaussianEnsemble(members=5, elites=3, widths=(16,), weight_decay=(0.0, 0.0))

returns_of = jax.jit(sequence_returns, static_argnames=("particles", "mode"))
branched = jax.jit(branch, static_argnames=("act", "horizon"))
drawn = jax.jit(LEARNT.create, static_argnums=(0, 1))
steps_counted = jax.jit(lambda steps: (valid_steps(steps.last), episode_lengths(steps.last), episode_returns(steps)))


@dataclass(frozen=True)
class Cart:
    """A mass on a line, pushed; it ends beyond `edge`. Everything is observed, so its rules are functions."""

    edge: float = jnp.inf
    horizon: int = 6

    @property
    def spec(self):
        return EnvSpec(Box((2,)), Box((1,), -1.0, 1.0), self.horizon)

    def dynamics(self, task, obs, action):
        return jnp.stack([obs[0] + 0.5 * obs[1], 0.9 * obs[1] + task * action[0]])

    def reward(self, task, obs, action, next_obs):
        return -(next_obs[0] ** 2) - 0.1 * action[0] ** 2 + 0.01 * obs[1] * task

    def terminated(self, task, next_obs):
        return jnp.abs(next_obs[0]) > self.edge

    def reset(self, task, key):
        obs, zero, one = jnp.array([0.5, -0.2]) + 0.3 * jax.random.normal(key, (2,)), jnp.float32(0), jnp.float32(1)
        return (obs, jnp.int32(0)), TimeStep(obs, zero, one, jnp.bool_(True), jnp.bool_(False), jnp.zeros(1))

    def step(self, task, state, action, key):
        obs, time = state
        after = self.dynamics(task, obs, action)
        ended = self.terminated(task, after)
        last = ended | (time + 1 >= self.horizon)
        timestep = TimeStep(
            after, self.reward(task, obs, action, after), 1 - ended.astype(jnp.float32), jnp.bool_(False), last, action
        )
        return (after, time + 1), timestep


class Unpaid(Cart):
    """One whose reward does not ask for the task, as those that planners know."""

    def reward(self, task, obs, action, next_obs):
        return super().reward(1.0, obs, action, next_obs)


class GivenTasks:
    """Tasks are handed over, never drawn."""

    def sample(self, key):
        raise NotImplementedError

    def enumerate(self):
        raise NotImplementedError


@dataclass(frozen=True)
class Truth:
    """True dynamics in the place of an ensemble: every member knows them, and some also the reward."""

    env: Any
    task: Any
    members: int = 3
    knows_reward: bool = False

    @property
    def num_members(self):
        return self.members

    @property
    def num_outputs(self):
        return 2 + self.knows_reward

    @property
    def elites(self):
        return jnp.arange(self.members)

    def best(self):
        return self

    def only(self, member):
        return replace(self, members=1)

    def sample(self, inputs, noise):
        def one(x):
            obs, action = x[:2], x[2:]
            after = self.env.dynamics(self.task, obs, action)
            reward = self.env.reward(self.task, obs, action, after)
            return jnp.concatenate([reward[None], after - obs]) if self.knows_reward else after - obs

        return jax.vmap(jax.vmap(one))(inputs)


def known(env, task):
    return Meaning(reward=partial(env.reward, task), terminated=partial(env.terminated, task))


@partial(jax.jit, static_argnums=(2, 3))
def lived(edge, task, copies, act):
    """Episodes of one task in the real environment."""
    collector, tasks = DeviceCollector(Cart(edge), GivenTasks()), jnp.full(copies, task)
    return collector.episodes(act, 0.5, jnp.zeros(copies), tasks, KEY).episodes


def policy(params, carry, timestep, key):
    """Pushes back, remembers how often it acted and what it did before."""
    action = jnp.clip(-params * timestep.obs[:1] + 0.5 * jax.random.normal(key, (1,)), -1, 1)
    return action, carry + 1, (carry, timestep.prev_action)


def steps_of(offsets, inputs=2):
    """Members that move every entry of the state by a constant."""
    offsets = np.float32(offsets)[:, None]
    return constant(replace(STEADY, members=len(offsets), elites=len(offsets)), inputs, offsets)


SQUARED, AS_IT_IS = [1, 0], [0, 1]
SCORED = Meaning(reward=lambda obs, action, next_obs: action[0] * next_obs[0] ** 2 + action[1] * next_obs[0])
"""A reward for where one is, squared or as it is, by the action: one program does for both."""


def end_only(candidates, horizon, score):
    """Sequences that are paid for where they end."""
    return replaced(np.zeros((candidates, horizon, 2), np.float32), np.s_[:, -1], score)


# --- particles


@pytest.mark.parametrize(("mode", "variance"), [("TSinf", 100.0), ("TS1", 10.0), ("mean", 0.0)])
@pytest.mark.parametrize("particles", [2, 20])
def test_particles_spread_as_their_members_differ(mode, variance, particles):  # card of planning, 7.2(8)
    world, candidates = SCORED.world(steps_of([1.0, -1.0], inputs=3)), 4000
    play = partial(returns_of, world, np.zeros(1, np.float32), key=KEY, particles=particles, mode=mode)
    squares = np.asarray(play(sequences=end_only(candidates, 10, SQUARED)))
    assert squares.shape == (candidates,)
    if mode == "TS1":
        # The square of one particle's walk has standard deviation 13.4.
        assert squares.mean() == pytest.approx(variance, abs=4 * 13.4 / candidates**0.5)
    else:
        np.testing.assert_allclose(squares, variance)
    np.testing.assert_allclose(play(sequences=end_only(candidates, 10, AS_IT_IS)), 0, atol=1e-5)


@pytest.mark.parametrize("mode", ["TSinf", "TS1"])
def test_noise_is_drawn_for_every_particle_and_step(mode):
    """Two alike members with unit variance: the end has variance H, and the mean over P particles has H / P."""
    wide = replace(STEADY, probabilistic=True, max_log_variance=20.0, min_log_variance=-20.0)
    world = SCORED.world(constant(wide, 3, np.zeros((2, 2), np.float32)))
    play = partial(returns_of, world, np.zeros(1, np.float32), key=KEY, particles=4, mode=mode)
    squares = np.asarray(play(sequences=end_only(4000, 9, SQUARED)))
    assert squares.mean() == pytest.approx(9, rel=0.05)
    means = np.asarray(play(sequences=end_only(4000, 9, AS_IT_IS)))
    assert means.var() == pytest.approx(9 / 4, rel=0.1)
    assert means.mean() == pytest.approx(0, abs=0.1)


@partial(jax.jit, static_argnums=0)
def rules(env, task, obs, action):
    """One true step."""
    after = env.dynamics(task, obs, action)
    return after, env.reward(task, obs, action, after), env.terminated(task, after)


@pytest.mark.parametrize("mode", ["TSinf", "TS1", "mean"])
@pytest.mark.parametrize("knows_reward", [False, True], ids=["known reward", "learnt reward"])
def test_true_dynamics_give_the_true_returns(mode, knows_reward):
    env, task = Cart(edge=0.9), np.float32(0.7)
    sequences, obs = uniform(20, 8, 1), np.float32([0.5, 0.1])
    model = known(env, task)
    model = replace(model, reward=None) if knows_reward else model
    world = model.world(Truth(env, task, 3, knows_reward))
    returns = np.asarray(jax.jit(lambda *args: sequence_returns(world, *args, KEY, 6, mode))(obs, sequences))
    lengths = []
    for sequence, imagined in zip(sequences, returns, strict=True):
        state, total, end = obs, 0.0, 0
        for action in sequence:
            end += 1
            state, reward, ended = rules(env, task, state, action)
            total += reward
            if ended:
                break
        lengths.append(end)
        assert imagined == pytest.approx(float(total), rel=1e-4, abs=1e-5)
    assert min(lengths) < max(lengths)  # some ended, and what came after did not count


NEAR_ZERO = Meaning(reward=lambda obs, action, next_obs: -jnp.sum(next_obs**2) - action[0])


def played(mode="TSinf", seed=0):
    """What a drawn ensemble says of six sequences of four actions: one program for each mode."""
    world = NEAR_ZERO.world(drawn(3, 2, jax.random.key(seed)))

    def play(sequences):
        return np.asarray(returns_of(world, np.ones(2, np.float32), sequences, KEY, particles=6, mode=mode))

    return play


@pytest.mark.parametrize("mode", ["TSinf", "TS1", "mean"])
def test_a_candidate_that_is_not_finite_is_nan_and_spoils_no_other(mode):
    sequences, play = uniform(6, 4, 1), played(mode)
    clean, broken = play(sequences), play(replaced(sequences, ([1, 3], [0, 3]), np.nan))
    np.testing.assert_array_equal(np.isnan(broken), [False, True, False, True, False, False])
    for i in (0, 2, 4, 5):
        assert broken[i] == clean[i]


def test_actions_beyond_the_box_do_no_more_than_its_edge():
    edge, beyond = (replaced(uniform(6, 4, 1), (2, 1), value) for value in (1, 1e30))
    np.testing.assert_array_equal(played()(edge), played()(beyond))


@jax.jit
def one_bad(ensemble, reward):
    """Returns of three sequences, each with a particle that earns this in the end, and one that earns 1."""
    model = Meaning(reward=lambda obs, action, next_obs: action[0] * jnp.where(next_obs[0] > 0, reward, 1.0))
    ends = replaced(np.zeros((3, 2, 1), np.float32), np.s_[:, -1], 1)
    return sequence_returns(model.world(ensemble), jnp.zeros(1), jnp.asarray(ends), KEY, 2)


@pytest.mark.parametrize("reward", [jnp.inf, -jnp.inf, jnp.nan])
def test_one_bad_particle_is_enough(reward):
    assert np.isnan(one_bad(steps_of([1.0, -1.0]), np.float32(reward))).all()


def test_a_state_that_overflows_is_nan_though_its_reward_is_not():
    model = Meaning(reward=lambda obs, action, next_obs: jnp.exp(-(next_obs[0] ** 2)))
    world, sequences = model.world(steps_of([3e38, 0.0])), np.zeros((3, 2, 1), np.float32)
    returns = returns_of(world, np.zeros(1, np.float32), sequences, KEY, 2)
    assert np.isnan(returns).all()


def test_only_elites_are_used():
    ensemble = replace(steps_of([5.0, 1.0, -1.0], inputs=3), elites=jnp.asarray(np.array([2, 1])))
    play = partial(returns_of, SCORED.world(ensemble), np.zeros(1, np.float32), end_only(2, 3, AS_IT_IS), KEY, 2)
    np.testing.assert_allclose(play(mode="TSinf"), 0)
    np.testing.assert_allclose(play(mode="mean"), 0)


def test_particles_must_be_shared_equally():
    sequences = np.zeros((2, 3, 1), np.float32)
    with pytest.raises(UserError, match="5 particles cannot be shared equally among 2 members"):
        returns_of(Meaning().world(steps_of([1.0, -1.0])), np.zeros(1, np.float32), sequences, KEY, 5)


@pytest.mark.parametrize("mode", ["TSinf", "TS1", "mean"])
def test_no_candidate_depends_on_another(mode):
    sequences, play = uniform(6, 4, 1, low=0.0), played(mode)
    moved = play(replaced(sequences, 2, sequences[2] + 1)) != play(sequences)
    np.testing.assert_array_equal(moved, np.arange(6) == 2)


# --- what a model sees and learns


@pytest.mark.parametrize("reward", [None, lambda obs, action, next_obs: next_obs[1]], ids=["learnt", "known"])
def test_what_is_learnt_leads_back_to_what_happened(reward):
    model = Meaning(reward=reward)
    before, after, action = np.float32([3.0, 1.0]), np.float32([-3.1, 2.0]), np.float32([0.5])
    outputs = jax.jit(model.targets)(before, np.float32(7.0), after)
    assert outputs.shape == (2 + (reward is None),)
    inputs = jax.jit(model.inputs)
    np.testing.assert_array_equal(inputs(before, action), [*before, 0.5])
    np.testing.assert_array_equal(inputs(before, 9 * action), [*before, 1.0])  # as environments clip it
    next_obs, paid, ended = jax.jit(model.decode)(before, action, outputs)
    np.testing.assert_allclose(next_obs, after, rtol=1e-6)
    assert paid == (7.0 if reward is None else 2.0)
    assert not ended


def test_a_step_advances_every_members_own_rows():
    model = Meaning(terminated=lambda obs: obs[1] > 1)
    obs, action, noise = normal(5, 7, 2), normal(5, 7, 1, seed=1), normal(5, 7, 3, seed=2)

    @jax.jit
    def both(ensemble, obs, action, noise):
        inputs = jax.vmap(jax.vmap(model.inputs))(obs, action)
        return model.world(ensemble).step(obs, action, noise), ensemble.sample(inputs, noise)

    told = both(drawn(3, 3, KEY), obs, action, noise)
    (latent, (after, reward, ended)), outputs = jax.tree.map(np.asarray, told)
    np.testing.assert_array_equal(latent, after)
    for k, i in np.ndindex(5, 7):
        np.testing.assert_array_equal(reward[k, i], outputs[k, i, 0])
        np.testing.assert_array_equal(after[k, i], obs[k, i] + outputs[k, i, 1:])
        assert ended[k, i] == (after[k, i, 1] > 1)


def test_ensembles_and_true_dynamics_are_predictors_and_the_cart_is_known():
    assert isinstance(drawn(3, 2, KEY), Predictor)
    assert isinstance(Truth(Cart(), 1.0), Predictor)
    assert isinstance(Cart(), Known)
    assert isinstance(Meaning().world(drawn(3, 2, KEY)), World)
    assert hash(Meaning()) == hash(Meaning())


def test_worlds_take_what_an_environment_knows_of_itself():
    """Reward and end, or the end alone; the same meaning each time, so that nothing compiles anew."""
    env, before, action, after = Unpaid(edge=0.9), jnp.array([0.5, 0.1]), jnp.array([0.5]), jnp.array([1.0, 0.2])
    known, learnt = known_world(env), learnt_world(env)
    assert known_world(Unpaid(edge=0.9)) is known
    assert learnt_world(Unpaid(edge=0.9)) is learnt
    assert known.action == learnt.action == env.spec.action
    assert known.decode(before, action, after - before).reward == env.reward(None, before, action, after)
    assert learnt.decode(before, action, jnp.append(jnp.float32(7), after - before)).reward == 7
    for meaning in (known, learnt):
        assert meaning.terminated(after)
        assert not meaning.terminated(before)


def test_what_an_environment_does_not_say_must_be_learnt_or_is_refused():
    class Silent:
        spec = Cart().spec

    with pytest.raises(UserError, match="reward as a function of what is observed, but Silent has none"):
        known_world(Silent())
    with pytest.raises(UserError, match="when an episode ends, but Silent does not say"):
        learnt_world(Silent())


# --- open-loop errors


def test_errors_compound_from_the_first_observation():
    """Members that go 1, 2 and −1 per step where the world goes 1: off by 0, t and 2 t."""
    path = np.stack([np.arange(6, dtype=np.float32)] * 2, axis=1)
    ensemble = constant(replace(STEADY, members=3, elites=2), 3, np.float32([[1.0] * 2, [2.0] * 2, [-1.0] * 2]))
    world = Meaning(reward=lambda *_: jnp.float32(0)).world(ensemble)
    errors = jax.jit(open_loop_errors)(world, path[0], np.zeros((5, 1), np.float32), path[1:])
    steps = np.arange(1, 6)
    np.testing.assert_allclose(errors, [0 * steps, steps, 2 * steps], atol=1e-6)


def test_true_dynamics_make_no_errors():
    env, task = Cart(), np.float32(0.7)
    world, episode = known(env, task).world(Truth(env, task)), lived(np.float32(jnp.inf), task, 1, policy)
    obs, action, after = (np.asarray(x)[:, 0] for x in (episode.obs, episode.action, episode.next_obs))
    errors = jax.jit(partial(open_loop_errors, world))(obs[0], action, after)
    np.testing.assert_allclose(errors, np.zeros((3, 6)), atol=1e-6)


# --- branches


def quiet(params, carry, timestep, key):
    """The policy with the same noise at every step."""
    return policy(params, carry, timestep, KEY)


def idle(params, carry, timestep, key):
    return jnp.zeros(1), carry, ()


@partial(jax.jit, static_argnums=2)
def dream(edge, task, knows_reward, starts):
    """A branch through the true dynamics."""
    env, copies = Cart(edge), starts.shape[0]
    model = known(env, task)
    model = replace(model, reward=None) if knows_reward else model
    world = model.world(Truth(env, task, 3, knows_reward))
    return branch(world, quiet, 0.5, starts, env.horizon, KEY, jnp.zeros(copies))


@pytest.mark.parametrize("edge", [jnp.inf, 0.7], ids=["never ends", "ends"])
@pytest.mark.parametrize("knows_reward", [False, True], ids=["known reward", "learnt reward"])
def test_a_branch_through_the_true_dynamics_is_the_environments_episode(edge, knows_reward):  # T10
    task, copies = np.float32(0.7), 40
    real = lived(np.float32(edge), task, copies, quiet)
    dreamt = dream(np.float32(edge), task, knows_reward, np.asarray(real.obs)[0])
    (valid, _, returns), (dreamt_valid, lengths, dreamt_returns) = (steps_counted(steps) for steps in (real, dreamt))
    valid, real, dreamt = jax.tree.map(np.asarray, (valid, real, dreamt))
    # A time limit is not a predicted end, and a branch that is cut off is not `last`.
    ended = real.last & (real.discount == 0)
    np.testing.assert_array_equal(dreamt.last[valid], ended[valid])
    np.testing.assert_array_equal(dreamt_valid, valid)
    for name in ("obs", "action", "reward", "discount", "next_obs"):
        imagined, actual = (getattr(steps, name)[valid] for steps in (dreamt, real))
        np.testing.assert_allclose(imagined, actual, rtol=1e-5, atol=1e-6, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[valid], b[valid], rtol=1e-5, atol=1e-6), dreamt.extras, real.extras
    )
    np.testing.assert_allclose(dreamt_returns, returns, rtol=1e-5)
    if edge < jnp.inf:
        assert len(np.unique(lengths)) > 2


def test_after_a_predicted_end_the_observation_stays():
    model = Meaning(reward=lambda obs, action, next_obs: obs[0], terminated=lambda obs: obs[0] > 2.5)
    dreamt = branched(model.world(steps_of([1.0, 1.0])), idle, None, np.float32([[0.0], [2.0]]), 5, KEY)
    _, lengths, returns = steps_counted(dreamt)
    dreamt = jax.tree.map(np.asarray, dreamt)
    np.testing.assert_array_equal(dreamt.next_obs[:, :, 0], [[1, 3], [2, 3], [3, 3], [3, 3], [3, 3]])
    np.testing.assert_array_equal(dreamt.discount[:3, 0], [1, 1, 0])
    np.testing.assert_array_equal(lengths, [3, 1])
    np.testing.assert_array_equal(returns, [3, 2])


@pytest.mark.parametrize("branches", [1, 4, 5, 6, 103])
def test_members_are_dealt_out_equally_at_random_and_anew(branches):
    ensemble = replace(steps_of([9.0, 0.0, 1.0, 2.0, 3.0, 4.0]), elites=jnp.asarray(np.arange(1, 6)))
    model = Meaning(reward=lambda obs, action, next_obs: next_obs[0] - obs[0])
    horizon = 4000 // branches
    starts = np.zeros((branches, 1), np.float32)
    reward = np.asarray(branched(model.world(ensemble), idle, None, starts, horizon, KEY).reward)
    counts = np.stack([(reward == k).sum(1) for k in range(5)])
    assert (counts.sum(0) == branches).all()  # never the member that is no elite
    assert counts.max() <= -(-branches // 5)
    # Each copy meets each member equally often, in an order of its own.
    shares = np.stack([(reward == k).mean(0) for k in range(5)])
    np.testing.assert_allclose(shares, 0.2, atol=5 * (0.16 / horizon) ** 0.5)
    if branches == 103:
        assert len(np.unique(reward[:8], axis=1).T) > 95


def test_branches_are_noisy_and_different():
    model = Meaning(reward=lambda obs, action, next_obs: next_obs[0])
    act = lambda params, carry, timestep, key: (params * jax.random.normal(key, (1,)), carry, key)  # noqa: E731
    for scale in np.float32([0.0, 1.0]):
        dreamt = branched(model.world(drawn(3, 2, KEY)), act, scale, np.ones((20, 2), np.float32), 3, KEY)
        dreamt = jax.tree.map(np.asarray, dreamt._replace(extras=()))
        assert len(np.unique(dreamt.next_obs[0, :, 0])) == 20
        np.testing.assert_array_equal(dreamt.next_obs[:-1], dreamt.obs[1:])
        assert len(np.unique(dreamt.action)) == (60 if scale else 1)


def test_the_first_previous_action_is_zeros_and_nothing_is_first():
    act = lambda params, carry, timestep, key: (jnp.ones(1), carry, timestep)  # noqa: E731
    model = Meaning(reward=lambda obs, action, next_obs: jnp.float32(2))
    seen = branched(model.world(steps_of([1.0, 1.0])), act, None, np.zeros((3, 1), np.float32), 4, KEY).extras
    seen = jax.tree.map(np.asarray, seen)
    np.testing.assert_array_equal(seen.prev_action[:, 0, 0], [0, 1, 1, 1])
    np.testing.assert_array_equal(seen.reward[:, 0], [0, 2, 2, 2])
    assert not seen.first.any()
    assert not seen.last.any()


def test_branches_of_many_tasks_at_once():
    """`vmap` over starts and over ensembles gives what single calls give."""
    ensembles = jax.tree.map(lambda *leaves: np.stack(leaves), *(drawn(3, 2, jax.random.key(i)) for i in range(2)))
    sequences = uniform(2, 6, 4, 1, low=0.0)

    def play(ensemble, sequences):
        return sequence_returns(NEAR_ZERO.world(ensemble), jnp.ones(2), sequences, KEY, 6)

    together = np.asarray(jax.jit(jax.vmap(play))(ensembles, sequences))
    for i in range(2):
        np.testing.assert_allclose(together[i], played(seed=i)(sequences[i]), rtol=1e-5)


@pytest.mark.parametrize("knows", [True, False])
def test_examples_are_the_inputs_and_targets_of_every_row(knows):
    world = Meaning(reward=(lambda obs, action, next_obs: obs[0]) if knows else None)
    obs, action, after = (normal(5, n, seed=i) for i, n in enumerate((2, 1, 2)))
    reward = np.arange(5, dtype=np.float32)
    rows = Transition(obs, 3 * action, reward, np.ones(5, np.float32), after, np.zeros(5, bool), ())
    inputs, targets = jax.jit(world.examples)(rows)
    np.testing.assert_array_equal(inputs, np.concatenate([obs, np.clip(3 * action, -1, 1)], axis=1))
    change = after - obs
    np.testing.assert_array_equal(targets, change if knows else np.concatenate([reward[:, None], change], axis=1))
