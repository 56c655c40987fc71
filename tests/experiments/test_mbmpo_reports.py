"""Reports on MB-MPO, from runs and models as small as they can be."""

import csv
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.collect.device import DeviceCollector
from metadyna.envs.control import OneTask, PointMass
from metadyna.experiments import figures, mbmpo
from metadyna.experiments.mbmpo import CELLS, COARSE, HALF, METHOD, FaultyModels, FaultyPoint
from metadyna.experiments.records import Study
from metadyna.models.imagine import Predictor
from metadyna.models.world import known_world
from tests.tiny import CONTINUOUS, compiled_once, tiny, trained  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")
KEY = jax.random.key(0)
WORLD = known_world(PointMass())


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def noted(steps, values):
    return {"steps": list(steps), "values": list(values)}


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
    assert float(rows[METHOD, "lived", 12_000]["mean_return"]) == 7
    assert float(rows[METHOD, "evaluated", 12_000]["mean_return"]) == 8
    assert rows[METHOD, "lived", 12_000]["returns"] == "6.0 8.0"
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
    steps, values = mbmpo.curve(
        [{"lived": noted([1_000, 4_000, 5_000, 8_000, 12_001], [1.0, 3.0, 5.0, 7.0, 9.0])}], "lived"
    )
    assert steps == [4_000, 8_000, 12_001]
    assert values.tolist() == [[2, 6, 9]]


def test_a_run_is_measured_by_what_it_logged():
    result = trained(tiny("mb-mpo", "point-mass"))
    measured = mbmpo.measure(result)
    rows = result.metrics
    assert measured["evaluated"]["values"][-1] == pytest.approx(float(np.mean(result.evaluate().returns)), rel=1e-4)
    assert measured["evaluated"]["steps"][-1] == result.steps == rows[-1]["step"]
    assert measured["lived"]["values"] == pytest.approx([row["train/episode_return"] for row in rows], rel=1e-4)
    for name, key in mbmpo.TOLD.items():
        assert len(measured["told"][name]["values"]) == sum(key in row for row in rows)
    assert len(measured["told"]["promised"]["values"]) > 0


