"""Tasks that change in mid-episode: when, to what, seen by whom, and gone on with after any stop."""

import functools
import io
import warnings
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from metadyna.collect import trials
from metadyna.collect.device import DeviceCollector
from metadyna.collect.host import HostCollector
from metadyna.envs import make
from metadyna.envs.control import RODS, Episode, OneTask, Pendulum, PointDirection, RodPendulum
from metadyna.envs.gridworld import COURSE_CITY
from metadyna.envs.mujoco import ERRANDS, ROBOTS, Headings, HostRobot, KnownRobot
from metadyna.envs.registration import TaskEnv
from metadyna.envs.switching import Changes, Every, Jitter, KnownSwitching, Never, switched
from metadyna.errors import UserError
from metadyna.pictures import films
from metadyna.settings import Settings
from metadyna.types import Box, Env, EnvSpec, HostEnv, Known, Observed, Problems, TimeStep
from tests.given import given

KEY = jax.random.key(0)
TASKS = OneTask(10**6)
KINDS = ("device", "host")
SPEC = EnvSpec(Box((1,)), Box((1,), -1.0, 1.0), 9)


@dataclass(frozen=True)
class Teller(Settings):
    """Observed are the steps so far, paid is the number of the task in force; hides minus the steps.

    With `ending` one number in four terminates the episode.
    """

    ending: bool = False
    spec = SPEC

    def reset(self, task, key):
        return jnp.int32(0), TimeStep(jnp.zeros(1), *_START, jnp.zeros(1), jnp.int32(0))

    def step(self, task, state, action, key):
        state, reward = state + 1, task.number.astype(jnp.float32)
        ended = self.ending & (task.number % 4 == 0)
        discount, last = 1 - ended.astype(jnp.float32), ended | (state >= SPEC.horizon)
        return state, TimeStep(
            state[None].astype(jnp.float32), reward, discount, jnp.bool_(False), last, action, -state
        )


_START = jnp.float32(0), jnp.float32(1), jnp.bool_(True), jnp.bool_(False)


@dataclass(frozen=True)
class HostTeller(HostEnv):
    """The same in numpy."""

    ending: bool = False
    spec = SPEC

    def reset(self, tasks, seeds, state, where):
        batch = len(where)
        state = np.zeros(batch, np.int32) if state is None else np.where(where, 0, state).astype(np.int32)
        zeros, no = np.zeros(batch, np.float32), np.zeros(batch, bool)
        return state, TimeStep(zeros[:, None], zeros, zeros + 1, ~no, no, zeros[:, None], 0 * state)

    def step(self, tasks, state, action):
        state = state + np.int32(1)
        ended = self.ending & (tasks.number % 4 == 0)
        reward, discount = tasks.number.astype(np.float32), 1 - ended.astype(np.float32)
        obs, last = state[:, None].astype(np.float32), ended | (state >= SPEC.horizon)
        return state, TimeStep(obs, reward, discount, np.zeros_like(ended), last, action, -state)


def collector(kind, law, ending=False, watch=True):
    env, around = (HostTeller, HostCollector) if kind == "host" else (Teller, DeviceCollector)
    return around(switched(env(ending), Changes(TASKS, law)), TASKS, watch=watch)


def still(params, carry, timestep, key):
    """An agent that is shown nothing of what is hidden, and acts by its weights."""
    assert timestep.hidden == ()
    return params + jnp.zeros(1), carry, ()


def noisy(params, carry, timestep, key):
    """An agent that acts at random."""
    return jax.random.uniform(key, (1,), minval=-1, maxval=1), carry + timestep.reward, ()


@functools.cache
def method(collector, name):
    """Compiled unless it is of the host."""
    own = getattr(collector, name)
    static = (0, 4) if name == "collect" else 0
    return own if isinstance(collector, HostCollector) else jax.jit(own, static_argnums=static)


def begin(collector, batch):
    """A start that depends on nothing but the collector."""
    # Not compiled as one: its operations are the same ones for every law.
    return collector.begin(jnp.asarray(np.zeros(batch, np.float32)), batch, KEY)


