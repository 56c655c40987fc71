"""Catcher: a block falls, a paddle is below it or not.

The test bed of low-dimensional abstraction in CRAR (François-Lavet et al. 2019, arXiv 1809.04506; code VinF/deer,
`examples/test_CRAR`). Rows and columns count from 0, row 0 at the bottom.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from metadyna.envs.gridworld import arrive, begin
from metadyna.types import Box, Discrete, EnvSpec, TimeStep

SIDE = 10
TOP = SIDE - 1
REACH = 1  # columns to either side in which the paddle still catches
LEFT, RIGHT = range(2)

RETURNS = {"optimal": 1.0, "random": -0.6}
"""Exact. The longest way is 8 columns, and there are 9 steps. Random moves keep a uniform paddle uniform, also at the
edges, and 2 of the 10 columns catch a block that falls along an edge."""


class CatcherState(NamedTuple):
    """Where block and paddle are."""

    row: Int[Array, "*batch"]
    column: Int[Array, "*batch"]
    paddle: Int[Array, "*batch"]


@dataclass(frozen=True)
class Catcher:
    """Move a paddle under a block that falls along the left or the right edge, one row per step.

    Actions are left and right; the paddle stops at the edges. An episode starts with the block at the top, at either
    edge, and the paddle anywhere, each equally likely. The ninth step lands the block and terminates: it pays 1 where
    the paddle is at most one column away and -1 elsewhere. Other steps pay 0. Observed: the block's row, its column,
    the paddle's column. Tasks are ignored.

    Our source gives the sizes and the ranges of grey of block and paddle (5 x 7 pixels of 0.6 to 1, 2 x 7 of 0.5 to 1)
    but not the pixels: those of `picture` are ours.
    """

    @property
    def spec(self) -> EnvSpec:
        """Three small numbers in, left or right out."""
        return EnvSpec(Box((3,), 0.0, float(TOP), "uint8"), Discrete((2,)), horizon=TOP)

    def reset(self, task: Any, key: PRNGKeyArray) -> tuple[CatcherState, TimeStep]:
        """Draw an edge for the block and a column for the paddle."""
        del task
        k_column, k_paddle = jax.random.split(key)
        column = TOP * jax.random.bernoulli(k_column).astype(jnp.int32)
        state = CatcherState(jnp.int32(TOP), column, jax.random.randint(k_paddle, (), 0, SIDE))
        return state, begin(_observe(state))

    def step(
        self, task: Any, state: CatcherState, action: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[CatcherState, TimeStep]:
        """Move the paddle, then let the block fall."""
        del task, key
        paddle = jnp.clip(state.paddle + jnp.where(action == RIGHT, 1, -1), 0, TOP)
        state = CatcherState(jnp.maximum(state.row - 1, 0), state.column, paddle)
        landed = state.row == 0
        caught = jnp.abs(state.paddle - state.column) <= REACH
        reward = jnp.where(landed, jnp.where(caught, 1.0, -1.0), 0.0)
        return state, arrive(_observe(state), reward, landed, landed, action)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Directions of the paddle."""
        return ("left", "right")

    def picture(self, obs: UInt8[Array, "3"]) -> Float[Array, "36 36"]:
        """Grey levels, 0 the background; block and paddle overlap only once the block has landed."""
        row, column, paddle = obs.astype(jnp.int32)
        return jnp.maximum(_stamp(_BLOCK, row, column), _stamp(_PADDLE, jnp.int32(0), paddle))


def _observe(state: CatcherState) -> UInt8[Array, "3"]:
    return jnp.stack(state).astype(jnp.uint8)


_PIXELS = 3  # per cell; a margin of one cell on every side holds what sticks out
_BLOCK = np.array(
    [
        [0.0, 0.0, 0.6, 0.7, 0.6, 0.0, 0.0],
        [0.0, 0.6, 0.8, 0.9, 0.8, 0.6, 0.0],
        [0.6, 0.8, 0.9, 1.0, 0.9, 0.8, 0.6],
        [0.0, 0.6, 0.8, 0.9, 0.8, 0.6, 0.0],
        [0.0, 0.0, 0.6, 0.7, 0.6, 0.0, 0.0],
    ]
)
_PADDLE = np.array(
    [
        [0.7, 0.8, 0.9, 1.0, 0.9, 0.8, 0.7],
        [0.5, 0.6, 0.7, 0.8, 0.7, 0.6, 0.5],
    ]
)


def _stamp(glyph: Float[np.ndarray, "h w"], row: Int[Array, ""], column: Int[Array, ""]) -> Float[Array, "36 36"]:
    """Draw a glyph around the centre of a cell on an empty picture, which has row 0 at its bottom."""
    height, width = glyph.shape
    centre_y, centre_x = _PIXELS * (SIDE - row) + 1, _PIXELS * (column + 1) + 1
    canvas = jnp.zeros((_PIXELS * (SIDE + 2),) * 2)
    corner = centre_y - height // 2, centre_x - width // 2
    return jax.lax.dynamic_update_slice(canvas, jnp.asarray(glyph, jnp.float32), corner)
