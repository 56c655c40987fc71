"""What a run says while it runs: metrics.jsonl (the source of truth), TensorBoard events, a progress line."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from tensorboardX import SummaryWriter

from metadyna.errors import UserError

METRICS_FILE = "metrics.jsonl"
PLAIN_INTERVAL = 10.0
"""Seconds between two progress lines where there is no terminal."""

_YEAR = 365 * 24 * 3600.0


class RunLog:
    """Metrics of one run, by environment step.

    A row has the mean `step` of the seeds and, while they are not all at the same one, the list of their `steps`.

    A new log appends to what the folder holds. With `resume_step`, the mean that a run goes on from, lines of later
    steps are dropped first, so that an interrupted and resumed run has each once; TensorBoard is told to drop them,
    too. Use it as a context manager or call `close`. Raises UserError where the folder cannot be written.
    """

    def __init__(self, folder: Path, resume_step: int | float | None = None):
        self._path = Path(folder) / METRICS_FILE
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _repair(self._path, resume_step)
            self._file = self._path.open("a", encoding="utf-8")
            purge_step = None if resume_step is None else int(resume_step) + 1
            self._events = SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=purge_step, flush_secs=10)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def write(self, steps: int | Sequence[int] | Int[np.ndarray, "seeds"], metrics: Mapping[str, Any]) -> None:
        """Record metrics at an environment step, or at one of each seed: a metric is a float, or a list with a float
        per seed.

        Arrays of 0 or 1 dimensions count as floats and lists; TensorBoard gets the mean of a list. NaN and
        infinities are kept, in Python's spelling of JSON.
        """
        each = np.unique(steps).size > 1
        where = {"step": int(np.mean(steps)), **({"steps": np.asarray(steps).tolist()} if each else {})}
        row = {**where, **{name: _plain(name, value) for name, value in metrics.items()}}
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            for name in metrics:
                self._events.add_scalar(name, float(np.nanmean(row[name])), row["step"])
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        """Close both files."""
        with contextlib.suppress(OSError):  # `write` has flushed; what the disk refused, it has reported
            self._file.close()
        self._events.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of a run in the order written: `step`, `steps` where seeds differ, and metrics as floats or lists of them.

    A torn last line, left by a killed process, is ignored. Raises UserError if there is no row or if a line is
    damaged.
    """
    path = Path(folder) / METRICS_FILE
    try:
        rows = [row for row, _ in _rows(path)]
    except OSError as error:
        raise UserError(f"no metrics in {folder}: {error.strerror}; give the folder of a run") from error
    if not rows:
        raise UserError(f"no metrics in {folder}: {METRICS_FILE} is empty; give the folder of a run that has logged")
    return rows


class Progress:
    """Progress in environment steps: a bar in a terminal, elsewhere a line about every ten seconds and at the end.

    `start` is the step a resumed run begins with. `enabled`: None decides by the terminal, True insists on the bar,
    False prints nothing. Use it as a context manager.
    """

    def __init__(self, total: int, enabled: bool | None = None, start: int = 0):
        self._total = total
        self._enabled = enabled is not False
        self._step = start
        self._return: float | None = None
        self._began = self._printed = (time.monotonic(), start)
        with_bar = sys.stdout.isatty() if enabled is None else enabled
        self._bar = _bar() if with_bar else None
        if self._bar:
            self._task = self._bar.add_task("", total=total, completed=start, rate="", outcome="")

    def update(self, step: int, return_: float | None = None) -> None:
        """Report the environment steps taken so far and, where there is a new one, the latest return."""
        self._step = step
        self._return = self._return if return_ is None else return_
        if self._bar:
            outcome = "" if self._return is None else f"return {self._return:.4g}"
            rate = f"{self._rate(self._began):,.0f} steps/s"
            self._bar.update(self._task, completed=step, rate=rate, outcome=outcome)
        elif self._enabled and time.monotonic() - self._printed[0] >= PLAIN_INTERVAL:
            remaining = max(self._total - step, 0) / max(self._rate(self._printed), 1e-9)
            self._print(self._rate(self._printed), f"eta {_duration(remaining)}")
            self._printed = (time.monotonic(), step)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._enabled:
            self._print(self._rate(self._began), f"took {_duration(time.monotonic() - self._began[0])}")

    def _rate(self, since: tuple[float, int]) -> float:
        """Steps per second since a (time, step)."""
        return (self._step - since[1]) / max(time.monotonic() - since[0], 1e-9)

    def _print(self, rate: float, when: str) -> None:
        """Print one plain line."""
        parts = [f"step {self._step:,}/{self._total:,}", f"{rate:,.0f} steps/s", when]
        if self._return is not None:
            parts.append(f"return {self._return:.4g}")
        print("  ".join(parts), flush=True)


def _plain(name: str, value: Any) -> float | list[float]:
    """Metric as JSON can hold it."""
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 1:
        raise ValueError(f"metric {name} has shape {array.shape}; expected a number or one number per seed")
    return array.tolist()


def _repair(path: Path, resume_step: int | float | None) -> None:
    """Rewrite the file without a torn last line and without the steps after `resume_step`, all or nothing."""
    if not path.exists():
        return
    kept = [line for row, line in _rows(path) if resume_step is None or _mean_step(row) <= resume_step]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _mean_step(row: Mapping[str, Any]) -> float:
    """Where the seeds were: it grows from row to row, even where its whole part does not."""
    return float(np.mean(row.get("steps", row["step"])))


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each row with its line; the last line may be torn, any other damage raises UserError."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is not None:
            yield row, line
        elif number < len(lines):
            raise UserError(f"{path}, line {number} is not a row of metrics; remove the line to read the others")


def _parse(line: str) -> dict[str, Any] | None:
    """Row of one line, None if it is torn."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _bar() -> RichProgress:
    """Bar with step and total, rate, remaining time and the latest return."""
    return RichProgress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[outcome]}"),
    )


def _duration(seconds: float) -> str:
    """Duration such as 53s, 1m53s, 2h05m; "unknown" beyond a year, where nothing has moved yet."""
    if seconds > _YEAR:
        return "unknown"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def _unwritable(path: Path, error: OSError) -> UserError:
    """Error for a log that the disk refuses."""
    return UserError(f"cannot write {path}: {error.strerror}; free some space or choose another folder")
