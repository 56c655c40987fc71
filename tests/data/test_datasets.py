"""Data sets: what is written comes back bit by bit, and what is no such data set is refused in one line."""

import functools
import json
import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import NamedTuple

import gymnasium
import h5py
import jax
import jax.numpy as jnp
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from metadyna import cli, envs
from metadyna.collect.device import DeviceCollector
from metadyna.collect.host import HostCollector
from metadyna.data import datasets
from metadyna.data.source import Gathering
from metadyna.envs.control import OneTask
from metadyna.errors import UserError
from metadyna.types import Box, Discrete, EnvSpec, Family, TimeStep, Transition
from tests.tiny import compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

SIDE = 8


class BoardState(NamedTuple):
    cell: jax.Array
    time: jax.Array


@dataclass(frozen=True)
class Board:
    """Walk on a board that is seen from above, up and down or around; the top row ends the episode, time truncates it.

    The task says in which column an episode starts.
    """

    horizon: int = 5

    @property
    def spec(self):
        return EnvSpec(Box((SIDE, SIDE), 0.0, 2.0, "uint8"), Discrete((4,)), self.horizon)

    def reset(self, task, key):
        state = BoardState(jnp.stack([jnp.int32(SIDE - 3), task.number]), jnp.int32(0))
        nothing = jnp.int32(-1)
        return state, TimeStep(
            self.observe(state), jnp.float32(0), jnp.float32(1), jnp.bool_(True), jnp.bool_(False), nothing
        )

    def step(self, task, state, action, key):
        moves = jnp.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
        row, column = state.cell + moves[action]
        state = BoardState(jnp.stack([jnp.maximum(row, 0), column % SIDE]), state.time + 1)
        ended = state.cell[0] == SIDE - 1
        last, discount = ended | (state.time >= self.horizon), 1 - ended.astype(jnp.float32)
        reward = jnp.where(ended, 1.0, -0.1)
        return state, TimeStep(self.observe(state), reward, discount, jnp.bool_(False), last, action)

    def observe(self, state):
        return jnp.zeros((SIDE, SIDE), jnp.uint8).at[state.cell[0], state.cell[1]].set(2)


TASKS = OneTask(SIDE)
NAME = "test/board-random-v0"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty folder for data sets, and the board among the tasks."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    monkeypatch.setitem(envs.TASKS, "board", lambda: Family("board", Board(), TASKS, TASKS, references=dict))
    return tmp_path / "sets"


@functools.cache
def sampler(task, steps, time_limit):
    """Compiling takes most of the time, so tests share few of these."""
    family = envs.make(task)
    return jax.jit(lambda key: datasets.random_transitions(family.env, family.train, steps, key, time_limit))


def collected(task="board", steps=60, time_limit=7, seed=0):
    return jax.device_get(sampler(task, steps, time_limit)(jax.random.key(seed)))


def endless(task="board"):
    return collected(task, 4000, None)


def first(steps, task="board"):
    return jax.tree.map(lambda x: x[:steps], collected(task))


def spec(task="board"):
    return envs.make(task).env.spec


def as_read(transitions):
    """The unfinished last episode is truncated."""
    last = transitions.last.copy()
    last[-1] = True
    return transitions._replace(last=last)


def assert_same(found, wanted):
    for name, a, b in zip(Transition._fields, found, wanted, strict=True):
        if name not in ("extras", "hidden"):
            assert isinstance(a, np.ndarray)
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            assert a.tobytes() == b.tobytes(), name


def refused(function, *arguments, **options):
    """The one line with which something is refused."""
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- collecting


def test_without_a_limit_only_the_end_of_the_mdp_ends_an_episode():
    steps = endless()
    assert steps.obs.shape == steps.next_obs.shape == (4000, SIDE, SIDE)
    assert steps.obs.dtype == np.uint8
    assert (steps.action.shape, steps.action.dtype) == ((4000,), np.int32)
    np.testing.assert_array_equal(steps.last, steps.discount == 0)
    np.testing.assert_array_equal(steps.last, steps.next_obs[:, -1].any(axis=1))
    assert np.diff(np.flatnonzero(steps.last)).max() > Board().horizon
    assert not endless("pendulum").last.any()


