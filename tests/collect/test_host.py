"""Collecting from simulators on the host: the same meaning as on a device, checked on both."""

import functools
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect import trials
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_lengths, episode_returns, valid_steps
from metadyna.collect.host import HostCollector
from metadyna.envs.control import ControlState, Episode, OneTask, PointMass
from metadyna.types import Average, Box, Collector, EnvSpec, HostEnv, TimeStep

KEY = jax.random.key(0)
HORIZON = 6


class Count(NamedTuple):
    """A task: episodes of this length; a number tells tasks apart."""

    length: jax.Array
    number: jax.Array


@dataclass(frozen=True)
class Counts:
    """Lengths 1 to 6; from 5 on the time limit cuts the episode first."""

    lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 6)

    def sample(self, key):
        length = jax.random.choice(key, jnp.array(self.lengths))
        return Count(length, jax.random.randint(jax.random.fold_in(key, 1), (), 0, 10**6))

    def enumerate(self):
        return counts(*self.lengths)


def counts(*lengths):
    """Tasks of some lengths, numbered."""
    return Count(np.int32(lengths), np.arange(len(lengths), dtype=np.int32))


@dataclass(frozen=True)
class Counter:
    """Counts steps; observed are the task's number and the count, the reward is 1, 2, 3, …"""

    horizon: int = 5

    @property
    def spec(self):
        return EnvSpec(Box((2,)), Box((1,), -1.0, 1.0), self.horizon)

    def reset(self, task, key):
        obs = jnp.stack([task.number, jnp.int32(0)]).astype(jnp.float32)
        one, no = jnp.float32(1), jnp.bool_(False)
        return jnp.int32(0), TimeStep(obs, one * 0, one, ~no, no, jnp.zeros(1))

    def step(self, task, state, action, key):
        state = state + 1
        ended = state >= task.length
        obs = jnp.stack([task.number, state]).astype(jnp.float32)
        reward, discount = state.astype(jnp.float32), 1 - ended.astype(jnp.float32)
        return state, TimeStep(obs, reward, discount, jnp.bool_(False), ended | (state >= self.horizon), action)


@functools.cache
def simulator(env):
    """Resetting copies, and stepping them."""

    def reset(tasks, seeds):
        return jax.vmap(env.reset)(tasks, jax.vmap(jax.random.key)(seeds))

    return jax.jit(reset), jax.jit(jax.vmap(env.step, (0, 0, 0, None)))


class OnHost(HostEnv):
    """A pure environment behind numpy; the seeds of its resets are kept to look at."""

    def __init__(self, env):
        self.env = env
        self.seeds = []
        self._reset, self._step = simulator(env)

    @property
    def spec(self):
        return self.env.spec

    def reset(self, tasks, seeds, state, where):
        self.seeds.append(seeds[where])
        fresh, timestep = self._reset(tasks, seeds[:, -1])
        if state is not None:
            pick = lambda new, old: np.where(where.reshape(-1, *[1] * (np.ndim(old) - 1)), new, old)  # noqa: E731
            fresh = jax.tree.map(pick, fresh, state)
        return jax.tree.map(np.asarray, (fresh, timestep))

    def step(self, tasks, state, action):
        assert isinstance(action, np.ndarray)
        return jax.tree.map(np.asarray, self._step(tasks, state, action, KEY))


def collectors(env, tasks):
    return {"host": HostCollector(OnHost(env), tasks), "device": DeviceCollector(env, tasks)}


BOTH = collectors(Counter(), Counts())
THREES = collectors(Counter(), Counts((3,)))


def count_calls(params, carry, timestep, key):
    """An agent with a memory: how many steps since the episode began, which it notes."""
    carry = jnp.where(timestep.first, 0, carry) + 1
    return jnp.zeros(1), carry, {"since": carry, "first": timestep.first}


@functools.cache
def compiled(collector, method, static):
    return jax.jit(getattr(collector, method), static_argnums=static)


def call(collector, method, static, *arguments):
    """A method of a collector, as one program where it is on a device."""
    on_host = isinstance(collector, HostCollector)
    return (getattr(collector, method) if on_host else compiled(collector, method, static))(*arguments)


def begin(collector, carry, batch, key=KEY):
    return call(collector, "begin", (1,), carry, batch, key)


