"""Tables of what was found over seeds: means, how far to trust them, and the values themselves."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from metadyna.runs import stats

Cell = str | float


class Row(NamedTuple):
    """What was found with every seed, what it is, and what else is to be said of it."""

    labels: Sequence[Cell]
    values: stats.Scores
    extras: Sequence[Cell] = ()


def write(out: Path, labels: Sequence[str], rows: Iterable[Row], form: str = ".4g", extras: Sequence[str] = ()) -> Path:
    """Write rows as a csv file: labels, number of seeds, mean, its 95% intervals, extras, and every seed's value.

    `low_95` and `high_95` are of the percentile bootstrap, which is too narrow for few seeds; `t_low_95` and
    `t_high_95` are by Student's t, which holds for few if values are normal. `form` is the format of all numbers but
    labels.
    """
    header = [*labels, "seeds", "mean", "low_95", "high_95", "t_low_95", "t_high_95", *extras, "values"]
    with out.open("w", newline="") as file:
        table = csv.DictWriter(file, header)
        table.writeheader()
        for row in rows:
            intervals = *stats.bootstrap_interval(row.values, stats.mean), *stats.t_interval(row.values)
            numbers = [stats.mean(row.values), *intervals, *row.extras]
            shown = [cell if isinstance(cell, str) else format(cell, form) for cell in numbers]
            listed = " ".join(format(value, form) for value in row.values)
            cells = [*row.labels, len(row.values), *shown, listed]
            table.writerow(dict(zip(header, cells, strict=True)))
    return out
