"""Environments, and the named benchmarks made of them."""

import functools
from collections.abc import Callable

from metadyna.envs.cooking import CookingGrid
from metadyna.envs.gridworld import COURSE_CITY, CityGrid, Grid, Split
from metadyna.envs.references import family_returns
from metadyna.errors import unknown
from metadyna.types import Family

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


TASKS: dict[str, Callable[[], Family]] = {
    "city-vanilla": lambda: _all_seen("city-vanilla", CityGrid()),
    "city-distraction": lambda: _unseen("city-distraction", CityGrid(distractors=True)),
    "city-map": lambda: _all_seen("city-map", CityGrid(map=True)),
    "city-distraction-map": lambda: _unseen("city-distraction-map", CityGrid(distractors=True, map=True)),
    "city-5x5": lambda: _all_seen("city-5x5", COURSE_CITY),
    "cooking": lambda: _cooking("cooking", CookingGrid()),
}
"""Every named benchmark; building one costs nothing until it is used."""


def make(name: str) -> Family:
    """Build the named benchmark."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]()
