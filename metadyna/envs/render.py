"""Pictures of grids, as text and as pixels.

The pixels are signed distances turned into coverage, with numpy alone; y points upwards. Colours follow the published
renderer (ezliu/dream, `envs/grid.py`): helpful buses blue, magenta, yellow and cyan, distracting ones all olive, map
black, goal green, agent red. A stop is a filled square and its far end a frame of the same colour.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from metadyna.envs.cooking import CookingGrid, CookingState
from metadyna.envs.gridworld import CityGrid, GridState, GridTask, Position, to_cell

Colour = tuple[int, int, int]
Distance = Float[np.ndarray, "height width"]

FLOOR, LINES, INK, PAPER = (250, 249, 246), (221, 219, 212), (45, 45, 48), (255, 255, 255)
AGENT, GOAL, GOAL_FLOOR, MAP = (214, 39, 40), (34, 139, 60), (200, 235, 205), (25, 25, 25)
BUSES = ((40, 80, 230), (220, 40, 200), (245, 205, 20), (20, 190, 210))
OLIVE = (128, 128, 0)
INGREDIENTS = ((40, 80, 230), (148, 148, 30), (235, 60, 140), (140, 140, 250))
DRAWER_WOOD, POT_IRON = (205, 170, 125), (60, 60, 64)


def text(env: CityGrid | CookingGrid, task: GridTask, state: GridState | CookingState) -> str:
    """Draw the grid with letters, top row first, the agent as [ ] and a goal corner as < > around its cell.

    In a city, bus A leads to a, W to w for distracting ones; M is the map. In a kitchen, drawers show their
    ingredient, P is the pot, and a last line tells hands, pot and goal.
    """
    letters = _city_letters(env, task) if isinstance(env, CityGrid) else _kitchen_letters(env, task)
    agent = int(state.cell)
    goal = to_cell(task.goal.tolist(), env.width) if isinstance(env, CityGrid) else None

    def draw(cell: int) -> str:
        letter = letters.get(cell, ".")
        if cell == agent:
            return f"[{letter}]"
        return f"<{letter}>" if cell == goal else f" {letter} "

    rows = [range(y * env.width, (y + 1) * env.width) for y in reversed(range(env.height))]
    lines = ["".join(draw(cell) for cell in row) for row in rows]
    if isinstance(env, CookingGrid):
        lines.append(_kitchen_caption(env, task, state))
    return "\n".join(lines)


def picture(
    env: CityGrid | CookingGrid, task: GridTask, state: GridState | CookingState, size: int = 360
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the grid as RGB, about `size` pixels wide; a kitchen has a strip with its recipe below."""
    scale = size // env.width
    if isinstance(env, CityGrid):
        canvas = _Canvas(env.width, env.height, scale)
        _draw_city(canvas, env, task)
        _draw_agent(canvas, _position(env, state))
    else:
        canvas = _Canvas(env.width, env.height, scale, below=0.5)
        _draw_kitchen(canvas, env, task, state)
    return canvas.pixels()


class _Canvas:
    """A floor of cells that shapes are painted on, in units of cells with (0, 0) the centre of the lowest left one."""

    def __init__(self, width: int, height: int, scale: int, below: float = 0.0):
        self.scale = scale
        rows, columns = round((height + below) * scale), width * scale
        self.x = np.broadcast_to((np.arange(columns) + 0.5) / scale - 0.5, (rows, columns))
        self.y = np.broadcast_to(height - 0.5 - (np.arange(rows)[:, None] + 0.5) / scale, (rows, columns))
        self.image = np.full((rows, columns, 3), PAPER, np.float64)
        floor = self.box((width / 2 - 0.5, height / 2 - 0.5), width / 2, height / 2)
        self.paint(floor, FLOOR)
        nearest_line = np.minimum(*(np.abs((axis + 0.5) - np.round(axis + 0.5)) for axis in (self.x, self.y)))
        self.paint(np.maximum(nearest_line - 1 / scale, floor), LINES)
'''
