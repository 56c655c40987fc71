"""Labyrinths seen from above: collect three keys in a maze never met before, or wander through one that never changes.

The test beds of combined reinforcement via abstract representations (CRAR, François-Lavet et al. 2019, arXiv
1809.04506; code VinF/deer, `examples/maze` and `examples/test_CRAR`). Positions are (row, column), row 0 at the top;
a cell is `row * 8 + column`. The border is wall, so nothing ever leaves the grid. An observation is a board of codes,
64 bytes; `picture` draws it in the 48 x 48 grey levels that the published agents see. Where labyrinths come from:
`labyrinths`.

Differences from the published code: episodes of the labyrinth are truncated after `horizon` steps wherever agents live
in it (data sets are gathered without a limit, unless one is given), and a truncation is never a termination; boards
stay small until somebody looks.
"""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from metadyna.envs.gridworld import GridState, arrive, begin, look_up
from metadyna.settings import Horizon, Settings
from metadyna.types import Box, Discrete, EnvSpec, TimeStep

SIDE = 8
NUM_CELLS = SIDE * SIDE
START = SIDE + 1  # (1, 1)
NUM_KEYS = 3
BORDER = np.pad(np.zeros((SIDE - 2, SIDE - 2), bool), 1, constant_values=True)
FREE, WALL, KEY, AGENT = range(4)

Walls = Bool[Array, "8 8"]
Board = UInt8[Array, "8 8"]

_UP, _DOWN, _LEFT, _RIGHT = -SIDE, SIDE, -1, 1
_LABYRINTH_SHIFTS = np.array([_DOWN, _RIGHT, _UP, _LEFT], np.int32)
_SIMPLE_SHIFTS = np.array([_UP, _DOWN, _LEFT, _RIGHT], np.int32)
_GAP = 4 * SIDE + 4


class Maze(NamedTuple):
    """One labyrinth: where its walls are, border included, and the cells of its three keys.

    Playing it does not depend on the order of the keys.
    """

    walls: Bool[Array, "*batch 8 8"]
    keys: Int[Array, "*batch 3"]


class LabyrinthState(NamedTuple):
    """Where the agent is, which keys are left, and how many steps it has taken."""

    cell: Int[Array, "*batch"]
    left: Bool[Array, "*batch 3"]
    time: Int[Array, "*batch"]


def _two_rooms() -> Bool[np.ndarray, "8 8"]:
    walls = BORDER.copy()
    walls[:, 4] = True
    walls.ravel()[_GAP] = False
    return walls


_TWO_ROOMS = _two_rooms()


def _spec(horizon: int) -> EnvSpec:
    return EnvSpec(Box((SIDE, SIDE), float(FREE), float(AGENT), "uint8"), Discrete((4,)), horizon)


def _walk(walls: Walls, cell: Int[Array, ""], shifts: Int[np.ndarray, "4"], action: Int[Array, ""]) -> Int[Array, ""]:
    """Move by one of `shifts`, or stay where a wall is in the way."""
    ahead = cell + look_up(shifts, action)
    return jnp.where(walls.ravel()[ahead], cell, ahead)


def _board(walls: Walls, keys: Bool[Array, "64"], cell: Int[Array, ""]) -> Board:
    """The codes of walls, of the cells with a key, and of the agent."""
    codes = walls.ravel().astype(jnp.uint8)  # False is FREE and True is WALL
    return jnp.where(keys, KEY, codes).at[cell].set(AGENT).reshape(SIDE, SIDE)


def _draw(board: Board, glyphs: Float[np.ndarray, "4 6 6"]) -> Float[Array, "48 48"]:
    """Lay the glyph of each cell's code where the cell is."""
    tiles = look_up(glyphs, board)
    return tiles.transpose(0, 2, 1, 3).reshape(SIDE * glyphs.shape[1], SIDE * glyphs.shape[2])


def _glyph(*rows: str) -> Float[np.ndarray, "6 6"]:
    """Grey levels, written as a digit per pixel: tenths."""
    return np.array([[int(digit) for digit in row] for row in rows]) / 10


_FREE_GLYPH = np.zeros((6, 6))
_WALL_GLYPH = np.ones((6, 6))
_KEY_GLYPH = _glyph("066600", "070700", "066600", "070000", "077000", "077700")
_AGENT_GLYPH = _glyph("008000", "999990", "099900", "099900", "090900", "990990")
_PALE_AGENT_GLYPH = _glyph("007000", "888880", "088800", "088800", "080800", "880880")

# in the order of the codes
_LABYRINTH_GLYPHS = (2 * np.stack([_FREE_GLYPH, _WALL_GLYPH, _KEY_GLYPH, _AGENT_GLYPH]) - 1).astype(np.float32)
_SIMPLE_GLYPHS = np.stack([_FREE_GLYPH, _WALL_GLYPH, _FREE_GLYPH, _PALE_AGENT_GLYPH]).astype(np.float32)


