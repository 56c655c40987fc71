"""MBPO: how long branches are, which of their rows are kept, and what batches are mixed of."""

import functools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect import replay
from metadyna.collect.device import DeviceCollector
from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.improve.sac import SAC
from metadyna.models import fit as fits
from metadyna.models.fit import FitState
from metadyna.models.worlds import Meaning
from metadyna.systems.mbpo import MBPO, State
from metadyna.types import Box, EnvSpec, Transition
from tests.tiny import CONTINUOUS

KEY = jax.random.key(0)
SMALL = CONTINUOUS["mbpo"]
GROWING = replace(SMALL, horizon_start=2, horizon_end=6, horizon_from=20, horizon_until=60)
LINE = EnvSpec(Box((1,)), Box((1,), -1.0, 1.0), 10)


class Onwards(eqx.Module):
    """A world on a line: every step goes 1 ahead and pays `pay` times where it began; at 101 without end."""

    pay: jax.Array
    num_members: int = eqx.field(static=True, default=1)
    num_outputs: int = eqx.field(static=True, default=2)

    @property
    def elites(self):
        return jnp.arange(1)

    def best(self):
        return self

    def only(self, member):
        del member
        return self

    def sample(self, inputs, noise):
        del noise
        here = inputs[..., :1]
        return jnp.concatenate([jnp.where(here == 101, jnp.inf, self.pay * here), jnp.ones_like(here)], axis=-1)


MEANING = Meaning(LINE.action, terminated=lambda next_obs: (next_obs[0] > 4.5) & (next_obs[0] < 90))


@functools.cache
def learner():
    return jax.jit(lambda key: SMALL.sac.start(*SMALL.networks.create(1, 1, key)))(KEY)


def at(steps=0, capacity=50):
    """A state on the line after so many steps, with no experience yet."""
    example = replay.transition_shapes(LINE)
    rings = replay.init(example, capacity), replay.init(example, capacity)
    return State(learner(), FitState(Onwards(jnp.float32(10)), ()), *rings, (), jnp.int32(steps))


def rows(obs, reward):
    obs = np.float32(obs)
    ones = np.ones_like(obs)
    return Transition(
        obs[:, None], ones[:, None], np.float32(reward) * ones, ones, obs[:, None] + 1, np.zeros(len(obs), bool)
    )


add = jax.jit(replay.add)


@jax.jit
def imagine(state, starts):
    return GROWING._imagine(MEANING.world(state.model.ensemble), state, state.imagined, starts[:, None], KEY)


def imagined(state, starts):
    """The rows of branches from some starts, in order, and the mean reward."""
    ring, reward = imagine(state, np.float32(starts))
    assert ring.laps == 0
    return jax.tree.map(lambda x: np.asarray(x)[: ring.next], ring.items), reward


@functools.partial(jax.jit, static_argnums=0)
def mixed(system, real, dreamt):
    return system._batch(real, dreamt, KEY)


def count_updates(monkeypatch):
    """Put a count and a look at the batch in the place of SAC."""

    def update(settings, learner, batch, key):
        del settings, key
        return learner._replace(updates=learner.updates + 1), {"reward": batch.reward, "obs": batch.obs[:, 0]}

    monkeypatch.setattr(SAC, "update", update)


@pytest.mark.parametrize(("steps", "length"), [
    (0, 1), (20_000, 1), (25_000, 1), (25_715, 2), (59_000, 7), (60_000, 8), (94_285, 13), (94_286, 14),
    (100_000, 15), (2_000_000, 15),
])  # fmt: skip
def test_branches_grow_linearly_rounded_down(steps, length):
    """1 to 15 steps from step 20,000 to 100,000: one more every 5,714 and two sevenths."""
    system = replace(SMALL, horizon_start=1, horizon_end=15, horizon_from=20_000, horizon_until=100_000)
    assert system.horizon(steps) == length
    assert system.horizon(jnp.int32(steps)).dtype == jnp.int32


def test_branches_may_shrink_no_further_than_their_start():
    with pytest.raises(UserError, match=r"MBPO\.horizon_end = 2 .* \[3, 10000\]"):
        replace(SMALL, horizon_start=3, horizon_end=2)
    with pytest.raises(UserError, match=r"MBPO\.horizon_until = 20 .* \(20, 2000000000\]"):
        replace(SMALL, horizon_from=20, horizon_until=20)