def test_a_limit_truncates_and_successors_are_true():
    steps = collected("pendulum")
    np.testing.assert_array_equal(np.flatnonzero(steps.last), np.arange(6, 60, 7))
    np.testing.assert_array_equal(steps.discount, np.ones(60, np.float32))
    follows = (steps.obs[1:] == steps.next_obs[:-1]).all(axis=1)
    np.testing.assert_array_equal(follows, ~steps.last[:-1])


def test_every_episode_has_a_task_of_its_own():
    steps = endless()
    starts = steps.obs[1:][steps.last[:-1]]
    np.testing.assert_array_equal(np.unique(np.nonzero(starts)[2]), np.arange(SIDE))


def test_actions_are_uniform():
    actions = endless().action
    counts = np.bincount(actions, minlength=4)
    assert np.sum((counts - 1000) ** 2 / 1000) < 16.3  # 0.1% point of 3 degrees
    pairs = np.bincount(4 * actions[:-1] + actions[1:], minlength=16)
    assert np.sum((pairs - 250) ** 2 / 250) < 37.7  # of 15 degrees: each step draws anew
    torque = endless("pendulum").action
    assert (torque.shape, torque.dtype) == ((4000, 1), np.float32)
    counts = np.histogram(torque, bins=20, range=(-1, 1))[0]
    assert counts.sum() == 4000
    assert np.sum((counts - 200) ** 2 / 200) < 43.8  # of 19 degrees


def test_the_key_decides():
    assert_same(collected(seed=3), collected(seed=3))
    assert (collected(seed=3).action != collected(seed=4).action).any()


def test_an_environment_without_a_horizon_is_taken_as_it_is():
    @dataclass(frozen=True)
    class Endless:
        board: Board = Board()
        spec = property(lambda self: self.board.spec)

        def reset(self, task, key):
            return self.board.reset(task, key)

        def step(self, task, state, action, key):
            return self.board.step(task, state, action, key)

    steps = datasets.random_transitions(Endless(), TASKS, 20, jax.random.key(0))
    assert np.diff(np.flatnonzero(steps.last)).max() == 5
    told = refused(datasets.random_transitions, Endless(), TASKS, 20, jax.random.key(0), 7)
    assert told == "Endless has no horizon that a time limit could replace; leave time_limit out"


@pytest.mark.parametrize(
    ("env", "steps", "limit", "told"),
    [
        (Board(), 0, None, "steps is 0; it must lie in [1, 2000000000]"),
        (Board(), 5, 0, "time_limit is 0; it must lie in [1, 2000000000]"),
        (Board(), 5, 2**31, "time_limit is 2147483648; it must lie in [1, 2000000000]"),
        (Box((1,)), 5, None, None),
    ],
)
def test_impossible_collections_are_refused(env, steps, limit, told):
    if isinstance(env, Box):  # an action space
        env = type("Wide", (Board,), {"spec": property(lambda self, space=env: replace(Board().spec, action=space))})()
        told = f"random actions need one discrete action or a bounded box of floats; the environment has {Box((1,))}"
    assert refused(datasets.random_transitions, env, TASKS, steps, jax.random.key(0), limit) == told


def test_several_discrete_actions_and_hosts_are_refused():
    spec = replace(Board().spec, action=Discrete((2, 2)))
    env = type("Two", (Board,), {"spec": spec})()
    assert "need one discrete action" in refused(datasets.random_transitions, env, TASKS, 5, jax.random.key(0))
    robot = envs.make("inverted-pendulum").env
    told = refused(datasets.random_transitions, robot, TASKS, 5, jax.random.key(0))
    assert told == "KnownRobot is no pure environment; random actions need a frozen dataclass"


# --- writing and reading


@pytest.mark.parametrize("task", ["board", "city-5x5", "pendulum"])
def test_a_data_set_comes_back_bit_by_bit(task):
    steps = collected(task)
    datasets.write(NAME, task, steps, seed=0, time_limit=7)
    assert_same(datasets.read(NAME, spec(task)), as_read(steps))
    about = datasets.describe(NAME)
    assert about["episodes"] == as_read(steps).last.sum()
    assert about["transitions"] == 60
    assert about["mean_reward"] == pytest.approx(steps.reward.mean(), abs=1e-5)
    assert about["mean_return"] == pytest.approx(steps.reward.sum() / about["episodes"], abs=1e-5)
    assert about["algorithm"] == "uniformly random actions"


