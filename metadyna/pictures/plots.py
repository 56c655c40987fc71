"""Figures from the metrics of finished runs, in one look: no pyplot, no global state, nothing but the data."""

import contextlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from metadyna.errors import UserError
from metadyna.runs import stats
from metadyna.runs.log import read_metrics

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito 2008: distinct with every common form of colour blindness."""

_INK = "#222222"
_FAINT = "#707070"
_FONT_SIZE = 10
_LABEL_HEIGHT = 1.35 * _FONT_SIZE
"""Height that one line of text needs, in points."""
_LEGEND_CHARACTERS = 100
"""Characters of legend text that fit beside each other below the figure."""


Numbers = Sequence[int] | Sequence[float]


class _Curve(NamedTuple):
    """One seed: environment steps, ascending, and the values there."""

    steps: Float[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]


def learning_curves(
    arms: Mapping[str, Sequence[Path]],
    out: Path,
    metric: str = "eval/return",
    references: Mapping[str, float] | None = None,
    title: str = "",
    xlabel: str = "environment steps",
    ylabel: str = "return",
    log_steps: bool = False,
) -> None:
    """Draw a metric over environment steps, one colour per arm, into the file `out` (.png, .pdf or .svg).

    An arm is a list of run folders; a run that logs lists has one seed per entry. Thick: mean over seeds. Band: 95%
    bootstrap interval of the mean, over the steps that all seeds have reached. Thin: the seeds. `references` are
    levels to compare with. `log_steps` suits arms of very different length. Raises UserError if a run lacks the metric.
    """
    figure, axes = _figure(title, xlabel, ylabel)
    for index, (name, folders) in enumerate(arms.items()):
        curves = [curve for folder in folders for curve in _curves(Path(folder), metric)]
        colour, style = PALETTE[index % len(PALETTE)], ("-", "--", ":")[index // len(PALETTE) % 3]
        for steps, values in curves:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        steps, values = _on_common_steps(name, curves)
        label = f"{name} ({_count(len(curves))})"
        axes.plot(steps, values.mean(axis=0), style, color=colour, linewidth=2, label=label, zorder=3)
        low, high = stats.bootstrap_band(values)
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    if log_steps:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0)
    _finish(figure, axes, references or {}, out)


def curves(
    arms: Mapping[str, tuple[Numbers, np.ndarray]],
    out: Path,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    log_x: bool = False,
    log: bool = False,
    marks: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    references: Mapping[str, float] | None = None,
) -> None:
    """Draw each arm's values [seeds, points] at points of its own into the file `out`, as in `lines`.

    `marks` are points that others published of an arm, in its colour; `references` are levels to compare with.
    """
    figure, axes = _figure(title, xlabel, ylabel)
    for position, (name, (x, values)) in enumerate(arms.items()):
        _draw(axes, PALETTE[position % len(PALETTE)], name, x, np.asarray(values))
    for name, points in (marks or {}).items():
        colour = PALETTE[[*arms].index(name) % len(PALETTE)]
        axes.plot(*points, "o", color=colour, markerfacecolor="white", markersize=5, zorder=4)
    if marks:
        axes.plot([], [], "o", color=_INK, markerfacecolor="white", markersize=5, label="published")
    if log_x:
        axes.set_xscale("log")
    if log:
        axes.set_yscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _finish(figure, axes, references or {}, out)


def _draw(axes: Axes, colour: str, name: str, x: Any, values: Float[np.ndarray, "seeds points"]) -> None:
    """The mean over seeds, its interval, and the seeds."""
    axes.plot(x, values.T, color=colour, linewidth=0.7, alpha=0.35)
    label = f"{name} ({_count(len(values))})"
    axes.plot(x, values.mean(axis=0), color=colour, linewidth=2, label=label, zorder=3)
    axes.fill_between(x, *stats.bootstrap_band(values), color=colour, alpha=0.18, linewidth=0)


def lines(
    arms: Mapping[str, np.ndarray],
    x: Sequence[int],
    out: Path,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    log: bool = False,
    marks: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Draw each arm's values [seeds, points] at `x` [points] into the file `out`; with `log`, the values' axis is.

    Thick: mean over seeds. Band: 95% bootstrap interval of the mean. Thin: the seeds. `marks` are values of others.
    """
    figure, axes = _figure(title, xlabel, ylabel)
    for position, (name, values) in enumerate(arms.items()):
        _draw(axes, PALETTE[position % len(PALETTE)], name, x, np.asarray(values))
    for name, values in (marks or {}).items():
        axes.plot(
            x, values, "o", color=_INK, markersize=5, markerfacecolor="white", label=name, zorder=4, clip_on=False
        )
    if log:
        axes.set_yscale("log")
    if all(isinstance(value, int) for value in x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0)
    _finish(figure, axes, {}, out)


