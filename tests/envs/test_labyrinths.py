"""How labyrinths are drawn and filtered, and the pools that come with the package (card of CRAR, 2.1 and O12)."""

from collections import deque

import jax
import numpy as np
import pytest

from metadyna.envs import labyrinths, make
from metadyna.envs.labyrinths import Mazes, draw, generate, published, reachable
from metadyna.errors import UserError

FILTERS = ("published", "reachable")


@pytest.fixture(scope="module")
def drawn():
    return draw(np.random.default_rng(1), 16_000)


@pytest.fixture(scope="module")
def pools():
    with np.load(labyrinths.POOLS, allow_pickle=False) as file:
        return dict(file)


def maze_of(*rows):
    return np.array([[letter == "#" for letter in row] for row in rows])[None]


def numbered(*positions):
    return np.array([[8 * row + column for row, column in positions]])


# --- drawing


def test_draws_follow_the_rules(drawn):
    walls, keys = drawn
    inner = walls[:, 1:6, 1:6]
    assert (inner.sum((1, 2)) == 12).all()
    assert (walls.sum((1, 2)) == 28 + 12).all()
    assert walls[:, [0, 7]].all()
    assert walls[:, :, [0, 7]].all()
    assert not inner[:, 0, 0].any()
    assert all(len(set(row)) == 3 for row in keys[:2000].tolist())
    assert not np.take_along_axis(walls.reshape(-1, 64), keys, axis=1).any()
    assert (keys != 9).all()


def test_draws_are_uniform(drawn):
    """Every site is a wall in half of the draws and holds a key as often as others of its kind, whichever key it is."""
    walls, keys = drawn
    sites = np.delete(walls[:, 1:6, 1:6].reshape(-1, 25), 0, axis=1)
    np.testing.assert_allclose(sites.mean(0), 0.5, atol=0.02)
    pairs = np.corrcoef(sites[:, :8].T) - np.eye(8)
    assert abs(pairs + (1 - np.eye(8)) / 23).max() < 0.04  # 12 of 24 without replacement
    for key in keys.T:
        shares = np.bincount(key, minlength=64).reshape(8, 8) / len(keys)
        np.testing.assert_allclose(shares[6, 1:7], 1 / 23, atol=0.007)
        np.testing.assert_allclose(shares[1:6, 6], 1 / 23, atol=0.007)
        np.testing.assert_allclose(shares[1:6, 1:6].ravel()[1:], 1 / 46, atol=0.005)


# --- filters


def test_acceptance(drawn):
    plain, searched = reachable(*drawn), published(*drawn)
    assert plain.mean() == pytest.approx(0.26, abs=0.01)
    assert searched.mean() == pytest.approx(0.016, abs=0.002)
    assert not (searched & ~plain).any()


def flooded(walls):
    """Cells that can be reached from (1, 1), one maze at a time."""
    queue, seen = deque([(1, 1)]), {(1, 1)}
    while queue:
        row, column = queue.popleft()
        for ahead in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if not walls[ahead] and ahead not in seen:
                seen.add(ahead)
                queue.append(ahead)
    return {8 * row + column for row, column in seen}


def test_reachable_is_what_a_flood_reaches(drawn):
    walls, keys = (half[:1000] for half in drawn)
    expected = [set(cells) <= flooded(maze) for maze, cells in zip(walls, keys.tolist(), strict=True)]
    assert reachable(walls, keys).tolist() == expected


OPEN = maze_of("########", *["#......#"] * 6, "########")
HALLWAY = maze_of("########", "#......#", "######.#", *["#......#"] * 4, "########")


@pytest.mark.parametrize(
    ("walls", "keys", "accepted"),
    [
        (OPEN, ((1, 2), (1, 3), (1, 4)), True),
        (OPEN, ((1, 3), (1, 2), (1, 4)), False),  # the second was passed on the way to the first
        (OPEN, ((1, 2), (1, 4), (1, 3)), False),  # the third, on the way to the second
        (OPEN, ((1, 3), (2, 1), (6, 6)), True),  # beside the way
        (HALLWAY, ((1, 5), (3, 3), (6, 6)), False),  # a key that is found is not searched beyond: here, a cork
        (HALLWAY, ((6, 6), (3, 3), (6, 1)), True),
        (HALLWAY, ((6, 6), (1, 5), (6, 1)), False),
    ],
)
def test_the_published_search_has_its_flaw(walls, keys, accepted):
    assert reachable(walls, numbered(*keys)).tolist() == [True]
    assert published(walls, numbered(*keys)).tolist() == [accepted]


