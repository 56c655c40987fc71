"""Figures: every arm is run once, drawn and tabulated; started again, nothing is run twice."""

import csv
import json
import shutil
from dataclasses import dataclass, replace

import pytest

from metadyna.errors import UserError
from metadyna.experiments import figures
from metadyna.experiments.figures import Experiment, Measurement
from metadyna.experiments.records import Study
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


def test_a_figure_of_one_seed_needs_one(tmp_path):
    with pytest.raises(UserError, match="seeds = 0 runs nothing; reproduce needs at least 1"):
        figures.reproduce(replace(EXPERIMENT, seeds=1), tmp_path, 0)


def test_the_budgets_of_every_figure_name_their_experiments_apart():
    names = [each.name for figure in figures.FIGURES.values() for each in figure.budgets.values()]
    assert len(set(names)) == len(names)
    assert all(figures.find(name, budget) for name in figures.FIGURES for budget in figures.FIGURES[name].budgets)


@dataclass(frozen=True)
class Squares:
    """Two arms of three numbers each."""

    scale: float = 1.0

    def __call__(self, seed):
        calls.append(seed)
        return {"first": [self.scale * seed, 1.0, 2.0], "second": [3.0, 4.0, 5.0 + seed]}


calls = []


@pytest.mark.parametrize("x", [None, (1, 2, 4)])
def test_a_measurement_is_made_once_per_seed_drawn_and_tabulated(x, tmp_path):
    calls.clear()
    measurement = Measurement("squares", "Squares", Squares(), 2, "value", x, "time")
    written = figures.reproduce(measurement, tmp_path)
    assert [path.name for path in written] == ["squares.png", "squares.csv", "squares.json"]
    assert all(path.stat().st_size for path in written)
    assert figures.reproduce(measurement, tmp_path, seeds=3) == written
    assert calls == [0, 1, 2]  # what was measured is not measured again
    with written[1].open() as file:
        table = list(csv.DictReader(file))
    if x is None:
        assert [(row["arm"], row["seeds"], float(row["mean"])) for row in table] == [
            ("first", "3", pytest.approx(4 / 3, abs=1e-3)),
            ("second", "3", pytest.approx(13 / 3, abs=1e-3)),
        ]
    else:
        assert [row["x"] for row in table] == ["1", "2", "4"] * 2
        assert float(table[0]["mean"]) == pytest.approx(1.0)
    record = json.loads(written[2].read_text())
    assert [each["seed"] for each in record["seeds"]] == [0, 1, 2]
    assert record["seeds"][2]["measured"]["second"] == [3.0, 4.0, 7.0]
    assert "python" in record["seeds"][2]["environment"]["versions"]


def test_a_measurement_with_other_settings_is_refused(tmp_path):
    measurement = Measurement("squares", "Squares", Squares(), 2, "value")
    figures.reproduce(measurement, tmp_path)
    with pytest.raises(
        UserError, match=r"with other settings \(Squares\(scale=1.0\) -> Squares\(scale=2.0\)\); remove it"
    ):
        figures.reproduce(replace(measurement, measure=Squares(2.0)), tmp_path)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_a_damaged_measurement_is_named(content, tmp_path):
    (tmp_path / "squares").mkdir()
    (tmp_path / "squares" / "seed-0.json").write_text(content)
    with pytest.raises(UserError, match=r"seed-0.json is damaged; remove it to measure again"):
        figures.reproduce(Measurement("squares", "Squares", Squares(), 2, "value"), tmp_path)


def length(result):
    return {"steps": result.steps, "seed": result.config.seed}


def listed(records, folder, name):
    reports.append((folder.name, records))
    return []


reports = []
STUDY = Study("study", "Two arms", {"first arm": ARM, "second": replace(ARM, chunk=6)}, 2, length, listed)


def test_a_study_needs_records_and_no_runs_to_be_drawn_again(tmp_path, monkeypatch):
    reports.clear()
    (path,) = figures.reproduce(STUDY, tmp_path, seeds=1, only="second", first_seed=1)
    assert path == tmp_path / "study" / "second" / "seed-1.json"
    assert [place.name for place in (tmp_path / "study").iterdir()] == ["second"]
    assert reports == []
    before = json.loads(path.read_text())
    assert before["settings"]["chunk"] == 6
    figures.reproduce(STUDY, tmp_path)
    assert json.loads(path.read_text()) == before
    ((_, records),) = reports
    assert {arm: [one["seed"] for one in each] for arm, each in records.items()} == {
        "first arm": [0, 1],
        "second": [0, 1],
    }
    assert all(one["steps"] >= TINY.steps for each in records.values() for one in each)

    for folder in (tmp_path / "study").glob("*/seed-?"):
        shutil.rmtree(folder)
    monkeypatch.setattr(figures.loop, "run", None)  # nothing is run again
    figures.reproduce(replace(STUDY, name="other", runs_of="study"), tmp_path)
    assert reports[1] == ("other", records)
    changed = replace(STUDY, arms={"second": replace(ARM, chunk=7)})
    with pytest.raises(UserError, match=r"was measured with other settings \(chunk: 6 -> 7\); remove it"):
        figures.reproduce(changed, tmp_path)


def test_what_only_a_study_can_do_is_refused_elsewhere(tmp_path):
    with pytest.raises(UserError, match="the arms of tiny run together"):
        figures.reproduce(EXPERIMENT, tmp_path, only="second")
    with pytest.raises(UserError, match="--first-seed goes with --only"):
        figures.reproduce(STUDY, tmp_path, first_seed=1)
    with pytest.raises(UserError, match="unknown arm 'third'"):
        figures.reproduce(STUDY, tmp_path, only="third")
    assert list(tmp_path.iterdir()) == []
