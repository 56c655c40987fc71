"""Bandits: what they pay, what is known of them, and that test bandits are their own draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect import trials
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_returns
from metadyna.envs import make
from metadyna.envs.bandit import Arms, Bandit, UniformArms, bayes_optimum

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("arms", "pulls", "optimum"),
    [
        (2, 1, 1 / 2),
        # After a success (chance 1/2) the arm is worth 2/3, after a failure the other is worth 1/2.
        (2, 2, 1 / 2 + 1 / 2 * 2 / 3 + 1 / 2 * 1 / 2),
        (5, 10, 6.65999),  # reference card of RL2, 3.3
        (10, 10, 6.71395),
    ],
)
def test_the_best_of_all_agents_earns_what_is_known(arms, pulls, optimum):
    assert bayes_optimum(arms, pulls) == pytest.approx(optimum, abs=5e-6)


def test_an_arm_pays_one_as_often_as_its_probability_says():
    env = Bandit(arms=3)
    task = Arms(jnp.array([0.0, 0.3, 1.0]))

    def pull(arm, key):
        state, before = env.reset(task, key)
        return before, env.step(task, state, arm, key)[1]

    before, after = jax.vmap(pull)(jnp.arange(3000) % 3, jax.random.split(KEY, 3000))
    rewards = np.asarray(after.reward).reshape(-1, 3)
    assert set(np.unique(rewards)) == {0.0, 1.0}
    assert rewards.mean(axis=0).tolist() == [0.0, pytest.approx(0.3, abs=0.05), 1.0]
    assert after.last.all()
    assert before.first.all()
    assert not before.last.any()
    assert not after.discount.any()


def test_test_bandits_are_draws_that_training_does_not_see():
    family = make("bandit-5x10")
    tasks = family.test.enumerate()
    assert tasks.pays.shape == (4000, 5)
    np.testing.assert_array_equal(tasks.pays, family.test.enumerate().pays)
    # uniform: the mean of 20,000 draws and of their squares, within four standard errors
    assert np.mean(tasks.pays) == pytest.approx(1 / 2, abs=4 * 12**-0.5 / 20000**0.5)
    assert np.mean(tasks.pays**2) == pytest.approx(1 / 3, abs=4 * 0.3 / 20000**0.5)
    trained = jax.vmap(family.train.sample)(jax.random.split(KEY, 1000))
    assert len(np.unique(np.concatenate([trained.pays, tasks.pays]), axis=0)) == 5000


def test_chance_earns_half_of_the_pulls():
    family = make("bandit-5x10")
    collector = DeviceCollector(family.env, family.train)

    def anything(params, carry, timestep, key):
        return jax.random.randint(key, (), 0, 5), carry, ()

    played = jax.jit(lambda key: trials.live(collector, anything, (), (), family.test.enumerate(), 10, key))(KEY)
    returns = np.asarray(episode_returns(played.episodes)).sum(axis=1)
    assert returns.shape == (4000,)
    assert returns.mean() == pytest.approx(family.references()["random"], abs=4 * 1.7 / 4000**0.5)
    assert family.references()["optimal"] == pytest.approx(6.65999, abs=5e-6)


def test_arms_are_made_of_plain_settings():
    assert UniformArms(arms=3).sample(KEY).pays.shape == (3,)
