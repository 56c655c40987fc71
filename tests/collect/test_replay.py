"""The ring keeps the newest items, and sampling is uniform over what is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect import replay
from metadyna.collect.device import DeviceCollector
from metadyna.envs.control import Body, DoubleIntegrator, OneTask

EXAMPLE = {"number": jnp.int32(0), "pair": jnp.zeros(2)}


def items(*numbers):
    number = jnp.array(numbers, jnp.int32)
    return {"number": number, "pair": jnp.stack([number, -number], axis=-1).astype(jnp.float32)}


def ring_of(capacity, *batches):
    ring = replay.init(EXAMPLE, capacity)
    for batch in batches:
        ring = jax.jit(replay.add)(ring, items(*batch))
    return ring


def stored(ring):
    return sorted(replay.take(ring, jnp.arange(replay.size(ring)))["number"].tolist())


@pytest.mark.parametrize(
    ("batches", "kept"),
    [
        ([], []),
        ([(1, 2)], [1, 2]),
        ([(1, 2), (3,), (4,)], [1, 2, 3, 4]),
        ([(1, 2, 3), (4, 5)], [2, 3, 4, 5]),
        ([(1, 2, 3), (4, 5, 6), (7, 8, 9)], [6, 7, 8, 9]),
        ([(1,), (2, 3, 4, 5)], [2, 3, 4, 5]),
    ],
)
def test_a_ring_keeps_the_newest(batches, kept):
    ring = ring_of(4, *batches)
    assert stored(ring) == kept
    assert replay.size(ring) == len(kept)
    assert ring.added == sum(map(len, batches))


def test_the_leaves_of_an_item_stay_together():
    ring = ring_of(3, (1, 2), (3, 4))
    drawn = replay.sample(ring, jax.random.key(0), 32)
    np.testing.assert_array_equal(drawn["pair"][:, 0], drawn["number"])
    np.testing.assert_array_equal(drawn["pair"][:, 1], -drawn["number"])


def test_shapes_alone_allocate_a_ring():
    shapes = jax.eval_shape(lambda: EXAMPLE)
    ring = replay.init(shapes, 5)
    assert replay.capacity(ring) == 5
    assert ring.items["pair"].shape == (5, 2)
    assert ring.items["number"].dtype == jnp.int32


def test_a_batch_larger_than_the_ring_raises():
    with pytest.raises(ValueError, match="3 items do not fit a ring of 2"):
        replay.add(replay.init(EXAMPLE, 2), items(1, 2, 3))


@pytest.mark.parametrize(
    ("batches", "kept"),
    [
        ([((1, 2, 3), (0, 0, 0))], []),
        ([((1, 2, 3), (1, 0, 1))], [1, 3]),
        ([((1, 2, 3), (0, 1, 1)), ((4, 5, 6), (1, 0, 0))], [2, 3, 4]),
        ([((1, 2, 3), (1, 1, 1)), ((4, 5, 6), (0, 1, 1))], [2, 3, 5, 6]),
        ([((1, 2, 3), (1, 1, 1)), ((4, 5, 6), (0, 0, 0)), ((7, 8, 9), (1, 1, 1))], [3, 7, 8, 9]),
        ([(range(1, 10), (0, 1, 0, 0, 1, 0, 0, 0, 1))], [2, 5, 9]),
        ([((1,), (1,)), (range(2, 10), (0, 1, 1, 1, 1, 1, 1, 0))], [5, 6, 7, 8]),
    ],
)
def test_only_the_chosen_are_kept_without_a_gap(batches, kept):
    """Also of a batch that is larger than the ring; what is kept is the newest."""
    ring = replay.init(EXAMPLE, 4)
    for numbers, chosen in batches:
        ring = jax.jit(replay.add_where)(ring, items(*numbers), jnp.array(chosen, bool))
    assert stored(ring) == kept
    assert ring.added == sum(sum(chosen) for _, chosen in batches)
    np.testing.assert_array_equal(ring.items["pair"][:, 0], ring.items["number"])
    np.testing.assert_array_equal(ring.items["pair"][:, 1], -ring.items["number"])


def test_choosing_all_is_adding():
    ring, chosen = replay.init(EXAMPLE, 5), jnp.ones(3, bool)
    other = ring
    for start in (1, 4, 7):
        batch = items(start, start + 1, start + 2)
        ring, other = replay.add(ring, batch), replay.add_where(other, batch, chosen)
    jax.tree.map(np.testing.assert_array_equal, ring, other)


def test_the_shapes_of_transitions_are_those_that_a_collector_makes():
    env = DoubleIntegrator()
    body = Body(jnp.ones(1), jnp.ones(1))
    made = jax.eval_shape(
        lambda: DeviceCollector(env, OneTask()).episodes(
            lambda params, carry, timestep, key: (jnp.zeros(1), carry, ()), (), jnp.zeros(1), body, jax.random.key(0)
        )
    )
    shapes = replay.transition_shapes(env.spec)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape[2:], x.dtype), made)
    assert replay.capacity(replay.init(shapes, 7)) == 7


def chi_square(draws, expected):
    """Σ (observed − expected)² / expected over outcomes 0, 1, …; for k outcomes its mean is k − 1."""
    assert len(np.unique(draws)) <= len(expected)
    counts = np.bincount(draws, minlength=len(expected))
    assert len(counts) == len(expected)
    expected = np.asarray(expected) * len(draws)
    return np.sum((counts - expected) ** 2 / expected)


@pytest.mark.parametrize(("added", "kept"), [((10, 11, 12), (10, 11, 12)), (range(10, 23), range(13, 23))])
def test_sampling_is_uniform_over_the_stored_items(added, kept):
    ring = ring_of(10, *[(number,) for number in added])
    drawn = replay.sample(ring, jax.random.key(0), 3000)["number"]
    assert set(drawn.tolist()) == set(kept)
    assert chi_square(np.asarray(drawn) - min(kept), np.full(len(kept), 1 / len(kept))) < 28  # 0.1% point of 9 degrees


def test_per_task_replay_is_a_vmap():
    rings = jax.vmap(lambda _: replay.init(EXAMPLE, 3))(jnp.arange(2))
    first = jax.tree.map(lambda *x: jnp.stack(x), items(1, 2), items(10, 20))
    second = jax.tree.map(lambda *x: jnp.stack(x), items(3, 4), items(30, 40))
    for batch in (first, second):
        rings = jax.vmap(replay.add)(rings, batch)
    for task, kept in enumerate([{2, 3, 4}, {20, 30, 40}]):
        assert set(jax.tree.map(lambda x, task=task: x[task], rings).items["number"].tolist()) == kept
    drawn = jax.vmap(lambda ring, key: replay.sample(ring, key, 50))(rings, jax.random.split(jax.random.key(0), 2))
    assert set(drawn["number"][0].tolist()) == {2, 3, 4}
    assert set(drawn["number"][1].tolist()) == {20, 30, 40}


@pytest.mark.parametrize("lengths", [(3, 1, 4), (0, 2, 0, 5, 0), (0, 0, 1), (20, 0, 0, 0)])
def test_steps_are_drawn_uniformly_and_never_from_empty_slots(lengths):
    slots, times = replay.sample_steps(jnp.array(lengths), jax.random.key(0), 4000)
    steps = [(slot, time) for slot, length in enumerate(lengths) for time in range(length)]
    drawn = [steps.index(pair) for pair in zip(slots.tolist(), times.tolist(), strict=True)]  # fails off the list
    assert set(drawn) == set(range(len(steps)))
    assert chi_square(np.array(drawn), np.full(len(steps), 1 / len(steps))) < 44  # 0.1% point of 19 degrees