def collect(collector, *arguments):
    return method(collector, "collect")(*arguments)


def each_for_itself(collector, act, params, state, keys):
    """As many steps as there are keys, one at a time."""
    lives = []
    for key in keys:
        state, made = collect(collector, act, params, state, key, 1)
        lives.append(made)
    return state, jax.tree.map(lambda *x: np.concatenate(x), *lives)


def numbers_of(law):
    """Those of a law; programs are told them, so that one does for all laws of a kind."""
    return {name: np.int32(number) for name, number in vars(law).items()}


def alike(law):
    return type(law)(*(1 for _ in vars(law)))


COPIES = {"device": 5, "host": 10}
"""A device compiles more for many copies, the host takes longer for many steps."""
EPISODES = 160
"""Of all copies together; each has several."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _lived(law, act, numbers, params, begun, key):
    copies = COPIES["device"]
    steps = EPISODES // copies * SPEC.horizon
    return collector("device", given(law, **numbers)).collect(act, params, begun, key, steps)[1]


def lived(kind, law, act=still, params=0.0, key=KEY):
    """Transitions from a start that depends on nothing but the kind."""
    of, copies, params = collector(kind, law), COPIES[kind], np.float32(params)
    begun = begin(of, copies)
    if kind == "device":
        return _lived(alike(law), act, numbers_of(law), params, begun, key)
    return of.collect(act, params, begun, key, EPISODES // copies * SPEC.horizon)[1]


def by_episode(steps):
    """[episodes, steps, copies]."""
    return np.asarray(steps).reshape(-1, SPEC.horizon, steps.shape[1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _played(law, watch, numbers, tasks, key):
    of = collector("device", given(law, **numbers), watch=watch)
    return of.episodes(still, jnp.float32(0), jnp.zeros(len(tasks.number)), tasks, key).episodes


def played(kind, law, *tasks, key=KEY, watch=True):
    tasks = Episode(np.array(tasks, np.int32))
    if kind == "device":
        return _played(alike(law), watch, numbers_of(law), tasks, key)
    memory = np.zeros(len(tasks.number), np.float32)
    return collector(kind, law, watch=watch).episodes(still, np.float32(0), memory, tasks, key).episodes


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype


# --- when, and to what


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("law", "pattern"),
    [
        (Every(3), [0, 0, 0, 1, 1, 1, 2, 2, 2]),
        (Every(1), [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (Every(4), [0, 0, 0, 0, 1, 1, 1, 1, 2]),
        (Every(8), [0, 0, 0, 0, 0, 0, 0, 0, 1]),
        (Every(9), [0] * 9),
        (Jitter(2, 2), [0, 0, 1, 1, 2, 2, 3, 3, 4]),
        (Never(), [0] * 9),
    ],
    ids=str,
)
def test_tasks_change_exactly_when_the_law_says_so(kind, law, pattern):
    """What a step pays tells which task it was a step of; an episode begins with the task that it is given."""
    episodes = played(kind, law, 7, 8, 9)
    before, after = (np.asarray(seen.hidden.switches) for seen in episodes.hidden)
    for b, first in enumerate((7, 8, 9)):
        np.testing.assert_array_equal(before[:, b], pattern)
        np.testing.assert_array_equal(after[:-1, b], pattern[1:])
        paid = np.asarray(episodes.reward)[:, b]
        numbers = [paid[pattern.index(number)] for number in range(max(pattern) + 1)]
        assert numbers[0] == first
        assert len(set(numbers)) == len(numbers)
        np.testing.assert_array_equal(paid, [numbers[number] for number in pattern])


@pytest.mark.parametrize("kind", KINDS)
def test_who_watches_is_told_the_task_in_force_and_what_the_environment_hides(kind):
    """Before a step, the task that it will be a step of; after it, that of the next."""
    episodes = jax.tree.map(np.asarray, played(kind, Every(3), 7, 8, 9))
    before, after = (seen.hidden for seen in episodes.hidden)
    np.testing.assert_array_equal(before.task.number, episodes.reward.astype(int))
    np.testing.assert_array_equal(after.task.number[:-1], before.task.number[1:])
    times = np.tile(np.arange(9)[:, None], 3)
    np.testing.assert_array_equal(before.hidden, -times)
    np.testing.assert_array_equal(after.hidden, -times - 1)
    for seen in episodes.hidden:
        np.testing.assert_array_equal(seen.state.course.task.number, seen.hidden.task.number)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_tasks_shows(kind):
    """Agents get no hidden part (`still` looks), what is observed is the same, and nothing stays where none watches."""
    observed = np.asarray(played(kind, Every(3), 7, 8, 9).obs)
    np.testing.assert_array_equal(observed[..., 0], np.tile(np.arange(9)[:, None], 3))
    unwatched = functools.partial(played, kind, Every(3), 7, 8, 9, watch=False)
    assert (jax.eval_shape(unwatched) if kind == "device" else unwatched()).hidden == ()


def test_stays_between_two_bounds_are_equally_likely():
    stays = jax.jit(lambda key: jax.vmap(Jitter(160, 240).stay)(jax.random.split(key, 20_000)))
    stays = np.asarray(stays(KEY))
    assert (stays.min(), stays.max()) == (160, 240)
    assert len(np.unique(stays)) == 81
    error = ((81**2 - 1) / 12 / 20_000) ** 0.5
    assert stays.mean() == pytest.approx(200, abs=4 * error)
    assert stays.var() == pytest.approx((81**2 - 1) / 12, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_changes_come_after_stays_of_the_law(kind):
    """The first ones, too, and each copy has its own; the last one of an episode is cut."""
    stays, patterns = [], set()
    switches = by_episode(lived(kind, Jitter(2, 4)).hidden[0].hidden.switches)
    for episode in switches.transpose(0, 2, 1).reshape(-1, 9):
        counts = np.unique(episode, return_counts=True)[1]
        stays += [counts[:2]]
        assert counts[-1] <= 4
        patterns.add(tuple(episode))
    assert set(np.ravel(stays).tolist()) == {2, 3, 4}
    assert len(patterns) > 15
    for number in (0, 1):
        assert np.mean(stays, axis=0)[number] == pytest.approx(3, abs=4 * (2 / 3 / 160) ** 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_episodes_have_sequences_of_their_own(kind):
    episodes = played(kind, Every(3), 7, 7, 7)
    paid = np.asarray(episodes.reward)
    assert set(paid[0]) == {7}
    assert len({tuple(row) for row in paid.T}) == 3
    words = np.asarray(episodes.hidden[0].state.course.words)
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(words, np.tile(words[:1], (9, 1, 1)))
    assert len(np.unique(words[0])) == 6
    again = played(kind, Every(3), 7, 7, 7, key=jax.random.key(1))
    assert not np.isin(np.asarray(again.reward)[3:], paid).any()
    made = lived(kind, Jitter(2, 4))
    paid, switches = (by_episode(x)[:4, :, :2] for x in (made.reward, made.hidden[0].hidden.switches))
    assert len(np.unique(paid)) == (switches.max(axis=1) + 1).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_begins_every_episode_with_its_task_and_words_anew(kind):
    tasks, memory = Episode(jnp.asarray(np.int32([7, 8]))), jnp.asarray(np.zeros(2, np.float32))
    lives = trials.live(collector(kind, Every(3)), still, np.float32(0), memory, tasks, 3, KEY)
    paid = np.asarray(lives.episodes.reward)
    np.testing.assert_array_equal(paid[:3], np.broadcast_to(np.array([7, 8])[None, :, None], (3, 2, 3)))
    assert len(np.unique(paid[3:])) == 2 * 2 * 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_sequence_does_not_depend_on_what_the_agent_does(kind):
    """Nor on the keys of the steps, which what an agent does may use up."""
    one = lived(kind, Jitter(2, 4), params=0.5)
    for act, params, key in ((still, -1.0, KEY), (noisy, 0.0, KEY), (noisy, 0.0, jax.random.key(1))):
        other = lived(kind, Jitter(2, 4), act=act, params=params, key=key)
        assert not np.array_equal(other.action, one.action)
        # What the next episode begins with is drawn with those keys.
        same(*(jax.tree.map(lambda x: x[: SPEC.horizon], made.hidden[0]) for made in (one, other)))


# --- never


def test_never_is_the_environment_bit_for_bit_on_a_device():
    """One that draws at the reset and at steps; over several episodes."""
    plain = DeviceCollector(PointDirection(horizon=7, switch=2), TASKS)
    _is_plain(plain, switched(plain.env, Changes(TASKS, Never())))


def test_never_is_the_environment_bit_for_bit_on_the_host():
    plain = HostCollector(HostRobot(ROBOTS["inverted-pendulum"]), TASKS)
    _is_plain(plain, switched(plain.env, Changes(TASKS, Never())))


def _is_plain(plain, env):
    results = []
    for of in (plain, replace(plain, env=env)):
        begun = begin(of, 5)
        results.append((begun, *collect(of, noisy, (), begun, jax.random.key(1), 40)))
    (_, end, made), (begun, switched_end, switched_made) = results
    assert np.asarray(made.last).sum() > 3
    same(made, switched_made)
    strip = lambda state: state._replace(env=state.env.env, timestep=state.timestep._replace(hidden=()))  # noqa: E731
    same(results[0][0], strip(begun))
    same(end, strip(switched_end))
    assert not np.any(switched_end.env.course.switches)


# --- going on


def saved(collected):
    """What comes back of a state from a file, which holds nothing but arrays."""
    leaves, structure = jax.tree.flatten(collected)
    file = io.BytesIO()
    np.savez(file, *map(np.asarray, leaves))
    file.seek(0)
    with np.load(file) as read:
        return jax.tree.unflatten(structure, [read[f"arr_{i}"] for i in range(len(leaves))])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", range(1, 9))
def test_an_episode_goes_on_from_any_stop(kind, stop):
    """Changes come after 3 and 6 steps, so some stops are before, at and after one; the keys after it do not matter."""
    of, params, keys = collector(kind, Every(3)), np.float32(1), [jax.random.key(i) for i in range(SPEC.horizon)]
    begun = begin(of, 2)
    _, whole = collect(of, still, params, begun, KEY, SPEC.horizon)
    half, first = each_for_itself(of, still, params, begun, keys[:stop])
    _, second = each_for_itself(of, still, params, saved(half), keys[stop:])
    same(whole, jax.tree.map(lambda *x: np.concatenate(x), first, second))
    assert set(np.asarray(half.env.course.switches).tolist()) == {stop // 3}
    assert set(np.asarray(half.env.course.left).tolist()) == {3 - stop % 3}


@pytest.mark.parametrize("kind", KINDS)
def test_a_life_of_many_episodes_goes_on_from_every_stop(kind):
    """Those of five copies end at different times; each copy's clock is its own episode's, whatever the others do."""
    law, results = Jitter(2, 3), []
    for keep in (lambda state: state, saved):
        state, lives = begin(collector(kind, law, ending=True), 5), []
        for time in range(40):
            of = collector(kind, law, ending=True)
            state, made = collect(of, noisy, (), keep(state), jax.random.fold_in(KEY, time), 1)
            lives.append(made)
        results.append((state, jax.tree.map(lambda *x: np.concatenate(x), *lives)))
    same(*results)
    made = results[0][1]
    assert len(np.unique(made.last.sum(axis=1))) > 2
    times, switches = made.obs[..., 0], made.hidden[0].hidden.switches
    assert (switches >= times // 3).all()
    assert (switches <= times // 2).all()
    going = ~made.last[:-1]
    np.testing.assert_array_equal(made.hidden[1].hidden.switches[:-1][going], switches[1:][going])


# --- the families


def test_the_rod_that_swings_is_the_one_in_force():
    """And reward and end are known as before."""
    family = make("pendulum-rods-switching")
    of = DeviceCollector(family.env, family.train, watch=True)
    made = collect(of, noisy, (), begin(of, 2), KEY, 200)[1]
    before, after = made.hidden
    np.testing.assert_array_equal(before.hidden.switches, np.tile(np.repeat(np.arange(4), 50)[:, None], 2))
    assert len(np.unique(before.hidden.task.mass)) == len(np.unique(before.hidden.task.length)) == 8
    step = jax.vmap(jax.vmap(RodPendulum().step, (0, 0, 0, None)), (0, 0, 0, None))
    state, timestep = jax.jit(step)(before.hidden.task, before.state.env, made.action, KEY)
    for one, other in (
        (state.physics, after.state.env.physics), (timestep.obs, made.next_obs), (timestep.reward, made.reward)
    ):  # fmt: skip
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    pays = jax.jit(jax.vmap(jax.vmap(functools.partial(family.env.reward, None))))
    np.testing.assert_allclose(pays(made.obs, made.action, made.next_obs), made.reward, rtol=1e-4, atol=1e-4)
    assert not family.env.terminated(None, jnp.asarray(np.asarray(made.next_obs)[0, 0]))


def test_the_cheetah_is_paid_for_the_direction_in_force_and_goes_on_from_any_stop():
    """With a law that leaves no time to wait; the family's own comes to its first change in 160 to 240 steps."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (8, 3, 6)).astype(np.float32)
    seeds, everywhere = rng.integers(2**32, size=(3, 3), dtype=np.uint32), np.ones(3, bool)
    tasks = jax.jit(lambda key: jax.vmap(Headings().sample)(jax.random.split(key, 3)))(KEY)
    tasks = jax.tree.map(np.asarray, tasks)

    def play(stop):
        env = _cheetah()
        state, timestep = env.reset(tasks, seeds, None, everywhere)
        states, timesteps = [state], [timestep]
        for time, action in enumerate(actions):
            if time == stop:
                env, state = _cheetah(), saved(state)
            state, timestep = env.step(tasks, state, action)
            states.append(state)
            timesteps.append(timestep)
        return states, timesteps

    states, timesteps = whole = play(None)
    for stop in range(1, 8):
        same(whole, play(stop))
    assert len({state.course.task.sign.tobytes() for state in states}) > 3
    plain = HostRobot(ERRANDS["half-cheetah-direction"])
    for state, action, timestep, after in zip(states, actions, timesteps, timesteps[1:], strict=False):
        same(plain.step(timestep.hidden.task, state.env, action)[1], after._replace(hidden=()))