def collect(collector, *arguments):
    return call(collector, "collect", (0, 4), *arguments)


def play(collector, *arguments):
    return jax.tree.map(np.asarray, call(collector, "episodes", (0,), *arguments))


def play_of_each(collector, *arguments):
    return jax.tree.map(np.asarray, call(collector, "episodes_of_each", (0, 4), *arguments))


def computed(function, *arguments):
    return jax.tree.map(np.asarray, jax.jit(function)(*arguments))


def zeros(*shape):
    """The memory of agents that count."""
    return np.zeros(shape, np.int32)


@functools.cache
def collected(kind, *steps, batch=6):
    """What a collector gathers in calls of so many steps each: the states after each call, and all steps."""
    states, made = [begin(BOTH[kind], zeros(batch), batch)], []
    for i, count in enumerate(steps):
        state, transitions = collect(BOTH[kind], count_calls, (), states[-1], jax.random.key(100 + i), count)
        states.append(state)
        made.append(transitions)
    return states, jax.tree.map(lambda *x: np.concatenate(x), *made)


def starts_with(mask):
    """Where episodes begin: at first, and after every last step."""
    return np.concatenate([np.ones_like(mask[:1]), mask[:-1]])


@pytest.mark.parametrize("kind", BOTH)
def test_both_are_collectors(kind):
    assert isinstance(BOTH[kind], Collector)


@pytest.mark.parametrize("kind", BOTH)
def test_successors_are_true_and_the_agent_sees_the_next_start(kind):
    """Observed is (number of the task, steps so far), so every row says where it belongs."""
    _, made = collected(kind, 12, 12)
    assert made.obs.shape == (24, 6, 2)
    begins = starts_with(made.last)
    assert begins.sum() > 20
    np.testing.assert_array_equal(made.extras["first"], begins)
    np.testing.assert_array_equal(made.obs[begins][:, 1], 0)
    np.testing.assert_array_equal(made.next_obs[..., 1], made.obs[..., 1] + 1)
    np.testing.assert_array_equal(made.next_obs[..., 0], made.obs[..., 0])
    np.testing.assert_array_equal(made.obs[1:][~begins[1:]], made.next_obs[:-1][~begins[1:]])
    np.testing.assert_array_equal(made.reward, made.next_obs[..., 1])
    np.testing.assert_array_equal(made.extras["since"], made.next_obs[..., 1])  # the memory of the same episode


@pytest.mark.parametrize("kind", BOTH)
def test_tasks_are_renewed_only_where_an_episode_ended(kind):
    states, made = collected(kind, *[1] * 8)
    renewed = 0
    for time, (before, after) in enumerate(pairwise(states)):
        same = np.asarray(before.tasks.number) == np.asarray(after.tasks.number)
        np.testing.assert_array_equal(same, ~made.last[time])
        np.testing.assert_array_equal(after.timestep.first, made.last[time])
        np.testing.assert_array_equal(after.timestep.obs[:, 0], after.tasks.number)
        np.testing.assert_array_equal(after.timestep.obs[:, 1], np.where(made.last[time], 0, made.next_obs[time, :, 1]))
        renewed += made.last[time].sum()
    assert renewed > 6
    numbers = np.concatenate([np.asarray(state.tasks.number) for state in states])
    assert len(np.unique(numbers)) == 6 + renewed


@pytest.mark.parametrize("kind", BOTH)
def test_episodes_end_by_termination_or_by_the_time_limit(kind):
    """Tasks of up to 5 steps terminate, the sixth length is cut at 5."""
    _, made = collected(kind, 12, 12)
    assert made.next_obs[made.last][:, 1].max() == 5
    np.testing.assert_array_equal(made.discount[~made.last], 1)
    cut = made.last & (made.discount == 1)
    assert cut.any()
    np.testing.assert_array_equal(made.next_obs[cut][:, 1], 5)


