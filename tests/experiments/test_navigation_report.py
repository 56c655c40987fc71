"""The report on MAML's navigation, from a run as small as it can be."""

import csv
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from metadyna.collect.episodes import episode_returns
from metadyna.experiments import figures, meta
from tests.tiny import compiled_once, drawn, logged, tiny  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_returns_by_inner_step_and_the_paths_that_earn_them(tmp_path, monkeypatch):
    monkeypatch.setattr(meta, "EPISODES", 2)
    seconds = {800: 10.0, 1_600: 12.0, 2_400: 15.0, 3_200: 30.0}
    rows = {step: {"time/seconds": value} for step, value in seconds.items()}
    result = logged(drawn(tiny("promp", "navigation", chunk=4)), tmp_path, rows)
    system: Any = result.config.system
    shown = replace(result, config=replace(result.config, system=replace(system, shown_steps=2)))
    measured = meta.measure(shown)
    half, quarter = (np.array(measured["returns"][size]) for size in ("half", "quarter"))
    np.testing.assert_array_equal(half[:2], quarter[:2])
    assert half[2] != quarter[2]
    more = replace(system, shown_steps=2, episodes=2, later_factor=0.25)
    tasks, params = result.program.tasks("test"), jax.tree.map(lambda x: x[0], result.params)
    trial = more.trial(params, result.program.collector, tasks, jax.random.key(result.config.seed))
    returns = np.asarray(episode_returns(trial.episodes))
    assert returns.shape == (100, 3, 2)
    np.testing.assert_allclose(quarter, returns.mean(axis=(0, 2)), rtol=1e-6)
    assert measured["seconds_per_iteration"] == 3 / 4
    assert np.shape(measured["goals"]) == (meta.SHOWN_TASKS, 2)
    assert [len(each) for each in measured["paths"]] == [3] * meta.SHOWN_TASKS
    for goal, paths in zip(measured["goals"], measured["paths"], strict=True):
        for path in np.array(paths):
            assert path[0].tolist() == [0, 0]
            assert np.abs(np.diff(path, axis=0)).max() <= 0.1 + 2e-3
            assert len(path) == 101 or np.abs(path[-1] - goal).max() < 0.011
    *pictures, table = meta.navigation({"MAML": [measured] * 2, "other": [measured] * 2}, tmp_path, "fig")
    assert [path.name for path in pictures] == ["fig-half.png", "fig-quarter.png", "fig-paths.png", "fig-paths.gif"]
    assert all(path.stat().st_size for path in pictures)
    with Image.open(pictures[-1]) as clip:
        assert clip.n_frames == 51
    with table.open() as file:
        rows = list(csv.DictReader(file))
    told = [(row["later_steps"], row["arm"], row["inner_steps"]) for row in rows]
    assert told == [(size, arm, i) for size in ("half", "quarter") for arm in ("MAML", "other") for i in "012"]
    assert float(rows[-1]["mean"]) == pytest.approx(quarter[2], abs=0.01)


def test_the_arms_of_maml_differ_in_their_inner_steps_alone_and_its_kin_in_the_method():
    arms = dict(figures.find("maml-navigation", "quick").arms)
    kin = {arm: arms.pop(arm) for arm in ("E-MAML", "ProMP")}
    outers = {arm: config.system.outer for arm, config in arms.items()}
    inner = {arm: (outer.inner.steps, outer.inner.first_order) for arm, outer in outers.items()}
    assert inner == {"MAML": (1, False), "first order": (1, True), "no adaptation in training": (0, False)}
    whole = arms["MAML"]
    for config in arms.values():
        outer = replace(config.system.outer, inner=whole.system.outer.inner)
        assert replace(config, system=replace(config.system, outer=outer)) == whole
    for config in kin.values():
        system = replace(whole.system, outer=config.system.outer)
        assert vars(config.system) == vars(system)
        assert config.system.outer.inner == whole.system.outer.inner
        assert replace(config, system=whole.system) == whole
