"""The command line. Every verb is a thin shell over a function that Python users call.

Modules that draw are imported by the verbs that draw: loading matplotlib takes longer than starting to train may. The
same goes for data sets.
"""

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import metadyna
from metadyna import envs
from metadyna.envs.control import OneTask
from metadyna.envs.drawn import Drawn
from metadyna.errors import UserError, unknown
from metadyna.experiments.presets import PRESETS, preset
from metadyna.runs import cache, config, loop, seeds, stats
from metadyna.runs.config import Config
from metadyna.systems import OFFLINE, SYSTEMS

USAGE = """usage: metadyna VERB ...

  list                       systems, tasks, presets and figures
  train SYSTEM [--task T] [--preset P] [--seeds N] [--out DIR] [--FIELD VALUE ...]
                             meta-train; `metadyna train SYSTEM --help` explains every field
  resume DIR                 go on where a run stopped
  evaluate DIR               let the agent adapt to every task of a split
  plot DIR... --out F.png    learning curves; runs that differ only in their seed are one arm
  render DIR --out F.gif     watch the agent on one task, episode after episode
  inspect DIR                step, settings, versions, machine and hash of a run
  reproduce FIGURE           run an experiment and draw its figure
  collect TASK [--steps N] [--seed S] [--time-limit L] [--name ID]
                             write a data set of random actions, in Minari's format
  doctor                     check this machine and installation

`metadyna VERB --help` explains a verb. Reading verbs take --json."""

out = Console()