@pytest.mark.parametrize("kind", BOTH)
def test_averages_are_over_the_episodes_that_ended_in_the_call(kind):
    """With all their steps, also those of earlier calls; a call without an end says nothing."""
    states, made = collected(kind, 1, 3, 12, 1, 12)
    position, starts = 0, np.zeros(6, int)
    for state, count in zip(states[1:], (1, 3, 12, 1, 12), strict=True):
        returns, lengths = [], []
        for time in range(position, position + count):
            for b in np.flatnonzero(made.last[time]):
                lengths.append(time + 1 - starts[b])
                returns.append(made.reward[starts[b] : time + 1, b].sum())
                starts[b] = time + 1
        position += count
        for name, values in (("return", returns), ("length", lengths)):
            average = state.finished[f"train/episode_{name}"]
            assert average.total == sum(values)
            assert average.weight == len(values)
        np.testing.assert_array_equal(state.lengths, position - starts)
        np.testing.assert_array_equal(state.returns, [made.reward[starts[b] : position, b].sum() for b in range(6)])
    begun = states[0]
    assert [average.weight for average in begun.finished.values()] == [0, 0]
    assert not np.any(begun.lengths)
    assert not np.any(begun.returns)


@pytest.mark.parametrize("kind", BOTH)
def test_a_call_may_be_cut_in_two(kind):
    """4 + 4 steps are 8, up to the tasks that are drawn in between: here there is only one."""
    collector = THREES[kind]
    begun = begin(collector, zeros(2), 2)
    begun = begun._replace(tasks=begun.tasks._replace(number=np.zeros(2, np.int32)))
    whole, at_once = collect(collector, count_calls, (), begun, KEY, 8)
    half, first = collect(collector, count_calls, (), begun, KEY, 4)
    both, second = collect(collector, count_calls, (), half, KEY, 4)
    parts = jax.tree.map(lambda *x: np.concatenate(x), first, second)
    for one, other in ((at_once, parts), (whole._replace(finished=()), both._replace(finished=()))):
        for x, y in zip(numberless(one), numberless(other), strict=True):
            np.testing.assert_array_equal(x, y)
    assert half.finished["train/episode_length"] == Average(6, 2)
    assert both.finished["train/episode_length"] == Average(6, 2)
    assert whole.finished["train/episode_length"] == Average(12, 4)


def numberless(tree):
    """Leaves without the numbers that tell tasks apart."""
    if hasattr(tree, "tasks"):
        obs = tree.timestep.obs[:, 1]
        tree = tree._replace(tasks=tree.tasks.length, timestep=tree.timestep._replace(obs=obs))
    else:
        tree = tree._replace(obs=tree.obs[..., 1], next_obs=tree.next_obs[..., 1])
    return jax.tree.leaves(tree)


@pytest.mark.parametrize("kind", BOTH)
def test_episodes_are_padded_to_the_horizon(kind):
    tasks = Counts().enumerate()
    played = play(BOTH[kind], count_calls, (), zeros(6), tasks, KEY).episodes
    assert jax.tree.map(np.shape, played).extras["since"] == (5, 6)
    np.testing.assert_array_equal(computed(episode_lengths, played.last), [1, 2, 3, 4, 5, 5])
    np.testing.assert_array_equal(computed(episode_returns, played), [1, 3, 6, 10, 15, 15])
    valid = computed(valid_steps, played.last)
    np.testing.assert_array_equal(played.discount[valid & played.last], [0, 0, 0, 0, 0, 1][: valid[played.last].sum()])
    assert played.last[~valid].all()
    np.testing.assert_array_equal(played.obs[..., 0][valid], np.tile(np.arange(6), (5, 1))[valid])


def test_short_episodes_are_padded_too():
    """All are over before the horizon; the host stops then, and fills up with the last step."""
    host, device = (
        play(BOTH[kind], count_calls, (), zeros(2), counts(2, 1), KEY).episodes for kind in ("host", "device")
    )
    assert jax.tree.map(np.shape, host) == jax.tree.map(np.shape, device)
    assert host.last[1:].all()
    np.testing.assert_array_equal(host.obs[2:], np.stack([host.obs[1]] * 3))
    np.testing.assert_array_equal(computed(episode_lengths, host.last), [2, 1])


@pytest.mark.parametrize("kind", BOTH)
def test_scanning_stacks_what_was_made(kind):
    keys = jax.random.split(KEY, 4)
    state, made = BOTH[kind].scan(
        lambda state, key: (state + 1, (state, jax.random.uniform(key))), jnp.float32(10), keys
    )
    assert state == 14
    assert made[0].tolist() == [10, 11, 12, 13]
    np.testing.assert_allclose(made[1], computed(jax.vmap(jax.random.uniform), keys), rtol=1e-6)