def _cheetah():
    return switched(HostRobot(ERRANDS["half-cheetah-direction"]), Changes(Headings(), Jitter(1, 2)))


def test_the_family_of_the_cheetah():
    env = make("half-cheetah-direction-switching").env
    assert env.changes == Changes(Headings(), Jitter(160, 240))
    assert env.spec.horizon == 1000
    seeds = np.arange(4, dtype=np.uint32)[:, None]
    state, _ = env.reset(jax.tree.map(np.asarray, Headings(2).enumerate()), seeds, None, np.ones(4, bool))
    assert ((state.course.left >= 160) & (state.course.left <= 240)).all()
    assert len(set(state.course.left.tolist())) > 1


CASES = {
    "known, pure": (Pendulum(), True, True),
    "not known, pure": (PointDirection(), False, False),
    "problems, pure": (COURSE_CITY, False, False),
    "known, host": (KnownRobot(ROBOTS["hopper"]), True, True),
    "end known, host": (HostRobot(ROBOTS["hopper"]), False, True),
    "not known, host": (HostTeller(), False, False),
}


@pytest.mark.parametrize("case", CASES)
def test_only_what_observations_tell_is_still_known(case):
    plain, known, ends = CASES[case]
    env = switched(plain, Changes(TASKS, Every(3)))
    assert isinstance(env, HostEnv) == isinstance(plain, HostEnv)
    assert isinstance(env, Env)
    assert isinstance(env, Known) == isinstance(plain, Known) == known
    assert hasattr(env, "terminated") == ends
    assert not isinstance(env, Observed)
    assert not isinstance(env, Problems)
    assert env.spec == plain.spec
    assert env == switched(plain, Changes(TASKS, Every(3)))
    assert env != switched(plain, Changes(TASKS, Every(4)))


