"""Fitting: systems that can be learnt exactly, rows that must not be read, and when it stops."""

from collections import Counter
from dataclasses import replace
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metadyna.collect import replay
from metadyna.errors import UserError
from metadyna.models.fit import Fit, Rows, _split, fit, held_out, start, training_rows
from metadyna.models.gaussian import GaussianEnsemble
from tests.arrays import replaced
from tests.given import given
from tests.models.test_gaussian import constant

KEY = jax.random.key(0)
SMALL = GaussianEnsemble(members=3, elites=2, widths=(16,), weight_decay=(1e-5, 1e-5), learning_rate=1e-2)
ALL = replace(SMALL, elites=3)
LINEAR = replace(ALL, widths=(), weight_decay=(1e-5,))
STILL = 1e-12
"""A step size that changes nothing."""
QUICK = Fit(batch=32, max_epochs=6)
PETS = Fit(batch=32, holdout=0.0, max_epochs=5)
COLD = replace(PETS, warm_start=False)
EVERY = replace(QUICK, bootstrap=False)
ONCE = replace(EVERY, max_epochs=1)
CAPACITY = 128


def linear_system(count=CAPACITY, noise=0.0, seed=0):
    """Four states and two actions: s' − s = A s + B a."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(6, 4)) * 0.3
    inputs = rng.normal(size=(count, 6)) * [1, 5, 0.1, 2, 1, 1] + [0, 10, 0, -3, 0, 0]
    targets = inputs @ weight + noise * rng.normal(size=(count, 4))
    return np.float32(inputs), np.float32(targets), weight


LIMITS = ("max_epochs", "max_updates", "patience")


traced = Counter()
"""How often each program below was traced."""


@cache
def compiled(settings, model):
    """A fit that is told its limits and its learning rate, so that one program serves them all."""

    @jax.jit
    def program(limits, rate, state, rows):
        traced[settings, model] += 1
        return fit(given(settings, **limits), given(model, learning_rate=rate), state, rows, KEY)

    return program


def as_they_are(items):
    return items


def rows_of(items, count):
    """A ring whose first slots hold rows."""
    laps, after = divmod(count, jax.tree.leaves(items)[0].shape[0])
    return Rows(replay.Ring(jax.tree.map(jnp.asarray, items), jnp.int32(after), jnp.int32(laps)), as_they_are)


@partial(jax.jit, static_argnums=(0, 1, 2))
def drawn(model, inputs, outputs, key):
    return start(model, model.create(inputs, outputs, key))


def init(model, inputs, outputs, key):
    """A state to start from, which but for the elites is the same whatever these settings are."""
    plain = {"learning_rate": 1.0, "standardise_targets": False, "learned_bounds": True}
    state = drawn(replace(model, elites=model.members, **plain), inputs, outputs, key)
    return state._replace(ensemble=replace(state.ensemble, elites=jnp.asarray(np.arange(model.elites))))


def alike(settings, model):
    """What the program of these settings is made for: all but the numbers that it is told."""
    return replace(settings, **dict.fromkeys(LIMITS, 1)), replace(model, learning_rate=1.0)


def run(settings, model, inputs, targets, count=None, state=None):
    state = init(model, inputs.shape[1], targets.shape[1], jax.random.key(1)) if state is None else state
    rows = rows_of((inputs, targets), inputs.shape[0] if count is None else count)
    limits = {name: np.int32(getattr(settings, name)) for name in LIMITS}
    return compiled(*alike(settings, model))(limits, np.float32(model.learning_rate), state, rows)


@jax.jit
def every_prediction(ensemble, inputs):
    return ensemble.predict_all(inputs)


def predicted(ensemble, inputs):
    """Means and log-variances that every member gives the same rows."""
    mean, log_variance = every_prediction(ensemble, inputs)
    return np.asarray(mean), np.asarray(log_variance)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


# --- what is learnt


def test_a_linear_system_is_learnt_by_every_member():  # card of MB-MPO, O10
    inputs, targets, weight = linear_system(600)
    model = GaussianEnsemble(
        members=5,
        elites=5,
        widths=(),
        weight_decay=(0.0,),
        learning_rate=3e-2,
        probabilistic=False,
        standardise_targets=True,
    )
    state, metrics = run(Fit(batch=64, max_epochs=150, patience=20), model, inputs, targets)
    assert metrics["fit/holdout_mse"] < 1e-3
    new_inputs, new_targets, _ = linear_system(200)
    mean, _ = predicted(state.ensemble, new_inputs)
    residual = ((mean - new_targets[None]) ** 2).sum(1) / ((new_targets - new_targets.mean(0)[None]) ** 2).sum(0)[None]
    assert (residual < 1e-3).all()  # R² > 0.999 per member and output
    assert (mean.std(0) < 1e-2 * new_targets.std(0)[None]).all()
    jacobian = jax.jit(jax.jacobian(lambda x: state.ensemble.predict_all(x[None])[0][0, 0]))(new_inputs[0])
    np.testing.assert_allclose(jacobian.T, weight, atol=1e-2 * 1.5)


def test_members_disagree_where_there_are_no_data():  # O10
    """Four waves over the first input; the others say nothing."""
    rng = np.random.default_rng(0)

    def along(first):
        return np.pad(np.asarray(first, np.float32)[:, None], ((0, 0), (0, 5)))

    inputs = along(rng.uniform(-1, 1, CAPACITY))
    waves = np.sin(3 * inputs[:, :1] + np.linspace(0, 1.5, 4, dtype=np.float32))
    state, _ = run(replace(QUICK, max_epochs=60), ALL, inputs, waves)
    disagreement = [
        predicted(state.ensemble, along(np.linspace(*ends, CAPACITY)))[0].std(0).mean(0) for ends in ((-1, 1), (3, 5))
    ]
    assert (disagreement[1] > 5 * disagreement[0]).all()


def test_noise_is_told_from_the_mean():
    rng = np.random.default_rng(1)
    inputs = rng.uniform(-1, 1, (2000, 1))
    spread = 0.15 * np.exp(inputs)
    targets = inputs + spread * rng.normal(size=inputs.shape)
    # Without validation: by the squared error the best weights are some from before the variance was learnt.
    state, _ = run(Fit(batch=128, max_epochs=60, holdout=0.0), ALL, np.float32(inputs), np.float32(targets))
    points = np.float32([[-0.8], [0.8]])
    mean, log_variance = predicted(state.ensemble.best(), points)
    np.testing.assert_allclose(mean.mean(0), points, atol=0.1)
    np.testing.assert_allclose(np.exp(log_variance / 2).mean(0), 0.15 * np.exp(points), rtol=0.2)
    # The members' mixture is calibrated: intervals hold their shares of the rows, which are as likely as they can be.
    mean, log_variance = predicted(state.ensemble, np.float32(inputs))
    z = (targets[None] - mean) * np.exp(-log_variance / 2)
    quantile = scipy.stats.norm.cdf(z).mean(axis=0)
    for percent, tolerance in ((50, 0.08), (90, 0.05), (95, 0.04)):
        assert np.mean(np.abs(quantile - 0.5) < percent / 200) == pytest.approx(percent / 100, abs=tolerance)
    truth = np.log(spread * np.sqrt(2 * np.pi)) + 0.5 * ((targets - inputs) / spread) ** 2
    density = np.mean(scipy.stats.norm.pdf(z) * np.exp(-log_variance / 2), axis=0)
    assert -np.log(density).mean() == pytest.approx(truth.mean(), abs=0.1)


# --- rows


@cache
def splitter(settings, members):
    return jax.jit(partial(_split, settings, members))


@cache
def holder(settings, members):
    return jax.jit(partial(held_out, settings, members))


def arranged(settings, count, capacity, key=KEY, members=4):
    """Every member's slots in their order, and how many of which kind there are."""
    split = jax.tree.map(np.asarray, splitter(settings, members)(rows_of(np.arange(capacity), count), key))
    return split._replace(order=split.order[:, :capacity])


