"""The host loop: iterate, evaluate, log, save. Everything the command line can do about runs is a function here."""

import contextlib
import functools
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metadyna.errors import UserError
from metadyna.provenance import machine
from metadyna.provenance.hashes import state_sha256
from metadyna.runs import config as configs
from metadyna.runs.checkpoint import Checkpoints
from metadyna.runs.config import Config
from metadyna.runs.evaluate import Evaluation
from metadyna.runs.log import Progress, RunLog, read_metrics
from metadyna.runs.program import Marks, Program, Running, RunState, build
from metadyna.types import Average

EXTENSIBLE = ("steps", "stop_at", "checkpoint_seconds")
"""Fields that a resumed run may change, since they do not alter what has been computed."""


@dataclass(frozen=True)
class Result:
    """A finished, interrupted or loaded run."""

    folder: Path
    config: Config
    state: RunState
    interrupted: bool = False
    notes: tuple[str, ...] = ()
    """What was found on loading: damaged checkpoints that were passed over."""

    @property
    def steps(self) -> int:
        """Environment steps, mean over seeds."""
        return int(np.mean(jax.vmap(self.config.system.steps)(self.state.system)))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`."""
        return read_metrics(self.folder)

    @property
    def params(self) -> Any:
        """The weights that act, stacked over seeds."""
        return jax.vmap(self.config.system.params)(self.state.system)

    @functools.cached_property
    def program(self) -> Program:
        """The compiled functions of this run."""
        return build(self.config)

    def evaluate(self, split: str = "test") -> Evaluation:
        """Evaluate every seed on every task of a split; arrays are [seeds, episodes, tasks]."""
        return self.program.evaluate(self.program.place(self.state), split)


def run(config: Config, out: Path | str, progress: bool | None = None) -> Result:
    """Train from scratch into a new folder. `progress`: None decides by the terminal, False is silent.

    Raises `UserError` if the folder already holds a run, cannot be written, or the training diverges.
    """
    folder = Path(out)
    if (folder / "config.json").exists():
        raise UserError(f"{folder} already holds a run; continue it with `metadyna resume {folder}` or choose another")
    # A kill may have come between writing the configuration and giving it its name; nothing was computed then.
    if folder.exists() and (not folder.is_dir() or any(path.name != configs.PARTIAL for path in folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; choose another")
    program = build(config)
    running = program.init()  # a system that cannot do with the task says so before there is a folder
    _describe(config, folder)
    return _train(program, folder, running, chunk=0, seconds=0.0, progress=progress)


def resume(folder: Path | str, changed: Config | None = None, progress: bool | None = None) -> Result:
    """Continue a run from its newest good checkpoint to the same end as if it had never stopped.

    `changed` may extend the run (`EXTENSIBLE` fields); any other difference is a `UserError` that lists it. A seed that
    has stopped goes on if `stop_at` is raised or dropped; a lower one is compared with evaluations to come.
    """
    folder = Path(folder)
    old = configs.load(folder)
    config = old if changed is None else changed
    refuse_changes(old, config, f"{folder} was started with other settings")
    program = build(config)
    try:
        restored = _restore(program, folder)
    except NoCheckpoint:
        _describe(config, folder)
        return _train(program, folder, program.init(), chunk=0, seconds=0.0, progress=progress)
    if config != old:
        configs.save(config, folder)
    state, before = restored.state, configs.from_dict(restored.metadata["config"])
    if _target(config) > _target(before):
        state = state._replace(stopped=jnp.zeros_like(state.stopped))
    chunk, seconds = restored.metadata["chunk"], restored.metadata["seconds"]
    result = _train(program, folder, program.place(state), chunk, seconds, progress)
    return replace(result, notes=tuple(restored.notes))


def load(folder: Path | str) -> Result:
    """Read a run's newest good checkpoint, to evaluate, render or inspect it."""
    folder = Path(folder)
    program = build(configs.load(folder))
    try:
        restored = _restore(program, folder)
    except NoCheckpoint:
        raise UserError(f"{folder} has no checkpoint yet; train it first with `metadyna resume {folder}`") from None
    return Result(folder, program.config, restored.state, notes=tuple(restored.notes))


def inspect(folder: Path | str) -> dict[str, Any]:
    """Step, configuration, versions, machine and the hash over every array of the full state."""
    result = load(folder)
    each = [state_sha256(jax.tree.map(lambda x, i=i: x[i], result.state)) for i in range(result.config.seeds)]
    try:
        environment = json.loads((result.folder / "environment.json").read_text())
    except (OSError, ValueError):
        environment = None
    return {
        "folder": str(result.folder),
        "step": result.steps,
        "iteration": np.asarray(result.state.iteration).tolist(),
        "checkpoints": Checkpoints(result.folder / "checkpoints").iterations(),
        "state_sha256": state_sha256(result.state),
        "seed_sha256": each,
        "config": configs.to_dict(result.config),
        "environment": environment,
        "notes": list(result.notes),
    }


class NoCheckpoint(Exception):
    """A run was stopped before its first checkpoint."""


def _describe(config: Config, folder: Path) -> None:
    """Write what is run, and with what."""
    configs.save(config, folder)
    record = json.dumps(machine.environment_record(), indent=2)
    try:
        (folder / "environment.json").write_text(record + "\n")
    except OSError as error:
        raise configs.unwritable(folder, error) from None


def _train(
    program: Program, folder: Path, running: Running, chunk: int, seconds: float, progress: bool | None
) -> Result:
    config, checkpoints = program.config, Checkpoints(folder / "checkpoints")
    marks = program.marks(running)
    if np.all(_ended(config, marks)):
        return Result(folder, config, program.stacked(running))
    resume_step = float(np.mean(marks.steps)) if chunk else -1.0
    began = saved = time.monotonic()
    saved_chunk = chunk if chunk else None

    def save() -> None:
        state = program.stacked(running)
        _refuse_broken_weights(config, state, folder, int(np.mean(marks.steps)))
        taken = seconds + time.monotonic() - began
        checkpoints.save(chunk, state, {"chunk": chunk, "seconds": taken, "config": configs.to_dict(config)})

    with (
        RunLog(folder, resume_step) as log,
        Progress(config.steps, progress, max(int(resume_step), 0)) as bar,
        _interruptible() as interrupted,
    ):
        while not np.all(_ended(config, marks)) and not interrupted():
            started = time.monotonic()
            try:
                running, metrics, counts = program.chunk(running)
            except UserError:  # a simulator broke; nothing of the chunks before is lost
                save()
                raise
            before, steps = marks.steps, np.asarray(counts)
            marks = marks._replace(steps=steps)
            row = _means(metrics, folder, int(np.mean(steps)))
            row["time/env_steps_per_second"] = float(np.sum(steps - before)) / (time.monotonic() - started)
            chunk += 1
            running, marks, scores = _evaluate_if_due(program, running, before, marks)
            row.update(scores)
            row["time/seconds"] = seconds + time.monotonic() - began
            log.write(steps, row)
            latest = row.get("eval/return", row.get("train/episode_return"))
            bar.update(int(np.mean(steps)), None if latest is None else float(np.nanmean(latest)))
            if time.monotonic() - saved >= config.checkpoint_seconds:
                save()
                saved, saved_chunk = time.monotonic(), chunk
        if saved_chunk != chunk:
            save()
        return Result(folder, config, program.stacked(running), interrupted=interrupted())


def _refuse_broken_weights(config: Config, state: RunState, folder: Path, step: int) -> None:
    """Stop if any is not finite: the last update of a chunk can break the weights before a loss tells."""
    weights = jax.tree_util.tree_leaves_with_path(jax.vmap(config.system.params)(state.system))
    named = {f"weight {jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in weights}
    _stop_unless_finite(named, folder, step)


def _ended(config: Config, marks: Marks) -> np.ndarray:
    return marks.stopped | (marks.steps >= config.steps)


def _target(config: Config) -> float:
    """The evaluation return that ends a seed."""
    return math.inf if config.stop_at is None else config.stop_at


def _evaluate_if_due(
    program: Program, running: Running, before: np.ndarray, marks: Marks
) -> tuple[Running, Marks, dict[str, float | list[float]]]:
    """Evaluate when a seed has crossed a multiple of `eval_every` or reached its last step."""
    config = program.config
    # A run alone and in company must stop at the same point, so each seed is judged only where it is due itself;
    # and not by the evaluation at the last step, which a longer run does not have.
    crossed = marks.steps // config.eval_every
    due = (crossed > marks.evaluated) & ~marks.stopped
    finished = (before < config.steps) & (marks.steps >= config.steps)
    if not (due | finished).any():
        return running, marks, {}
    scores = jax.vmap(Evaluation.metrics)(program.evaluate(running))
    reached = np.asarray(scores["eval/return"]) >= _target(config)
    evaluated = np.where(due, crossed, marks.evaluated).astype(np.int32)
    marks = marks._replace(evaluated=evaluated, stopped=marks.stopped | (due & reached))
    return program.marked(running, marks), marks, {k: _per_seed(v) for k, v in scores.items()}


def _means(metrics: dict[str, Average], folder: Path, step: int) -> dict[str, Any]:
    """Means over a chunk by name: NaN for a seed without a measurement, nothing if no seed has one."""
    totals = {name: np.asarray(average.total, np.float64) for name, average in metrics.items()}
    _stop_unless_finite(totals, folder, step)
    weights = {name: np.asarray(average.weight) for name, average in metrics.items()}
    return {
        name: _per_seed(np.divide(totals[name], weight, out=np.full(weight.shape, math.nan), where=weight > 0))
        for name, weight in weights.items()
        if weight.any()
    }


def _stop_unless_finite(values: dict[str, np.ndarray], folder: Path, step: int) -> None:
    bad = [name for name, value in values.items() if not np.isfinite(value).all()]
    if bad:
        named = f"{', '.join(bad[:4])}{f' and {len(bad) - 4} more' if len(bad) > 4 else ''}"
        raise UserError(
            f"not finite at step {step}: {named}; training stopped; "
            f"{folder} keeps its last good checkpoint, if it had one"
        )


def _per_seed(values: Any) -> float | list[float]:
    """One float for one seed, a list for several."""
    listed = np.asarray(values, np.float64).tolist()
    return listed[0] if len(listed) == 1 else listed


def _restore(program: Program, folder: Path) -> Any:
    checkpoints = Checkpoints(folder / "checkpoints")
    if not checkpoints.iterations():
        raise NoCheckpoint
    restored = checkpoints.restore(program.like())
    saved = configs.from_dict(restored.metadata.get("config"), f"checkpoint in {folder}")
    refuse_changes(saved, program.config, f"{folder / 'config.json'} was changed since the checkpoint")
    return restored


def refuse_changes(old: Config, new: Config, what: str) -> None:
    """Raise a `UserError` that begins with `what` and lists the differences that a resumed run may not have."""
    changes = [line for line in configs.differences(old, new) if line.split(":")[0] not in EXTENSIBLE]
    if changes:
        raise UserError(f"{what}: {'; '.join(changes)}; restore them, or start a new run")


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the current chunk; the second one is real."""
    asked = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("stopping after this chunk; once more to stop at once and lose it", file=sys.stderr)

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may listen; elsewhere Ctrl-C is not ours
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