@dataclasses.dataclass(frozen=True)
class Train:
    """Meta-train a system on a task family and evaluate it on held-out tasks as it learns."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path
    """Run folder; must not hold a run yet."""


@dataclasses.dataclass(frozen=True)
class Resume:
    """Go on where a run stopped; it ends as if it had never stopped."""

    config: Annotated[Config, tyro.conf.arg(name="")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; bad input ends with one line on stderr and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(words)
    except UserError as error:
        print(f"metadyna: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("metadyna: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of our output went away; keep Python from complaining about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] == "--version":
        print(metadyna.__version__)
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    return VERBS[verb](rest)


def _parse(kind: Callable[..., Any], verb: str, words: list[str], **options: Any) -> Any:
    """Parse with tyro, but report what is wrong in one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            # The system is chosen by name before its fields are parsed.
            return tyro.cli(kind, args=words, prog=f"metadyna {verb}", config=(tyro.conf.AvoidSubcommands,), **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        words_only = complaint.getvalue().translate({ord(c): " " for c in "│╭╮╰╯─"})
        lines = [" ".join(line.split()) for line in words_only.splitlines()]
        _title, *told = [line for line in lines if line and "--help" not in line and "full helptext" not in line]
        raise UserError(f"{' '.join(told)} (see metadyna {verb} --help)") from None


# ------------------------------------------------------------------------------------------------ doing


def _train(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        if any(word in ("-h", "--help") for word in words):
            print("usage: metadyna train SYSTEM [--preset P] [--FIELD VALUE ...]; systems: " + ", ".join(SYSTEMS))
            return 0
        raise UserError(f"train needs a system first; there are: {', '.join(SYSTEMS)}")
    system, rest = words[0], words[1:]
    if system not in SYSTEMS:
        raise unknown("system", system, SYSTEMS)
    name, rest = _take(rest, "--preset", "quick")
    default = preset(system, name)
    task = _peek(rest, "--task", default.task)
    seed = _peek(rest, "--seed", str(default.seed))
    folder = Path("runs") / f"{system}-{task}-{name}-seed{seed}"
    presets = f"Presets (--preset P, default quick): {', '.join(PRESETS[system])}. Defaults below are those of {name}."
    chosen = _parse(
        Train, f"train {system}", rest, default=Train(default, folder), description=f"{Train.__doc__} {presets}"
    )
    envs.make(chosen.config.task)
    _prepare(chosen.config)
    return _report(loop.run(chosen.config, chosen.out))


def _resume(words: list[str]) -> int:
    folder, rest = _folder(words, "resume")
    old = config.load(folder)
    changed = _parse(Resume, f"resume {folder}", rest, default=Resume(old)).config if rest else None
    if changed:
        loop.refuse_changes(old, changed, f"{folder} was started with other settings")
    for line in config.differences(old, changed) if changed else []:
        out.print(f"changed {line}", markup=False, highlight=False)
    _prepare(changed or old)
    return _report(loop.resume(folder, changed))


def _prepare(settings: Config) -> None:
    seeds.use_cores(settings.seeds)
    cache.enable_compilation_cache()


def _report(result: loop.Result) -> int:
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if result.interrupted:
        print(f"interrupted at step {result.steps}; saved; go on with: metadyna resume {result.folder}")
        return 130
    scores = [row["eval/return"] for row in result.metrics if "eval/return" in row]
    last = f"; test return {np.mean(scores[-1]):.3f}" if scores else ""
    print(f"done: {result.steps} steps per seed{last}; see metadyna evaluate {result.folder}")
    return 0


def _reproduce(words: list[str]) -> int:
    from metadyna.experiments import figures

    def reproduce(
        figure: Annotated[str, tyro.conf.Positional],
        budget: str = "quick",
        out: Path = Path("reproductions"),
        seeds: int | None = None,
        only: str | None = None,
        first_seed: int = 0,
    ) -> tuple[str, str, Path, int | None, str | None, int]:
        """Run every arm of an experiment and draw its figure; started again, it goes on where it stopped.

        Args:
            figure: Name of the figure; `metadyna list` shows them.
            budget: quick or full.
            out: Folder for runs, figure, and tables.
            seeds: Seeds per arm, if not the budget's.
            only: Run this arm alone and draw nothing, so that several processes or machines can share the work. Every
                seed leaves a record, which is all that the drawing needs.
            first_seed: The first seed, with --only.
        """
        return figure, budget, out, seeds, only, first_seed

    figure, budget, folder, count, only, first = _parse(reproduce, "reproduce", words)
    cache.enable_compilation_cache()
    study = figures.find(figure, budget)
    if study.company:
        seeds.use_cores(study.seeds if count is None else count)
    for path in figures.reproduce(study, folder, count, only, first):
        print(path)
    return 0


def _collect(words: list[str]) -> int:
    from metadyna.data import datasets

    def collect(
        task: Annotated[str, tyro.conf.Positional],
        steps: int = 100_000,
        seed: int = 0,
        time_limit: int | None = None,
        name: str | None = None,
    ) -> tuple[str, str | None, int, int, int | None]:
        """Write a data set of uniformly random actions on the training tasks of a pure task family.

        It is a Minari data set: MINARI_DATASETS_PATH names the folder of all of them, ~/.minari/datasets if unset.
        Needs pip install "metadyna[data]".

        Args:
            task: Name of a task family; `metadyna list` shows them. Those of robots cannot be collected.
            steps: Transitions to collect.
            seed: Everything random follows from it.
            time_limit: Longest episode in steps, without which only the end of the MDP ends one. Replaces the horizon,
                also as what the price of quitting a city or a kitchen is reckoned from.
            name: Id of the data set, default metadyna/TASK-random-v0; must not exist yet.
        """
        return task, name, steps, seed, time_limit

    arguments = _parse(collect, "collect", words)
    cache.enable_compilation_cache()
    made = datasets.collect(*arguments)
    counts = f"{made['transitions']} transitions, {made['episodes']} episodes"
    print(f"{made['id']}: {counts}, mean reward per step {made['mean_reward']:.4g}")
    print(made["folder"])
    return 0


# ---------------------------------------------------------------------------------------------- reading


def _list(words: list[str]) -> int:
    from metadyna.experiments import figures

    def show(json: bool = False) -> bool:
        """Show what there is.

        Args:
            json: Print JSON instead of tables.
        """
        return json

    as_json = _parse(show, "list", words)
    known = {
        "systems": {name: _first_line(kind.__doc__) for name, kind in SYSTEMS.items()},
        "tasks": {name: _describe(name) for name in envs.TASKS},
        "presets": {system: list(presets) for system, presets in sorted(PRESETS.items())},
        "figures": {name: figure.title for name, figure in figures.FIGURES.items()},
    }
    if as_json:
        print(json.dumps(known, indent=2))
        return 0
    for title, entries in known.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        for name, text in entries.items():
            table.add_row(name, ", ".join(text) if isinstance(text, list) else text)
        out.print(table, "")
    return 0


def _describe(name: str) -> str:
    family = envs.make(name)
    horizon = f"{family.env.spec.horizon} steps per episode"
    if isinstance(family.train, OneTask):
        return f"{envs.meaning_of_test(family)}, {horizon}"
    if isinstance(family.test, Drawn):
        return f"{family.test.count} test tasks, {horizon}; {envs.meaning_of_test(family)}"
    train, test = (len(jax.tree.leaves(split.enumerate())[0]) for split in (family.train, family.test))
    return f"{train} training and {test} test tasks, {horizon}; {envs.meaning_of_test(family)}"


def _evaluate(words: list[str]) -> int:
    def evaluate(
        folder: Annotated[Path, tyro.conf.Positional], split: str = "test", json: bool = False
    ) -> tuple[Path, str, bool]:
        """Let the agent adapt to every task of a split, and compare with the reference policies.

        Args:
            folder: A run folder.
            split: train or test.
            json: Print JSON instead of a table.
        """
        return folder, split, json

    folder, split, as_json = _parse(evaluate, "evaluate", words)
    cache.enable_compilation_cache()
    result = loop.load(folder)
    report = evaluation_report(result, split)
    if as_json:
        print(json.dumps(report, indent=2))
        return 0
    _notes(result)
    tasks = f"{report['tasks']} {split} tasks"
    table = Table(title=f"{result.config.task}, {tasks}, step {report['step']}", title_justify="left")
    rounds = _shown_rounds(len(report["names"]))
    episodes = [f"{report['names'][i]}: return (steps)" for i in rounds]
    for name in ("", f"return ({report['score']})", "95% over seeds", *episodes):
        table.add_column(name, justify="left" if not name else "right")
    for seed, row in enumerate(report["seeds"], start=result.config.seed):
        cells = [f"{row['returns'][i]:.3f} ({row['lengths'][i]:.1f})" for i in rounds]
        table.add_row(f"seed {seed}", f"{row['return']:.3f}", "", *cells)
    if len(report["seeds"]) > 1:
        low, high = report["interval"]
        table.add_row("mean", f"{report['return']:.3f}", f"{low:.3f} to {high:.3f}", style="bold")
    table.add_section()
    for name, value in report["references"].items():
        table.add_row(name, f"{value:.3f}", style="dim")
    out.print(table)
    return 0


def _shown_rounds(count: int) -> list[int]:
    """Which rounds of a trial a table has room for: all, or the first three and the last."""
    return list(range(count)) if count <= 6 else [0, 1, 2, count - 1]


def evaluation_report(result: loop.Result, split: str) -> dict[str, Any]:
    """Scores of a run on a split, per seed and together, beside the exact reference returns."""
    evaluation = result.evaluate(split)
    returns, lengths = np.asarray(evaluation.returns), np.asarray(evaluation.lengths)
    scores = np.asarray(evaluation.scores).mean(axis=-1)
    interval = stats.bootstrap_interval(scores, stats.mean) if len(scores) > 1 else None
    family = result.program.family
    return {
        "task": result.config.task,
        "split": split,
        "tasks": returns.shape[-1],
        "step": result.steps,
        "return": float(scores.mean()),
        "interval": interval,
        "names": list(evaluation.names),
        "score": {"last": "of the last", "sum": "added up", "mean": "on average"}[evaluation.score],
        "seeds": [
            {"return": float(score), "returns": each.tolist(), "lengths": length.tolist()}
            for score, each, length in zip(scores, returns.mean(axis=-1), lengths.mean(axis=-1), strict=True)
        ],
        "references": family.references(),
    }


def _plot(words: list[str]) -> int:
    from metadyna.pictures import plots

    def draw(
        folders: Annotated[list[Path], tyro.conf.Positional],
        out: Path,
        metric: str = "eval/return",
        title: str = "",
        json: bool = False,
    ) -> tuple[list[Path], Path, str, str, bool]:
        """Draw learning curves from metrics.jsonl; runs that differ only in their seed become one arm.

        Args:
            folders: Run folders.
            out: Picture to write: .png, .pdf or .svg.
            metric: A name in metrics.jsonl.
            title: Heading; default the task's name.
            json: Print what was drawn as JSON.
        """
        return folders, out, metric, title, json

    folders, target, metric, title, as_json = _parse(draw, "plot", words)
    if not folders:
        raise UserError("plot needs at least one run folder")
    if target.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"{target} does not end in .png, .pdf or .svg, the formats of plots")
    arms = plot_arms(folders)
    tasks = {config.load(folder).task for folder in folders}
    task = tasks.pop() if len(tasks) == 1 else None
    references = envs.make(task).references() if task and metric == "eval/return" else {}
    offline = all(isinstance(config.load(folder).system, OFFLINE) for folder in folders)
    steps = "updates" if offline else "environment steps"
    plots.learning_curves(arms, target, metric, references, title or task or "", steps, metric)
    if as_json:
        print(json.dumps({"out": str(target), "arms": {name: [str(f) for f in arms[name]] for name in arms}}))
    else:
        print(target)
    return 0


def plot_arms(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Group runs that differ only in seed; name each group by the fields in which the groups differ."""
    flat = {folder: config.flat(dataclasses.replace(config.load(folder), seed=0, seeds=1)) for folder in folders}
    fields = flat[folders[0]].keys()
    differing = [name for name in fields if len({str(values.get(name)) for values in flat.values()}) > 1]
    arms: dict[str, list[Path]] = {}
    for folder, values in flat.items():
        label = ", ".join(f"{name.removeprefix('system.')}={values.get(name)}" for name in differing)
        arms.setdefault(label or str(values["system.name"]), []).append(folder)
    return arms


def _render(words: list[str]) -> int:
    from metadyna.pictures import clips

    def render(
        folder: Annotated[Path, tyro.conf.Positional],
        out: Path,
        task: int | None = None,
        seed: int = 0,
        split: str = "test",
        seconds: float = 10.0,
        json: bool = False,
    ) -> tuple[Path, Path, int | None, int, str, float, bool]:
        """Watch an agent on one task, episode after episode: grids, mazes, control problems and robots.

        Args:
            folder: A run folder.
            out: The clip to write, a .gif.
            task: Index of the task in its split; default the middle one.
            seed: Which of the run's seeds acts, counted from 0.
            split: train or test.
            seconds: How much of each episode is shown; grids and mazes are always shown to the end.
            json: Print what is shown as JSON; of grids with every board as text.
        """
        return folder, out, task, seed, split, seconds, json

    folder, target, task, seed, split, seconds, as_json = _parse(render, "render", words)
    cache.enable_compilation_cache()
    shown = clips.render(loop.load(folder), target, task, seed, split, seconds=seconds)
    if as_json:
        print(json.dumps(shown, indent=2))
        return 0
    for episode in shown["episodes"]:
        score = f", return {episode['return']:.1f}" if "return" in episode else ""
        told = f"{episode['length']} steps{score}"
        actions = " ".join(episode.get("actions", ())).lower()
        print(f"{episode['name']}: {actions} ({told})" if actions else f"{episode['name']}: {told}")
    print(target)
    return 0


def _inspect(words: list[str]) -> int:
    def inspect(folder: Annotated[Path, tyro.conf.Positional], json: bool = False) -> tuple[Path, bool]:
        """Show step, settings, versions, machine, and the hash over every array of a run's full state.

        Args:
            folder: A run folder.
            json: Print JSON instead of a table.
        """
        return folder, json

    folder, as_json = _parse(inspect, "inspect", words)
    record = loop.inspect(folder)
    if as_json:
        print(json.dumps(record, indent=2))
        return 0
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    for name, value in config.flatten(record).items():
        table.add_row(name, str(value))
    out.print(table)
    return 0


def _doctor(words: list[str]) -> int:
    from metadyna.runs import doctor

    def check(json: bool = False) -> bool:
        """Check this machine and installation.

        Args:
            json: Print JSON instead of a table.
        """
        return json

    as_json = _parse(check, "doctor", words)
    folder = cache.enable_compilation_cache()
    checks = doctor.examine(folder)
    if as_json:
        print(json.dumps([dataclasses.asdict(each) for each in checks], indent=2))
    else:
        table = Table(show_header=False, box=None, pad_edge=False)
        for each in checks:
            table.add_row("[green]ok[/]" if each.good else "[red]bad[/]", each.name, each.finding)
        out.print(table)
    return 0 if all(each.good for each in checks) else 1


# ---------------------------------------------------------------------------------------------- helpers


def _folder(words: list[str], verb: str) -> tuple[Path, list[str]]:
    if any(word in ("-h", "--help") for word in words) and (not words or words[0].startswith("-")):
        print(f"usage: metadyna {verb} DIR [--FIELD VALUE ...]\n\n{Resume.__doc__}")
        print(f"Fields that may change: {', '.join(loop.EXTENSIBLE)}.")
        sys.exit(0)
    if not words or words[0].startswith("-"):
        raise UserError(f"{verb} needs a run folder first: metadyna {verb} DIR")
    return Path(words[0]), words[1:]


def _take(words: list[str], flag: str, default: str) -> tuple[str, list[str]]:
    """Remove `flag VALUE` or `flag=VALUE` from the words."""
    for i, word in enumerate(words):
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "="), words[:i] + words[i + 1 :]
        if word == flag:
            if i + 1 == len(words):
                raise UserError(f"{flag} needs a value")
            return words[i + 1], words[:i] + words[i + 2 :]
    return default, words


def _peek(words: list[str], flag: str, default: str) -> str:
    return _take(words, flag, default)[0]


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0].rstrip(".")


def _notes(result: loop.Result) -> None:
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "train": _train,
    "resume": _resume,
    "evaluate": _evaluate,
    "plot": _plot,
    "render": _render,
    "inspect": _inspect,
    "reproduce": _reproduce,
    "collect": _collect,
    "doctor": _doctor,
}
