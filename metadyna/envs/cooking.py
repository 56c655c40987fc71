"""The cooking grid: fetch two ingredients in order, from drawers whose contents must be found out.

Source: DREAM (Liu et al. 2021, arXiv 2008.02790; code ezliu/dream, `envs/cooking.py` and `envs/grid.py`). The
vocabulary (tasks, actions, splits) is that of `gridworld`.

Quirks of the published code kept here: the start is on the pot; a pick-up at the pot empties the hands; a drop at a
full pot loses the ingredient; nothing ever leaves the pot, so a wrong first ingredient spoils the episode; the two
reward stages that look at the pot compare its contents only, however they got there.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.envs.gridworld import (
    NUM_STATUSES,
    Action,
    GridTask,
    Position,
    ProblemGrid,
    arrive,
    begin,
    look_up,
    move_table,
    to_cell,
)
from metadyna.errors import UserError
from metadyna.settings import Horizon, Settings
from metadyna.types import Discrete, EnvSpec, TimeStep

POT, DRAWER = 2, 3  # statuses, after nothing (0) and bus stop (1)
POT_CAPACITY = 3
STAGE_REWARD = 0.25
NUM_STAGES = 4


class CookingState(NamedTuple):
    """The kitchen between two actions.

    `inventory` is an ingredient or `num_ingredients` for empty hands. `pot` numbers the pot's contents, a row of
    `tables.contents`. `stage` counts the achieved of: hold the first ingredient, have it in the pot, hold the second.
    """

    cell: Int[Array, "*batch"]
    time: Int[Array, "*batch"]
    inventory: Int[Array, "*batch"]
    pot: Int[Array, "*batch"]
    stage: Int[Array, "*batch"]


class CookingTables(NamedTuple):
    """What the settings imply, as constants.

    `drawers[problem, cell]` is the ingredient there (empty where no drawer is). `contents[pot]` lists what numbered
    pot holds, filled up with empty, and `add[pot, inventory]` is the pot after a drop.
    """

    move: Int[np.ndarray, "cells actions"]
    status: Int[np.ndarray, " cells"]
    drawers: Int[np.ndarray, "problems cells"]
    contents: Int[np.ndarray, "pots 3"]
    add: Int[np.ndarray, "pots inventories"]


@dataclass(frozen=True)
class CookingGrid(ProblemGrid, Settings):
    """Settings of a kitchen, and the kitchen itself.

    Problem μ fills drawer i with digit i of μ in base `num_ingredients`, least significant first. The goal is an
    ordered pair of ingredients. Each of the four stages pays +0.25 instead of -`step_cost`; picking up the wrong
    thing or losing the right one costs another 0.25. Ending the episode pays the remaining step costs at once.
    """

    width: Annotated[int, "[1, 1024]"] = 3
    height: Annotated[int, "[1, 1024]"] = 3
    start: Position = (1, 1)
    pot: Position = (1, 1)
    drawers: tuple[Position, ...] = ((2, 0), (2, 1), (2, 2))
    num_ingredients: Annotated[int, "[1, 1024]"] = 4
    horizon: Horizon = 20
    step_cost: Annotated[float, "[-1000000, 1000000]"] = 0.1
    timeout_terminates: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.drawers:
            raise UserError("a kitchen needs at least 1 drawer")
        if len({self.pot, *self.drawers}) < 1 + len(self.drawers):
            raise UserError("the pot and the drawers need a cell each")
        for x, y in (self.start, self.pot, *self.drawers):
            if not (0 <= x < self.width and 0 <= y < self.height):
                raise UserError(f"({x}, {y}) is off the {self.width} x {self.height} grid")

    @property
    def num_problems(self) -> int:
        """How many ways there are to fill the drawers."""
        return self.num_ingredients ** len(self.drawers)

    def relevant(self, problem: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """The part of a problem's number that matters: here all of it."""
        return problem

    @property
    def num_relevant(self) -> int:
        """How many values `relevant` takes."""
        return self.num_problems

    @property
    def spec(self) -> EnvSpec:
        """Observation [x, y, status, inventory, pot 1, pot 2, pot 3]; `num_ingredients` stands for empty."""
        held = (self.num_ingredients + 1,) * (1 + POT_CAPACITY)
        return EnvSpec(
            observation=Discrete((self.width, self.height, NUM_STATUSES, *held)),
            action=Discrete((len(Action),)),
            horizon=self.horizon,
        )

    @property
    def instruction_space(self) -> Discrete:
        """An ordered pair of ingredients."""
        return Discrete((self.num_ingredients,) * 2)

    @property
    def tables(self) -> CookingTables:
        """Everything that the settings fix, computed once per settings value."""
        return _cooking_tables(self)

    @property
    def contents(self) -> Int[np.ndarray, "problems drawers"]:
        """The ingredient in each drawer of each problem."""
        problems = np.arange(self.num_problems)[:, None]
        return (problems // self.num_ingredients ** np.arange(len(self.drawers))) % self.num_ingredients

    @property
    def instructions(self) -> Int[np.ndarray, "problems goals 2"]:
        """The goals of every problem: all ordered pairs of drawers, with replacement, as ingredients."""
        pairs = np.array(list(itertools.product(range(len(self.drawers)), repeat=2)))
        return self.contents[:, pairs].astype(np.int32)

    @property
    def observations(self) -> Int[np.ndarray, "N K"]:
        """Every distinct observation that some problem allows in unlimited time."""
        return _cooking_observations(self)

    def reset(self, task: GridTask, key: PRNGKeyArray) -> tuple[CookingState, TimeStep]:
        """Start with empty hands and an empty pot; nothing is random."""
        del key
        start = to_cell(self.start, self.width)
        values = (start, 0, self.num_ingredients, 0, 0)
        state = CookingState(*(jnp.int32(value) for value in values))
        return state, begin(self._observe(state))

    def step(
        self, task: GridTask, state: CookingState, action: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[CookingState, TimeStep]:
        """Move, pick up, drop or quit; the reward is judged on hands and pot after the action."""
        del key
        moved = self._handle(task, state, action)
        stage, reward, cooked = self._judge(task, moved, action)
        quits = action == Action.END
        reward = reward - jnp.where(quits, self.step_cost * (self.horizon - moved.time), 0.0)
        state = moved._replace(stage=stage)
        timeout = state.time >= self.horizon
        terminated = cooked | quits | (timeout & self.timeout_terminates)
        return state, arrive(self._observe(state), reward, terminated, timeout, action)

    def _handle(self, task: GridTask, state: CookingState, action: Int[Array, ""]) -> CookingState:
        """What the action does to agent, hands and pot."""
        empty = self.num_ingredients
        status = look_up(self.tables.status, state.cell)
        taken = look_up(self.tables.drawers, task.problem, state.cell)  # empty hands at the pot
        picks = (action == Action.PICK_UP) & (status > 0)
        drops = action == Action.DROP
        held = jnp.where(picks, taken, jnp.where(drops, empty, state.inventory))
        filled = look_up(self.tables.add, state.pot, state.inventory)
        pot = jnp.where(drops & (status == POT), filled, state.pot)
        cell = look_up(self.tables.move, state.cell, action)
        return CookingState(cell, state.time + 1, held, pot, state.stage)

    def _judge(
        self, task: GridTask, state: CookingState, action: Int[Array, ""]
    ) -> tuple[Int[Array, ""], Float[Array, ""], Bool[Array, ""]]:
        """New stage, reward and whether the dish is done. Even stages wait for the hands, odd ones for the pot."""
        wanted = jnp.where(state.stage < 2, task.goal[0], task.goal[1])
        holds = state.inventory == wanted
        contents = look_up(self.tables.contents, state.pot)
        first, second = contents[0] == task.goal[0], contents[1] == task.goal[1]
        potted = first & (second | (state.stage < 2))

        fetching = state.stage % 2 == 0
        advances = jnp.where(fetching, holds, potted)
        slips = ~advances & jnp.where(fetching, action == Action.PICK_UP, ~holds)
        falls_back = slips & ~fetching
        penalty = jnp.where(slips, STAGE_REWARD, 0.0)
        reward = jnp.where(advances, STAGE_REWARD, -self.step_cost - penalty)
        cooked = advances & (state.stage == NUM_STAGES - 1)
        stage = jnp.where(cooked, state.stage, state.stage + advances - falls_back)
        return stage, reward, cooked

    def _observe(self, state: CookingState) -> Int[Array, "7"]:
        status = look_up(self.tables.status, state.cell)
        place = jnp.stack([state.cell % self.width, state.cell // self.width, status, state.inventory])
        return jnp.concatenate([place, look_up(self.tables.contents, state.pot)]).astype(jnp.int32)

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        """Numbers of cells, inventories, pots and stages."""
        return self.width * self.height, self.num_ingredients + 1, len(self.tables.contents), NUM_STAGES

    def all_states(self, time: Int[Array, ""]) -> CookingState:
        """Every state at one time, stacked in the order of `state_index`; for dynamic programming."""
        cell, inventory, pot, stage = (jnp.asarray(axis.ravel()) for axis in np.indices(self._shape, np.int32))
        return CookingState(cell, jnp.full_like(cell, time), inventory, pot, stage)

    def state_index(self, state: CookingState) -> Int[Array, "*batch"]:
        """The place of a state in `all_states`."""
        _, inventories, pots, stages = self._shape
        return ((state.cell * inventories + state.inventory) * pots + state.pot) * stages + state.stage


@functools.lru_cache
def _cooking_tables(env: CookingGrid) -> CookingTables:
    num_cells, empty = env.width * env.height, env.num_ingredients
    drawer_cells = [to_cell(drawer, env.width) for drawer in env.drawers]
    status = np.zeros(num_cells, np.int32)
    status[drawer_cells] = DRAWER
    status[to_cell(env.pot, env.width)] = POT
    drawers = np.full((env.num_problems, num_cells), empty, np.int32)
    drawers[:, drawer_cells] = env.contents

    ingredients = range(env.num_ingredients)
    pots = [pot for size in range(POT_CAPACITY + 1) for pot in itertools.product(ingredients, repeat=size)]
    number = {pot: index for index, pot in enumerate(pots)}
    contents = np.array([pot + (empty,) * (POT_CAPACITY - len(pot)) for pot in pots], np.int32)
    # a drop with empty hands, or into a full pot, leaves the pot as it is
    add = [[number.get((*pot, held), number[pot]) for held in range(empty + 1)] for pot in pots]
    return CookingTables(move_table(env.width, env.height), status, drawers, contents, np.array(add, np.int32))


@functools.lru_cache
def _cooking_observations(env: CookingGrid) -> Int[np.ndarray, "N K"]:
    cell, inventory, pot = (axis.ravel() for axis in np.indices(env._shape[:3]))
    kitchen = np.column_stack([inventory, env.tables.contents[pot]])
    kinds = [len(set(row) - {env.num_ingredients}) for row in kitchen.tolist()]
    place = np.column_stack([cell % env.width, cell // env.width, env.tables.status[cell]])
    # one problem offers at most as many kinds of ingredients as it has drawers
    return np.column_stack([place, kitchen])[np.array(kinds) <= len(env.drawers)].astype(np.int32)