def test_minari_understands_what_was_written(root):
    steps = collected("city-5x5")
    datasets.write("metadyna/city-v3", "city-5x5", steps, seed=5, time_limit=7)
    assert sorted(path.name for path in root.iterdir()) == ["metadyna"]
    assert minari.list_local_datasets().keys() == {"metadyna/city-v3"}
    dataset = minari.load_dataset("metadyna/city-v3")
    env = dataset.recover_environment()
    assert dataset.env_spec.id == "metadyna/city-5x5-v0"
    assert (env.observation_space, env.action_space) == (dataset.observation_space, dataset.action_space)
    record = dataset.storage.metadata
    assert (record["task"], record["seed"], record["time_limit"]) == ("city-5x5", 5, 7)
    assert record["description"].startswith(
        "60 transitions of uniformly random actions on the training tasks of city-5x5, time limit 7, seed 5; "
        "made by MetaDyna 0.1.0, commit "
    )
    ends = [*(np.flatnonzero(steps.last) + 1), 60]
    assert dataset.total_episodes == len(np.unique(ends))
    start = 0
    for episode in dataset.iterate_episodes():
        end = start + len(episode)
        assert end in ends
        assert len(episode.observations) == len(episode) + 1
        assert all(each in dataset.observation_space for each in episode.observations)
        assert all(each in dataset.action_space for each in episode.actions)
        assert not (episode.terminations | episode.truncations)[:-1].any()
        assert episode.terminations[-1] == (steps.discount[end - 1] == 0)
        assert episode.truncations[-1] != episode.terminations[-1]
        start = end


@pytest.mark.parametrize("finished", [True, False])
def test_episodes_end_where_they_end(finished):
    steps = first(14 if finished else 10, "pendulum")
    datasets.write(NAME, "pendulum", steps, seed=0, time_limit=None)
    assert [len(each) for each in minari.load_dataset(NAME)] == ([7, 7] if finished else [7, 3])
    assert minari.load_dataset(NAME)[1].truncations[-1]
    assert datasets.read(NAME, spec("pendulum")).last.tolist().count(True) == 2
    assert datasets.read(NAME, spec("pendulum")).discount.all()


def test_large_boards_are_not_compressed_with_losses(monkeypatch):
    """Minari takes boxes like this one for photographs."""
    picture = EnvSpec(Box((32, 32), 0.0, 255.0, "uint8"), Discrete((2,)), 5)
    env = type("Photographs", (Board,), {"spec": picture})()
    monkeypatch.setitem(envs.TASKS, "photographs", lambda: Family("photographs", env, TASKS, TASKS, references=dict))
    shots = np.random.default_rng(0).integers(0, 256, (11, 32, 32), np.uint8)
    ones, none = np.ones(10, np.float32), np.zeros(10, bool)
    steps = Transition(shots[:-1], np.zeros(10, np.int32), ones, ones, shots[1:], none)
    datasets.write(NAME, "photographs", steps, seed=0, time_limit=None)
    assert_same(datasets.read(NAME, picture), as_read(steps))


@pytest.mark.filterwarnings("ignore")  # Minari's, about missing authors and its own temporary folders
@pytest.mark.parametrize("task", ["pendulum", "city-5x5"])
def test_a_set_from_the_users_own_policy_can_be_read(task):
    env = minari.DataCollector(gymnasium.make(f"metadyna/{task}-v0"))
    seen, rewards = [], []
    for seed in range(2):
        obs, _ = env.reset(seed=seed)
        for _ in range(6):
            action = env.action_space.sample()
            after, reward, terminated, truncated, _ = env.step(action)
            seen.append((obs, action, after, terminated))
            rewards.append(reward)
            obs = after
            if terminated or truncated:
                break
    env.create_dataset("me/own-v1")
    steps = datasets.read("me/own-v1", spec(task))
    for found, wanted in zip((steps.obs, steps.action, steps.next_obs), zip(*seen, strict=True), strict=False):
        np.testing.assert_array_equal(found, np.stack(wanted))
    np.testing.assert_array_equal(steps.reward, np.float32(rewards))
    np.testing.assert_array_equal(steps.discount == 0, [terminated for *_, terminated in seen])
    assert steps.last.sum() == 2
    assert steps.last[-1]
    assert steps.obs.dtype == steps.action.dtype == (np.float32 if task == "pendulum" else np.int32)
    assert datasets.describe("me/own-v1")["description"] is None
    env.close()