def bars(
    arms: Mapping[str, np.ndarray | Sequence[float]],
    out: Path,
    references: Mapping[str, float] | None = None,
    title: str = "",
    ylabel: str = "return",
) -> None:
    """Draw the mean of each arm's final values (one per seed) as a bar into the file `out`.

    The whisker is the 95% bootstrap interval of the mean, absent for a single seed; the dots are the seeds.
    """
    figure, axes = _figure(title, "", ylabel)
    for position, values in enumerate(arms.values()):
        colour = PALETTE[position % len(PALETTE)]
        axes.bar(position, stats.mean(values), width=0.6, color=_tint(colour), linewidth=0)
        beside = position + np.linspace(0.08, 0.24, len(values))  # the dots stay clear of the whisker
        axes.scatter(beside, values, s=14, color=colour, edgecolors="white", linewidths=0.4, zorder=3)
        if len(values) > 1:
            interval = stats.bootstrap_interval(values, stats.mean)
            axes.vlines(position, *interval, color=_INK, linewidth=1.6, zorder=4)
    names = [f"{textwrap.fill(name, 16)}\n({_count(len(values))})" for name, values in arms.items()]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.tick_params(axis="x", length=0)
    axes.axhline(0, color=_INK, linewidth=0.8)
    _finish(figure, axes, references or {}, out)


def pairs(
    quantities: Mapping[str, Sequence[Sequence[float]]], out: Path, title: str = "", xlabel: str = "", ylabel: str = ""
) -> None:
    """Draw pairs of numbers into the file `out`, a panel per quantity, with the line on which two are equal.

    A quantity is what the arm `xlabel` and the arm `ylabel` have of it, pair by pair. Where a number is five times the
    size that nine of ten stay within, axes are logarithmic beyond that size.
    """
    figure = Figure(figsize=(3.1 * len(quantities) + 0.3, 3.5), layout="constrained")
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    for panel, (name, numbers) in zip(panels, quantities.items(), strict=True):
        values = np.asarray(numbers)
        ends = values.min(), values.max()
        panel.plot(ends, ends, color=_FAINT, linewidth=1, linestyle=(0, (4, 3)))
        panel.scatter(*values, s=16, color=PALETTE[0], edgecolors="white", linewidths=0.4, zorder=3)
        most = float(np.quantile(np.abs(values), 0.9))
        if max(np.abs(ends)) > 5 * most > 0:
            panel.set_xscale("symlog", linthresh=most, linscale=3)
            panel.set_yscale("symlog", linthresh=most, linscale=3)
        _plain(panel)
        panel.set_title(name, loc="left", fontsize=_FONT_SIZE - 1, color=_INK)
        panel.set_xlabel(xlabel, fontsize=_FONT_SIZE - 1, color=_INK)
    figure.axes[0].set_ylabel(ylabel, fontsize=_FONT_SIZE - 1, color=_INK)
    figure.suptitle(title, x=0.01, ha="left", fontsize=_FONT_SIZE + 2, color=_INK)
    _write(figure, out)