@dataclass(frozen=True)
class Labyrinth(Settings):
    """Collect the three keys of a maze that is drawn anew for every episode.

    Actions are down, right, up, left; walking into a wall costs a step like any other. A step pays -`step_cost`, and
    `key_reward` instead where it finds a key, which is gone then. The last key terminates the episode; after `horizon`
    steps (at least 1) it is truncated, so an agent that finds nothing scores -5. Nothing is random.

    The published code never truncates while it gathers training data; a huge `horizon` does the same.
    """

    horizon: Horizon = 50
    step_cost: Annotated[float, "[-1000000, 1000000]"] = 0.1
    key_reward: Annotated[float, "[-1000000, 1000000]"] = 1.0

    @property
    def spec(self) -> EnvSpec:
        """A board in, one of four directions out."""
        return _spec(self.horizon)

    def reset(self, task: Maze, key: PRNGKeyArray) -> tuple[LabyrinthState, TimeStep]:
        """Start in the corner (1, 1), with every key still to be found."""
        del key
        state = LabyrinthState(jnp.int32(START), jnp.ones(NUM_KEYS, bool), jnp.int32(0))
        return state, begin(self._observe(task, state))

    def step(
        self, task: Maze, state: LabyrinthState, action: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[LabyrinthState, TimeStep]:
        """Walk, and pick up what lies there."""
        del key
        cell = _walk(task.walls, state.cell, _LABYRINTH_SHIFTS, action)
        found = state.left & (task.keys == cell)
        state = LabyrinthState(cell, state.left & ~found, state.time + 1)
        reward = jnp.where(found.any(), self.key_reward, -self.step_cost)
        return state, arrive(self._observe(task, state), reward, ~state.left.any(), state.time >= self.horizon, action)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Directions."""
        return ("down", "right", "up", "left")

    def picture(self, obs: Board) -> Float[Array, "48 48"]:
        """Six grey levels: -1 free, 0.2 and 0.4 keys, 0.6 and 0.8 the agent, 1 walls."""
        return _draw(obs, self.tiles)

    @property
    def tiles(self) -> Float[np.ndarray, "4 6 6"]:
        """The pixels of each code."""
        return _LABYRINTH_GLYPHS

    def _observe(self, task: Maze, state: LabyrinthState) -> Board:
        # on CPUs this is several times faster than writing to the cells of the keys
        keys = (np.arange(NUM_CELLS)[:, None] == task.keys[None]) & state.left[None]
        return _board(task.walls, keys.any(1), state.cell)


@dataclass(frozen=True)
class SimpleMaze(Settings):
    """Two rooms joined by one gap, without goal or reward, to look at what an agent makes of 31 positions.

    18 positions lie to the left of the gap (4, 4), where episodes start, and 12 to its right. Actions are up, down,
    left, right. After `horizon` steps (at least 1) an episode is truncated. Tasks are ignored, nothing is random.
    """

    horizon: Horizon = 500

    @property
    def spec(self) -> EnvSpec:
        """A board in, one of four directions out."""
        return _spec(self.horizon)

    @property
    def all_boards(self) -> UInt8[np.ndarray, "31 8 8"]:
        """What is seen from each position, in the order of the cells."""
        walls = _TWO_ROOMS.ravel()
        boards = np.where(np.eye(NUM_CELLS, dtype=bool), AGENT, walls)[~walls]
        return boards.astype(np.uint8).reshape(-1, SIDE, SIDE)

    def reset(self, task: Any, key: PRNGKeyArray) -> tuple[GridState, TimeStep]:
        """Start in the gap."""
        del task, key
        state = GridState(jnp.int32(_GAP), jnp.int32(0))
        return state, begin(self._observe(state))

    def step(
        self, task: Any, state: GridState, action: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[GridState, TimeStep]:
        """Walk; it pays nothing and never terminates."""
        del task, key
        cell = _walk(jnp.asarray(_TWO_ROOMS), state.cell, _SIMPLE_SHIFTS, action)
        state = GridState(cell, state.time + 1)
        timeout = state.time >= self.horizon
        return state, arrive(self._observe(state), jnp.float32(0), jnp.bool_(False), timeout, action)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Directions, in another order than the labyrinth's."""
        return ("up", "down", "left", "right")

    def picture(self, obs: Board) -> Float[Array, "48 48"]:
        """Four grey levels: 0 free, 0.7 and 0.8 the agent, 1 walls; unlike the labyrinth's, as published."""
        return _draw(obs, self.tiles)

    @property
    def tiles(self) -> Float[np.ndarray, "4 6 6"]:
        """The pixels of each code."""
        return _SIMPLE_GLYPHS

    def _observe(self, state: GridState) -> Board:
        return _board(jnp.asarray(_TWO_ROOMS), jnp.zeros(NUM_CELLS, bool), state.cell)
