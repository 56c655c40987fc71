"""Where labyrinths come from: drawing walls and keys, keeping what a filter accepts, and two pools of the result.

A draw puts 12 walls on the 24 cells of rows and columns 1 to 5 other than the start, so that row 6 and column 6 stay
open, and 3 keys on free cells of rows and columns 1 to 6. Two filters:

- `reachable` keeps mazes in which every key can be reached: 26% of the draws;
- `published` keeps what the published generator keeps (VinF/deer, `examples/maze`): 1.6%. It means to ask for
  the same, but its search for the second and third key goes on from where the one before stopped, and calls a key
  that was passed on the way unreachable. Its mazes have keys farther from the start and from each other, and scores
  differ by 0.1, so comparing with published results needs it.

`python -m metadyna.envs.labyrinths` writes the pools, 4096 mazes to train on and 512 to test on for each filter.
"""

import functools
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, PRNGKeyArray, UInt32

from metadyna.envs.gridworld import look_up
from metadyna.envs.maze import BORDER, NUM_CELLS, NUM_KEYS, SIDE, START, Maze
from metadyna.errors import UserError
from metadyna.settings import Settings

POOLS = Path(__file__).with_suffix(".npz")
SEED = 0
SPLITS = {"train": slice(0, 4096), "test": slice(4096, 4608)}
DEFAULT_COUNTS = {"train": 4096, "test": 200}

NUM_WALLS = 12
_WALLED = slice(1, 6)  # rows and columns in which walls are drawn
_BITS = np.arange(25, dtype=np.uint32).reshape(5, 5)  # of each cell there, in the number that stores a maze's walls
_BATCH = 4096  # draws at a time; another number draws other mazes from the same seed

Walls = Bool[np.ndarray, "n 8 8"]
Keys = Int[np.ndarray, "n 3"]
FilterName = Literal["published", "reachable"]


def draw(rng: np.random.Generator, count: int) -> tuple[Walls, Keys]:
    """Draw walls, border included, and the cells of the keys; not every key need be reachable."""
    sites = np.zeros((count, SIDE, SIDE), bool)
    sites[:, _WALLED, _WALLED] = True
    sites = sites.reshape(count, NUM_CELLS)
    sites[:, START] = False
    walls = np.tile(BORDER.ravel(), (count, 1))
    np.put_along_axis(walls, _pick(rng, sites, NUM_WALLS), True, axis=1)
    free = ~walls
    free[:, START] = False
    return walls.reshape(count, SIDE, SIDE), _pick(rng, free, NUM_KEYS)


def reachable(walls: Walls, keys: Keys) -> Bool[np.ndarray, " n"]:
    """Whether every key can be reached from the start."""
    reached = np.zeros_like(walls)
    reached[:, *divmod(START, SIDE)] = True
    while not np.array_equal(grown := _grow(reached) & ~walls, reached):
        reached = grown
    return np.take_along_axis(reached.reshape(-1, NUM_CELLS), keys, axis=1).all(1)


def published(walls: Walls, keys: Keys) -> Bool[np.ndarray, " n"]:
    """Whether the published search finds the keys in their order; it never finds one that is not reachable."""
    accepted = reachable(walls, keys)
    tried = zip(walls[accepted], keys[accepted], strict=True)
    accepted[accepted] = [_Search(maze.ravel().tolist()).finds_all(cells.tolist()) for maze, cells in tried]
    return accepted


FILTERS: dict[FilterName, Callable[[Walls, Keys], Bool[np.ndarray, " n"]]] = {
    "published": published,
    "reachable": reachable,
}


def generate(filter: FilterName, count: int, seed: int) -> tuple[Walls, Keys]:
    """The first `count` mazes of a seed that a filter accepts, each different from those before."""
    rng = np.random.default_rng(seed)
    mazes = {}
    while len(mazes) < count:
        walls, keys = draw(rng, _BATCH)
        accepted = FILTERS[filter](walls, keys)
        for maze in zip(walls[accepted], keys[accepted], strict=True):
            mazes.setdefault(_identity(*maze), maze)
    all_walls, all_keys = zip(*list(mazes.values())[:count], strict=True)
    return np.stack(all_walls), np.stack(all_keys)


