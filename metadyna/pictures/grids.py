"""Pictures of grids, as text and as pixels.

The pixels come from signed distances turned into coverage, with numpy alone; y points upwards. Colours follow the
published renderer (ezliu/dream, `envs/grid.py`): helpful buses blue, magenta, yellow and cyan, distracting ones all
olive, map black, goal green, agent red. A stop is a filled square and its far end a frame of the same colour.
"""

import string

import numpy as np
from jaxtyping import Float, UInt8

from metadyna.envs.cooking import CookingGrid, CookingState
from metadyna.envs.gridworld import CityGrid, GridState, GridTask, Position, to_cell

Colour = tuple[int, int, int]
Point = tuple[int | float, int | float]
Distance = Float[np.ndarray, "height width"]
"""Signed distance of every pixel to the edge of a shape, in cells; negative inside."""

PAPER, FLOOR, LINES, INK = (255, 255, 255), (250, 249, 246), (218, 216, 210), (45, 45, 48)
AGENT, GOAL, GOAL_FLOOR = (214, 39, 40), (34, 139, 60), (196, 232, 203)
BUSES = ((40, 80, 230), (225, 45, 205), (247, 208, 20), (20, 195, 215))
OLIVE = (128, 128, 0)
INGREDIENTS = ((40, 80, 230), (148, 148, 30), (235, 60, 140), (20, 175, 160))
WOOD, IRON = (205, 170, 125), (62, 62, 68)

RECIPE_STRIP = 0.5  # cells below a kitchen
DISH = 0.1  # half the width of an ingredient


def text(env: CityGrid | CookingGrid, task: GridTask, state: GridState | CookingState) -> str:
    """Draw the grid with letters, top row first: the agent's cell in [ ], the goal corner's in < >.

    In a city, bus A leads to a, B to b and so on, helpful buses first, and M is the map. In a kitchen, drawers show
    their ingredient, P is the pot, and a last line tells hands, pot and goal.
    """
    goal = to_cell(task.goal.tolist(), env.width) if isinstance(env, CityGrid) else None
    letters = _city_letters(env, task) if isinstance(env, CityGrid) else _kitchen_letters(env, task)

    def draw(cell: int) -> str:
        letter = letters.get(cell, ".")
        if cell == int(state.cell):
            return f"[{letter}]"
        return f"<{letter}>" if cell == goal else f" {letter} "

    rows = [range(y * env.width, (y + 1) * env.width) for y in reversed(range(env.height))]
    lines = ["".join(map(draw, row)) for row in rows]
    if isinstance(state, CookingState) and isinstance(env, CookingGrid):
        lines.append(_kitchen_caption(env, task, state))
    return "\n".join(lines)


