"""Collecting: what an episode is, where it ends, and why."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import all_observations, episode_lengths, episode_returns, previous_actions, valid_steps
from metadyna.collect.host import HostCollector
from metadyna.envs import make
from metadyna.envs.gridworld import COURSE_CITY, Action, CityGrid, GridTask, Split
from metadyna.envs.probes import PROBES, Probe
from metadyna.types import HostEnv, Outcome

LEFT, UP, RIGHT, DOWN, STAY, RIDE, END, PICK_UP, DROP = Action
KEY = jax.random.key(0)


def collector_of(env):
    return DeviceCollector(env, Split(env, (0,)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def episodes_of(collector, act, carry, tasks):
    return collector.episodes(act, (), carry, tasks, KEY).episodes


def lived(collector, act, carry, tasks):
    """Episodes of an agent without parameters, as numpy."""
    return jax.tree.map(np.asarray, episodes_of(collector, act, carry, tasks))


def computed(function, *arguments):
    return jax.tree.map(np.asarray, jax.jit(function)(*arguments))


@functools.cache
def random_tasks():
    return computed(jax.vmap(Split(COURSE_CITY, tuple(range(24))).sample), jax.random.split(KEY, 5))


def scripted(actions, timestep_noted=lambda timestep: ()):
    """An agent that plays `actions` in order; its memory counts steps."""

    def act(params, count, timestep, key):
        return jnp.array(actions)[count], count + 1, timestep_noted(timestep)

    return act


def random_act(params, carry, timestep, key):
    return jax.random.randint(key, (), 0, len(Action)), carry + 1, (timestep.prev_action, carry)


def play(env, *actions):
    actions = actions + (STAY,) * (env.horizon - len(actions))
    tasks = GridTask(np.zeros(1, np.int32), np.zeros((1, 2), np.int32))
    return lived(collector_of(env), scripted(actions), np.zeros(1, np.int32), tasks)


@pytest.mark.parametrize(
    ("last", "valid"),
    [
        ([0, 0, 1], [1, 1, 1]),
        ([1, 0, 0], [1, 0, 0]),
        ([0, 1, 0], [1, 1, 0]),
        ([0, 1, 1], [1, 1, 0]),
        ([1, 0, 1], [1, 0, 0]),
        ([0, 0, 0], [1, 1, 1]),
    ],
)
def test_steps_count_up_to_the_first_last(last, valid):
    last, valid = np.array(last, bool), np.array(valid, bool)
    np.testing.assert_array_equal(computed(valid_steps, last), valid)
    assert computed(episode_lengths, last) == valid.sum()
    both = np.stack([last, ~last], axis=1)
    np.testing.assert_array_equal(computed(valid_steps, both)[:, 0], valid)


def test_rewards_after_the_end_do_not_count():
    episodes = play(COURSE_CITY, UP, END)
    assert computed(episode_lengths, episodes.last).tolist() == [2]
    assert episodes.reward.shape == (COURSE_CITY.horizon, 1)
    assert np.all(episodes.reward[2:] != 0)
    assert np.all(episodes.last[1:])
    np.testing.assert_allclose(computed(episode_returns, episodes), [-3.0], atol=1e-5)


@pytest.mark.parametrize(
    ("env", "actions", "length", "discount"),
    [
        (CityGrid(timeout_terminates=True), (), 20, 0),
        (CityGrid(timeout_terminates=False), (), 20, 1),
        (CityGrid(timeout_terminates=False), (STAY, END), 2, 0),
        (CityGrid(timeout_terminates=False), (LEFT, DOWN) * 4, 8, 0),
    ],
    ids=["horizon ends it", "horizon cuts it", "quit", "goal"],
)
def test_a_time_limit_is_not_a_termination(env, actions, length, discount):
    episodes = play(env, *actions)
    assert computed(episode_lengths, episodes.last).tolist() == [length]
    np.testing.assert_array_equal(episodes.discount[: length - 1], 1)
    assert episodes.discount[length - 1] == discount
    assert episodes.last[length - 1]


def test_observations_chain_and_previous_actions_agree_with_the_environment():
    episodes = lived(collector_of(COURSE_CITY), random_act, np.zeros(5, np.int32), random_tasks())
    np.testing.assert_array_equal(episodes.obs[1:], episodes.next_obs[:-1])
    observations, previous = computed(all_observations, episodes), computed(previous_actions, episodes.action)
    np.testing.assert_array_equal(observations[:-1], episodes.obs)
    np.testing.assert_array_equal(observations[-1], episodes.next_obs[-1])
    told, carry = episodes.extras
    valid, lengths = computed(valid_steps, episodes.last), computed(episode_lengths, episodes.last)
    np.testing.assert_array_equal(previous[:-1][valid], told[valid])
    np.testing.assert_array_equal(previous[-1], episodes.action[-1])
    np.testing.assert_array_equal(carry, np.minimum(np.cumsum(valid, axis=0) - valid, lengths))


def test_a_task_gives_the_same_episode_alone_as_in_a_batch():
    collector, tasks = collector_of(COURSE_CITY), random_tasks()
    together = lived(collector, random_act, np.arange(5, dtype=np.int32), tasks)
    assert len(np.unique(together.action, axis=1).T) == 5

    @jax.jit
    def play_alone(carry, task, key):
        nothing = jax.tree.map(lambda x: x[0], Outcome.none(COURSE_CITY.spec.action, 1))
        return collector._episode(random_act, (), carry, task, key, nothing)[0]

    for i, key in enumerate(jax.random.split(KEY, 5)):
        alone = play_alone(np.int32(i), jax.tree.map(lambda x, i=i: x[i], tasks), key)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[:, i], y), together, alone)


def test_a_smaller_batch_plays_the_beginning_of_a_larger_one():
    collector, tasks, counts = collector_of(COURSE_CITY), random_tasks(), np.arange(5, dtype=np.int32)
    large = lived(collector, random_act, counts, tasks)
    small = lived(collector, random_act, counts[:3], jax.tree.map(lambda x: x[:3], tasks))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:, :3], y), large, small)


def test_a_batch_draws_different_starts_and_keys():
    probe = DeviceCollector(PROBES["observation-action"], tasks=Split(COURSE_CITY, (0,)))

    def act(params, carry, timestep, key):
        return jax.random.randint(key, (), 0, 2), carry, ()

    episodes = lived(probe, act, *np.zeros((2, 32), np.float32))
    pairs = set(zip(episodes.obs[0, :, 0].tolist(), episodes.action[0].tolist(), strict=True))
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_step_pairs_the_action_with_the_reward_it_earned():
    env = Probe(rewards=((0.0, 1.0), (2.0, 3.0)), horizon=2)
    collector = DeviceCollector(env, Split(COURSE_CITY, (0,)))
    episodes = lived(collector, scripted((1, 0)), np.zeros(1, np.int32), np.zeros(1, np.float32))
    assert episodes.reward[:, 0].tolist() == [1, 2]
    assert episodes.obs[:, 0, 0].tolist() == [0, 1]
    assert episodes.discount[:, 0].tolist() == [1, 0]


def test_collecting_goes_on_where_it_stopped_and_books_the_episodes_that_ended():
    """By hand, on a problem that pays 1 for its second step; what is common with the host is in test_host.py."""
    env = Probe(rewards=((0.0, 0.0), (1.0, 1.0), (0.0, 0.0)), horizon=2)
    collector = DeviceCollector(env, Split(COURSE_CITY, (0,)))
    collect = jax.jit(lambda state, key: collector.collect(scripted((1,) * 9), (), state, key, 3))
    begun = jax.jit(collector.begin, static_argnums=1)(np.zeros(1, np.int32), 1, KEY)
    assert begun.timestep.first.tolist() == [True]
    one, first = collect(begun, KEY)
    two, second = collect(one, KEY)
    first, second = jax.tree.map(np.asarray, (first, second))
    assert first.obs[:, 0, 0].tolist() + second.obs[:, 0, 0].tolist() == [0, 1, 0, 1, 0, 1]
    assert first.next_obs[:, 0, 0].tolist() == [1, 2, 1]
    assert first.last[:, 0].tolist() == [False, True, False]
    assert first.discount[:, 0].tolist() == [1, 0, 1]
    assert (one.returns.tolist(), one.lengths.tolist()) == ([0], [1])
    assert two.carry.tolist() == [6]
    for state, count in ((begun, 0), (one, 1), (two, 2)):
        assert state.finished["train/episode_return"] == (count, count)
        assert state.finished["train/episode_length"] == (2 * count, count)


def test_scanning_is_compiled_once():
    collector, traces = DeviceCollector(PROBES["constant"], Split(COURSE_CITY, (0,))), []

    def step(state, key):
        traces.append(1)
        return state + 1, state

    state, made = collector.scan(step, jnp.float32(3), jax.random.split(KEY, 5))
    assert state == 8
    assert made.tolist() == [3, 4, 5, 6, 7]
    assert len(traces) == 1


@pytest.mark.parametrize("task", ["pendulum", "inverted-pendulum"])
def test_an_agent_is_told_what_it_chose_and_not_what_was_made_of_it(task):
    """Environments clip actions to [-1, 1]; a memory must see what the learner will."""
    family = make(task)
    collector = (HostCollector if isinstance(family.env, HostEnv) else DeviceCollector)(family.env, family.train)

    def act(params, carry, timestep, key):
        return jnp.full(1, 3.0), carry, timestep.prev_action

    if isinstance(collector, HostCollector):
        episodes, begin, collect = collector.episodes, collector.begin, collector.collect
    else:
        episodes = jax.jit(collector.episodes, static_argnums=0)
        begin, collect = jax.jit(collector.begin, static_argnums=1), jax.jit(collector.collect, static_argnums=(0, 4))
    played = jax.tree.map(np.asarray, episodes(act, (), (), family.test.enumerate(), KEY))
    assert set(np.unique(played.episodes.extras[1:3])) == {3.0}
    np.testing.assert_array_equal(played.outcome.action, [[3.0]] * 10)
    made = jax.tree.map(np.asarray, collect(act, (), begin((), 2, KEY), KEY, 3)[1])
    np.testing.assert_array_equal(made.extras[1:], made.action[:-1])
    assert (made.action == 3).all()