@cache
def learners(settings, members, capacity):
    """Which of so many rows each member learns from."""
    return jax.jit(lambda train: training_rows(settings, members, train, capacity, KEY))


def kept_out(settings, members, items, count):
    """Which slots each member validates on."""
    return np.asarray(holder(settings, members)(rows_of(items, count)))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 100, 128])
@pytest.mark.parametrize("bootstrap", [True, False])
def test_no_member_learns_from_a_held_out_or_an_unused_row(count, bootstrap):  # T17
    settings = Fit(bootstrap=bootstrap, max_holdout=15)
    order, held, first, train = arranged(settings, count, CAPACITY)
    np.testing.assert_array_equal(np.sort(order[:, :count]), np.tile(np.arange(count), (4, 1)))
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(CAPACITY), (4, 1)))
    chosen = kept_out(settings, 4, np.arange(CAPACITY), count)
    np.testing.assert_array_equal(held, chosen.sum(axis=1))
    if count < 4:
        np.testing.assert_array_equal(held, min(count, 1))
    else:
        np.testing.assert_allclose(held, min(count / 5, 15), atol=1)
    assert (first, train) == (max(held), count - max(held))
    rows = np.asarray(learners(settings, 4, CAPACITY)(train))
    assert rows.shape == (4, CAPACITY)
    learnt = np.take_along_axis(order, first + rows, axis=1)
    if train == 0:
        return  # no epoch is run
    for mine, row, slots, validated in zip(chosen, learnt, order, held, strict=True):
        assert not mine[row].any()
        assert mine[slots[:validated]].all()
    assert (learnt < count).all()
    if not bootstrap:
        for row, slots in zip(learnt[:, :train], order, strict=True):
            np.testing.assert_array_equal(np.sort(row), np.sort(slots[first:count]))
    elif count == 128:
        shares = [len(np.unique(row)) / train for row in learnt[:, :train]]
        np.testing.assert_allclose(shares, 1 - np.exp(-1), atol=0.1)