@pytest.mark.parametrize(("steps", "length"), [(20, 2), (40, 4), (60, 6)])
def test_branches_are_as_long_as_it_is_their_time(steps, length):
    made, _ = imagined(at(steps), [-5.0, -15.0])
    expected = [start + i for i in range(length) for start in (-5, -15)]
    np.testing.assert_array_equal(made.obs[:, 0], expected)
    np.testing.assert_array_equal(made.next_obs[:, 0], np.array(expected) + 1)


def test_a_branch_that_has_ended_leaves_no_rows():
    """The line ends beyond 4.5: 2 goes on for three steps of four, 3 for two, 4 for one; -9 does not end."""
    made, reward = imagined(at(40), [2.0, 3.0, 4.0, -9.0])
    begun = [2, 3, 4, -9, 2 + 1, 3 + 1, -8, 2 + 2, -7, -6]
    np.testing.assert_array_equal(made.obs[:, 0], begun)
    np.testing.assert_allclose(made.reward, 10.0 * np.array(begun), rtol=1e-6)
    np.testing.assert_array_equal(made.last, np.array(begun) == 4)
    np.testing.assert_array_equal(made.discount, np.array(begun) != 4)
    assert reward == pytest.approx(10 * np.mean(begun), rel=1e-6)


def test_what_is_not_finite_is_not_kept_and_not_gone_on_from():
    made, reward = imagined(at(40), [99.0, np.nan, np.inf])
    np.testing.assert_array_equal(made.obs[:, 0], [99, 100])
    assert reward == pytest.approx(995)
    made, reward = imagined(at(40), [np.nan] * 3)
    assert len(made.obs) == reward == 0


def test_every_branch_and_step_has_chances_of_its_own():
    """The policy says the same wherever it is."""
    state = at(40)
    same = jax.tree.map(jnp.zeros_like, state.learner.actor)
    made, _ = imagined(state._replace(learner=state.learner._replace(actor=same)), [-9.0, -9.0])
    assert len(np.unique(made.action)) == 8


@pytest.mark.parametrize(("share", "real"), [(0.0, 0), (0.05, 1), (0.25, 5), (1.0, 20)])
def test_the_share_of_real_rows_is_exact(share, real):
    system = replace(SMALL, sac=SAC(batch=20), real_share=share)
    state = at()
    ring, dreamt = add(state.real, rows([1, 2, 3], 1.0)), add(state.imagined, rows([4, 5], 2.0))
    batch = jax.tree.map(np.asarray, mixed(system, ring, dreamt))
    assert (batch.reward == 1).sum() == real
    assert (batch.reward == 2).sum() == 20 - real
    assert set(np.unique(batch.obs)) <= {1, 2, 3, 4, 5}


def test_without_a_sound_dream_it_learns_from_what_was_lived():
    """Rows of zeros, which nobody lived or imagined, would be learnt from otherwise."""
    system, state = replace(SMALL, sac=SAC(batch=200)), at(40)
    ring = add(state.real, rows([1, 2, 3], 1.0))
    empty, _ = imagine(state, np.full(4, 101, np.float32))
    batch = jax.tree.map(np.asarray, mixed(system, ring, empty))
    assert batch.reward.shape == (200,)
    assert (batch.reward == 1).all()
    np.testing.assert_allclose(np.bincount(batch.obs[:, 0].astype(int), minlength=4)[1:] / 200, 1 / 3, atol=0.12)


@jax.jit
def refresh(state):
    """For the test below alone, whose fit is compiled with it."""
    return SMALL._refresh(MEANING, state, KEY)


@pytest.mark.parametrize(("steps", "due"), [(10, False), (20, True), (30, True)])
def test_once_warm_a_model_is_fitted_and_then_imagined_in(steps, due, monkeypatch):
    def fit(settings, model, state, rows, key):
        assert (settings, model) == (SMALL.fit, SMALL.model)
        inputs, targets = rows.take(jnp.arange(2))
        return FitState(Onwards(jnp.float32(-1)), ()), {"count": rows.count, "inputs": inputs, "targets": targets}

    monkeypatch.setattr(fits, "fit", fit)
    state = at(steps, capacity=100)
    state = state._replace(real=add(state.real, rows([-7, -8], 5.0)))
    after, told = refresh(state)
    made = jax.tree.map(lambda x: np.asarray(x)[:30], after.imagined.items)
    assert after.imagined.added == 30 * due  # `branches` 3 for each of `refresh` 10 steps
    assert after.model.ensemble.pay == (-1 if due else 10)
    np.testing.assert_array_equal(made.reward, -made.obs[:, 0])
    jax.tree.map(np.testing.assert_array_equal, (after.learner, after.real, after.steps), (
        state.learner, state.real, state.steps,
    ))  # fmt: skip
    if due:
        seen = np.unique(made.obs, return_counts=True)
        np.testing.assert_array_equal(seen[0], [-8, -7])  # branches begin where real steps did, and not in empty slots
        assert seen[1].min() >= 5
        assert (told["count"].total, told["model/horizon"].total) == (2, 1)
        np.testing.assert_array_equal(told["inputs"].total, [[-7, 1], [-8, 1]])
        np.testing.assert_array_equal(told["targets"].total, [[5, 1], [5, 1]])  # the reward is learnt, and comes first
        assert told["model/imagined_reward"].total == pytest.approx(-made.obs.mean())


