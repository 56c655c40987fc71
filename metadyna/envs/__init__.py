"""Environments, and the named benchmarks made of them."""

import functools
from collections.abc import Callable
from typing import Any, Literal

from metadyna.envs import catcher, maze_references
from metadyna.envs.bandit import Bandit, UniformArms, bayes_optimum
from metadyna.envs.control import (
    BODIES,
    RODS,
    CartPoleBalance,
    CartPoleSwingUp,
    Control,
    DoubleIntegrator,
    Goals,
    Navigation,
    OneTask,
    Pendulum,
    PointDirection,
    PointMass,
    Ranged,
    RodPendulum,
)
from metadyna.envs.cooking import CookingGrid
from metadyna.envs.drawn import Drawn
from metadyna.envs.gridworld import COURSE_CITY, CityGrid, Grid, Split
from metadyna.envs.maze import Labyrinth, SimpleMaze
from metadyna.envs.references import family_returns
from metadyna.envs.switching import Changes, Every, Jitter, Law, switched
from metadyna.errors import UserError, unknown
from metadyna.types import Env, Family, HostEnv, TaskDistribution

DISTRACTION_STRIDE = 11  # the published code trains on every eleventh problem
COOKING_TEST_PROBLEM = 10  # the published code's; the paper says 11, but its optimum is that of 10


def _family(name: str, env: Grid, train: list[int], test: list[int]) -> Family:
    splits = Split(env, tuple(train)), Split(env, tuple(test))
    return Family(name, env, *splits, references=functools.partial(family_returns, env, splits[1]))


def _all_seen(name: str, env: CityGrid) -> Family:
    """A city whose test problems are its training problems, as published."""
    problems = list(range(env.num_problems))
    return _family(name, env, problems, problems)


def _unseen(name: str, env: CityGrid) -> Family:
    """A city with 53 training problems, which cover every arrangement of the helpful buses, and 523 others."""
    train = list(range(0, env.num_problems, DISTRACTION_STRIDE))
    return _family(name, env, train, sorted(set(range(env.num_problems)) - set(train)))


def _cooking(name: str, env: CookingGrid) -> Family:
    train = [problem for problem in range(env.num_problems) if problem != COOKING_TEST_PROBLEM]
    return _family(name, env, train, [COOKING_TEST_PROBLEM])


def _control(name: str, env: Control, train: TaskDistribution, test: TaskDistribution) -> Family:
    return Family(name, env, train, test, references=dict)


def _labyrinth(name: str, filter: Literal["published", "reachable"]) -> Family:
    # `python -m metadyna.envs.labyrinths` would find itself imported already, and complain.
    from metadyna.envs.labyrinths import Mazes

    env, test = Labyrinth(), Mazes(filter, "test")
    references = functools.partial(maze_references.family_returns, env, test)
    return Family(name, env, Mazes(filter, "train"), test, references)


def _catcher() -> Family:
    references = functools.partial(dict, catcher.RETURNS)
    return Family("catcher", catcher.Catcher(), OneTask(), OneTask(100), references)


def _bandit(arms: int, pulls: int) -> Family:
    def references() -> dict[str, float]:
        return {"optimal": bayes_optimum(arms, pulls), "random": pulls / 2}

    tasks = UniformArms(arms)
    return Family(f"bandit-{arms}x{pulls}", Bandit(arms), tasks, Drawn(tasks, 4_000), references)


def _switching(
    name: str, env: Env | HostEnv, train: TaskDistribution, law: Law, test: TaskDistribution | None = None
) -> Family:
    """A family whose tasks change; what comes in mid-episode is a training task, in a test episode too."""
    return Family(name, switched(env, Changes(train, law)), train, train if test is None else test, references=dict)


def _robot(robot: str) -> Family:
    # Loading MuJoCo takes longer than starting to train may, so only who asks for a robot pays for it.
    from metadyna.envs.mujoco import ROBOTS, KnownRobot

    return Family(robot, KnownRobot(ROBOTS[robot]), OneTask(), OneTask(), references=dict)


def _short_robot(robot: str, horizon: int) -> Family:
    from metadyna.envs.mujoco import SHORT, KnownRobot

    env = KnownRobot(*SHORT[robot], horizon)
    return Family(f"{robot}-{horizon}", env, OneTask(), OneTask(50), references=dict)


def _directions() -> Family:
    from metadyna.envs.mujoco import ERRAND_HORIZON, ERRANDS, Headings, HostRobot

    name = "half-cheetah-direction"
    env = HostRobot(ERRANDS[name], horizon=ERRAND_HORIZON)
    return Family(name, env, Headings(), Headings(), references=dict)


def _switching_directions() -> Family:
    from metadyna.envs.mujoco import ERRANDS, Headings, HostRobot

    name = "half-cheetah-direction-switching"
    return _switching(name, HostRobot(ERRANDS["half-cheetah-direction"]), Headings(), Jitter(160, 240))