def panels(
    grid: Mapping[tuple[str, str], Mapping[str, tuple[Sequence[int], Float[np.ndarray, "seeds points"]]]],
    out: Path,
    title: str,
    xlabel: str,
) -> None:
    """Draw small curves into one file: by (row, column), the steps of each arm and its values there.

    Lines and bands as in `learning_curves`, without the seeds; one scale for all. A single point has a whisker, and
    stands a little before those of the arms that follow.
    """
    rows, columns = ([*dict.fromkeys(names)] for names in zip(*grid, strict=True))
    figure = Figure(figsize=(2.3 * len(columns) + 0.6, 2.1 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    names = [*dict.fromkeys(name for arms in grid.values() for name in arms)]
    apart = 0.04 * max(steps[-1] - steps[0] for arms in grid.values() for steps, _ in arms.values())
    lines = {}
    for (row, column), arms in grid.items():
        panel = axes[rows.index(row), columns.index(column)]
        _plain(panel)
        panel.set_title(f"{row}, {column}", loc="left", fontsize=_FONT_SIZE - 1, color=_INK)
        for after, (name, (steps, values)) in zip(reversed(range(len(arms))), arms.items(), strict=True):
            colour = PALETTE[names.index(name) % len(PALETTE)]
            low, high = stats.bootstrap_band(values)
            if len(steps) == 1:
                beside = [steps[0] - apart * after]
                panel.plot(beside, values.mean(axis=0), "o", color=colour, markersize=4)
                panel.vlines(beside, low, high, color=colour, linewidth=1.6)
                continue
            label = f"{name} ({_count(len(values))})"
            lines[label] = panel.plot(steps, values.mean(axis=0), color=colour, linewidth=1.6)[0]
            panel.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.suptitle(title, x=0.01, ha="left", fontsize=_FONT_SIZE + 2, color=_INK)
    for panel in axes[-1]:  # one label for all would lie under the legend
        panel.set_xlabel(xlabel, fontsize=_FONT_SIZE - 1, color=_INK)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=5, frameon=False, fontsize=_FONT_SIZE - 1)
    _write(figure, out)


def space(
    points: Float[np.ndarray, "N width"],
    targets: Float[np.ndarray, "N actions width"],
    shade: np.ndarray,
    actions: Sequence[str],
    out: Path,
    title: str = "",
) -> None:
    """Draw points of two or three coordinates, and lines to where each action is predicted to lead from them."""
    solid = points.shape[1] > 2
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes: Any = figure.add_subplot(projection="3d" if solid else None)
    shown = slice(0, 3 if solid else 2)
    width = float(np.clip(60 / len(points), 0.4, 1.0))
    for index, name in enumerate(actions):
        for i, (start, end) in enumerate(zip(points[:, shown], targets[:, index, shown], strict=True)):
            label = name if i == 0 else None
            axes.plot(*np.stack([start, end]).T, color=PALETTE[index], linewidth=width, alpha=0.7, label=label)
    axes.scatter(*points[:, shown].T, c=shade, s=22, cmap="cividis", edgecolors="white", linewidths=0.4, zorder=3)
    axes.set_title(title, loc="left", fontsize=_FONT_SIZE + 2, color=_INK)
    axes.tick_params(labelsize=_FONT_SIZE - 1, colors=_INK)
    if not solid:
        axes.set_aspect("equal")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=_FONT_SIZE - 1)
    _write(figure, out)