def test_collecting_may_be_repeated():
    """As an on-line method does: one step, then something else, again and again."""
    results = {}
    for kind, collector in THREES.items():

        def step(state, key, collector=collector):
            state, made = collector.collect(count_calls, (), state, key, 1)
            return state, {**state.finished, "seen": Average(made.reward.sum(), 2)}

        begun = begin(collector, zeros(2), 2)
        state, made = collector.scan(step, begun, jax.random.split(KEY, 7))
        totals = jax.tree.map(lambda x: np.asarray(x).sum(axis=0), made)
        results[kind] = jax.tree.map(float, (totals, np.asarray(state.returns).tolist()))
    assert results["host"] == results["device"]
    assert results["host"][0]["train/episode_length"] == Average(12, 4)
    assert results["host"][0]["seen"].total == 2 * (6 + 6 + 1)


# --- the same steps as on a device

STARTS = np.array([[0.25, -0.15], [1, 1], [-0.55, 0.05], [0.305, 0.0]], np.float32)


class Fixed(PointMass):
    """A point that starts where its task says."""

    def start(self, task, key):
        return jnp.asarray(STARTS)[task.number]


class Quarter(OneTask):
    """Always the same start."""

    def sample(self, key):
        return Episode(jnp.int32(2))


def homewards(params, carry, timestep, key):
    carry = jnp.where(timestep.first, 0.0, carry) + timestep.reward
    return -params * timestep.obs, carry, (carry, timestep.prev_action)


def test_host_and_device_collect_the_same():
    """On one deterministic problem, with episodes that terminate and episodes that are cut."""
    both = collectors(Fixed(horizon=7), Quarter())
    params, results = np.float32(9), {}
    for kind, collector in both.items():
        state = begin(collector, np.zeros(4, np.float32), 4)
        timestep = state.timestep._replace(obs=STARTS)
        state, seen = state._replace(env=ControlState(STARTS, zeros(4)), timestep=timestep), []
        for i, steps in enumerate((5, 14)):
            state, made = collect(collector, homewards, params, state, jax.random.key(100 + i), steps)
            seen.append((state, made))
        results[kind] = seen
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, results["host"], results["device"])
    for x, y in zip(*(jax.tree.leaves(r) for r in results.values()), strict=True):
        assert x.dtype == y.dtype
    made = jax.tree.map(np.asarray, results["host"][-1][1])
    assert set(made.discount[made.last].tolist()) == {0, 1}


def test_host_and_device_play_the_same_episodes():
    both = collectors(Fixed(horizon=7), Quarter())
    tasks, carry = Episode(np.arange(4, dtype=np.int32)), np.zeros(4, np.float32)
    host, device = (play(c, homewards, np.float32(9), carry, tasks, KEY).episodes for c in both.values())
    valid = computed(valid_steps, device.last)
    np.testing.assert_array_equal(computed(valid_steps, host.last), valid)
    assert valid.sum(axis=0).tolist() == [3, 7, 6, 4]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[valid], y[valid], atol=1e-6), host, device)


@pytest.mark.parametrize("kind", BOTH)
def test_every_task_is_played_by_weights_of_its_own(kind):
    """Three episodes each: the action is the weight, plus noise that no two copies share."""

    def act(params, carry, timestep, key):
        return params[None] + 0.1 * jax.random.uniform(key, (1,)), carry, timestep.obs[:1]

    played = play_of_each(BOTH[kind], act, np.float32([3, 5]), zeros(2, 3), counts(2, 4), 3, KEY).episodes
    assert jax.tree.map(np.shape, played).action == (5, 2, 3, 1)
    np.testing.assert_array_equal(computed(episode_returns, played), [[3] * 3, [10] * 3])
    valid = computed(valid_steps, played.last)
    np.testing.assert_array_equal(valid.sum(axis=0), [[2] * 3, [4] * 3])
    actions, number = (x[..., 0] for x in (played.action, played.extras))
    wanted = np.broadcast_to(np.array([3.0, 5.0])[None, :, None], actions.shape)
    assert ((actions >= wanted) & (actions <= wanted + 0.1))[valid].all()
    np.testing.assert_array_equal(number[valid], np.broadcast_to([[[0], [1]]], valid.shape)[valid])
    assert len(np.unique(actions[valid])) == valid.sum()


