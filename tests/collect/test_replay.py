"""The ring keeps the newest items, and sampling is uniform over what is stored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect import replay, windows
from metadyna.collect.device import DeviceCollector
from metadyna.envs.control import Body, DoubleIntegrator, OneTask
from metadyna.types import TimeStep, Transition

EXAMPLE = {"number": np.int32(0), "pair": np.zeros(2, np.float32)}

init = jax.jit(replay.init, static_argnums=1)
add, add_where, size = jax.jit(replay.add), jax.jit(replay.add_where), jax.jit(replay.size)
added = jax.jit(lambda ring: ring.added)


def empty(capacity):
    return init(EXAMPLE, capacity)


def items(*numbers):
    number = np.int32(numbers)
    return {"number": number, "pair": np.float32(np.stack([number, -number], axis=-1))}


def ring_of(capacity, *batches):
    ring = empty(capacity)
    for batch in batches:
        ring = add(ring, items(*batch))
    return ring


@functools.partial(jax.jit, static_argnums=2)
def drawn_of(ring, key, count):
    return replay.sample(ring, key, count)


def drawn(ring, count):
    return jax.tree.map(np.asarray, drawn_of(ring, jax.random.key(0), count))


def stored(ring):
    slots = np.arange(replay.capacity(ring))  # of which the first `size` are taken
    return sorted(np.asarray(jax.jit(replay.take)(ring, slots)["number"])[: int(size(ring))].tolist())


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
    assert int(size(ring)) == len(kept)
    assert int(added(ring)) == sum(map(len, batches))


def test_the_leaves_of_an_item_stay_together():
    ring = ring_of(3, (1, 2), (3, 4))
    made = drawn(ring, 32)
    np.testing.assert_array_equal(made["pair"][:, 0], made["number"])
    np.testing.assert_array_equal(made["pair"][:, 1], -made["number"])


def test_a_ring_that_has_gone_round_more_often_than_32_bits_count_goes_on():
    """With all items ever added in one number, 2³¹ of them would make the size negative and every draw row 0."""
    ring = ring_of(4, (1, 2, 3))._replace(laps=jnp.int32(2**31 - 2))
    ring = add(ring, items(4, 5))
    assert int(size(ring)) == 4
    assert stored(ring) == [2, 3, 4, 5]
    assert {*drawn(ring, 64)["number"].tolist()} == {2, 3, 4, 5}


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 11])
def test_a_stored_item_keeps_its_number(count):
    ring = ring_of(4, *[(number,) for number in range(count)])
    numbers, kept = (np.asarray(x)[: int(size(ring))] for x in (jax.jit(replay.serials)(ring), ring.items["number"]))
    assert numbers.tolist() == kept.tolist()


def walk(number, last):
    """One step of two copies, of which the second is 100 ahead."""
    obs = np.float32([[number], [number + 100]])
    return Transition(obs, obs[:, 0], obs[:, 0], np.ones(2, np.float32), obs + 1, np.array(last))


@pytest.mark.parametrize("count", [1, 3, 5, 6, 14])
def test_windows_are_what_led_to_a_step_and_never_cross_an_episode(count):
    """Copy 0 ends an episode with every third step, copy 1 with every fourth; the ring holds five."""
    ring = init(walk(0, (False, False)), 5)
    for number in range(count):
        ring = add(ring, jax.tree.map(lambda x: x[None], walk(number, (number % 3 == 2, number % 4 == 3))))
    window = jax.jit(replay.windows, static_argnums=(2, 3))(ring, jax.random.key(1), 400, 4)
    window = jax.tree.map(np.asarray, window)
    ends = set()
    for obs, valid in zip(window.steps.obs[..., 0].T.tolist(), window.valid.T.tolist(), strict=True):
        copy, end = divmod(int(obs[-1]), 100)
        ends.add((copy, end))
        began = end - end % (3 + copy)  # of the episode
        there = [x for x in range(end - 3, end + 1) if x >= max(began, count - 5, 0)]
        assert [x for x, good in zip(obs, valid, strict=True) if good] == [100 * copy + x for x in there]
        assert valid == sorted(valid)
    assert ends == {(copy, end) for copy in (0, 1) for end in range(max(0, count - 5), count)}


def test_memory_while_acting_is_the_window_that_the_replay_would_give():
    """Of an episode of five steps, and of two steps of the next, with room for three."""
    shapes = replay.transition_shapes(DoubleIntegrator().spec)
    history = jax.jit(lambda: windows.nothing(shapes, 3))()
    heard = []
    for time in range(8):
        first = time in (0, 6)
        obs, action = np.full(2, time, np.float32), np.full(1, -time, np.float32)
        timestep = TimeStep(obs, np.float32(10 * time), np.float32(1), np.bool_(first), np.bool_(time == 5), action)
        history = jax.jit(windows.remember)(history, timestep)
        steps, valid = jax.tree.map(np.asarray, history.window)
        heard.append([int(x) for x, good in zip(steps.next_obs[:, 0], valid, strict=True) if good])
        assert [int(x) for x, good in zip(steps.obs[:, 0], valid, strict=True) if good] == [x - 1 for x in heard[-1]]
        assert [int(x) for x, good in zip(steps.reward, valid, strict=True) if good] == [10 * x for x in heard[-1]]
        assert [int(x) for x, good in zip(steps.action[:, 0], valid, strict=True) if good] == [-x for x in heard[-1]]
    assert heard == [[], [1], [1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [], [7]]


def test_shapes_alone_allocate_a_ring():
    shapes = jax.eval_shape(lambda: EXAMPLE)
    ring = replay.init(shapes, 5)
    assert replay.capacity(ring) == 5
    assert ring.items["pair"].shape == (5, 2)
    assert ring.items["number"].dtype == jnp.int32


def test_a_batch_larger_than_the_ring_raises():
    with pytest.raises(ValueError, match="3 items do not fit a ring of 2"):
        replay.add(empty(2), items(1, 2, 3))


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
    ring = empty(4)
    for numbers, chosen in batches:
        ring = add_where(ring, items(*numbers), np.array(chosen, bool))
    assert stored(ring) == kept
    assert int(added(ring)) == sum(sum(chosen) for _, chosen in batches)
    pair, number = (np.asarray(ring.items[name]) for name in ("pair", "number"))
    np.testing.assert_array_equal(pair[:, 0], number)
    np.testing.assert_array_equal(pair[:, 1], -number)


def test_choosing_all_is_adding():
    ring, chosen = empty(5), np.ones(3, bool)
    other = ring
    for start in (1, 4, 7):
        batch = items(start, start + 1, start + 2)
        ring, other = add(ring, batch), add_where(other, batch, chosen)
    jax.tree.map(np.testing.assert_array_equal, ring, other)


def test_the_shapes_of_transitions_are_those_that_a_collector_makes():
    env = DoubleIntegrator()
    body = Body(*np.ones((2, 1), np.float32))
    made = jax.eval_shape(
        lambda: (
            DeviceCollector(env, OneTask())
            .episodes(
                lambda params, carry, timestep, key: (jnp.zeros(1), carry, ()),
                (),
                jnp.zeros(1),
                body,
                jax.random.key(0),
            )
            .episodes
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
    numbers = drawn(ring, 3000)["number"]
    assert set(numbers.tolist()) == set(kept)
    assert chi_square(numbers - min(kept), np.full(len(kept), 1 / len(kept))) < 28  # 0.1% point of 9 degrees


def test_per_task_replay_is_a_vmap():
    rings = jax.jit(jax.vmap(lambda _: replay.init(EXAMPLE, 3)))(np.arange(2))
    first = jax.tree.map(lambda *x: np.stack(x), items(1, 2), items(10, 20))
    second = jax.tree.map(lambda *x: np.stack(x), items(3, 4), items(30, 40))
    for batch in (first, second):
        rings = jax.jit(jax.vmap(replay.add))(rings, batch)
    for task, kept in enumerate([{2, 3, 4}, {20, 30, 40}]):
        assert set(np.asarray(rings.items["number"])[task].tolist()) == kept
    sample = jax.jit(jax.vmap(lambda ring, key: replay.sample(ring, key, 50)))
    numbers = np.asarray(sample(rings, jax.random.split(jax.random.key(0), 2))["number"])
    assert set(numbers[0].tolist()) == {2, 3, 4}
    assert set(numbers[1].tolist()) == {20, 30, 40}


@functools.partial(jax.jit, static_argnums=2)
def steps_of(lengths, key, count):
    return replay.sample_steps(lengths, key, count)


@pytest.mark.parametrize("lengths", [(3, 1, 4), (0, 2, 0, 5, 0), (0, 0, 1), (20, 0, 0, 0)])
def test_steps_are_drawn_uniformly_and_never_from_empty_slots(lengths):
    slots, times = map(np.asarray, steps_of(np.int32(lengths), jax.random.key(0), 4000))
    steps = [(slot, time) for slot, length in enumerate(lengths) for time in range(length)]
    drawn = [steps.index(pair) for pair in zip(slots.tolist(), times.tolist(), strict=True)]  # fails off the list
    assert set(drawn) == set(range(len(steps)))
    assert chi_square(np.array(drawn), np.full(len(steps), 1 / len(steps))) < 44  # 0.1% point of 19 degrees