@dataclass(frozen=True)
class Mazes(Settings):
    """Labyrinths of one pool: `count` of those that `filter` accepted, of the training or of the test half.

    `count` counts from the first of its split, up to 4096 and 512; None stands for all 4096 or for the first 200.
    """

    filter: FilterName = "published"
    split: Literal["train", "test"] = "train"
    count: Annotated[int, "[1, 4096]"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        there = SPLITS[self.split].stop - SPLITS[self.split].start
        if self.count is not None and self.count > there:
            raise UserError(f"count is {self.count}; the {self.split} split has 1 to {there} mazes")

    def sample(self, key: PRNGKeyArray) -> Maze:
        """Draw one maze, each equally likely."""
        walls, keys = self._mazes()
        index = jax.random.randint(key, (), 0, len(walls))
        return Maze(look_up(walls, index), look_up(keys, index))

    def enumerate(self) -> Maze:
        """Every maze of the split once, in the order of the pool."""
        walls, keys = self._mazes()
        return Maze(jnp.asarray(walls), jnp.asarray(keys))

    def _mazes(self) -> tuple[Walls, Keys]:
        walls, keys = (half[SPLITS[self.split]] for half in _read(self.filter))
        count = self.count or DEFAULT_COUNTS[self.split]
        return walls[:count], keys[:count]


def _steps_apart() -> list[list[int]]:
    """Steps between two cells if no wall were in the way."""
    rows, columns = divmod(np.arange(NUM_CELLS), SIDE)
    return (abs(rows[:, None] - rows) + abs(columns[:, None] - columns)).tolist()


_STEPS_APART = _steps_apart()


class _Cell:
    """What the published search remembers of a cell. Cells are ordered by their current f, whenever that was set."""

    def __init__(self, number: int):
        self.number = number
        self.cost = 0  # g: of the way from the start
        self.estimate = 0  # f: g and what is left at least

    def __lt__(self, other: "_Cell") -> bool:
        return self.estimate < other.estimate


class _Search:
    """The published A* search in one maze, with its flaw: it forgets nothing between two goals.

    Cells entered for one goal are closed for the next, and those waiting keep the estimates made for the last goal.
    """

    step_cost = 10
    neighbours = (SIDE, -1, -SIDE, 1)

    def __init__(self, walls: list[bool]):
        self._walls = walls
        self._cells = [_Cell(number) for number in range(NUM_CELLS)]
        self._closed: set[_Cell] = set()
        self._queue: list[tuple[int, _Cell]] = []  # with the f at the time of queueing

    def finds_all(self, goals: list[int]) -> bool:
        """Look for one goal after the other, up to the first that is not found."""
        return all(self._finds(goal) for goal in goals)

    def _finds(self, goal: int) -> bool:
        start = self._cells[START]
        heapq.heappush(self._queue, (start.estimate, start))
        while self._queue:
            _, cell = heapq.heappop(self._queue)
            self._closed.add(cell)
            if cell.number == goal:
                return True
            self._look_around(cell, goal)
        return False

    def _look_around(self, cell: _Cell, goal: int) -> None:
        cost = cell.cost + self.step_cost
        for shift in self.neighbours:
            neighbour = self._cells[cell.number + shift]
            if self._walls[neighbour.number] or neighbour in self._closed:
                continue
            waiting = (neighbour.estimate, neighbour) in self._queue
            if waiting and neighbour.cost <= cost:
                continue
            neighbour.cost = cost
            neighbour.estimate = cost + self.step_cost * _STEPS_APART[neighbour.number][goal]
            if not waiting:
                heapq.heappush(self._queue, (neighbour.estimate, neighbour))


def _pick(rng: np.random.Generator, allowed: Bool[np.ndarray, "n 64"], number: int) -> Int[np.ndarray, "n number"]:
    """Draw different cells out of those allowed, in random order."""
    return np.where(allowed, rng.random(allowed.shape), np.inf).argsort(axis=1)[:, :number]


def _grow(reached: Walls) -> Walls:
    """Add the neighbours of every cell."""
    grown = reached.copy()
    grown[:, 1:] |= reached[:, :-1]
    grown[:, :-1] |= reached[:, 1:]
    grown[:, :, 1:] |= reached[:, :, :-1]
    grown[:, :, :-1] |= reached[:, :, 1:]
    return grown


def _identity(walls: Bool[np.ndarray, "8 8"], keys: Int[np.ndarray, "3"]) -> tuple[bytes, tuple[int, ...]]:
    """Equal for mazes that play alike: the order of the keys decides about the filter only."""
    return walls.tobytes(), tuple(sorted(keys.tolist()))


def _pack(walls: Walls) -> UInt32[np.ndarray, " n"]:
    return (walls[:, _WALLED, _WALLED] << _BITS).sum(axis=(1, 2), dtype=np.uint32)


def _unpack(masks: UInt32[np.ndarray, " n"]) -> Walls:
    walls = np.tile(BORDER, (len(masks), 1, 1))
    walls[:, _WALLED, _WALLED] = masks[:, None, None] >> _BITS & 1
    return walls


@functools.cache
def _read(filter: FilterName) -> tuple[Walls, Keys]:
    with np.load(POOLS, allow_pickle=False) as pools:
        return _unpack(pools[f"{filter}_walls"]), pools[f"{filter}_keys"].astype(np.int32)


def _write() -> None:
    pools = {}
    for filter in FILTERS:
        walls, keys = generate(filter, SPLITS["test"].stop, SEED)
        pools[f"{filter}_walls"], pools[f"{filter}_keys"] = _pack(walls), keys.astype(np.uint8)
    np.savez(POOLS, **pools)


if __name__ == "__main__":
    _write()