def test_what_few_need_is_loaded_only_where_it_is_needed():
    program = (
        "import sys; import metadyna.cli, metadyna.data; "
        "few = 'minari', 'h5py', 'scipy.stats', 'metadyna.envs.registration'; "
        "print([name for name in few if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- refusing to write


def test_an_existing_data_set_is_never_overwritten(root):
    datasets.write(NAME, "board", collected(), seed=0, time_limit=7)
    file = root / NAME / "data" / "main_data.hdf5"
    before = file.read_bytes()
    told = refused(datasets.write, NAME, "board", collected(seed=1), seed=1, time_limit=7)
    assert told == f"there is a data set {NAME} already, in {root / NAME}; choose another name or delete it"
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["board", "test/board", "test/board-v", "../board-v0", "/board-v0", "a b-v0", ""])
def test_names_are_minaris(name):
    for function, arguments in ((datasets.write, ("board", collected())), (datasets.read, (spec(),))):
        options = {"seed": 0, "time_limit": None} if function is datasets.write else {}
        told = refused(function, name, *arguments, **options)
        assert told == f"'{name}' is no id of a data set; it should look like metadyna/pendulum-random-v0"


def spoil(field, where, value):
    """The transitions of a pendulum or a board with one value changed."""

    def change(steps):
        array = getattr(steps, field).copy()
        array[where] = value
        return steps._replace(**{field: array})

    return change


@pytest.mark.parametrize(
    ("task", "change", "told"),
    [
        ("pendulum", lambda s: s._replace(obs=s.obs[::-1]), "transition 1 does not begin where 0 ended"),
        ("pendulum", lambda s: jax.tree.map(lambda x: x[::2], s), "transition 1 does not begin where 0 ended"),
        ("pendulum", spoil("last", 3, False), None),  # still consecutive
        ("pendulum", spoil("last", 6, False), "transition 7 does not begin where 6 ended"),
        ("pendulum", spoil("discount", 3, 0.0), "transition 3: discount 0.0 and last False do not go together"),
        ("pendulum", spoil("discount", 6, 0.5), "transition 6: discount 0.5 and last True do not go together"),
        ("pendulum", spoil("reward", 3, np.nan), "the transitions: rewards are not all finite"),
        ("pendulum", spoil("action", 3, 1.5), "the transitions: actions are not all in Box(shape=(1,), low=-1.0"),
        ("pendulum", lambda s: s._replace(action=s.action[:-1]), "actions are float32[59, 1] instead of"),
        ("board", spoil("action", 3, 4), "the transitions: actions are not all in Discrete(sizes=(4,))"),
        ("board", spoil("obs", 3, 3), "the transitions: observations are not all in Box(shape=(8, 8), low=0.0"),
        ("board", lambda s: collected("pendulum"), "observations are float32[60, 3] instead of uint8[60, 8, 8]"),
    ],
)
def test_transitions_that_are_none_are_not_written(task, change, told, root):
    steps = change(collected(task))
    if told is None:
        datasets.write(NAME, task, steps, seed=0, time_limit=None)
    else:
        assert told in refused(datasets.write, NAME, task, steps, seed=0, time_limit=None)
        assert list(root.rglob("*")) == []