def test_the_hopper_falls_and_is_paid_as_before():
    plain = CASES["known, host"][0]
    action = jnp.asarray(np.full(3, 0.5, np.float32))

    def of(env):
        return jax.jit(lambda obs: (env.terminated(None, obs), env.reward(None, obs, action, obs)))

    one, other = of(switched(plain, Changes(TASKS, Every(3)))), of(plain)
    for height in (0.65, 1.25):
        obs = np.zeros(11, np.float32)
        obs[[0, 5]] = height, 2.0
        (ended, paid), expected = (tuple(each.item() for each in told(obs)) for told in (one, other))
        assert (ended, paid) == expected
        assert ended == (height < 0.7)


def test_pictures_show_the_task_in_force():
    family, rods = make("pendulum-rods-switching"), RodPendulum()
    state, _ = family.env.reset(RODS.sample(KEY), KEY)
    task = RODS.sample(jax.random.key(1))
    other = state._replace(course=state.course._replace(task=task))
    camera, plain = films.camera(family.env, "rods"), films.camera(rods, "rods")
    assert camera.period == plain.period
    given = state.course.task
    shown = [camera.draw(given, each, None, 120) for each in (state, other)]
    same(shown[0], plain.draw(given, state.env, None, 120))
    same(shown[1], plain.draw(task, state.env, None, 120))
    assert (shown[0] != shown[1]).any()


