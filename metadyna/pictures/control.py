"""Pictures of the small control problems, drawn with PIL in the units of each problem."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from metadyna.envs.control import (
    CartPoleBalance,
    CartPoleSwingUp,
    Control,
    ControlState,
    DoubleIntegrator,
    Navigation,
    Pendulum,
    PointDirection,
    PointMass,
    RodPendulum,
)
from metadyna.pictures.grids import AGENT, FLOOR, GOAL, GOAL_FLOOR, INK, LINES, WOOD, Colour

SAMPLES = 3  # drawn so much larger, then averaged: PIL's shapes have hard edges
STEP_SECONDS = 0.1
"""How long a step of a problem without a clock is shown."""
PUSH = (40, 80, 230)

Point = Any
"""Two numbers, however they are kept."""


def seconds(env: Control) -> float:
    """Duration of one step."""
    return getattr(env, "period", STEP_SECONDS) * getattr(env, "substeps", 1)


def drawable(env: Any) -> bool:
    """Whether there is a picture of it."""
    return any(kind in SCENES for kind in type(env).__mro__)


def picture(
    env: Control,
    task: Any,
    state: ControlState,
    action: Float[np.ndarray, "actions"] | None = None,
    size: int = 360,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a state as RGB, `size` pixels wide, and with it the action that led there, if one did."""
    scene = next(SCENES[kind] for kind in type(env).__mro__ if kind in SCENES)
    sheet = _Sheet(scene, size)
    nothing = np.zeros(env.spec.action.shape)
    pushed = nothing if action is None else np.clip(action, -1, 1)
    scene.draw(sheet, env, task, np.asarray(state.physics, np.float64), pushed)
    return np.asarray(sheet.image.reduce(SAMPLES))


class _Sheet:
    """A canvas in the units of a problem: x to the right, y upwards, (0, 0) in the middle."""

    def __init__(self, scene: "_Scene", size: int):
        self.reach, self.scale = scene.reach, SAMPLES * size / (2 * scene.reach)
        self.top = scene.height * scene.reach
        self.middle = (SAMPLES * size / 2, SAMPLES * round(scene.height * size) / 2)
        self.image = Image.new("RGB", (SAMPLES * size, SAMPLES * round(scene.height * size)), FLOOR)
        self.draw = ImageDraw.Draw(self.image)

    def at(self, point: Point) -> tuple[float, float]:
        return self.middle[0] + self.scale * point[0], self.middle[1] - self.scale * point[1]

    def disc(self, centre: Point, radius: float, colour: Colour, edge: Colour | None = None) -> None:
        (x, y), r = self.at(centre), self.scale * radius
        self.draw.ellipse((x - r, y - r, x + r, y + r), colour, edge, 2 * SAMPLES)

    def box(self, low: Point, high: Point, colour: Colour, edge: Colour | None = None) -> None:
        (left, bottom), (right, top) = self.at(low), self.at(high)
        self.draw.rectangle((left, top, right, bottom), colour, edge, 2 * SAMPLES)

    def line(self, points: Any, width: float, colour: Colour) -> None:
        """Connect points by a line with round ends; its width is a share of the sheet's."""
        across = width * 2 * self.reach
        self.draw.line([self.at(p) for p in points], colour, round(self.scale * across), joint="curve")
        for point in points:
            self.disc(point, across / 2, colour)

    def arrow(self, points: Any, colour: Colour = PUSH) -> None:
        """Point along a path; nothing if it is too short to have a direction."""
        path = np.asarray(points, np.float64)
        way = path[-1] - path[-2]
        length = np.hypot(*way)
        if np.hypot(*np.diff(path, axis=0).T).sum() < 0.02 * self.reach:
            return
        self.line(path, 0.012, colour)
        way = 0.06 * self.reach * way / length
        side = np.array([-way[1], way[0]])
        self.draw.polygon([self.at(p) for p in (path[-1] + way, path[-1] + side, path[-1] - side)], colour)

    def ruler(self, ticks: np.ndarray, y: float, length: float) -> None:
        """A rail with ticks below it."""
        for x in ticks:
            self.line([(x, y), (x, y - length)], 0.005, LINES)
        self.line([(ticks[0], y), (ticks[-1], y)], 0.009, INK)


def _pendulum(sheet: _Sheet, env: Any, task: Any, physics: np.ndarray, action: np.ndarray) -> None:
    """Gymnasium's way round: positive angles and torques turn anticlockwise."""
    _swing(sheet, physics[0], action, length=1.0, width=0.05)


def _rod(sheet: _Sheet, env: Any, task: Any, physics: np.ndarray, action: np.ndarray) -> None:
    """A rod as long as it is, and as wide as its mass per length."""
    length = float(task.length)
    _swing(sheet, physics[0], action, length, 0.05 * float(task.mass) / length)


def _swing(sheet: _Sheet, angle: float, action: np.ndarray, length: float, width: float) -> None:
    sheet.disc((0, length), 0.1, GOAL_FLOOR, GOAL)
    sheet.line([(0, 0), length * np.array([-np.sin(angle), np.cos(angle)])], width, AGENT)
    turned = angle + np.linspace(0, 2.2 * action[0], 24)
    sheet.arrow(0.42 * np.stack([-np.sin(turned), np.cos(turned)], axis=1))
    sheet.disc((0, 0), 0.055, INK)


