"""Pictures: everything is where the map of the card has it, in its colour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs import GRIDS, make
from metadyna.envs.cooking import CookingGrid
from metadyna.envs.gridworld import Action, CityGrid, GridState, GridTask
from metadyna.pictures import grids

CITY_ROWS = [
    " .  .  .  .  h  .  .  . <.>",
    " b  .  .  .  .  .  .  .  d ",
    " .  .  .  .  .  .  .  .  . ",
    " .  .  .  G  A  E  .  .  . ",
    " e  .  .  C [.] B  .  .  g ",
    " .  .  .  F  D  H  .  M  . ",
    " .  .  .  .  .  .  .  .  . ",
    " a  .  .  .  .  .  .  .  c ",
    " .  .  .  .  f  .  .  .  . ",
]


def start_of(env, problem, goal):
    task = GridTask(jnp.int32(problem), jnp.array(goal, jnp.int32))
    return task, env.reset(task, jax.random.key(0))[0]


def test_text_of_a_city():
    env = CityGrid(distractors=True, map=True)
    assert grids.text(env, *start_of(env, 0, (8, 8))).splitlines() == CITY_ROWS


def test_text_of_a_kitchen():
    env = CookingGrid()
    task, state = start_of(env, 10, (2, 0))
    for action in (Action.RIGHT, Action.PICK_UP):
        state, _ = env.step(task, state, jnp.int32(action), jax.random.key(0))
    lines = [" .  .  0 ", " .  P [2]", " .  .  2 ", "hands 2, pot - - -, goal 2 0"]
    assert grids.text(env, task, state).splitlines() == lines


def pixel(image, x, y, right=0.0, scale=40, rows=360):
    """The colour at the centre of cell (x, y), or a part of a cell to the right of it."""
    return tuple(image[int(rows - (y + 0.5) * scale), int((x + right + 0.5) * scale)].tolist())


@pytest.mark.parametrize(
    ("x", "y", "right", "colour"),
    [
        (4, 7, 0.0, grids.AGENT),
        (8, 0, 0.0, grids.GOAL),
        (4, 5, 0.0, grids.BUSES[0]),
        (0, 1, 0.29, grids.BUSES[0]),  # the frame of its far end
        (0, 1, 0.0, grids.FLOOR),
        (8, 7, 0.29, grids.BUSES[3]),
        (5, 5, 0.0, grids.OLIVE),
        (4, 8, 0.29, grids.OLIVE),
        (7, 3, 0.0, grids.INK),
        (2, 2, 0.0, grids.FLOOR),
    ],
)
def test_colours_of_a_city(x, y, right, colour):
    env = CityGrid(distractors=True, map=True)
    task, _ = start_of(env, 0, (8, 0))
    state = GridState(jnp.int32(7 * 9 + 4), jnp.int32(3))
    assert pixel(grids.picture(env, task, state), x, y, right) == colour


@pytest.mark.parametrize("name", GRIDS)
def test_every_family_has_pictures(name):
    family = make(name)
    task = family.test.sample(jax.random.key(0))
    state, _ = family.env.reset(task, jax.random.key(0))
    image = grids.picture(family.env, task, state, size=200)
    assert image.dtype == np.uint8
    assert 190 <= image.shape[1] <= 200
    assert image.shape[0] >= image.shape[1]
    assert grids.AGENT in {tuple(colour) for colour in image.reshape(-1, 3).tolist()}