@pytest.mark.parametrize("size", [0, 1000, 10_000])
def test_a_full_disk_leaves_nothing_behind(size, root):
    """No file may grow beyond `size`; the metadata have more than 1 kB, the steps more than 10."""
    steps, limit = collected("pendulum"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        told = refused(datasets.write, NAME, "pendulum", steps, seed=0, time_limit=7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert told.startswith(f"cannot write {root / NAME}: File too large; free some space or name another folder in")
    assert list(root.rglob("*")) == []
    datasets.write(NAME, "pendulum", steps, seed=0, time_limit=7)


def test_an_unusable_folder_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file"))
    for function, *arguments in (
        (datasets.read, NAME, spec()),
        (datasets.describe, NAME),
        (datasets.collect, "board", None, 5),
    ):
        told = refused(function, *arguments)
        assert told.startswith(
            f"cannot keep data sets in '{tmp_path}/file': File exists; name another folder in MINARI"
        )


# --- refusing to read


@pytest.mark.parametrize("package", ["minari", "h5py"])
def test_minari_is_an_extra(package, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    for function, *arguments in ((datasets.read, NAME, spec()), (datasets.describe, NAME), (datasets.collect, "board")):
        told = refused(function, *arguments)
        assert told == 'data sets need Minari; install it with: pip install "metadyna[data]"'


def test_an_unknown_id_is_told_what_there_is(root):
    told = refused(datasets.read, "test/borad-random-v0", spec())
    assert told == (
        f"no data set 'test/borad-random-v0' in {root}; there is none yet; `metadyna collect TASK` makes one"
    )
    datasets.write(NAME, "board", collected(), seed=0, time_limit=7)
    told = f"no data set 'test/borad-random-v0' in {root}; there are: {NAME}"
    assert refused(datasets.read, "test/borad-random-v0", spec()) == told
    assert refused(datasets.describe, "test/borad-random-v0") == told
    for number in range(6):
        (root / f"far/away{number}-v0" / "data").mkdir(parents=True)
        (root / f"far/away{number}-v0" / "data" / "metadata.json").touch()
    told = refused(datasets.read, "test/borad-random-v0", spec())
    assert f"there are: {NAME}, far/away" in told
    assert told.count("far/away") == 4
    assert told.endswith(" and 2 more")


def test_other_tasks_are_refused(root):
    datasets.write("test/pendulum-v0", "pendulum", collected("pendulum"), seed=0, time_limit=7)
    datasets.write("test/city-v0", "city-5x5", collected("city-5x5"), seed=0, time_limit=7)
    datasets.write(NAME, "board", collected(), seed=0, time_limit=7)
    observed, acted = spec().observation, spec().action

    def told(name, observation, action):
        return refused(datasets.read, name, EnvSpec(observation, action, 5))

    line = "the observations of test/pendulum-v0 are Box(-inf, inf, (3,), float32), but this task's are "
    assert told("test/pendulum-v0", Box((4,)), Box((1,), -1.0, 1.0)).startswith(line + "Box(shape=(4,), low=-inf")
    assert line in told("test/pendulum-v0", Box((3,), dtype="float64"), Box((1,), -1.0, 1.0))
    assert line in told("test/pendulum-v0", Discrete((3,)), Box((1,), -1.0, 1.0))
    line = "the actions of test/pendulum-v0 are Box(-1.0, 1.0, (1,), float32), but this task's are "
    assert line in told("test/pendulum-v0", Box((3,)), Box((1,), -2.0, 2.0))
    assert line in told("test/pendulum-v0", Box((3,)), Box((2,), -1.0, 1.0))
    assert line in told("test/pendulum-v0", Box((3,)), Discrete((2,)))
    city = spec("city-5x5")
    line = "the observations of test/city-v0 are MultiDiscrete([ 5 5 4 25]), but this task's are Discrete(sizes="
    assert line in told("test/city-v0", Discrete((5, 5, 4, 26)), city.action)
    assert line in told("test/city-v0", Discrete((5, 5, 4)), city.action)
    line = "the actions of test/city-v0 are Discrete(9), but this task's are Discrete(sizes=(8,)); choose another set"
    assert told("test/city-v0", city.observation, Discrete((8,))) == line
    assert "the observations of" in told(NAME, replace(observed, dtype="int8"), acted)
    line = f"{NAME}, episode 0: observations are not all in Box(shape=(8, 8), low=0.0, high=1.0, dtype='uint8')"
    assert told(NAME, replace(observed, high=1.0), acted) == line
    assert datasets.read(NAME, EnvSpec(replace(observed, high=3.0), acted, 5)).obs.max() == 2


def test_a_task_that_only_looks_alike_is_refused(root):
    datasets.collect("simple-maze", "test/rooms-v0", steps=30)
    datasets.collect("labyrinth-reachable", "test/mazes-v0", steps=30)
    labyrinth = envs.make("labyrinth").env
    line = "test/rooms-v0 was made of simple-maze (SimpleMaze), not of a Labyrinth; choose another set"
    assert refused(datasets.read, "test/rooms-v0", labyrinth.spec, labyrinth) == line
    rows = datasets.read("test/mazes-v0", labyrinth.spec, labyrinth)
    assert rows.reward.shape == (30,)
    assert len(datasets.read("test/rooms-v0", labyrinth.spec).reward) == 30  # who asks for nothing is told nothing
    gathering = Gathering(dataset="test/rooms-v0")
    assert refused(gathering.load, DeviceCollector(labyrinth, OneTask()), jax.random.key(0)) == line


def test_simulators_are_not_walked_at_random():
    family = envs.make("inverted-pendulum")
    told = refused(Gathering().load, HostCollector(family.env, family.train), jax.random.key(0))
    assert told == "random transitions are gathered from pure environments alone; name a data set to learn from"


def edit(path, field, change):
    """Replace one array of a data set's second episode."""
    with h5py.File(path, "a") as file:
        values = change(file["episode_1"][field][()])
        del file["episode_1"][field]
        if values is not None:
            file["episode_1"][field] = values


def with_value(where, value):
    def change(values):
        values = values.copy()
        values[where] = value
        return values

    return change


@pytest.mark.parametrize(
    ("field", "change", "told"),
    [
        ("rewards", with_value(3, np.nan), "NAME, episode 1: rewards are not all finite"),
        ("rewards", lambda x: np.full(len(x), 1e300), "NAME, episode 1: rewards are not all finite"),
        ("rewards", lambda x: x.astype("S3"), "NAME, episode 1: rewards are |S3[7] instead of float32[7]"),
        ("rewards", lambda x: x[:-1], "data set NAME holds 19 transitions and says 20"),
        ("rewards", lambda x: None, "data set NAME cannot be read: KeyError"),
        ("rewards", lambda x: np.float32(0), "data set NAME cannot be read: "),
        ("observations", with_value((3, 1), np.inf), "NAME, episode 1: observations are not all finite"),
        ("observations", lambda x: x[:-1], "NAME, episode 1: observations, actions, rewards and ends do not fit"),
        (
            "observations",
            lambda x: x[:, :2],
            "NAME, episode 1: observations are float32[7, 2] instead of float32[7, 3]",
        ),
        (
            "observations",
            lambda x: np.float32(0),
            "NAME, episode 1: observations, actions, rewards and ends do not fit",
        ),
        ("actions", lambda x: x[:-1], "NAME, episode 1: observations, actions, rewards and ends do not fit"),
        ("actions", lambda x: x[:, 0], "NAME, episode 1: actions are float32[7] instead of float32[7, 1]"),
        ("actions", lambda x: 3 * x, "NAME, episode 1: actions are not all in Box(shape=(1,), low=-1.0, high=1.0"),
        ("terminations", lambda x: x[1:], "NAME, episode 1: observations, actions, rewards and ends do not fit"),
        ("terminations", lambda x: x.astype(int), "NAME, episode 1: its ends are int64 and bool instead of bool"),
        ("terminations", with_value(2, True), "NAME, episode 1: it should be terminated or truncated at its last step"),
        (
            "truncations",
            with_value(-1, False),
            "NAME, episode 1: it should be terminated or truncated at its last step",
        ),
    ],
)
def test_impossible_episodes_are_refused(field, change, told, root):
    datasets.write(NAME, "pendulum", first(20, "pendulum"), seed=0, time_limit=7)
    edit(root / NAME / "data" / "main_data.hdf5", field, change)
    line = refused(datasets.read, NAME, spec("pendulum"))
    assert line.startswith(told.replace("NAME", NAME))
    if field == "rewards":
        assert NAME in refused(datasets.describe, NAME)


def test_a_missing_episode_is_noticed(root):
    datasets.write(NAME, "pendulum", first(20, "pendulum"), seed=0, time_limit=7)
    with h5py.File(root / NAME / "data" / "main_data.hdf5", "a") as file:
        del file["episode_2"]
    line = refused(datasets.read, NAME, spec("pendulum"))
    assert line.startswith(f"data set {NAME} cannot be read: KeyError: ")
    assert line.endswith(f"; if it is damaged, delete {root / NAME} and make it anew")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"total_episodes": 2}, "holds 14 transitions and says 20"),
        ({"total_steps": 21}, "holds 20 transitions and says 21"),
        ({"total_episodes": 0, "total_steps": 0}, "holds 0 transitions and says 0"),
        ({"minari_version": "9.9.9"}, "cannot be read: ValueError: The installed Minari version"),
        ({"data_format": "floppy"}, "cannot be read: KeyError: 'floppy'"),
        ({"observation_space": 5}, "cannot be read: AssertionError"),
        ({"metadyna_sha256": "0"}, "is not as it was written"),
    ],
)
def test_wrong_metadata_is_noticed(change, told, root):
    datasets.write(NAME, "pendulum", first(20, "pendulum"), seed=0, time_limit=7)
    path = root / NAME / "data" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert told in refused(datasets.read, NAME, spec("pendulum"))


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_a_torn_file_is_noticed(name, root):
    datasets.write(NAME, "board", first(20), seed=0, time_limit=7)
    path = root / NAME / "data" / name
    whole = path.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert f"data set {NAME} cannot be read: " in refused(datasets.read, NAME, spec())
    path.unlink()
    assert NAME in refused(datasets.read, NAME, spec())