def _cart(sheet: _Sheet, x: float, tip: np.ndarray, track: float, width: float, force: float) -> None:
    """A cart on a rail, its pole, and the force on it."""
    height = 0.6 * width
    sheet.ruler(np.linspace(-track, track, 11), -height / 2, 0.12)
    for end in (-track, track):
        sheet.line([(end, -height), (end, height)], 0.012, INK)
    sheet.box((x - width / 2, -height / 2), (x + width / 2, height / 2), WOOD, INK)
    sheet.line([(x, 0), tip], 0.025, AGENT)
    sheet.disc((x, 0), 0.022 * sheet.reach, INK)
    edge = x + np.sign(force) * width / 2
    sheet.arrow([(edge, 0), (edge + 0.8 * force, 0)])


def _balance(sheet: _Sheet, env: Any, task: Any, physics: np.ndarray, action: np.ndarray) -> None:
    """A positive angle leans to the right; beyond the dashes it has fallen."""
    x, _, angle, _ = physics
    for limit in np.deg2rad([-12, 12]):
        way = np.array([np.sin(limit), np.cos(limit)])
        for start in np.arange(0.2, 1.15, 0.2):
            sheet.line([(x, 0) + start * way, (x, 0) + (start + 0.08) * way], 0.007, LINES)
    _cart(sheet, x, np.array([x + np.sin(angle), np.cos(angle)]), 2.4, 0.5, float(action[0]))


def _swing_up(sheet: _Sheet, env: Any, task: Any, physics: np.ndarray, action: np.ndarray) -> None:
    """Zero hangs, and a positive angle swings to the left; the goal is a tip above the middle of the track."""
    x, angle = physics[:2]
    sheet.disc((0, env.length), 0.13, GOAL_FLOOR, GOAL)
    tip = np.array([x - env.length * np.sin(angle), -env.length * np.cos(angle)])
    _cart(sheet, x, tip, 2.5, 0.4, float(action[0]))


def _point_mass(sheet: _Sheet, env: Any, task: Any, physics: np.ndarray, action: np.ndarray) -> None:
    """The plane, the goal at its origin, and the last move at six times its length."""
    for tick in np.arange(-2, 3):
        sheet.line([(tick, -2), (tick, 2)], 0.004, LINES)
        sheet.line([(-2, tick), (2, tick)], 0.004, LINES)
    sheet.disc((0, 0), 0.16, GOAL_FLOOR, GOAL)
    sheet.arrow([physics, physics + 6 * env.reach * action])
    sheet.disc(physics, 0.09, AGENT, INK)


def _navigation(sheet: _Sheet, env: Any, task: Any, physics: np.ndarray, action: np.ndarray) -> None:
    """The square that goals are drawn from, the goal, which the agent does not see, and the last move."""
    sheet.box((-0.5, -0.5), (0.5, 0.5), FLOOR, LINES)
    sheet.disc(np.asarray(task.position, np.float64), 0.06, GOAL_FLOOR, GOAL)
    sheet.arrow([physics, physics + 2 * env.reach * action])
    sheet.disc(physics, 0.035, AGENT, INK)


def _integrator(sheet: _Sheet, env: Any, task: Any, physics: np.ndarray, action: np.ndarray) -> None:
    """A body as large as its mass; the sheet goes along when it leaves, which the ticks tell."""
    x = physics[0]
    gone = x - np.clip(x, -0.7 * sheet.reach, 0.7 * sheet.reach)
    half = 0.17 * float(task.mass) ** (1 / 3)
    ticks = 0.25 * np.arange(np.floor((gone - sheet.reach) / 0.25), np.ceil((gone + sheet.reach) / 0.25) + 1) - gone
    goal = np.clip(-gone, -1.2 * sheet.reach, 1.2 * sheet.reach)
    sheet.box((goal - 0.05, -sheet.top), (goal + 0.05, sheet.top), GOAL_FLOOR)
    sheet.line([(goal, -sheet.top), (goal, sheet.top)], 0.006, GOAL)
    sheet.ruler(ticks, -half, 0.07)
    sheet.box((x - gone - half, -half), (x - gone + half, half), WOOD, INK)
    edge = x - gone + np.sign(action[0]) * half
    sheet.arrow([(edge, 0), (edge + 0.5 * action[0], 0)])
    sheet.disc((x - gone, 0), 0.04, AGENT)


def _direction(sheet: _Sheet, env: Any, task: Any, physics: np.ndarray, action: np.ndarray) -> None:
    """The speed on a scale from -1 to 1: the side that pays is green, which the agent does not see."""
    speed, pays, _ = physics
    low, high = sorted((0.0, float(pays)))
    sheet.box((low, -0.25), (high, 0.25), GOAL_FLOOR)
    sheet.ruler(np.linspace(-1, 1, 9), -0.25, 0.07)
    sheet.line([(0, -0.25), (0, 0.25)], 0.006, INK)
    sheet.line([(0, 0), (speed, 0)], 0.03, AGENT)
    sheet.disc((speed, 0), 0.06, AGENT, INK)
    sheet.arrow([(0, 0.4), (0.9 * action[0], 0.4)])


class _Scene(NamedTuple):
    draw: Callable[[_Sheet, Any, Any, np.ndarray, np.ndarray], None]
    reach: float
    """Half of what is seen across."""
    height: float
    """Of the picture, as a share of its width."""


SCENES: dict[type, _Scene] = {
    Pendulum: _Scene(_pendulum, 1.3, 1.0),
    RodPendulum: _Scene(_rod, 1.5, 1.0),
    CartPoleBalance: _Scene(_balance, 2.7, 0.6),
    CartPoleSwingUp: _Scene(_swing_up, 2.8, 0.6),
    PointMass: _Scene(_point_mass, 2.3, 1.0),
    Navigation: _Scene(_navigation, 1.0, 1.0),
    DoubleIntegrator: _Scene(_integrator, 1.5, 0.5),
    PointDirection: _Scene(_direction, 1.2, 0.6),
}