# --- pools


@pytest.mark.parametrize("name", FILTERS)
def test_pools_can_be_drawn_again(name):
    walls, keys = generate(name, 40, labyrinths.SEED)
    mazes = Mazes(name, "train", 40).enumerate()
    np.testing.assert_array_equal(mazes.walls, walls)
    np.testing.assert_array_equal(mazes.keys, keys)
    other, _ = generate(name, 40, labyrinths.SEED + 1)
    assert not np.array_equal(other, walls)


@pytest.mark.parametrize("name", FILTERS)
def test_pools_hold_different_mazes_that_pass_the_filter(name):
    train, test = (Mazes(name, split, count).enumerate() for split, count in (("train", 4096), ("test", 512)))
    walls, keys = (np.concatenate(halves) for halves in zip(train, test, strict=True))
    assert walls.shape == (4608, 8, 8)
    assert keys.dtype == np.int32
    identities = np.column_stack([walls.reshape(-1, 64), np.sort(keys, axis=1)])
    assert len(np.unique(identities, axis=0)) == 4608
    assert (walls.sum((1, 2)) == 40).all()
    assert labyrinths.FILTERS[name](walls[-1000:], keys[-1000:]).all()


def test_a_maze_is_kept_once_whatever_the_order_of_its_keys(monkeypatch):
    def draw_twice(rng, count):
        walls, keys = draw(rng, count // 2)
        return np.concatenate([walls, walls]), np.concatenate([keys, keys[:, ::-1]])

    monkeypatch.setattr(labyrinths, "draw", draw_twice)
    monkeypatch.setattr(labyrinths, "_BATCH", 400)
    walls, keys = generate("reachable", 500, 0)
    identities = np.column_stack([walls.reshape(-1, 64), np.sort(keys, axis=1)])
    assert len(identities) == len(np.unique(identities, axis=0)) == 500


def test_the_filters_differ():
    mazes = Mazes("reachable", "test").enumerate()
    assert published(*map(np.asarray, mazes)).mean() < 0.2


def test_the_file_is_small_and_plain(pools):
    assert labyrinths.POOLS.stat().st_size < 150_000
    kinds = {name: (array.dtype, array.shape) for name, array in pools.items()}
    expected = {"walls": (np.uint32, (4608,)), "keys": (np.uint8, (4608, 3))}
    assert kinds == {f"{name}_{what}": kind for name in FILTERS for what, kind in expected.items()}


# --- splits


def test_nothing_is_read_before_it_is_needed():
    labyrinths._read.cache_clear()
    family = make("labyrinth")
    assert labyrinths._read.cache_info().misses == 0
    family.train.sample(jax.random.key(0))
    family.test.enumerate()
    assert labyrinths._read.cache_info().misses == 1


def test_splits():
    family = make("labyrinth-reachable")
    assert family.train == Mazes("reachable", "train")
    assert family.test == Mazes("reachable", "test")
    assert family.train.enumerate().keys.shape == (4096, 3)
    test = family.test.enumerate()
    assert test.walls.shape == (200, 8, 8)
    np.testing.assert_array_equal(test.walls, Mazes("reachable", "test", 512).enumerate().walls[:200])


def test_samples_are_uniform_over_the_split():
    split = Mazes("published", "test", 8)
    listed = split.enumerate()
    sampled = jax.jit(jax.vmap(split.sample))(jax.random.split(jax.random.key(0), 8000))
    same = (np.asarray(sampled.walls)[:, None] == np.asarray(listed.walls)).all((2, 3))
    same &= (np.asarray(sampled.keys)[:, None] == np.asarray(listed.keys)).all(2)
    assert (same.sum(1) == 1).all()
    np.testing.assert_allclose(same.mean(0), 1 / 8, atol=0.015)


@pytest.mark.parametrize(
    ("split", "count", "told"),
    [
        ("train", 4097, r"count = 4097 is out of range; it must lie in \[1, 4096\]"),
        ("test", 513, "count is 513; the test split has 1 to 512 mazes"),
        ("test", 0, "count = 0 is out of range"),
    ],
)
def test_bad_counts_are_explained(split, count, told):
    with pytest.raises(UserError, match=told):
        Mazes("published", split, count)
