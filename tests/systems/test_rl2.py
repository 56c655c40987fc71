"""RL²: what its memory is shown, how far credit reaches, and that memory is what it learns with."""

import functools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect import trials
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_lengths, episode_returns, valid_steps
from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.experiments.presets import RL2_QUICK
from metadyna.improve.ppo import PPO
from metadyna.nets.layers import Linear
from metadyna.policies.recalling import Seen, perform, practise
from metadyna.systems.rl2 import RL2
from tests.arrays import flat

KEY = jax.random.key(0)
ONCE = PPO(minibatches=1, epochs=1)
SMALL = RL2(ONCE, width=8, trials=4, episodes=3)


@functools.cache
def born(task):
    """A collector, and a state whose policy is no longer indifferent."""
    family = make(task)
    collector = DeviceCollector(family.env, family.train)

    @jax.jit
    def start(key):
        state = SMALL.init(collector, key)
        weights = jax.tree.map(lambda x: 3 * x, state.learner.weights)
        return state._replace(learner=SMALL.ppo.start(weights))

    return collector, start(KEY)


@functools.partial(jax.jit, static_argnums=(0, 2))
def live(collector, params, act, key):
    tasks = jax.vmap(collector.tasks.sample)(jax.random.split(key, SMALL.trials))
    memory = params.recall.initial(SMALL.trials)
    return trials.live(collector, act, params, memory, tasks, SMALL.episodes, key).episodes


def lived(collector, state, act):
    return live(collector, SMALL.params(state), act, KEY)


def looking(params, memory, timestep, key):
    """Act, and note what is seen and remembered."""
    action, memory, log_prob = practise(params, memory, timestep, key)
    return action, memory, (Seen.of(timestep), memory, log_prob)


@pytest.mark.parametrize("task", ["bandit-5x10", "city-5x5", "cartpole-balance"])  # one step, many, of numbers
def test_learning_sees_and_remembers_what_acting_saw_and_remembered(task):
    collector, state = born(task)
    steps, valid = jax.jit(trials.joined)(lived(collector, state, looking))
    valid = np.asarray(valid)
    seen, memory, log_prob = steps.extras
    weights = state.learner.weights
    assert valid.sum(axis=0).min() >= SMALL.episodes

    @jax.jit
    def again(steps):
        shown = Seen.during(steps)
        return shown, weights.actor.recall.over(shown), weights.actor.over(shown).log_prob(steps.action)

    shown, remembered, again_log_prob = again(steps)
    for ours, theirs in zip(shown, seen, strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[valid], np.asarray(theirs)[valid])
    np.testing.assert_allclose(np.asarray(remembered)[valid], np.asarray(memory)[valid], atol=1e-5)
    np.testing.assert_allclose(np.asarray(again_log_prob)[valid], np.asarray(log_prob)[valid], atol=1e-4)
    # nor is that the same at every step: memory goes on over the ends of episodes
    assert np.asarray(shown.first)[valid].sum() == SMALL.episodes * SMALL.trials
    assert np.asarray(shown.first)[0].all()


