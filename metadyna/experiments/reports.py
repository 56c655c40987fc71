"""Reports that serve any study: learning curves, labelled numbers as bars or lines, and pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from metadyna import envs
from metadyna.experiments import tables
from metadyna.experiments.records import Measured, Records
from metadyna.experiments.tables import Row
from metadyna.pictures import plots
from metadyna.runs import loop

Noted = Mapping[str, list[int] | list[float]]
"""`values` of something, by `steps`."""

Curve = tuple[Sequence[int], Float[np.ndarray, "seeds points"]]


def noted(rows: Sequence[Mapping[str, Any]], key: str) -> Noted:
    """What the rows of a run's metrics say of something, to six digits."""
    found = [row for row in rows if key in row]
    return {"steps": [row["step"] for row in found], "values": [float(f"{row[key]:.6g}") for row in found]}


def curve(each: Sequence[Noted]) -> Curve:
    """What every seed noted, at the steps of the first."""
    steps = [int(step) for step in each[0]["steps"]]
    return steps, np.array([np.interp(steps, one["steps"], one["values"]) for one in each])


def learnt(result: loop.Result) -> Measured:
    """Of one seed: its steps, and its evaluation returns by step, the last of them that of the last weights."""
    return {"steps": result.steps, "evaluated": noted(result.metrics, "eval/return")}


def learning(
    records: Records, folder: Path, name: str, *, title: str, task: str, log_steps: bool = False
) -> list[Path]:
    """Evaluation returns by steps, and the last ones, beside the reference policies of the task."""
    picture, bars = folder / f"{name}.png", folder / f"{name}-final.png"
    references = envs.make(task).references()
    curves = {arm: curve([one["evaluated"] for one in each]) for arm, each in records.items()}
    plots.curves(curves, picture, title, "environment steps", "return", log_x=log_steps, references=references)
    last = {arm: [one["evaluated"]["values"][-1] for one in each] for arm, each in records.items()}
    plots.bars(last, bars, references, title)
    steps = {arm: int(np.mean([one["steps"] for one in each])) for arm, each in records.items()}
    rows = [Row([arm, steps[arm]], values) for arm, values in last.items()]
    return [picture, bars, tables.write(folder / f"{name}.csv", ["arm", "steps"], rows, ".6g")]


def bars(records: Records, folder: Path, name: str, *, title: str, ylabel: str) -> list[Path]:
    """Every label's mean over the numbers of a seed."""
    picture = folder / f"{name}.png"
    means = {label: values.mean(axis=1) for label, values in _labelled(records).items()}
    plots.bars(means, picture, {}, title, ylabel)
    rows = [Row([label], values) for label, values in means.items()]
    return [picture, tables.write(folder / f"{name}.csv", ["arm"], rows, ".5g")]


def lines(
    records: Records,
    folder: Path,
    name: str,
    *,
    title: str,
    x: Sequence[int],
    xlabel: str,
    ylabel: str,
    log: bool = False,
) -> list[Path]:
    """Every label's numbers at `x`; with `log`, the values' axis is logarithmic."""
    picture, found = folder / f"{name}.png", _labelled(records)
    plots.lines(found, x, picture, title, xlabel, ylabel, log=log)
    rows = [Row([label, at], column) for label, values in found.items() for at, column in zip(x, values.T, strict=True)]
    return [picture, tables.write(folder / f"{name}.csv", ["arm", xlabel], rows, ".5g")]


def _labelled(records: Records) -> Mapping[str, Float[np.ndarray, "seeds numbers"]]:
    """Numbers by label, whatever arm measured them."""
    return {label: np.array([one[label] for one in each]) for each in records.values() for label in each[0]}


def pairs(records: Records, folder: Path, name: str, *, title: str, unit: str) -> list[Path]:
    """Two arms' quantities, against each other with the same seeds; their means, and those of the differences.

    Seeds share something that is drawn, the `unit`. Medians are listed too, since few seeds may make a mean.
    """
    (one, first), (other, second) = records.items()
    differences = {
        quantity: np.array([a[quantity] - b[quantity] for a, b in zip(first, second, strict=True)])
        for quantity in first[0]
        if quantity in second[0]
    }
    picture = folder / f"{name}.png"
    both = {quantity: [[each[quantity] for each in found] for found in (second, first)] for quantity in differences}
    plots.pairs(both, picture, f"{title}; a dot is a {unit}", other, one)
    rows = [
        Row([arm, quantity], [each[quantity] for each in found])
        for arm, found in records.items()
        for quantity in found[0]
    ]
    rows += [Row([f"{one} - {other}", quantity], values) for quantity, values in differences.items()]
    rows = [row._replace(extras=[float(np.median(row.values))]) for row in rows]
    return [picture, tables.write(folder / f"{name}.csv", ["arm", "quantity"], rows, extras=["median"])]