def maps(
    grids: Mapping[str, Float[np.ndarray, "rows columns"]],
    half: float,
    out: Path,
    title: str = "",
    points: Mapping[str, Float[np.ndarray, "points 2"]] | None = None,
) -> None:
    """Draw quantities over the square [-half, half]² into the file `out`, a panel each; rows are y, upwards.

    `points` by the name of a panel are drawn over it.
    """
    figure = Figure(figsize=(3.2 * len(grids) + 0.3, 3.5), layout="constrained")
    panels = figure.subplots(1, len(grids), squeeze=False)[0]
    for panel, (name, values) in zip(panels, grids.items(), strict=True):
        shown = panel.imshow(values, origin="lower", extent=(-half, half, -half, half), cmap="cividis")
        for where in (points or {}).get(name, []):
            panel.plot(*where, ".", color="white", markersize=2, alpha=0.5)
        bar = figure.colorbar(shown, ax=panel, shrink=0.8)
        bar.ax.tick_params(labelsize=_FONT_SIZE - 2, colors=_INK)
        panel.set_title(name, loc="left", fontsize=_FONT_SIZE - 1, color=_INK)
        panel.tick_params(labelsize=_FONT_SIZE - 2, colors=_INK)
    figure.suptitle(title, x=0.01, ha="left", fontsize=_FONT_SIZE + 2, color=_INK)
    _write(figure, out)


Paths = Sequence[Sequence[Sequence[Sequence[float]]]]
"""Points in the plane, by task and by number of inner steps."""


def paths(goals: Sequence[Sequence[float]], paths: Paths, out: Path, title: str = "") -> None:
    """Draw a panel per task into the file `out`: its goal in the plane, and one path of points after each of 0, 1, …
    steps of adaptation."""
    _write(_paths(goals, paths, title)[0], out)


def paths_clip(
    goals: Sequence[Sequence[float]], paths: Paths, out: Path, title: str = "", every: int = 2, pause: float = 1.5
) -> None:
    """Draw the same growing, `every` points per frame, into an animated GIF that stops at its end for some seconds."""
    figure, lines = _paths(goals, paths, title)
    figure.set_dpi(80)
    canvas = FigureCanvasAgg(figure)
    longest = max(len(points) for of_task in paths for points in of_task)
    frames = []
    for end in [*range(1, longest, every), longest]:
        for line, points in lines:
            line.set_data(*np.transpose(points[:end]))
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    times = [60] * (len(frames) - 1) + [int(1000 * pause)]
    with _writing(out):
        frames[0].save(out, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)


def _paths(goals: Any, paths: Paths, title: str) -> tuple[Figure, list[tuple[Any, Any]]]:
    """The panels, and every line with its points."""
    figure = Figure(figsize=(2.5 * len(goals) + 0.3, 3.3), layout="constrained")
    panels = figure.subplots(1, len(goals), sharex=True, sharey=True, squeeze=False)[0]
    legend, lines = {}, []
    for panel, goal, of_task in zip(panels, goals, paths, strict=True):
        for number, points in enumerate(of_task):
            line = panel.plot(*np.transpose(points), color=PALETTE[number], linewidth=1.2)[0]
            legend[f"{number} step{'s' * (number != 1)}"] = line
            lines.append((line, points))
        panel.plot(*goal, "*", color=_INK, markersize=11, zorder=4)
        panel.set_aspect("equal")
        _plain(panel)
    figure.suptitle(title, x=0.01, ha="left", fontsize=_FONT_SIZE + 2, color=_INK)
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=6, frameon=False, fontsize=_FONT_SIZE - 1)
    return figure, lines


def _curves(folder: Path, metric: str) -> list[_Curve]:
    """Curves of the seeds in one run folder."""
    rows = [row for row in read_metrics(folder) if metric in row]
    if not rows:
        raise UserError(f"no metric '{metric}' in {folder}; it has: {', '.join(_metric_names(folder))}")
    values = np.array([np.atleast_1d(row[metric]) for row in rows], dtype=np.float64)
    steps = np.array([np.broadcast_to(row.get("steps", row["step"]), values.shape[1:]) for row in rows], np.float64)
    # A seed that has ended stays where it is while the others go on, and logs NaN or what it has logged before.
    measured = np.isfinite(values) & (np.diff(steps, axis=0, prepend=-1) > 0)
    return [_Curve(x[at], y[at]) for x, y, at in zip(steps.T, values.T, measured.T, strict=True) if at.any()]