@pytest.mark.parametrize(
    ("expected", "advantage"),
    [
        (0.0, [0.45**2, 0.45, 1.0]),  # (γλ)ᵗ r of all that comes after
        (1.0, [-0.1 - 0.45 * 0.1, -0.1, 0.0]),  # errors r + γ V' − V of −0.1, −0.1 and, nothing coming after, 0
    ],
)
def test_credit_reaches_over_the_ends_of_episodes_and_not_over_the_trials(expected, advantage, monkeypatch):
    """Three pulls of which the last one pays, beside a critic that always expects as much."""
    kept = {}

    def keep(settings, learner, batch, loss, key):
        del settings, loss, key
        kept.update(batch._asdict())
        return learner, {}

    monkeypatch.setattr(PPO, "update", keep)
    system = replace(SMALL, discount=0.9, gae_decay=0.5)
    collector, state = born("bandit-5x10")
    critic = Linear(jnp.asarray(np.zeros((8, 1))), jnp.asarray(np.full(1, expected)))
    weights = eqx.tree_at(lambda weights: weights.value, state.learner.weights, critic)
    pulls = lived(collector, state, practise)._replace(reward=jnp.asarray(np.tile([0.0, 0.0, 1.0], (1, 4, 1))))

    @jax.jit
    def learn(weights, pulls):
        after, _ = system._learn(state._replace(learner=system.ppo.start(weights)), pulls, KEY)
        return after, kept["advantage"], kept["value_target"]

    after, given, target = learn(weights, pulls)
    np.testing.assert_allclose(given, np.tile(advantage, (4, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(target, np.asarray(given) + expected, rtol=1e-5)
    assert after.steps == 12


def test_what_comes_after_the_end_does_not_matter():
    collector, state = born("cartpole-balance")
    episodes = jax.tree.map(np.asarray, lived(collector, state, practise))
    valid = np.asarray(jax.jit(valid_steps)(episodes.last))
    assert not valid.all()

    def other(x):
        return np.where(valid.reshape(*valid.shape, *[1] * (x.ndim - 3)), x, 7) if x.dtype == np.float32 else x

    learn = jax.jit(SMALL._learn)
    one, two = (learn(state, x, KEY)[0] for x in (episodes, jax.tree.map(other, episodes)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), one, two)
    assert np.abs(flat(one.learner) - flat(state.learner)).max() > 0
    assert one.steps == valid.sum()


def test_a_trial_is_all_of_its_episodes_with_one_memory():
    collector, state = born("city-5x5")
    tasks = jax.tree.map(lambda x: np.asarray(x)[:6], make("city-5x5").test.enumerate())
    play = jax.jit(lambda params, key: SMALL.trial(params, collector, tasks, key))
    trial, again = (play(SMALL.params(state), jax.random.key(seed)) for seed in range(2))
    assert (trial.names, trial.score) == (("episode 1", "episode 2", "episode 3"), "sum")
    assert trial.episodes.reward.shape == (collector.env.spec.horizon, 6, 3, 1)
    lengths = np.asarray(jax.jit(episode_lengths)(trial.episodes.last))
    assert ((lengths >= 1) & (lengths <= collector.env.spec.horizon)).all()
    action = np.asarray(trial.episodes.action)
    np.testing.assert_array_equal(action, again.episodes.action)  # the most likely action, always
    # Greedy and with nothing remembered, it would do in every episode what it does in the first.
    assert any((action[:, :, 0] != action[:, :, i]).any() for i in (1, 2))


def test_every_minibatch_has_a_trial():
    with pytest.raises(UserError, match=r"RL2\.trials = 3 is out of range; it must lie in \[4, 1000000\]"):
        RL2(PPO(minibatches=4), trials=3)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_it_learns_to_learn_a_bandit_by_memory_alone():
    """A fifth of the preset's steps; 5 is chance, 6.66 the optimum. Without its memory it pulls the same arm always."""
    system = replace(RL2_QUICK.system, trials=256)
    family = make("bandit-5x10")
    collector = DeviceCollector(family.env, family.train)

    @jax.jit
    def train(key):
        state = system.init(collector, key)
        keys = jax.random.split(key, 120)
        return jax.lax.scan(lambda state, key: (system.iterate(state, collector, key)[0], None), state, keys)[0]

    @jax.jit
    def scores(params, key):
        tasks = family.test.enumerate()
        whole = system.trial(params, collector, tasks, key).episodes
        memory = params.recall.initial(len(tasks.pays))
        alone = jax.vmap(lambda key: collector.episodes(perform, params, memory, tasks, key).episodes)
        forgetful = alone(jax.random.split(key, system.episodes))
        return episode_returns(whole).sum(axis=(1, 2)).mean(), forgetful.reward.sum(axis=(0, 1)).mean()

    state = train(KEY)
    assert state.steps == 120 * 256 * 10
    remembering, forgetful = scores(system.params(state), KEY)
    assert remembering > 6.1
    assert forgetful == pytest.approx(5.0, abs=0.15)