@jax.jit
def improve(state, lived):
    """For the test below alone, whose updates are compiled with it."""
    return replace(SMALL, sac=SAC(batch=40), real_share=0.5)._improve(state, lived, KEY)


@pytest.mark.parametrize(("steps", "due"), [(19, 0), (20, 2), (55, 2)])
def test_every_step_is_stored_and_once_warm_learnt_from(steps, due, monkeypatch):
    count_updates(monkeypatch)
    state = at(steps)
    state = state._replace(imagined=add(state.imagined, rows([50, 60, 70, 80], 2.0)))
    lived = jax.tree.map(lambda x: x[:, None], rows([7], 1.0))
    after, told = improve(state, lived)
    assert after.steps == steps + 1
    assert after.real.added == 1
    assert np.asarray(after.real.items.obs)[0] == 7
    assert after.learner.updates == due
    assert told["train/reward"].weight == due
    np.testing.assert_array_equal(told["train/reward"].total, due * np.repeat([1, 2], 20))
    drawn = np.asarray(told["train/obs"].total)[20:]
    assert not due or (drawn % 20 == 10).any()  # the two updates drew batches of their own


def test_random_actions_come_first_and_updates_after_them(monkeypatch):
    """30 steps, of which 20 are for warming up; the policy would always push both ways as hard as it can."""
    count_updates(monkeypatch)
    told = {"fit/updates": jnp.float32(1)}
    monkeypatch.setattr(fits, "fit", lambda settings, model, state, rows, key: (state, told))
    family = make("point-mass")
    collector = DeviceCollector(family.env, family.train)
    state = jax.jit(lambda key: SMALL.init(collector, key))(KEY)
    decided = eqx.tree_at(
        lambda learner: learner.actor.mlp.layers[-1].bias, state.learner, jnp.array([9.0, -9.0, -9.0, -9.0])
    )
    state, iterate = state._replace(learner=decided), jax.jit(lambda state, key: SMALL.iterate(state, collector, key))
    for steps, updates, dreams in [(10, 0, 0), (20, 0, 0), (30, 20, 30)]:
        state, told = iterate(state, jax.random.fold_in(KEY, steps))
        assert (state.steps, state.real.added, state.learner.updates) == (steps, steps, updates)
        assert state.imagined.added == dreams
    lived = jax.tree.map(np.asarray, state.real.items)
    guessed, chosen = lived.action[:20], lived.action[20:30]
    np.testing.assert_allclose(chosen, np.tile([1.0, -1.0], (10, 1)), atol=1e-3)
    assert np.abs(guessed).max() < 1
    assert len(np.unique(guessed)) == 40
    np.testing.assert_array_equal(lived.obs[21:30], lived.next_obs[20:29])  # one after another
    assert told["train/reward"].weight == 20
    assert told["fit/updates"].weight == 1


def test_room_is_made_for_the_branches_of_some_fits_at_their_longest():
    family = make("point-mass")
    state = jax.eval_shape(lambda key: SMALL.init(DeviceCollector(family.env, family.train), key), KEY)
    assert replay.capacity(state.real) == 100
    assert replay.capacity(state.imagined) == 4 * 10 * 3 * 3  # fits, steps, branches, steps each
    assert state.model.ensemble.num_outputs == 3  # the reward, too


def test_the_model_is_fitted_just_when_the_random_steps_are_over():
    with pytest.raises(UserError, match=r"MBPO\.warmup = 25 is not a multiple of MBPO\.refresh = 10"):
        MBPO(refresh=10, warmup=25)
