"""Boards of tiles against the pictures that they make, and how an environment's observations reach the encoder."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs.catcher import Catcher
from metadyna.envs.gridworld import CityGrid
from metadyna.envs.maze import Labyrinth, SimpleMaze
from metadyna.errors import UserError
from metadyna.models.abstract import Spatial, Vector
from metadyna.nets import sight as sight_module
from metadyna.nets.sight import picture_shape, sight
from metadyna.nets.tiles import encode_boards
from metadyna.planning.acting import look
from metadyna.types import Box, Discrete, EnvSpec, TimeStep

KEY = jax.random.key(0)
encode_pictures = jax.jit(lambda encoder, pictures: jax.vmap(encoder)(pictures))


def drawn(form, picture):
    """An encoder with biases: what surrounds a picture is then not what surrounds its features."""
    encoder, rng = jax.eval_shape(lambda: form.create(picture, 4, KEY).encoder), np.random.default_rng(0)
    scales = jax.tree.map(lambda w: 0.2 if len(w.shape) == 1 else np.prod(w.shape[:-1]) ** -0.5, encoder)
    return jax.tree.map(lambda w, scale: jnp.asarray(rng.normal(0, scale, w.shape), jnp.float32), encoder, scales)


def random_tiles(kinds):
    return np.random.default_rng(1).normal(size=(kinds, 6, 6)).astype(np.float32)


def random_boards(count, rows, columns, kinds):
    return np.random.default_rng(2).integers(0, kinds, (count, rows, columns)).astype(np.uint8)


def draw(tiles, boards):
    """The pictures [B, 6 rows, 6 columns] of boards."""
    count, rows, columns = boards.shape
    return np.asarray(tiles)[boards].transpose(0, 1, 3, 2, 4).reshape(count, 6 * rows, 6 * columns)


CASES = {
    "labyrinth": (Spatial(), Labyrinth().tiles, random_boards(3, 8, 8, 4)),
    "wide": (Spatial(1), random_tiles(3), random_boards(2, 6, 10, 3)),
    "one row": (Vector(), random_tiles(5), random_boards(30, 1, 2, 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_boards_are_encoded_as_their_pictures(name):
    """The codes, and the gradient of some of their sums in all weights."""
    form, tiles, boards = CASES[name]
    pictures = draw(tiles, boards)
    encoder = drawn(form, pictures.shape[1:])

    @partial(jax.jit, static_argnums=0)
    def told(encode, encoder, seen):
        x, pull = jax.vjp(lambda encoder: encode(encoder, seen), encoder)
        return x, pull(jax.random.normal(KEY, x.shape))[0]

    x, ours = told(lambda encoder, boards: encode_boards(encoder, tiles, boards), encoder, boards)
    expected, theirs = told(lambda encoder, pictures: jax.vmap(encoder)(pictures), encoder, pictures)
    np.testing.assert_allclose(x, expected, atol=2e-5)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        other = np.asarray(other)
        assert np.abs(other).max() > 0.01
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


# --- what an environment shows


class Screen:
    """An environment that shows something of a shape."""

    def __init__(self, *shape, dtype="float32"):
        self.spec = EnvSpec(Box(shape, 0.0, 1.0, dtype), Discrete((4,)), 10)


def looked(see, encoder, obs):
    """What an agent that plans in an abstract model begins from."""
    model = replace(jax.eval_shape(lambda: Vector().create((48, 48), 4, KEY)), encoder=encoder)
    timestep = TimeStep(obs, jnp.zeros(()), jnp.ones(()), jnp.bool_(True), jnp.bool_(False), jnp.int32(-1))
    expanded, x, carry = look(see)(model, "memory", timestep)
    assert expanded is model
    assert carry == "memory"
    return x


def test_tiles_are_encoded_as_tiles_and_pictures_as_pictures(monkeypatch):
    """Whichever way is taken, what is encoded is what the environment draws."""
    asked = []
    monkeypatch.setattr(sight_module, "encode_boards", lambda *args: asked.append(args) or encode_boards(*args))
    encoder, env, board = drawn(Vector(), (48, 48)), Labyrinth(), jnp.asarray(random_boards(1, 8, 8, 4)[0])
    picture = jax.jit(env.picture)(board)
    expected = encode_pictures(encoder, picture[None])[0]
    np.testing.assert_allclose(jax.jit(partial(looked, sight(env)))(encoder, board), expected, atol=2e-5)
    assert len(asked) == 1
    np.testing.assert_allclose(jax.jit(sight(Screen(48, 48)))(encoder, picture[None])[0], expected, atol=2e-5)
    assert len(asked) == 1


def test_what_is_no_tiles_is_drawn():
    encoder, obs = drawn(Vector(), (36, 36)), jnp.array([[9, 0, 3], [2, 9, 8]], jnp.uint8)
    seen, expected = jax.jit(
        lambda encoder: (sight(Catcher())(encoder, obs), jnp.stack([encoder(Catcher().picture(each)) for each in obs]))
    )(encoder)
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    assert not np.allclose(seen[0], seen[1])


class Coarse(Screen):
    """Boards of tiles of another size than the encoder's sites."""

    tiles = np.zeros((2, 12, 12), np.float32)


def test_tiles_of_another_size_are_not_encoded_as_tiles(monkeypatch):
    monkeypatch.setattr(sight_module, "encode_boards", None)
    picture = jnp.ones((1, 12, 12))
    encoder = drawn(Vector(), (12, 12))
    np.testing.assert_allclose(sight(Coarse(12, 12))(encoder, picture), encode_pictures(encoder, picture), atol=1e-5)


@pytest.mark.parametrize(
    ("env", "shape"),
    [(Labyrinth(), (48, 48)), (SimpleMaze(), (48, 48)), (Catcher(), (36, 36)), (Screen(6, 12), (6, 12))],
)
def test_sizes_of_pictures(env, shape):
    assert picture_shape(env) == shape


@pytest.mark.parametrize("env", [Screen(6), Screen(6, 6, 3), Screen(6, 6, dtype="uint8"), CityGrid()])
def test_what_is_no_picture_is_refused_in_one_line(env):
    with pytest.raises(UserError, match="needs pictures") as refused:
        picture_shape(env)
    assert "\n" not in str(refused.value)
