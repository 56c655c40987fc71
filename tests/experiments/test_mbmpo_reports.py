"""Reports on MB-MPO, from runs and models as small as they can be."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.experiments import figures, mbmpo
from metadyna.experiments.mbmpo import METHOD
from metadyna.models.gaussian import Standardiser
from tests.experiments.reading import noted, read
from tests.tiny import FIT, compiled_once, drawn, logged, scores, tiny  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


def record(*returns, steps=(4_000, 8_000, 12_000)):
    """A seed with these returns, whose models promise 5 more than is lived one iteration later."""
    told = {name: noted((), ()) for name in mbmpo.TOLD}
    told["promised"] = noted(steps[1:], [value + 5 for value in returns[2:]] + [99.0])
    evaluated = noted(steps[1:], [value + 1 for value in returns[1:]])
    return {"lived": noted(steps, returns), "evaluated": evaluated, "told": told}


def test_the_steps_that_rivals_need_and_the_promises_of_models(tmp_path):
    arms = {
        METHOD: [record(0.0, 4.0, 6.0), record(2.0, 6.0, 8.0)],
        "TRPO": 2 * [record(0.0, 6.5, 7.0, steps=(10_000, 20_000, 30_000))],
        "PPO": 2 * [record(0.0, 1.0, 2.0, steps=(10_000, 20_000, 30_000))],
    }
    *pictures, table, iterations = mbmpo.rivals(arms, tmp_path, "fig")
    assert [path.name for path in pictures] == ["fig.png", "fig-gap.png"]
    assert all(path.stat().st_size for path in pictures)
    rows = {(row["arm"], row["kind"], int(row["steps"])): row for row in read(table)}
    assert float(rows[METHOD, "lived", 12_000]["mean"]) == 7
    assert float(rows[METHOD, "evaluated", 12_000]["mean"]) == 8
    assert rows[METHOD, "lived", 12_000]["values"] == "6.0 8.0"
    needed = {arm: row["steps_to_the_last_of_mb_mpo"] for (arm, kind, _), row in rows.items() if kind == "lived"}
    assert needed == {METHOD: "12000", "TRPO": "30000", "PPO": ""}
    steps, values = mbmpo.gap(arms[METHOD])
    assert (list(steps), values.tolist()) == ([8_000], [[5], [5]])
    told = [row for row in read(iterations) if row["quantity"] == "promised"]
    assert [float(row["mean"]) for row in told] == [12, 99]


def test_a_variant_is_compared_with_the_same_seeds_after_as_many_steps(tmp_path):
    arms = {METHOD: [record(0.0, 4.0, 6.0), record(2.0, 6.0, 8.0)],
            "alpha 0": [record(0.0, 3.0, 8.0), record(2.0, 5.0, 10.0)]}  # fmt: skip
    picture, table, _ = mbmpo.variants(arms, tmp_path, "fig")
    assert picture.stat().st_size
    rows = {(row["arm"], row["kind"], int(row["steps"])): row for row in read(table)}
    names = ("lead", "lead_low_95", "lead_high_95")
    assert [float(rows["alpha 0", "lived", 12_000][name]) for name in names] == [2, 2, 2]
    assert [float(rows["alpha 0", "evaluated", 8_000][name]) for name in names] == [-1, -1, -1]
    assert rows[METHOD, "lived", 12_000]["lead"] == ""


def test_what_was_lived_is_averaged_over_windows():
    steps, values = mbmpo.returns(
        [{"lived": noted([1_000, 4_000, 5_000, 8_000, 12_001], [1.0, 3.0, 5.0, 7.0, 9.0])}], "lived"
    )
    assert steps == [4_000, 8_000, 12_001]
    assert values.tolist() == [[2, 6, 9]]


def test_a_run_is_measured_by_what_it_logged(tmp_path):
    run = at(800)
    named = [*mbmpo.TOLD.values(), "train/episode_return"]
    assert set(told(replace(run.config.system, fit=replace(FIT, holdout=0.5)), run.program.collector)) >= set(named)
    numbers = {name: 10.0 * i for i, name in enumerate(named, 1)}
    first = {"train/episode_return": -3.0, "time/seconds": 60.0}  # before anything was learnt
    result = logged(run, tmp_path, {400: first, 800: {**numbers, **scores(run), "time/seconds": 90.0}})
    measured = mbmpo.measure(result)
    rows = result.metrics
    assert measured["evaluated"]["values"][-1] == pytest.approx(float(np.mean(result.evaluate().returns)), rel=1e-4)
    assert measured["evaluated"]["steps"][-1] == result.steps == rows[-1]["step"]
    assert measured["lived"]["values"] == pytest.approx([row["train/episode_return"] for row in rows], rel=1e-4)
    for name, key in mbmpo.TOLD.items():
        assert measured["told"][name] == noted([800], [numbers[key]])
    assert measured["minutes"] == 1.5


def told(system, collector):
    """What an iteration tells, found out without one: compiling it takes long."""
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: system.init(collector, key), key)
    return jax.eval_shape(lambda state, key: system.iterate(state, collector, key)[1], state, key)


def at(step):
    """A run whose policy and models are drawn; the models take inputs and targets as they come."""
    run = drawn(tiny("mb-mpo", "point-mass"))
    state = jax.tree.map(lambda x: x[0], run.state.system)
    scales = {"input_scale": Standardiser.identity(4), "target_scale": Standardiser.identity(2)}
    model = state.model._replace(ensemble=replace(state.model.ensemble, **scales))
    state = jax.tree.map(lambda x: x[None], state._replace(model=model, steps=jnp.int32(step)))
    return replace(run, state=run.state._replace(system=state))


def test_errors_without_looking_grow_and_are_tabulated(tmp_path):
    """Models that have learnt nothing: the last state is wrong by more than the first."""
    rows = {400: {"train/episode_return": -3.0, "eval/return": -2.0, "time/seconds": 60.0}}
    measured = mbmpo.measure_open_loop(logged(at(400), tmp_path, rows))
    assert measured["horizons"] == [1, 2, 5, 10, 20]
    assert np.isfinite(measured["errors"]).all()
    assert measured["errors"][-1] > measured["errors"][0] > 0
    *pictures, table = mbmpo.long_horizons({"imagined horizon 5": 2 * [measured]}, tmp_path, "fig")
    assert [path.name for path in pictures] == ["fig.png", "fig-error.png"]
    rows = [row for row in read(table) if row["quantity"] == "error"]
    assert [int(row["at"]) for row in rows] == measured["horizons"]


# --- the arms


def arms(name):
    return figures.find(name, "quick").arms


def test_rivals_have_the_same_networks_and_fits_and_as_many_imagined_steps_and_policy_steps():
    ours, me_trpo, mpc = (arms("mbmpo-curves")[arm].system for arm in (METHOD, "ME-TRPO", "MPC-RS"))
    assert me_trpo.model == ours.model == replace(mpc.model, elites=5)
    assert me_trpo.fit == ours.fit == mpc.fit
    assert me_trpo.capacity == ours.capacity == mpc.capacity
    assert me_trpo.reach == ours.reach
    assert me_trpo.policy_steps == ours.meta_steps
    imagined = 2 * ours.tasks * ours.episodes * ours.horizon * ours.meta_steps
    assert me_trpo.episodes * me_trpo.horizon * me_trpo.policy_steps == imagined == 1_000_000
    lived = ours.tasks * ours.collect * 200
    assert me_trpo.parallel * me_trpo.collect == mpc.parallel * mpc.collect == lived == 1_000
    assert {config.task for config in arms("mbmpo-curves").values()} == {"half-cheetah-200"}


def test_variants_differ_from_mb_mpo_in_one_thing_each():
    base = arms("mbmpo-alpha")[METHOD]
    assert base == arms("mbmpo-curves")[METHOD]
    for arm, config in arms("mbmpo-alpha").items():
        system, outer = config.system, base.system.outer
        if arm.startswith("alpha"):
            assert system.outer.inner.rate == float(arm.split()[1])
            assert replace(config, system=replace(system, outer=outer)) == base
        elif arm != METHOD:
            assert not system.adapted_collection
            assert replace(config, system=replace(system, adapted_collection=True)) == base


def test_long_and_short_horizons_imagine_as_many_steps():
    each = arms("mbmpo-long-horizon").values()
    assert {config.system.horizon * config.system.episodes for config in each} == {20_000}
    assert {config.system.horizon for config in each} == {50, 200, 1_000}
