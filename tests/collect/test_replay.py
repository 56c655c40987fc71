"""The ring keeps the newest items, and sampling is uniform over what is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect import replay, windows
from metadyna.collect.device import DeviceCollector
from metadyna.envs.control import Body, DoubleIntegrator, OneTask
from metadyna.types import TimeStep, Transition

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


def test_a_ring_that_has_gone_round_more_often_than_32_bits_count_goes_on():
    """With all items ever added in one number, 2³¹ of them would make the size negative and every draw row 0."""
    ring = ring_of(4, (1, 2, 3))._replace(laps=jnp.int32(2**31 - 2))
    ring = replay.add(ring, items(4, 5))
    assert replay.size(ring) == 4
    assert stored(ring) == [2, 3, 4, 5]
    assert {*replay.sample(ring, jax.random.key(0), 64)["number"].tolist()} == {2, 3, 4, 5}


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 11])
def test_a_stored_item_keeps_its_number(count):
    ring = ring_of(4, *[(number,) for number in range(count)])
    numbers = replay.serials(ring)[: int(replay.size(ring))]
    assert numbers.tolist() == ring.items["number"][: int(replay.size(ring))].tolist()


def walk(number, last):
    """One step of two copies, of which the second is 100 ahead."""
    obs = jnp.float32([[number], [number + 100]])
    return Transition(obs, obs[:, 0], obs[:, 0], jnp.ones(2), obs + 1, jnp.array(last))


@pytest.mark.parametrize("count", [1, 3, 5, 6, 14])
def test_windows_are_what_led_to_a_step_and_never_cross_an_episode(count):
    """Copy 0 ends an episode with every third step, copy 1 with every fourth; the ring holds five."""
    ring = replay.init(jax.eval_shape(lambda: walk(0, (False, False))), 5)
    for number in range(count):
        ring = replay.add(ring, jax.tree.map(lambda x: x[None], walk(number, (number % 3 == 2, number % 4 == 3))))
    window = jax.jit(replay.windows, static_argnums=(2, 3))(ring, jax.random.key(1), 400, 4)
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
    history = windows.nothing(shapes, 3)
    heard = []
    for time in range(8):
        first = time in (0, 6)
        obs, action = jnp.full(2, time, jnp.float32), jnp.full(1, -time, jnp.float32)
        timestep = TimeStep(obs, jnp.float32(10 * time), jnp.float32(1), jnp.bool_(first), jnp.bool_(time == 5), action)
        history = jax.jit(windows.remember)(history, timestep)
        steps, valid = history.window
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
