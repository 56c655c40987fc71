"""The point in the plane: models that err as made to, and maps of what policies and models do."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.adapt.gradient import GradientSteps
from metadyna.collect.device import DeviceCollector
from metadyna.envs.control import OneTask, PointMass
from metadyna.experiments import plane
from metadyna.experiments.plane import CELLS, COARSE, HALF, FaultyModels, FaultyPoint
from metadyna.models.worlds import Predictor, known_world
from metadyna.runs import stats
from metadyna.systems.mbmpo import MBMPO
from tests.experiments.reading import noted, read
from tests.tiny import CONTINUOUS, Moving, compiled_once, drawn, tiny  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")
KEY = jax.random.key(0)
WORLD = known_world(PointMass())


def test_faulty_models_are_wrong_by_their_bias_and_by_the_distance():
    biases = np.array([[0.04, 0.0], [-0.02, 0.05]], np.float32)
    models = FaultyPoint(jnp.asarray(biases))
    assert isinstance(models, Predictor)
    rows = np.array([[2.0, -2.0, 0.5, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]], np.float32)
    sample = jax.jit(lambda models, rows, noise: models.sample(jnp.stack(models.num_members * [rows]), noise))
    told = np.asarray(sample(models, rows, None))
    share = np.array([1.0, 0.25, 0.0])
    expected = 0.1 * rows[None, :, 2:] + biases[:, None] * share[None, :, None]
    np.testing.assert_allclose(told, expected, atol=1e-7)
    np.testing.assert_array_equal(sample(models.only(jnp.int32(1)), rows, None)[0], told[1])
    noisy = sample(models, rows, np.ones((2, 3, 2), np.float32))
    np.testing.assert_allclose(noisy - told, np.broadcast_to(0.01 * share[None, :, None], told.shape), atol=1e-7)


def test_faulty_models_are_drawn_anew_and_disagree_as_they_are_made_to(monkeypatch):
    system = replace(CONTINUOUS["mb-mpo"], warmup=1, outer=Moving(GradientSteps(rate=1e-3)))
    found = FaultyModels(system, 2)(0)
    assert np.shape(found["maps"]["disagreement"]) == (COARSE, COARSE)
    assert found["correlations"]["disagreement and distance"] > 0.999
    assert found["correlations"]["disagreement and error"] > 0.99
    faulty = plane._Faulty(**vars(system))
    state: Any = jax.eval_shape(lambda key: system.init(DeviceCollector(PointMass(), OneTask()), key), KEY)
    # Three equal numbers need not have a mean that is equal to them.
    agreeing = replace(system, tasks=3, model=replace(system.model, members=3, elites=3))
    # Whatever the policy learns in them, which takes long to compile.
    monkeypatch.setattr(MBMPO, "_meta_learn", lambda self, world, state, key: (state, {}))
    assert FaultyModels(agreeing, 1, bias=0.0)(0)["means"]["disagreement"] == 0
    fit = jax.jit(jax.vmap(lambda key: faulty._fit(WORLD, state, state.model, key)[0].ensemble.biases))
    biases = np.asarray(fit(jax.random.split(KEY, 50)))
    assert len(np.unique(biases)) == 50 * 2 * system.model.members
    assert 0.045 < np.abs(biases).max() <= 0.05


def test_maps_are_laid_out_as_the_plane():
    """Rows are y and columns x, upwards and to the right; what was lived is counted where it was."""
    obs = np.array([[1.7, -1.7]] * 3 + [[0.02, 0.02], [5.0, 0.0]])
    lived = plane._lived(obs).reshape(CELLS, CELLS)
    assert lived[1, -2] == 3
    assert lived[CELLS // 2, CELLS // 2] == 1
    assert lived.sum() == 4
    coarse = np.array(plane._coarse(lived.ravel()))
    assert coarse.shape == (COARSE, COARSE)
    assert coarse[0, -1] == 3 / (CELLS // COARSE) ** 2
    side = (np.arange(CELLS) + 0.5) / CELLS * 2 * HALF - HALF
    assert stats.rank_correlation(side, side**3) == pytest.approx(1)
    assert stats.rank_correlation(side, np.zeros(CELLS)) == 0


def test_a_policy_that_does_not_adapt_gives_way_nowhere(tmp_path):
    system = CONTINUOUS["mb-mpo"]
    still, bold = (
        replace(system, outer=replace(system.outer, inner=replace(system.outer.inner, rate=rate)))
        for rate in (0.0, 0.5)
    )
    collector = DeviceCollector(PointMass(), OneTask())
    state: Any = jax.tree.map(lambda x: x[0], drawn(tiny("mb-mpo", "point-mass")).state.system)

    def survey(system):
        meta = system.outer.inner.start(state.meta.weights)
        return plane.survey(system, collector, state._replace(meta=meta), KEY)

    found, moving = survey(still), survey(bold)
    assert found["means"]["yielding"] == 0
    assert moving["means"]["yielding"] > 0
    assert moving["maps"]["disagreement"] == found["maps"]["disagreement"]
    arms = {"some arm": 2 * [{**found, "evaluated": noted([1, 2], [-1.0, -2.0])}]}
    for report in (plane.regularisation, plane.tailored):
        picture, table = report(arms, tmp_path, "fig")
        assert picture.name == "fig-some-arm.png"
        rows = {row["quantity"]: row for row in read(table)}
        assert float(rows["return of the mean action"]["mean"]) == -2
        assert float(rows["mean yielding"]["mean"]) == 0