def picture(
    env: CityGrid | CookingGrid, task: GridTask, state: GridState | CookingState, size: int = 360
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the grid as RGB, `size` pixels wide or a little less; below a kitchen is a strip with its recipe."""
    strip = RECIPE_STRIP if isinstance(env, CookingGrid) else 0.0
    canvas = _Canvas(env.width, env.height, size // env.width, strip)
    y, x = divmod(int(state.cell), env.width)
    if isinstance(env, CityGrid):
        _draw_city(canvas, env, task)
        _draw_agent(canvas, (x, y), 0.26)
    elif isinstance(state, CookingState):
        _draw_kitchen(canvas, env, task, state)
        _draw_agent(canvas, (x, y - 0.22), 0.2)
        _draw_dish(canvas, env, int(state.inventory), (x, y - 0.22))
    return canvas.image.round().astype(np.uint8)


class _Canvas:
    """A floor of cells that shapes are painted on. Unit: cells; the centre of the lowest left cell is (0, 0)."""

    def __init__(self, width: int, height: int, scale: int, strip: float):
        self.scale = scale
        rows, columns = round((height + strip) * scale), width * scale
        self.x = np.broadcast_to((np.arange(columns) + 0.5) / scale - 0.5, (rows, columns))
        self.y = np.broadcast_to(height - 0.5 - (np.arange(rows)[:, None] + 0.5) / scale, (rows, columns))
        self.image = np.full((rows, columns, 3), PAPER, np.float64)
        floor = self.box(((width - 1) / 2, (height - 1) / 2), width / 2, height / 2)
        self.paint(floor, FLOOR)
        to_lines = np.minimum(*(np.abs(axis + 0.5 - np.round(axis + 0.5)) for axis in (self.x, self.y)))
        self.paint(np.maximum(to_lines - 0.7 / scale, floor - 1 / scale), LINES)

    def disc(self, centre: Point, radius: float) -> Distance:
        return np.hypot(self.x - centre[0], self.y - centre[1]) - radius

    def box(self, centre: Point, half_width: float, half_height: float, rounding: float = 0.0) -> Distance:
        x = np.abs(self.x - centre[0]) - half_width + rounding
        y = np.abs(self.y - centre[1]) - half_height + rounding
        return np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - rounding

    def paint(self, distance: Distance, colour: Colour) -> None:
        """Cover the inside of a shape, with pixels on its edge blended."""
        coverage = np.clip(0.5 - distance * self.scale, 0, 1)[..., None]
        self.image += coverage * (np.array(colour) - self.image)

    def outlined(self, distance: Distance, colour: Colour, outline: Colour = INK) -> None:
        """Paint a shape with a thin dark edge, which keeps light colours legible."""
        self.paint(distance - 0.025, outline)
        self.paint(distance, colour)


def _frame(distance: Distance, thickness: float) -> Distance:
    """The band of some thickness inside the edge of a shape."""
    return np.abs(distance + thickness / 2) - thickness / 2


def _draw_city(canvas: _Canvas, env: CityGrid, task: GridTask) -> None:
    goal = (float(task.goal[0]), float(task.goal[1]))
    canvas.paint(canvas.box(goal, 0.47, 0.47), GOAL_FLOOR)
    canvas.paint(_frame(canvas.box(goal, 0.47, 0.47), 0.09), GOAL)
    canvas.paint(canvas.disc(goal, 0.13), GOAL)
    for bus, (stop, far_end) in enumerate(_buses(env, task)):
        colour = BUSES[bus % len(BUSES)] if bus < len(env.stops) else OLIVE
        canvas.outlined(canvas.box(stop, 0.36, 0.36, 0.08), colour)
        canvas.outlined(_frame(canvas.box(far_end, 0.36, 0.36, 0.08), 0.14), colour)
    if env.map:
        x, y = env.map_cell
        canvas.paint(canvas.box((x, y), 0.34, 0.28, 0.03), INK)
        for fold in (-0.11, 0.11):
            canvas.paint(canvas.box((x + fold, y), 0.012, 0.22), PAPER)


def _draw_kitchen(canvas: _Canvas, env: CookingGrid, task: GridTask, state: CookingState) -> None:
    for (x, y), ingredient in zip(env.drawers, env.contents[int(task.problem)], strict=True):
        canvas.outlined(canvas.box((x, y), 0.42, 0.42, 0.05), WOOD)
        canvas.paint(canvas.box((x, y + 0.02), 0.14, 0.025, 0.02), INK)
        _draw_dish(canvas, env, int(ingredient), (x, y + 0.22))
    x, y = env.pot
    canvas.outlined(canvas.disc((x, y), 0.42), IRON)
    for index, ingredient in enumerate(env.tables.contents[int(state.pot)]):
        _draw_dish(canvas, env, int(ingredient), (x - 0.26 + 0.26 * index, y + 0.2))
    middle, below = (env.width - 1) / 2, -0.5 - RECIPE_STRIP / 2
    canvas.paint(canvas.box((middle, below), 0.42, 0.19, 0.06), GOAL)
    canvas.paint(canvas.box((middle, below), 0.39, 0.16, 0.04), GOAL_FLOOR)
    for side, ingredient in zip((-0.2, 0.2), task.goal.tolist(), strict=True):
        _draw_dish(canvas, env, ingredient, (middle + side, below))


def _draw_agent(canvas: _Canvas, position: Point, radius: float) -> None:
    canvas.paint(canvas.disc(position, radius + 0.06), PAPER)
    canvas.outlined(canvas.disc(position, radius), AGENT)


def _draw_dish(canvas: _Canvas, env: CookingGrid, ingredient: int, position: Point) -> None:
    """One ingredient; nothing if there is none."""
    if ingredient < env.num_ingredients:
        colour = INGREDIENTS[ingredient % len(INGREDIENTS)]
        canvas.outlined(canvas.box(position, DISH, DISH, 0.04), colour, outline=PAPER)


def _buses(env: CityGrid, task: GridTask) -> list[tuple[Position, Position]]:
    """Stop and far end of every bus of this problem, helpful ones first."""
    ride = env.tables.ride[int(task.problem)]
    far_ends = [int(ride[to_cell(stop, env.width)]) for stop, _ in env.buses]
    return [(stop, (end % env.width, end // env.width)) for (stop, _), end in zip(env.buses, far_ends, strict=True)]


def _city_letters(env: CityGrid, task: GridTask) -> dict[int, str]:
    letters = {to_cell(env.map_cell, env.width): "M"} if env.map else {}
    for (stop, far_end), name in zip(_buses(env, task), string.ascii_uppercase, strict=False):
        letters[to_cell(stop, env.width)] = name
        letters[to_cell(far_end, env.width)] = name.lower()
    return letters


def _kitchen_letters(env: CookingGrid, task: GridTask) -> dict[int, str]:
    cells = [to_cell(drawer, env.width) for drawer in env.drawers]
    drawers = {cell: str(item) for cell, item in zip(cells, env.contents[int(task.problem)], strict=True)}
    return {to_cell(env.pot, env.width): "P", **drawers}


def _kitchen_caption(env: CookingGrid, task: GridTask, state: CookingState) -> str:
    def spell(items: list[int]) -> str:
        return " ".join("-" if item == env.num_ingredients else str(item) for item in items)

    pot = env.tables.contents[int(state.pot)].tolist()
    return f"hands {spell([int(state.inventory)])}, pot {spell(pot)}, goal {spell(task.goal.tolist())}"