def test_flipped_bits_change_nothing_or_are_noticed(root):
    """Anything else would learn from wrong data, or end with a traceback."""
    datasets.write(NAME, "board", first(20), seed=0, time_limit=7)
    right, generator = datasets.read(NAME, spec()), np.random.default_rng(0)
    noticed = 0
    for name in ("main_data.hdf5", "metadata.json"):
        path = root / NAME / "data" / name
        whole = path.read_bytes()
        for bit in generator.integers(8 * len(whole), size=100):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(bytes(flipped))
            try:
                found = datasets.read(NAME, spec())
            except UserError:
                noticed += 1
            else:
                assert_same(found, right)
        path.write_bytes(whole)
    assert 50 < noticed < 180  # much of a file is spare


def test_one_flipped_bit_that_is_possible_is_noticed(root):
    datasets.write(NAME, "pendulum", first(20, "pendulum"), seed=0, time_limit=7)
    edit(root / NAME / "data" / "main_data.hdf5", "rewards", with_value(3, -0.25))
    assert refused(datasets.read, NAME, spec("pendulum")) == (
        f"{NAME} is not as it was written: it was damaged or changed since; delete {root / NAME} and make it anew"
    )


def test_episodes_that_minari_added_are_noticed(root):
    datasets.write(NAME, "pendulum", first(20, "pendulum"), seed=0, time_limit=7)
    more = EpisodeBuffer(
        observations=np.zeros((2, 3), np.float32),
        actions=np.zeros((1, 1), np.float32),
        rewards=[0.0],
        terminations=[False],
        truncations=[True],
    )
    minari.load_dataset(NAME).update_dataset_from_buffer([more])
    assert len(minari.load_dataset(NAME)) == 4
    assert "it was damaged or changed since" in refused(datasets.read, NAME, spec("pendulum"))