@pytest.mark.parametrize("count", [0, 10, 624, 625, 626, 2500, 2501, 9999, 10_000])
def test_a_large_store_is_shuffled_as_far_as_it_is_used(count):
    order = arranged(PETS, count, 10_000).order[0]
    np.testing.assert_array_equal(np.sort(order[:count]), np.arange(count))
    np.testing.assert_array_equal(np.sort(order[count:]), np.arange(count, 10_000))
    if count > 100:  # a used row is as likely to come first as last
        assert np.mean(order[: count // 2]) == pytest.approx(count / 2, rel=0.15)


def test_the_order_is_drawn_anew_and_those_held_out_stay():
    (first, held, *_), (second, *_) = (arranged(Fit(), 100, CAPACITY, jax.random.key(i), 1) for i in range(2))
    first, second = first[0], second[0]
    held = int(held[0])
    np.testing.assert_array_equal(np.sort(first[:held]), np.sort(second[:held]))
    assert not np.array_equal(first[:held], second[:held])
    assert np.mean(first[held:100] == second[held:100]) < 0.1


@pytest.mark.parametrize(
    "settings", [Fit(), Fit(holdout=0.33), Fit(max_holdout=5), Fit(holdout=0.05)], ids=["MBPO", "ME-TRPO", "few", "5%"]
)
@pytest.mark.parametrize("laps", [0, 2**26 - 2], ids=["from the first", "as 32 bits run over"])
def test_no_member_validates_on_a_row_that_it_once_learnt_from(settings, laps):
    """While the ring fills and is overwritten three times over, by batches of any size; the share is always kept."""
    capacity, added, members = 64, 0, 3
    learnt = [set() for _ in range(members)]
    store, hold_out = jax.jit(replay.add), holder(settings, members)
    ring = replay.Ring(jnp.asarray(-1 - np.arange(capacity)), jnp.int32(0), jnp.int32(laps))
    for count in np.random.default_rng(0).integers(1, 9, 60):
        ring = store(ring, np.arange(added, added + count))
        added += int(count)
        size = int(replay.size(ring))
        number = np.asarray(ring.items)[:size]
        share = min(settings.holdout, settings.max_holdout / size)
        for known, held in zip(learnt, np.asarray(hold_out(Rows(ring, as_they_are)))[:, :size], strict=True):
            assert not known & set(number[held].tolist())
            known |= set(number[~held].tolist())
            assert max(1, share * size - 2) <= held.sum() <= share * size + 2
    assert added > 3 * capacity


def test_what_is_held_out_is_not_learnt_from_and_all_else_is():
    """Targets that are not numbers spoil the loss wherever they are learnt from."""
    inputs, targets, _ = linear_system()
    alone = replace(LINEAR, members=1, elites=1)
    held = kept_out(ONCE, 1, inputs, CAPACITY)[0]
    _, metrics = run(ONCE, alone, inputs, replaced(targets, held, np.nan))
    assert np.isfinite(metrics["fit/train_loss"])
    for row in np.flatnonzero(~held)[::20]:
        _, metrics = run(ONCE, alone, inputs, replaced(targets, row, np.nan))
        assert not np.isfinite(metrics["fit/train_loss"])


@pytest.mark.parametrize("members", [5, 7])
def test_every_row_is_learnt_from_by_most_members(members):
    """A fifth held out by each: no row is kept from more than two of seven, and none of five from more than one."""
    held = kept_out(Fit(), members, np.arange(1000), 1000)
    assert held.sum(axis=0).max() == np.ceil(members / 5)
    assert held.sum(axis=0).min() == members // 5
    np.testing.assert_allclose(held.mean(axis=1), 0.2, atol=0.002)


def test_rows_are_given_up_to_learn_from_as_the_share_falls():
    """Who is held out of many was held out of few, and those few are spread over what is stored."""
    settings, capacity = Fit(max_holdout=20), 1000
    few, many = (np.flatnonzero(kept_out(settings, 1, np.arange(capacity), n)[0]) for n in (100, 1000))
    assert len(few) == pytest.approx(20, abs=1)
    assert len(many) == pytest.approx(20, abs=1)
    assert set(many[many < 100]) < set(few)
    assert np.diff(many).max() < 4 * capacity / 20


@pytest.mark.parametrize(
    ("settings", "model"), [(QUICK, ALL), (PETS, ALL), (EVERY, SMALL)], ids=["MBPO", "PETS", "all rows"]
)
@pytest.mark.parametrize("count", [2, 3, 10, 100])
def test_unused_rows_are_never_read(settings, model, count):
    inputs, targets, _ = linear_system()
    clean = run(settings, model, inputs, targets, count)
    assert finite(clean)
    unused = np.s_[count:]
    poisoned = run(settings, model, replaced(inputs, unused, np.nan), replaced(targets, unused, np.inf), count)
    assert_trees_equal(clean, poisoned)
    assert clean[1]["fit/updates"] > 0


@pytest.mark.parametrize("settings", [QUICK, PETS], ids=["MBPO", "PETS"])
def test_without_rows_nothing_changes(settings):
    inputs, targets, _ = linear_system()
    start = init(ALL, 6, 4, KEY)
    state, metrics = run(settings, ALL, inputs * np.nan, targets * np.nan, 0, start)
    assert_trees_equal(start, state)
    assert metrics["fit/epochs"] == metrics["fit/updates"] == 0
    assert np.isfinite(metrics["fit/train_loss"])


def test_every_row_weighs_the_same_though_the_last_batch_is_short():
    """One epoch in a batch that is larger than the data is one step on the loss over exactly the training rows."""
    inputs, targets, _ = linear_system(10)
    settings = Fit(batch=64, holdout=0.0, bootstrap=False, max_epochs=1)
    start = init(ALL, 6, 4, KEY)
    state, metrics = run(settings, ALL, inputs, targets, state=start)
    scaled = replace(start.ensemble, input_scale=state.ensemble.input_scale)
    every = (np.stack([inputs] * 3), np.stack([targets] * 3)), np.ones(10, bool)
    loss, slopes = jax.jit(jax.value_and_grad(lambda w, *every: ALL.loss(replace(scaled, weights=w), *every)))(
        start.ensemble.weights, *every
    )
    assert metrics["fit/train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    moved = jax.tree.map(lambda new, old: np.asarray(new) - old, state.ensemble.weights, start.ensemble.weights)
    # Adam's first step is its step size against the sign.
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, -1e-2 * np.sign(g), atol=1e-4), moved, slopes)


@pytest.mark.parametrize(("count", "updates"), [(10, 1), (32, 1), (33, 2), (100, 4)])
def test_an_epoch_passes_over_the_rows_once(count, updates):
    inputs, targets, _ = linear_system()
    _, metrics = run(PETS, ALL, inputs, targets, count)
    assert metrics["fit/epochs"] == 5
    assert metrics["fit/updates"] == 5 * updates


def test_updates_are_limited():
    inputs, targets, _ = linear_system()
    _, metrics = run(replace(PETS, max_updates=7), ALL, inputs, targets)
    assert (metrics["fit/updates"], metrics["fit/epochs"]) == (7, 2)


STANDARD = replace(ALL, standardise_targets=True)
UNLEARNT = replace(STANDARD, learned_bounds=False)


@pytest.mark.parametrize(("settings", "model"), [(QUICK, UNLEARNT), (COLD, STANDARD)], ids=["MBPO", "PETS"])
def test_a_constant_column_does_no_harm(settings, model):  # P10
    inputs, targets, _ = linear_system()
    inputs, targets = replaced(inputs, np.s_[:, 1], 1000.1), replaced(targets, np.s_[:, 2], -0.3)
    state, metrics = run(settings, model, inputs, targets)
    assert finite((state, metrics))
    assert state.ensemble.input_scale.std[1] == 1
    assert finite(predicted(state.ensemble, inputs))


def test_one_program_serves_every_count():
    inputs, targets, _ = linear_system()
    state, _ = run(QUICK, ALL, inputs, targets, 0)
    before = traced[alike(QUICK, ALL)]
    for count in (1, 10, 77, 128):
        state, _ = run(QUICK, ALL, inputs, targets, count, state)
        assert finite(state)
    assert traced[alike(QUICK, ALL)] == before >= 1


# --- stopping, restoring, elites


def test_it_stops_after_more_than_patience_epochs_without_improvement():  # O13
    """A step size that changes nothing: the first epoch counts, for nothing came before, and no other does."""
    inputs, targets, _ = linear_system()
    for patience in (0, 5):
        _, metrics = run(Fit(batch=32, patience=patience), replace(ALL, learning_rate=STILL), inputs, targets)
        assert metrics["fit/epochs"] == 1 + patience + 1


def test_it_goes_on_while_the_error_falls_and_no_longer():  # O13
    inputs, targets, _ = linear_system(noise=0.3)
    limited = Fit(batch=32, patience=3, max_epochs=200)
    _, metrics = run(limited, ALL, inputs, targets)
    assert 6 < metrics["fit/epochs"] < 150
    _, unlimited = run(replace(limited, patience=10**6), ALL, inputs, targets)
    assert unlimited["fit/epochs"] == 200
    # The first epochs are the same, and what came after them did not improve much.
    assert unlimited["fit/holdout_mse"] <= metrics["fit/holdout_mse"]


def test_members_end_with_their_best_weights():
    """Steps so large that errors jump about: what is kept has an error that is the least of all epochs."""
    inputs, targets, _ = linear_system(noise=1.0)
    model = replace(SMALL, learning_rate=0.3)
    ends, lasts = [], []
    for epochs in (3, 10, 30):
        settings = replace(EVERY, patience=10**6, max_epochs=epochs)
        state, metrics = run(settings, model, inputs, targets)
        ends.append(metrics["fit/holdout_mse"])
        held = kept_out(settings, 3, (inputs, targets), CAPACITY)
        mean, _ = predicted(state.ensemble, inputs)
        squared = (((mean - targets[None]) / targets.std(0)[None, None]) ** 2).mean(-1)
        lasts.append(np.mean([error[mine].mean() for error, mine in zip(squared, held, strict=True)]))
    np.testing.assert_allclose(ends, lasts, rtol=1e-4)  # the weights are those of the reported error
    assert ends[0] >= ends[1] >= ends[2]


def test_without_validation_the_last_weights_are_kept():
    inputs, targets, _ = linear_system()
    state, metrics = run(PETS, ALL, inputs, targets)
    other, _ = run(replace(PETS, max_epochs=6), ALL, inputs, targets)
    assert not np.allclose(*(s.ensemble.weights.members.mlp.layers[0].weight for s in (state, other)))
    np.testing.assert_array_equal(state.ensemble.elites, [0, 1, 2])
    assert not any("holdout" in name for name in metrics)


def spoil(state, member, factor):
    """Multiply a member's output weights."""
    layer = lambda state: state.ensemble.weights.members.mlp.layers[-1].weight  # noqa: E731
    weight = np.array(layer(state))
    weight[member] *= factor
    return eqx.tree_at(layer, state, jnp.asarray(weight))


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_the_elites_are_the_best_members(bad):
    """As many as set, the best first."""
    inputs, targets, _ = linear_system()
    start, _ = run(PETS, ALL, inputs, targets)
    start = spoil(start._replace(ensemble=replace(start.ensemble, elites=jnp.asarray(np.arange(2)))), bad, -5.0)
    state, _ = run(ONCE, replace(SMALL, learning_rate=STILL), inputs, targets, state=start)
    mean, _ = predicted(state.ensemble, inputs)
    errors = (((mean - targets[None]) / targets.std(0)[None, None]) ** 2).mean((1, 2))
    assert np.argmax(errors) == bad
    assert bad not in state.ensemble.elites.tolist()
    assert state.ensemble.elites.shape == (2,)
    assert state.ensemble.best().num_members == 2


def test_a_member_is_ranked_by_errors_relative_to_each_column():  # P9
    inputs, targets, _ = linear_system()
    targets = targets * np.float32([1000.0, 1.0, 1.0, 1.0])
    # Member 0 is off by a third of the deviation in the large column, the others by three deviations in the small ones.
    large, small = (np.float32(offset) * targets.std(0) for offset in ([0.3, 0.0, 0.0, 0.0], [0.0, 3.0, 3.0, 3.0]))
    bias = targets.mean(0) + np.stack([large, small, small])
    raw = np.mean((targets[None] - bias[:, None]) ** 2, axis=(1, 2))
    assert raw[0] > raw[1]
    start = init(SMALL, 6, 4, KEY)._replace(ensemble=constant(SMALL, 6, np.concatenate([bias, 0 * bias], axis=1)))
    state, _ = run(ONCE, replace(SMALL, learning_rate=STILL), inputs, targets, state=start)
    assert state.ensemble.elites[0] == 0


def test_a_member_that_diverges_keeps_the_weights_it_came_with():
    inputs, targets, _ = linear_system()
    start = spoil(init(ALL, 6, 4, KEY), 1, np.nan)
    # Learnt bounds are shared, and pass a NaN on to all.
    state, metrics = run(QUICK, UNLEARNT, inputs, targets, state=start)
    np.testing.assert_array_equal(state.ensemble.elites[-1], 1)
    assert metrics["fit/epochs"] > 1
    mean, _ = predicted(state.ensemble, inputs)
    assert np.isfinite(mean[state.ensemble.elites[:2]]).all()


# --- from fit to fit


def test_a_warm_start_goes_on():
    inputs, targets, _ = linear_system()
    once, first = run(PETS, ALL, inputs, targets)
    twice, second = run(PETS, ALL, inputs, targets, state=once)
    assert second["fit/train_loss"] < first["fit/train_loss"]
    assert twice.optimiser[0].count == 2 * once.optimiser[0].count
    # With steps that change nothing the end shows where the fit began.
    still, _ = run(PETS, replace(ALL, learning_rate=STILL), inputs, targets, state=once)
    near = partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(near, still.ensemble.weights, once.ensemble.weights)


def test_a_cold_start_forgets():
    inputs, targets, _ = linear_system()
    once, first = run(COLD, STANDARD, inputs, targets)
    twice, second = run(COLD, STANDARD, inputs, targets, state=once)
    assert_trees_equal((once, first), (twice, second))


# --- settings


@pytest.mark.parametrize(
    ("change", "interval"),
    [
        ({"batch": 0}, r"\[1, 65536\]"),
        ({"holdout": 1.0}, r"\[0, 1\)"),
        ({"max_holdout": 0}, r"\[1, 2000000000\]"),
        ({"max_epochs": 0}, r"\[1, 2000000000\]"),
        ({"max_updates": 0}, r"\[1, 2000000000\]"),
        ({"patience": -1}, r"\[0, 2000000000\]"),
        ({"improvement": 1.0}, r"\[0, 1\)"),
    ],
)
def test_impossible_settings_name_the_range(change, interval):
    (name,) = change
    with pytest.raises(UserError, match=rf"Fit\.{name} = .* {interval}"):
        Fit(**change)


def test_elites_need_validation():
    inputs, targets, _ = linear_system()
    with pytest.raises(UserError, match=r"elites = 2 must be all members \(3\)"):
        run(PETS, SMALL, inputs, targets)
