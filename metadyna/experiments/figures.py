"""Experiments that end in a figure: arms of configurations, run, compared and drawn."""

import csv
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metadyna import envs, plot, run, runinfo, stats
from metadyna.config import Config, to_dict
from metadyna.errors import UserError, unknown
from metadyna.experiments.presets import PRESETS


@dataclass(frozen=True)
class Experiment:
    """Arms that share a task, compared by their evaluation return."""

    name: str
    title: str
    arms: Mapping[str, Config]
    seeds: int


@dataclass(frozen=True)
class Figure:
    """A named figure and its experiment at each budget."""

    title: str
    budgets: Mapping[str, Experiment]


def find(name: str, budget: str) -> Experiment:
    """Look an experiment up."""
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    if budget not in FIGURES[name].budgets:
        raise unknown("budget", budget, FIGURES[name].budgets)
    return FIGURES[name].budgets[budget]


def reproduce(experiment: Experiment, out: Path, seeds: int | None = None) -> list[Path]:
    """Run what is missing of every arm, then write curves, bars, a table and a record; returns their paths."""
    count = experiment.seeds if seeds is None else seeds
    if count < 2:
        raise UserError(f"seeds = {count} gives no interval; reproduce needs at least 2")
    folder, started = Path(out) / experiment.name, time.monotonic()
    results = {}
    for arm, config in experiment.arms.items():
        place = folder / arm.replace(" ", "-")
        print(f"{arm}: {place}")
        config = replace(config, seeds=count)
        begun = (place / "config.json").exists()
        results[arm] = run.resume(place, config) if begun else run.run(config, place)
        if results[arm].interrupted:
            print(f"interrupted during '{arm}'; the same command goes on from there")
            raise KeyboardInterrupt
    return write(experiment, results, folder, (time.monotonic() - started) / 60)


def write(experiment: Experiment, results: Mapping[str, run.Result], folder: Path, minutes: float) -> list[Path]:
    """Draw and tabulate finished arms."""
    first = next(iter(experiment.arms.values()))
    references = envs.make(first.task).references()
    curves, bars = folder / f"{experiment.name}.png", folder / f"{experiment.name}-final.png"
    plot.learning_curves(
        {arm: [result.folder] for arm, result in results.items()}, curves, references=references, title=experiment.title
    )
    scores = {arm: np.asarray(r.evaluate().returns)[:, -1].mean(axis=-1).tolist() for arm, r in results.items()}
    plot.bars(scores, bars, references, experiment.title)
    table = folder / f"{experiment.name}.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "seeds", "steps", "mean_return", "low_95", "high_95", "returns"])
        for arm, values in scores.items():
            low, high = stats.bootstrap_interval(np.array(values), stats.mean)
            each = " ".join(f"{value:.4f}" for value in values)
            rows.writerow(
                [arm, len(values), results[arm].steps, f"{np.mean(values):.4f}", f"{low:.4f}", f"{high:.4f}", each]
            )
    record = folder / f"{experiment.name}.json"
    record.write_text(json.dumps(_record(experiment, results, references, minutes), indent=2) + "\n")
    return [curves, bars, table, record]


def _record(
    experiment: Experiment, results: Mapping[str, run.Result], references: Mapping[str, float], minutes: float
) -> dict[str, Any]:
    return {
        "figure": experiment.name,
        "minutes_of_this_call": round(minutes, 1),
        "references": references,
        "environment": runinfo.environment_record(),
        "arms": {arm: to_dict(result.config) for arm, result in results.items()},
    }


def _dream_bus(name: str, base: Config, seeds: int) -> Experiment:
    system = base.system
    arms = {
        "DREAM": system,
        "no bottleneck": replace(system, bottleneck=None),
        "random exploration": replace(system, exploration="random"),
        "no exploration": replace(system, exploration="none"),
        "oracle ID": replace(system, oracle=True),
    }
    title = f"DREAM on {base.task}: return on all test tasks"
    return Experiment(name, title, {arm: replace(base, system=s, stop_at=None) for arm, s in arms.items()}, seeds)


FIGURES: Mapping[str, Figure] = {
    "dream-bus": Figure(
        "DREAM and its ablations on the distracting bus grid",
        {
            "quick": _dream_bus("dream-bus", PRESETS["dream"]["quick"], 3),
            "full": _dream_bus("dream-bus-full", PRESETS["dream"]["paper"], 3),
        },
    ),
}
"""Every figure by name."""
