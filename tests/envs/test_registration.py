"""Our tasks by Gymnasium's rules."""

import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from metadyna import envs
from metadyna.envs import registration
from metadyna.envs.registration import TaskEnv
from metadyna.errors import UserError

EXPECTED_WARNINGS = (
    "A Box observation space minimum value is -infinity",  # positions and speeds have no bounds that we could name
    "A Box observation space maximum value is infinity",
)


@pytest.fixture(scope="module")
def city():
    return TaskEnv("city-5x5")


@pytest.fixture(scope="module")
def body():
    return TaskEnv("double-integrator")


@pytest.mark.parametrize("task", ["city-5x5", "double-integrator", "labyrinth", "catcher", "hopper"])
def test_gymnasiums_own_checker_is_content(task, request):
    """A pure discrete task, a pure continuous one, two that show bytes, and a robot."""
    name = {"city-5x5": "city", "double-integrator": "body"}.get(task)
    env = request.getfixturevalue(name) if name else TaskEnv(task)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)
    told = [str(warning.message) for warning in caught]
    assert [text for text in told if not any(known in text for known in EXPECTED_WARNINGS)] == []


def test_every_task_is_registered():
    assert {f"metadyna/{task}-v0" for task in envs.TASKS} <= set(gymnasium.registry)
    registration.register()  # a second time does nothing
    env = gymnasium.make("metadyna/pendulum-v0")
    assert isinstance(env.unwrapped, TaskEnv)
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert info == {}
    env.close()


def test_spaces(city, body):
    assert isinstance(city.observation_space, spaces.MultiDiscrete)
    assert isinstance(city.action_space, spaces.Discrete)
    assert body.observation_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert body.action_space == spaces.Box(-1, 1, (1,), np.float32)


def test_seeds_decide_everything(body):
    """The start, the body, and those of the episodes after, which are others."""

    def play(seed):
        seen = [body.reset(seed=seed)[0]]
        for action in (0.1, 1, -1):
            obs, reward, *_ = body.step(np.array([action], np.float32))
            seen.append([*obs, reward])
        bodies = [float(body._task.mass)]
        for _ in range(3):
            seen.append(body.reset()[0])
            bodies.append(float(body._task.mass))
        assert len(set(bodies)) == 4
        return (*np.concatenate(seen).tolist(), *bodies)

    assert play(1) == play(1)
    assert len({play(seed) for seed in range(4)}) == 4


@pytest.mark.parametrize("index", [0, 4, 20, 24])
def test_a_chosen_task_is_that_of_the_enumeration(body, index):
    """The grid's first body is the lightest and undamped: the speed that a step adds tells mass and damping."""
    for seed in (0, 1):
        (_, speed), _ = body.reset(seed=seed, options={"task": index, "split": "train"})
        (_, after), *_ = body.step(np.array([1.0], np.float32))
        mass, damping = (0.5, 0.875, 1.25, 1.625, 2)[index // 5], (0, 0.25, 0.5, 0.75, 1)[index % 5]
        assert after - speed == pytest.approx(0.1 * (1 - damping * speed) / mass, abs=1e-5)


def test_train_and_test_tasks_are_told_apart():
    env = TaskEnv("cooking")  # its one test problem is not among the eleven of training
    family = envs.make("cooking")
    for split, index, tasks in (
        ("test", 0, family.test),
        ("train", 0, family.train),
        ("train", 7, family.train),
    ):
        env.reset(options={"task": np.int64(index), "split": split})
        wanted = jax.tree.map(lambda x, i=index: x[i], tasks.enumerate())
        jax.tree.map(np.testing.assert_array_equal, env._task, wanted)
    test = jax.tree.map(lambda x: x[0], family.test.enumerate())
    for _ in range(5):
        env.reset(options={"split": "test"})
        assert same_tree(env._task, test, "problem")
    for _ in range(12):
        env.reset()
        assert not same_tree(env._task, test, "problem")


def same_tree(one, other, field):
    return bool(jnp.all(getattr(one, field) == getattr(other, field)))


def test_time_limits_truncate(body):
    body.reset(seed=0)
    ends = [body.step(np.zeros(1, np.float32))[2:4] for _ in range(100)]
    assert ends == [(False, False)] * 99 + [(False, True)]


def test_the_end_of_the_problem_terminates():
    env = TaskEnv("inverted-pendulum")
    obs, _ = env.reset(seed=0)
    while True:
        before, (obs, reward, terminated, truncated, _) = obs, env.step(np.ones(1, np.float32))
        assert terminated == (abs(obs[1]) > 0.2)
        assert not truncated
        assert reward == 1 - terminated
        assert not np.array_equal(before, obs)
        if terminated:
            break


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tsak": 3}, "unknown reset option 'tsak'; there are: task, split"),
        ({"task": 25}, "task 25 is out of range; the test split has tasks 0 to 24"),
        ({"task": -1}, "task -1 is out of range; the test split has tasks 0 to 24"),
        ({"task": 0, "split": "validation"}, "unknown split 'validation'; there are: train, test"),
        ({"split": "validation"}, "unknown split 'validation'; there are: train, test"),
        ({"task": "first"}, "task 'first' is not a number; the test split has tasks 0 to 24"),
        ({"task": 1.5}, "task 1.5 is not a number; the test split has tasks 0 to 24"),
        ({"task": None}, "task None is not a number; the test split has tasks 0 to 24"),
    ],
)
def test_bad_options_are_named(body, options, message):
    with pytest.raises(UserError, match=message):
        body.reset(options=options)


def test_a_step_needs_a_reset():
    with pytest.raises(UserError, match="step before reset"):
        TaskEnv("double-integrator").step(np.zeros(1, np.float32))


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match="unknown task 'pendulm'; did you mean pendulum"):
        TaskEnv("pendulm")