def test_faulty_models_are_wrong_by_their_bias_and_by_the_distance():
    biases = jnp.array([[0.04, 0.0], [-0.02, 0.05]])
    models = FaultyPoint(biases)
    assert isinstance(models, Predictor)
    rows = jnp.array([[2.0, -2.0, 0.5, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    told = models.sample(jnp.stack([rows, rows]), None)
    share = jnp.array([1.0, 0.25, 0.0])
    expected = 0.1 * rows[None, :, 2:] + biases[:, None] * share[None, :, None]
    np.testing.assert_allclose(told, expected, atol=1e-7)
    np.testing.assert_array_equal(models.only(jnp.int32(1)).sample(rows[None], None)[0], told[1])
    noisy = models.sample(jnp.stack([rows, rows]), jnp.ones((2, 3, 2)))
    np.testing.assert_allclose(noisy - told, jnp.broadcast_to(0.01 * share[None, :, None], told.shape), atol=1e-7)


def test_faulty_models_are_drawn_anew_and_disagree_as_they_are_made_to():
    system = replace(CONTINUOUS["mb-mpo"], warmup=1)
    found = FaultyModels(system, 2)(0)
    assert np.shape(found["maps"]["disagreement"]) == (COARSE, COARSE)
    assert found["correlations"]["disagreement and distance"] > 0.999
    assert found["correlations"]["disagreement and error"] > 0.99
    faulty = mbmpo._Faulty(**vars(system))
    state: Any = jax.eval_shape(lambda key: system.init(DeviceCollector(PointMass(), OneTask()), key), KEY)
    # Three equal numbers need not have a mean that is equal to them.
    agreeing = replace(system, tasks=3, model=replace(system.model, members=3, elites=3))
    assert FaultyModels(agreeing, 1, bias=0.0)(0)["means"]["disagreement"] == 0
    drawn = [faulty._fit(WORLD, state, state.model, key)[0].ensemble.biases for key in jax.random.split(KEY, 50)]
    assert len(np.unique(drawn)) == 50 * 2 * system.model.members
    assert 0.045 < np.abs(drawn).max() <= 0.05


def test_maps_are_laid_out_as_the_plane():
    """Rows are y and columns x, upwards and to the right; what was lived is counted where it was."""
    obs = np.array([[1.7, -1.7]] * 3 + [[0.02, 0.02], [5.0, 0.0]])
    lived = mbmpo._lived(obs).reshape(CELLS, CELLS)
    assert lived[1, -2] == 3
    assert lived[CELLS // 2, CELLS // 2] == 1
    assert lived.sum() == 4
    coarse = np.array(mbmpo._coarse(lived.ravel()))
    assert coarse.shape == (COARSE, COARSE)
    assert coarse[0, -1] == 3 / (CELLS // COARSE) ** 2
    side = (np.arange(CELLS) + 0.5) / CELLS * 2 * HALF - HALF
    assert mbmpo._rank_correlation(side, side**3) == pytest.approx(1)
    assert mbmpo._rank_correlation(side, np.zeros(CELLS)) == 0


def test_a_policy_that_does_not_adapt_gives_way_nowhere(tmp_path):
    system = CONTINUOUS["mb-mpo"]
    still, bold = (
        replace(system, learner=replace(system.learner, inner=replace(system.learner.inner, rate=rate)))
        for rate in (0.0, 0.5)
    )
    collector = DeviceCollector(PointMass(), OneTask())
    state = jax.jit(lambda key: still.init(collector, key))(KEY)
    found = mbmpo.survey(still, collector, state, KEY)
    assert found["means"]["yielding"] == 0
    meta = bold.learner.inner.start(state.meta.weights)
    moving = mbmpo.survey(bold, collector, state._replace(meta=meta), KEY)
    assert moving["means"]["yielding"] > 0
    assert moving["maps"]["disagreement"] == found["maps"]["disagreement"]
    arms = {"some arm": 2 * [{**found, "evaluated": noted([1, 2], [-1.0, -2.0])}]}
    for report in (mbmpo.regularisation, mbmpo.tailored):
        picture, table = report(arms, tmp_path, "fig")
        assert picture.name == "fig-some-arm.png"
        rows = {row["quantity"]: row for row in read(table)}
        assert float(rows["return of the mean action"]["mean"]) == -2
        assert float(rows["mean yielding"]["mean"]) == 0


def test_errors_without_looking_grow_and_are_tabulated(tmp_path):
    """Hardly trained models: the last state is wrong by more than the first."""
    result = trained(tiny("mb-mpo", "point-mass"))
    measured = mbmpo.measure_open_loop(result)
    assert measured["horizons"] == [1, 2, 5, 10, 20]
    assert np.isfinite(measured["errors"]).all()
    assert measured["errors"][-1] > measured["errors"][0] > 0
    *pictures, table = mbmpo.long_horizons({"imagined horizon 5": 2 * [measured]}, tmp_path, "fig")
    assert [path.name for path in pictures] == ["fig.png", "fig-error.png"]
    rows = [row for row in read(table) if row["quantity"] == "error"]
    assert [int(row["at"]) for row in rows] == measured["horizons"]


def test_an_arm_may_be_any_function_of_a_seed(tmp_path):
    def report(records, folder, name):
        (folder / name).write_text(repr(records))
        return [folder / name]

    study = Study("squares", "", {"square": Square()}, 2, lambda result: {}, report)
    figures.reproduce(study, tmp_path)
    assert (tmp_path / "squares" / "squares").read_text() == "{'square': [{'value': 0}, {'value': 1}]}"
    assert figures.reproduce(study, tmp_path, seeds=1, only="square", first_seed=3)[0].name == "seed-3.json"


class Square:
    """A seed's square."""

    def __call__(self, seed):
        return {"value": seed**2}

    def __repr__(self):
        return "Square()"


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
        system, learner = config.system, base.system.learner
        if arm.startswith("alpha"):
            assert system.learner.inner.rate == float(arm.split()[1])
            assert replace(config, system=replace(system, learner=learner)) == base
        elif arm != METHOD:
            assert not system.adapted_collection
            assert replace(config, system=replace(system, adapted_collection=True)) == base


def test_long_and_short_horizons_imagine_as_many_steps():
    each = arms("mbmpo-long-horizon").values()
    assert {config.system.horizon * config.system.episodes for config in each} == {20_000}
    assert {config.system.horizon for config in each} == {50, 200, 1_000}