# --- memory


def hears(params, calls, timestep, key):
    """Counts its calls, over episodes too, and notes what it is told of the step before."""
    told = timestep.reward, timestep.discount, timestep.first, timestep.prev_action[0]
    return calls[None].astype(jnp.float32), calls + 1, told


@pytest.mark.parametrize("kind", BOTH)
def test_memory_is_returned_as_it_was_after_the_last_step_and_how_that_went(kind):
    """Not as it would be after all the padding."""
    played = play(BOTH[kind], hears, (), zeros(6), Counts().enumerate(), KEY)
    np.testing.assert_array_equal(played.carry, [1, 2, 3, 4, 5, 5])
    np.testing.assert_array_equal(played.outcome.reward, [1, 2, 3, 4, 5, 5])
    np.testing.assert_array_equal(played.outcome.discount, [0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(played.outcome.action[:, 0], [0, 1, 2, 3, 4, 4])


@pytest.mark.parametrize("kind", BOTH)
def test_each_of_several_episodes_of_a_task_keeps_a_memory_of_its_own(kind):
    calls = np.arange(6, dtype=np.int32).reshape(2, 3)
    played = play_of_each(BOTH[kind], hears, np.zeros(2, np.float32), calls, counts(2, 4), 3, KEY)
    np.testing.assert_array_equal(played.carry, calls + np.array([[2], [4]]))
    np.testing.assert_array_equal(played.outcome.reward, [[2] * 3, [4] * 3])


@pytest.mark.parametrize("kind", BOTH)
def test_a_trial_goes_on_with_the_memory_and_tells_how_the_last_episode_ended(kind):
    """Card of RL2, 3.7: the last reward and the end of an episode reach the next call, which no reset may hide."""
    live = trials.live if kind == "host" else jax.jit(trials.live, static_argnums=(0, 1, 5))
    played = live(BOTH[kind], hears, (), zeros(3), counts(2, 6, 1), 3, KEY)
    steps, valid = computed(trials.joined, played.episodes)
    assert played.episodes.reward.shape == (5, 3, 3)
    np.testing.assert_array_equal(valid.sum(axis=0), [6, 15, 3])
    np.testing.assert_array_equal(played.carry, [6, 15, 3])
    for task, rewards in enumerate(([1, 2] * 3, [1, 2, 3, 4, 5] * 3, [1] * 3)):
        there = valid[:, task]
        assert there.tolist() == sorted(there.tolist(), reverse=True)
        count, length = len(rewards), len(rewards) // 3
        np.testing.assert_array_equal(steps.reward[:count, task], rewards)
        np.testing.assert_array_equal(steps.action[:count, task, 0], np.arange(count))
        np.testing.assert_array_equal(np.flatnonzero(steps.last[:count, task]), np.arange(length - 1, count, length))
        reward, discount, first, action = (x[:count, task] for x in steps.extras)
        np.testing.assert_array_equal(reward, [0, *rewards[:-1]])
        np.testing.assert_array_equal(action, [0, *range(count - 1)])
        np.testing.assert_array_equal(first, np.arange(count) % length == 0)
        ends = (np.arange(count) % length == 0) & (np.arange(count) > 0)
        np.testing.assert_array_equal(discount, np.where(ends, 1.0 if task == 1 else 0.0, 1.0))


@pytest.mark.parametrize("kind", BOTH)
def test_collecting_tells_how_the_last_episode_ended(kind):
    collector = THREES[kind]
    begun = begin(collector, zeros(2), 2)
    _, made = collect(collector, hears, (), begun, KEY, 7)
    reward, discount, first, action = (np.asarray(x)[:, 0] for x in made.extras)
    np.testing.assert_array_equal(reward, [0, 1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(discount, [1, 1, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(first, [1, 0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(action, [0, 0, 1, 2, 3, 4, 5])


# --- what agents may not see


@pytest.mark.parametrize("kind", BOTH)
def test_what_is_hidden_never_reaches_an_agent_and_is_kept_by_who_watches(kind):
    def act(params, carry, timestep, key):
        assert timestep.hidden == ()
        return jnp.zeros(1), carry, ()

    plain = collectors(Secretive(), Counts())[kind]
    watching, tasks = replace(plain, watch=True), Counts().enumerate()
    seen, unseen = (play(c, act, (), zeros(6), tasks, KEY).episodes for c in (watching, plain))
    before, after = seen.hidden
    valid = computed(valid_steps, seen.last)
    times = np.tile(np.arange(5)[:, None], 6)
    np.testing.assert_array_equal(before.state[valid], times[valid])
    np.testing.assert_array_equal(after.state[valid], times[valid] + 1)
    np.testing.assert_array_equal(before.hidden[valid], 100 + times[valid])
    np.testing.assert_array_equal(after.hidden[valid], 101 + times[valid])
    jax.tree.map(np.testing.assert_array_equal, seen._replace(hidden=()), unseen)
    _, made = collect(watching, act, (), begin(watching, zeros(6), 6), KEY, 3)
    assert made.hidden[0].hidden.shape == (3, 6)


class Secretive(Counter):
    """Hides 100 more than it counts."""

    def reset(self, task, key):
        state, timestep = super().reset(task, key)
        return state, timestep._replace(hidden=100 + state)

    def step(self, task, state, action, key):
        state, timestep = super().step(task, state, action, key)
        return state, timestep._replace(hidden=100 + state)


# --- computing between calls


def test_only_what_is_spent_is_overwritten_and_only_where_the_program_said_so():
    env = OnHost(Counter())
    for donate in (False, True):
        for spend in (False, True):
            collector, x, y = HostCollector(env, Counts(), donate=donate), jnp.arange(3.0), jnp.ones(3)
            made = collector.compute(scale_and_add, x, y, static=(2.0,), spend=spend)
            assert made.tolist() == [1, 3, 5]
            assert x.is_deleted() == (donate and spend)
            assert not y.is_deleted()


def scale_and_add(factor, x, y):
    return factor * x + y


# --- the host alone


def test_every_reset_has_seeds_of_its_own():
    env = OnHost(Counter())
    collector = HostCollector(env, Counts())
    for i in range(2):
        state = collector.begin(zeros(6), 6, jax.random.key(i))
        collector.collect(count_calls, (), state, jax.random.key(i + 10), 12)
        collector.episodes(count_calls, (), zeros(6), Counts().enumerate(), jax.random.key(i + 20))
    seeds = np.concatenate(env.seeds)
    assert seeds.dtype == np.uint32
    assert len(seeds) > 40
    assert len(np.unique(seeds, axis=0)) == len(seeds)


def test_keys_decide_and_differ_between_copies_and_times():
    def act(params, carry, timestep, key):
        return jax.random.uniform(key, (1,)), carry, ()

    collector = HostCollector(OnHost(Counter()), Counts((6,)))
    begun = collector.begin((), 3, KEY)
    (_, one), (_, again), (_, other) = (collector.collect(act, (), begun, jax.random.key(i), 5) for i in (1, 1, 2))
    np.testing.assert_array_equal(one.action, again.action)
    assert len(np.unique(np.concatenate([one.action, other.action]))) == 30


def test_a_state_from_a_checkpoint_goes_on_as_one_in_memory():
    """A checkpoint gives arrays of the device back."""
    states, _ = collected("host", 7)
    stored = jax.tree.map(jnp.asarray, states[-1])
    results = [BOTH["host"].collect(count_calls, (), state, KEY, 4) for state in (states[-1], stored)]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_the_agent_is_compiled_once():
    traces = []

    def act(params, carry, timestep, key):
        traces.append(1)
        return params + timestep.obs[:1], carry + 1, ()

    collector = HostCollector(OnHost(Counter()), Counts())
    state = collector.begin(zeros(4), 4, KEY)
    for i in range(3):
        state, _ = collector.collect(act, np.ones(1, np.float32), state, jax.random.key(i), 3 + i)
    assert len(traces) == 1


def test_what_comes_back_is_numpy_and_keeps_its_types():
    states, made = collected("host", 1, 3, 12, 1, 12)
    for state in states[1:]:
        leaves = jax.tree.leaves((state.tasks, state.env, state.timestep, state.returns, state.lengths))
        assert all(isinstance(x, np.ndarray) for x in leaves)
        assert state.returns.dtype == np.float32
        assert state.lengths.dtype == np.int32
    assert made.reward.dtype == made.obs.dtype == made.action.dtype == np.float32
    assert made.last.dtype == bool
