"""Reports on MB-MPO, from runs and models as small as they can be."""

import csv
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs.control import OneTask, PointMass
from metadyna.experiments import figures, mbmpo
from metadyna.experiments.mbmpo import CELLS, COARSE, HALF, METHOD, FaultyModels, FaultyPoint
from metadyna.experiments.records import Study
from metadyna.models.imagine import Predictor
from metadyna.models.world import known_world
from metadyna.rollout import DeviceCollector
from tests.tiny import CONTINUOUS, compiled_once, tiny, trained  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")
KEY = jax.random.key(0)
WORLD = known_world(PointMass())


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def record(*returns, steps=(10, 20, 30)):
    """A seed with these returns, whose models promised 5 more than was lived one iteration later."""
    told = {
        "imagined": {"steps": [20, 30, 40], "values": [1.0, 2.0, 3.0]},
        "lived": {"steps": [10, 20, 30, 40], "values": [-9.0, -9.0, -4.0, -3.0]},
    }
    return {"steps": list(steps), "returns": list(returns), "told": told}


def test_the_steps_that_rivals_need_and_the_promises_of_models(tmp_path):
    arms = {
        METHOD: [record(0.0, 4.0, 6.0), record(2.0, 6.0, 8.0)],
        "TRPO": 2 * [record(0.0, 6.5, 7.0, steps=(100, 200, 300))],
        "PPO": 2 * [record(0.0, 1.0, 2.0, steps=(100, 200, 300))],
    }
    picture, promises, table = mbmpo.rivals(arms, tmp_path, "fig")
    assert [path.name for path in (picture, promises)] == ["fig.png", "fig-gap.png"]
    assert all(path.stat().st_size for path in (picture, promises))
    rows = {(row["arm"], int(row["steps"])): row for row in read(table)}
    assert float(rows[METHOD, 30]["mean_return"]) == 7
    assert rows[METHOD, 30]["returns"] == "6.0 8.0"
    assert {arm: rows[arm, at]["steps_to_the_last_of_mb_mpo"] for arm, at in rows} == {
        METHOD: "30", "TRPO": "300", "PPO": "",
    }  # fmt: skip
    steps, values = mbmpo.gap(arms[METHOD])
    assert (list(steps), values.tolist()) == ([20, 30], [[5, 5], [5, 5]])
    picture, table = mbmpo.variants({METHOD: arms[METHOD], "alpha 0": arms[METHOD]}, tmp_path, "other")
    assert picture.stat().st_size
    assert len(read(table)) == 6


def test_a_run_is_measured_by_what_it_logged():
    result = trained(tiny("mb-mpo", "point-mass"))
    measured = mbmpo.measure(result)
    rows = result.metrics
    assert measured["returns"][-1] == pytest.approx(float(np.mean(result.evaluate().returns)), rel=1e-5)
    assert measured["steps"][-1] == result.steps == rows[-1]["step"]
    assert measured["told"]["lived"]["values"] == [row["train/episode_return"] for row in rows]
    assert len(measured["told"]["imagined"]["values"]) == sum("train/kl" in row for row in rows) > 0


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
    arms = {"some arm": 2 * [{**found, "returns": [-1.0, -2.0]}]}
    for report in (mbmpo.regularisation, mbmpo.tailored):
        picture, table = report(arms, tmp_path, "fig")
        assert picture.name == "fig-some-arm.png"
        rows = {row["quantity"]: row for row in read(table)}
        assert float(rows["return"]["mean"]) == -2
        assert float(rows["mean yielding"]["mean"]) == 0


def test_errors_without_looking_grow_and_are_tabulated(tmp_path):
    """Untrained models of the pendulum; the last state is wrong by more than the first."""
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


def test_rivals_have_the_same_networks_and_data_and_as_many_imagined_steps():
    ours, me_trpo, mpc = (arms("mbmpo-curves")[arm].system for arm in (METHOD, "ME-TRPO", "MPC-RS"))
    assert me_trpo.model == ours.model == replace(mpc.model, elites=5)
    assert me_trpo.fit == ours.fit == mpc.fit
    assert me_trpo.capacity == ours.capacity == mpc.capacity
    imagined = 2 * ours.tasks * ours.episodes * ours.horizon * ours.meta_steps
    assert me_trpo.episodes * me_trpo.horizon * me_trpo.policy_steps == imagined == 400_000
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
