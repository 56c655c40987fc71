"""How an environment's observations reach an encoder of pictures."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metadyna.errors import UserError
from metadyna.nets.pictures import Encoder
from metadyna.nets.tiles import TILE, encode_boards
from metadyna.types import Box, Pictured, Tiled

Sight = Callable[[Encoder, Array], Array]
"""`see(encoder, obs [B, ...]) -> x [B, *abstract]`."""


@cache
def sight(env: Any) -> Sight:
    """The fastest way to encode a batch of observations: by tiles, through pictures, or as pictures already."""
    if isinstance(env, Tiled) and env.tiles.shape[1:] == (TILE, TILE):
        tiles = env.tiles
        return lambda encoder, boards: encode_boards(encoder, tiles, boards)
    if isinstance(env, Pictured):
        return lambda encoder, obs: jax.vmap(encoder)(jax.vmap(env.picture)(obs))
    return lambda encoder, pictures: jax.vmap(encoder)(pictures)


def picture_shape(env: Any) -> tuple[int, ...]:
    """Height and width of what is seen; `UserError` if that is no picture."""
    space = env.spec.observation
    if isinstance(env, Pictured):
        seen = jax.eval_shape(env.picture, jax.ShapeDtypeStruct(space.shape, jnp.dtype(space.dtype)))
        return seen.shape
    if not isinstance(space, Box) or len(space.shape) != 2 or space.dtype != "float32":
        raise UserError(f"this method needs pictures [height, width] of floats, but the environment shows {space}")
    return space.shape