def _velocities() -> Family:
    from metadyna.envs.mujoco import ERRAND_HORIZON, ERRANDS, HostRobot, Pace

    name = "half-cheetah-velocity"
    env, paces = HostRobot(ERRANDS[name], horizon=ERRAND_HORIZON), Ranged(Pace, ((0.0, 3.0),), side=31)
    return Family(name, env, paces, Drawn(paces, 31), references=dict)


ROBOT_NAMES = (
    "half-cheetah",
    "hopper",
    "walker2d",
    "swimmer",
    "ant",
    "humanoid",
    "inverted-pendulum",
    "reacher",
    "pusher",
)

SHORT_ROBOT_NAMES = ("half-cheetah", "ant", "hopper", "swimmer", "walker2d", "arm")
SHORT_HORIZONS = (200, 1000)
"""Steps of an episode of MB-MPO's tasks, in most of its experiments and in its long ones."""

GRIDS: dict[str, Callable[[], Family]] = {
    "city-vanilla": lambda: _all_seen("city-vanilla", CityGrid()),
    "city-distraction": lambda: _unseen("city-distraction", CityGrid(distractors=True)),
    "city-map": lambda: _all_seen("city-map", CityGrid(map=True)),
    "city-distraction-map": lambda: _unseen("city-distraction-map", CityGrid(distractors=True, map=True)),
    "city-5x5": lambda: _all_seen("city-5x5", COURSE_CITY),
    "cooking": lambda: _cooking("cooking", CookingGrid()),
}

CONTROLS: dict[str, Callable[[], Family]] = {
    "pendulum": lambda: _control("pendulum", Pendulum(), OneTask(), OneTask()),
    "cartpole-balance": lambda: _control("cartpole-balance", CartPoleBalance(), OneTask(), OneTask()),
    "cartpole-swingup": lambda: _control("cartpole-swingup", CartPoleSwingUp(), OneTask(), OneTask()),
    "point-mass": lambda: _control("point-mass", PointMass(), OneTask(), OneTask(100)),
    "navigation": lambda: _control("navigation", Navigation(), Goals(), Drawn(Goals(), 100)),
    "double-integrator": lambda: _control("double-integrator", DoubleIntegrator(), BODIES, Drawn(BODIES, 25)),
    "pendulum-rods": lambda: _control("pendulum-rods", RodPendulum(), RODS, Drawn(RODS, 25)),
    "point-direction": lambda: _control("point-direction", PointDirection(), OneTask(), OneTask()),
}

SWITCHING: dict[str, Callable[[], Family]] = {
    "pendulum-rods-switching": lambda: _switching(
        "pendulum-rods-switching", RodPendulum(), RODS, Every(50), Drawn(RODS, 25)
    ),
}

MAZES: dict[str, Callable[[], Family]] = {
    "labyrinth": lambda: _labyrinth("labyrinth", "published"),
    "labyrinth-reachable": lambda: _labyrinth("labyrinth-reachable", "reachable"),
    "simple-maze": lambda: Family("simple-maze", SimpleMaze(), OneTask(), OneTask(), references=dict),
    "catcher": _catcher,
}

BANDITS: dict[str, Callable[[], Family]] = {"bandit-5x10": lambda: _bandit(5, 10)}

HOSTED: dict[str, Callable[[], Family]] = {
    **{name: functools.partial(_robot, name) for name in ROBOT_NAMES},
    **{
        f"{name}-{horizon}": functools.partial(_short_robot, name, horizon)
        for name in SHORT_ROBOT_NAMES
        for horizon in SHORT_HORIZONS
    },
    "half-cheetah-direction": _directions,
    "half-cheetah-velocity": _velocities,
    "half-cheetah-direction-switching": _switching_directions,
}

TASKS: dict[str, Callable[[], Family]] = {**GRIDS, **CONTROLS, **SWITCHING, **MAZES, **BANDITS, **HOSTED}
"""Every named benchmark; building one costs nothing until it is used."""


def meaning_of_test(family: Family) -> str:
    """What the test tasks are to the training tasks, in a few words."""
    if isinstance(family.train, OneTask):
        return "one task"
    if isinstance(family.test, Drawn):
        return "test tasks are unseen draws of the same law"
    return "test tasks are the training tasks" if family.test == family.train else "test tasks are held out"


def make(name: str) -> Family:
    """Build the named benchmark, or the task of a user's own environment from `gym:module:factory`."""
    if name.startswith("gym:"):
        from metadyna.envs.gym import from_name

        return Family(name, from_name(name), OneTask(), OneTask(), references=dict)
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]()


def register(name: str, factory: Callable[[], Any]) -> None:
    """Make a user's own Gymnasium environment a task of this process; `factory()` returns a fresh `gymnasium.Env`."""
    from metadyna.envs.gym import GymEnv

    if name in TASKS:
        raise UserError(f"there is a task '{name}' already; choose another name")
    TASKS[name] = lambda: Family(name, GymEnv(factory, name), OneTask(), OneTask(), references=dict)