def _metric_names(folder: Path) -> list[str]:
    """Metrics that a run has logged."""
    return sorted({name for row in read_metrics(folder) for name in row} - {"step", "steps"})


def _on_common_steps(
    name: str, curves: Sequence[_Curve]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, "runs points"]]:
    """Interpolate the seeds at every step that one of them logged and all of them cover."""
    if not curves:
        raise UserError(f"the arm '{name}' has no runs; give at least one run folder")
    begin, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    if begin > end:
        raise UserError(f"the runs of '{name}' share no steps; give runs that were logged over one range of steps")
    logged = np.unique(np.concatenate([steps for steps, _ in curves]))
    common = logged[(logged >= begin) & (logged <= end)]
    return common, np.stack([np.interp(common, steps, values) for steps, values in curves])


def _count(num_seeds: int) -> str:
    """Number of seeds in words."""
    return f"{num_seeds} seed" if num_seeds == 1 else f"{num_seeds} seeds"


def _tint(colour: str) -> np.ndarray:
    """Light, opaque shade of a colour; a transparent one would let the grid shine through."""
    return 1 - 0.55 * (1 - np.array(to_rgb(colour)))


def _figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Empty axes: two spines, a faint grid for reading values, text in one size."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=_FONT_SIZE + 2, color=_INK, pad=10)
    axes.set_xlabel(xlabel, fontsize=_FONT_SIZE, color=_INK)
    axes.set_ylabel(ylabel, fontsize=_FONT_SIZE, color=_INK)
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_FONT_SIZE - 1, colors=_INK)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def _finish(figure: Figure, axes: Axes, references: Mapping[str, float], out: Path) -> None:
    """Add what depends on the final limits, and write the file."""
    for value in references.values():
        axes.axhline(value, color=_FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    if axes.get_legend_handles_labels()[0]:
        longest = max(len(label) for label in axes.get_legend_handles_labels()[1])
        columns = max(1, _LEGEND_CHARACTERS // (longest + 8))  # a line and its spacing take 8 characters
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=_FONT_SIZE - 1)
    _label_references(figure, axes, references)
    _write(figure, out)


def _write(figure: Figure, out: Path) -> None:
    with _writing(out):
        figure.savefig(out, dpi=200)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Make the folder of a file, and complain in one line if it cannot be written."""
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another file") from error


def _label_references(figure: Figure, axes: Axes, references: Mapping[str, float]) -> None:
    """Name each reference line in the right margin, moved apart where lines are close."""
    if not references:
        return
    figure.draw_without_rendering()  # the layout fixes the height of the axes, which spacing is measured in
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    height = axes.get_window_extent().height * 72 / figure.dpi
    ordered = sorted(references.items(), key=lambda reference: reference[1])
    lines = [(value - low) / (high - low) for _, value in ordered]
    for (name, _), line, label in zip(ordered, lines, _spread(lines, _LABEL_HEIGHT / height), strict=True):
        axes.annotate(
            name,
            xy=(1, line),
            xytext=(1.035, label),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=_FONT_SIZE - 1,
            color=_FAINT,
            arrowprops={"arrowstyle": "-", "color": _FAINT, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0},
        )


def _spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move ascending positions apart to at least `gap`, each group of neighbours staying centred on its mean."""
    groups: list[list[float]] = []
    for position in positions:
        groups.append([position])
        while len(groups) > 1 and _first(groups[-1], gap) < _first(groups[-2], gap) + gap * len(groups[-2]):
            crowded = groups.pop()
            groups[-1] += crowded
    return [_first(group, gap) + gap * rank for group in groups for rank in range(len(group))]


def _first(group: Sequence[float], gap: float) -> float:
    """Lowest place of a group that is laid out around its mean."""
    return sum(group) / len(group) - gap * (len(group) - 1) / 2
