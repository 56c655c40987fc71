"""Pictures of square tiles: encode each distinct corner once.

A labyrinth is 64 tiles of four kinds, so its 2,304 pixels repeat themselves. The first two convolutions of the trunk
see a tile and a little of its neighbours to the right and below: of such corners there are 292, where a batch has
thousands of tiles. The third convolution is linear in what they yield, so what a corner adds to the sites around it
is a table too, and what is left to do for every tile is to add rows of tables. The result is that of `Encoder` on the
whole picture.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from metadyna.nets.convolutions import Conv, ConvNet, convolve, max_pool
from metadyna.nets.pictures import TRUNK_POOLS, Encoder

TILE = 6
"""Pixels along a side of a tile; the trunk makes one site of it."""
SITE = TILE // TRUNK_POOLS[1]
"""Features along a side of a tile when the third convolution begins."""


def encode_boards(
    encoder: Encoder, tiles: Float[np.ndarray, "kinds 6 6"], boards: Integer[Array, "B rows columns"]
) -> Float[Array, "B *abstract"]:
    """Encode the pictures that boards of tiles make. `tiles` holds the pixels of each kind."""
    corners = _corners(boards, len(tiles))
    # Barriers: fused into what looks tables up, a row would be computed anew for every tile that has it.
    features = jax.lax.optimization_barrier(_features(encoder.trunk, tiles))
    table = jax.lax.optimization_barrier(_spread(encoder.trunk.layers[2], features))
    sites = _sites(table, corners) + encoder.trunk.layers[2].bias[None, None, None]
    return jax.vmap(encoder.finish)(encoder.trunk.activation(sites))


@functools.cache
def _kinds_of_corners(kinds: int) -> tuple[Int[np.ndarray, "corners 4"], Int[np.ndarray, "codes"]]:
    """Every corner there can be, and its row by code. One kind more than there are tiles is outside the picture."""
    codes = np.indices((kinds, *[kinds + 1] * 3)).reshape(4, -1).T
    _, right, below, diagonal = (codes == kinds).T
    possible = diagonal == (right | below)
    row = np.where(possible, np.cumsum(possible) - 1, 0)
    return codes[possible], row.astype(np.int32)


def _corners(boards: Integer[Array, "B rows columns"], kinds: int) -> Int[Array, "B rows columns"]:
    """Number of each tile's corner: its own kind, those to the right, below, and diagonally below."""
    padded = jnp.pad(boards.astype(jnp.int32), ((0, 0), (0, 1), (0, 1)), constant_values=kinds)
    digits = padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    code = functools.reduce(lambda number, digit: number * (kinds + 1) + digit, digits)
    return jnp.asarray(_kinds_of_corners(kinds)[1])[code]


def _features(trunk: ConvNet, tiles: Float[np.ndarray, "kinds 6 6"]) -> Float[Array, "corners 3 3 channels"]:
    """What the trunk's first two convolutions make of each corner's own tile."""
    codes = _kinds_of_corners(len(tiles))[0].reshape(-1, 2, 2)
    quarters = np.concatenate([tiles, np.zeros((1, TILE, TILE), np.float32)])[codes]
    pixels = quarters.transpose(0, 1, 3, 2, 4).reshape(-1, 2 * TILE, 2 * TILE, 1)
    # Two kernels of size two reach two pixels beyond the tile. What pads the second one is zeros again.
    inside = np.repeat(np.repeat(codes < len(tiles), TILE, axis=1), TILE, axis=2)[..., None]
    first, second, _ = trunk.layers

    def one(pixels: Array, inside: Array) -> Array:
        x = trunk.activation(convolve(pixels, first.weight, "VALID") + first.bias[None, None])
        x = trunk.activation(convolve(x * inside, second.weight, "VALID") + second.bias[None, None])
        return max_pool(x, TRUNK_POOLS[1])

    seen = jnp.asarray(pixels[:, : TILE + 2, : TILE + 2])
    return jax.vmap(one)(seen, jnp.asarray(inside[:, : TILE + 1, : TILE + 1], jnp.float32))


def _spread(layer: Conv, features: Float[Array, "corners 3 3 inputs"]) -> dict[tuple[int, int], Array]:
    """What features add to the third convolution, [corners, outputs] by place: their own and one around."""
    taps = jnp.einsum("cijk,abko->abijco", features, layer.weight).reshape(-1, len(features), layer.weight.shape[-1])
    each = iter(jax.lax.split(taps, (1,) * len(taps)))  # one piece each, whose gradients are put together at once
    spread: dict[tuple[int, int], Array] = {}
    for a, b, i, j in itertools.product(range(3), repeat=4):
        place = i + 1 - a, j + 1 - b  # a feature at i reaches place i + 1 - a through tap a of the kernel
        spread[place] = spread.get(place, 0) + next(each)[0]
    return spread


def _sites(
    table: dict[tuple[int, int], Array], corners: Int[Array, "B rows columns"]
) -> Float[Array, "B rows columns channels"]:
    """Add up what each tile and its eight neighbours contribute to its places; the largest is its site's."""
    count, (_, rows, columns) = len(table[0, 0]), corners.shape
    # Outside the picture there is nothing to add.
    table = {place: jnp.pad(values, ((0, 1), (0, 0))) for place, values in table.items()}
    padded = jnp.pad(corners, ((0, 0), (1, 1), (1, 1)), constant_values=count)

    def at(i: int, j: int) -> Array:
        total = []
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            place = i - SITE * down, j - SITE * right  # as that neighbour counts
            if place in table:
                neighbours = padded[:, 1 + down : 1 + down + rows, 1 + right : 1 + right + columns]
                total.append(table[place].at[neighbours].get(mode="promise_in_bounds"))
        return sum(total[1:], total[0])

    return functools.reduce(jnp.maximum, [at(i, j) for i, j in itertools.product(range(SITE), repeat=2)])
