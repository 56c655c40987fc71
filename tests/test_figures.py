"""Figures: every arm is run once, drawn and tabulated; started again, nothing is run twice."""

import csv
import json
from dataclasses import replace

import pytest

from metadyna.errors import UserError
from metadyna.experiments import figures
from metadyna.experiments.figures import Experiment
from tests.tiny import TINY, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

ARM = replace(TINY, stop_at=0.0)
EXPERIMENT = Experiment("tiny", "Two arms", {"first arm": ARM, "second": replace(ARM, seed=10)}, seeds=3)


def trained_files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*") if path.is_file()}


def test_a_figure_is_run_drawn_tabulated_and_never_run_twice(tmp_path):
    written = figures.reproduce(EXPERIMENT, tmp_path)
    folder = tmp_path / "tiny"
    assert [path.name for path in written] == ["tiny.png", "tiny-final.png", "tiny.csv", "tiny.json"]
    assert all(path.parent == folder and path.stat().st_size for path in written)
    with (folder / "tiny.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["arm"] for row in table] == ["first arm", "second"]
    for row in table:
        returns = [float(value) for value in row["returns"].split()]
        assert len(returns) == int(row["seeds"]) == 3
        assert int(row["steps"]) >= TINY.steps
        assert float(row["low_95"]) <= float(row["mean_return"]) <= float(row["high_95"])
        assert float(row["mean_return"]) == pytest.approx(sum(returns) / 3, abs=1e-3)
    record = json.loads((folder / "tiny.json").read_text())
    assert record["arms"]["second"]["seed"] == 10
    assert record["references"]["optimal"] == pytest.approx(0.7)

    before = trained_files(folder)
    assert {path.relative_to(folder).parts[0] for path in before} == {"first-arm", "second"}
    assert figures.reproduce(EXPERIMENT, tmp_path) == written
    assert trained_files(folder) == before

    other = replace(EXPERIMENT, arms={"first arm": replace(ARM, chunk=6)})
    with pytest.raises(UserError, match="was started with other settings: chunk: 5 -> 6"):
        figures.reproduce(other, tmp_path)
    with pytest.raises(UserError, match="seeds: 3 -> 2"):
        figures.reproduce(EXPERIMENT, tmp_path, seeds=2)
    assert trained_files(folder) == before


@pytest.mark.parametrize("seeds", [0, 1])
def test_an_interval_needs_two_seeds(seeds, tmp_path):
    with pytest.raises(UserError, match="needs at least 2"):
        figures.reproduce(EXPERIMENT, tmp_path, seeds)
    assert list(tmp_path.iterdir()) == []


def test_the_budgets_of_every_figure_name_their_experiments_apart():
    names = [each.name for figure in figures.FIGURES.values() for each in figure.budgets.values()]
    assert len(set(names)) == len(names)
    assert all(figures.find(name, budget) for name in figures.FIGURES for budget in figures.FIGURES[name].budgets)
