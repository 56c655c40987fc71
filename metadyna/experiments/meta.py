"""Reports on runs that learn to adapt: what an episode returns after each inner step, and where it leads."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metadyna.collect.episodes import episode_lengths
from metadyna.experiments import tables
from metadyna.experiments.kinds import of_kind
from metadyna.experiments.records import Measured, Records
from metadyna.experiments.tables import Row
from metadyna.pictures import plots
from metadyna.runs import loop
from metadyna.runs.evaluate import summary
from metadyna.systems.maml import MAML
from metadyna.types import Trial

PUBLISHED = (-40.41, -11.68, -3.33, -3.23)
"""Return of MAML's navigation after 0 to 3 inner steps (Finn et al. 2017; means of the files kept in its code)."""

EPISODES = 40
"""Per task and inner step of an evaluation, as in the published ones."""

FACTORS = {"half": 0.5, "quarter": 0.25}
"""Steps after the first are that much of the first one's size; the published ones are half."""

SHOWN_TASKS = 4


def measure(result: loop.Result) -> Measured:
    """Of one seed: mean returns on all test tasks by inner step, for each size of the later ones; and some paths."""
    system = of_kind(result.config.system, MAML)
    params = jax.tree.map(lambda x: x[0], result.params)
    tasks = jax.tree.map(lambda x: x[:SHOWN_TASKS], result.program.tasks("test"))
    trial = system.trial(params, result.program.collector, tasks, jax.random.key(result.config.seed))
    rows = result.metrics
    return {
        "steps": result.steps,
        "seconds_per_iteration": float(np.median(np.diff([row["time/seconds"] for row in rows]))) / result.config.chunk,
        "returns": {name: _returns(result, factor) for name, factor in FACTORS.items()},
        "goals": np.asarray(tasks.position).tolist(),
        "paths": [[_path(trial, task, i) for i in range(len(trial.names))] for task in range(SHOWN_TASKS)],
    }


def _returns(result: loop.Result, factor: float) -> list[float]:
    """Mean return of 40 episodes of every test task, by inner step."""
    system = replace(of_kind(result.config.system, MAML), episodes=EPISODES, later_factor=factor)
    params = jax.tree.map(lambda x: x[0], result.params)
    key = jax.random.key(result.config.seed)
    shown = summary(system.trial(params, result.program.collector, result.program.tasks("test"), key))
    return np.mean(shown.returns, axis=1).tolist()


def _path(trial: Trial, task: int, number: int) -> list[list[float]]:
    """Positions of the first episode of a round, rounded to what can be seen."""
    episode = jax.tree.map(lambda x: x[:, task, number, 0], trial.episodes)
    points = jnp.concatenate([episode.obs[:1], episode.next_obs[: int(episode_lengths(episode.last))]])
    return np.round(np.asarray(points, np.float64), 3).tolist()


def navigation(records: Records, folder: Path, name: str) -> list[Path]:
    """Returns by inner step beside the published ones, paths of the first arm's first seed also as a clip, a table."""
    paths, clip = (folder / f"{name}-paths.{kind}" for kind in ("png", "gif"))
    curves = {size: folder / f"{name}-{size}.png" for size in FACTORS}
    returns = {size: {arm: np.array([r["returns"][size] for r in each]) for arm, each in records.items()}
               for size in FACTORS}  # fmt: skip
    for size, arms in returns.items():
        count = next(iter(arms.values())).shape[1]
        title = f"2-D navigation, goals never seen; later steps {FACTORS[size]:g} times the first"
        # A policy that flies off costs many times what one does that adapts: only on a logarithmic axis both are seen.
        costs = {arm: -values for arm, values in arms.items()}
        marks = {"published (half)": [-value for value in PUBLISHED[:count]]}
        labels = "inner gradient steps", "cost (- return)"
        plots.lines(costs, range(count), curves[size], title, *labels, log=True, marks=marks)
    first = next(iter(records.values()))[0]
    title = "An episode after 0, 1, 2, … inner steps, and the hidden goal"
    plots.paths(first["goals"], first["paths"], paths, title)
    plots.paths_clip(first["goals"], first["paths"], clip, title)
    seconds = {arm: float(np.mean([one["seconds_per_iteration"] for one in each])) for arm, each in records.items()}
    rows = [
        Row([arm, size, step], column, [seconds[arm]])
        for size, arms in returns.items()
        for arm, values in arms.items()
        for step, column in enumerate(values.T)
    ]
    labels, extras = ["arm", "later_steps", "inner_steps"], ["seconds_per_iteration"]
    return [*curves.values(), paths, clip, tables.write(folder / f"{name}.csv", labels, rows, ".2f", extras)]