# --- as Gymnasium's


@pytest.mark.parametrize("name", ["pendulum-rods-switching", "half-cheetah-direction-switching"])
def test_gymnasium_has_them_and_is_told_nothing(name):
    env = TaskEnv(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*A Box observation space m.* value is -?infinity")
        check_env(env, skip_render_check=True)
    plain = TaskEnv(name.removesuffix("-switching"))
    assert env.observation_space == plain.observation_space
    assert env.action_space == plain.action_space

    def play():
        seen = [env.reset(seed=3)[0]]
        for _ in range(240):
            obs, reward, *_, info = env.step(np.full(env.action_space.shape, 0.3, np.float32))
            assert info == {}
            seen.append(np.append(obs, reward))
        return np.concatenate(seen), int(np.squeeze(env._state.course.switches))

    (one, switches), (other, _) = play(), play()
    same(one, other)
    assert switches == (4 if "rods" in name else 1)


# --- what is refused


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Every(0), r"Every.period = 0 is out of range; it must lie in \[1, 1000000000\]"),
        (lambda: Every(-5), r"Every.period = -5 is out of range; it must lie in \[1, 1000000000\]"),
        (lambda: Every(10**10), r"Every.period = 10000000000 is out of range; it must lie in \[1, 1000000000\]"),
        (lambda: Every(2.5), r"Every.period = 2.5 is a float; it must be an int in \[1, 1000000000\]"),
        (lambda: Every(True), r"Every.period = True is a bool; it must be an int in \[1, 1000000000\]"),
        (lambda: Jitter(0, 3), r"Jitter.low = 0 is out of range; it must lie in \[1, 1000000000\]"),
        (lambda: Jitter(5, 3), r"Jitter.high = 3 is out of range; it must lie in \[5, 1000000000\]"),
        (lambda: Jitter(5, 10**10), r"Jitter.high = 10000000000 is out of range; it must lie in \[1, 1000000000\]"),
        (lambda: Changes(TASKS, 50), r"Changes.law = 50 is an int; it must be an Every or a Jitter or a Never"),
        (lambda: Changes(TASKS, None), r"Changes.law = None is .*; it must be an Every or a Jitter or a Never"),
        (
            lambda: KnownSwitching(Pendulum(), Every(5)),
            r"KnownSwitching.changes = Every\(.*\) is .*; it must be a Changes",
        ),
    ],
)
def test_laws_that_could_not_be_kept_are_refused_in_one_line(make, told):
    with pytest.raises(UserError, match=f"^{told}$") as caught:
        make()
    assert "\n" not in str(caught.value)