# --- the command line


def test_collect_from_the_command_line(root, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["collect", "board", "--steps", "60", "--seed", "3", "--time_limit", "7"])
    printed, complained = capsys.readouterr()
    assert (stop.value.code, complained) == (0, "")
    steps = as_read(collected(seed=3))
    count, mean = steps.last.sum(), f"{steps.reward.mean():.4g}"
    name = "metadyna/board-random-v0"
    assert printed == f"{name}: 60 transitions, {count} episodes, mean reward per step {mean}\n{root / name}\n"
    assert_same(datasets.read(name, spec()), steps)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("collect", "metadyna collect --help"),
        ("collect baord", "unknown task 'baord'; did you mean board?"),
        ("collect board --steps 0", "steps is 0; it must lie in [1, 2000000000]"),
        ("collect board --seed -1", "seed is -1; it must lie in [0, 4294967295]"),
        ("collect board --seed 4294967296", "seed is 4294967296; it must lie in [0, 4294967295]"),
        ("collect board --time-limit 0", "time_limit is 0; it must lie in [1, 2000000000]"),
        ("collect board --time-limit long", "long"),
        (
            "collect board --name board",
            "'board' is no id of a data set; it should look like metadyna/pendulum-random-v0",
        ),
        (
            "collect inverted-pendulum",
            "inverted-pendulum runs on the host and cannot be collected; tasks that can: city-",
        ),
    ],
)
def test_bad_input_is_one_line_and_code_two(line, told, capsys, root):
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    printed, complained = capsys.readouterr()
    assert (stop.value.code, printed) == (2, "")
    assert told in complained
    assert complained.startswith("metadyna: ")
    assert complained.count("\n") == 1
    assert list(root.rglob("*")) == []
