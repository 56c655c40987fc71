"""Reports on runs of CRAR and GMAS: scores by planning depth, slopes and model errors by depth, portraits of spaces."""

import csv
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna import plot, run, stats
from metadyna.data import random_transitions
from metadyna.envs.catcher import SIDE, Catcher
from metadyna.envs.maze import SimpleMaze
from metadyna.improve.slopes import distance
from metadyna.models.abstract import Abstract
from metadyna.models.sight import sight
from metadyna.planning.tree import depth_values
from metadyna.types import Family

DEPTHS = (0, 1, 3, 5)
"""At which the labyrinths are planned in the text's figure."""
EPSILON = 0.1
BASELINE = "CRAR"
DEEPEST = 5

Results = Mapping[str, run.Result]


def panels(results: Results, folder: Path, name: str) -> list[Path]:
    """Curves of every arm by distance and evaluation depth, and a table of the final scores."""
    picture, table = folder / f"{name}.png", folder / f"{name}.csv"
    rows = {"cosine": ("cosine", BASELINE), "L2": ("L2", BASELINE)}
    depths = next(iter(results.values())).config.system.episode_names
    shown = {f"eval/episode_{i}/return": depth for i, depth in enumerate(depths)}
    grid = {
        (row, title): ({arm: r.folder for arm, r in results.items() if arm.startswith(kinds)}, metric)
        for row, kinds in rows.items()
        for metric, title in shown.items()
    }
    plot.panels(grid, picture, "Return on mazes never seen, by evaluation depth", "updates")
    _tabulate(results, table, DEPTHS)
    return [picture, table]


def controls(results: Results, folder: Path, name: str) -> list[Path]:
    """Curves of every arm at its deepest plan, and a table of the final scores."""
    picture, table = folder / f"{name}.png", folder / f"{name}.csv"
    title, folders = "Return on mazes never seen, planning ahead", {arm: [r.folder] for arm, r in results.items()}
    plot.learning_curves(folders, picture, title=title, xlabel="updates")
    _tabulate(results, table, ())
    return [picture, table]


def _tabulate(results: Results, out: Path, more_depths: Sequence[int]) -> None:
    """Every arm's score by depth and ε, and its lead over the baseline on the same tasks and seeds.

    At `more_depths` only with random actions: agents that go in circles make every episode a full one.
    """
    system: Any = next(iter(results.values())).config.system
    depths = system.acting.depths
    cells = [*((d, EPSILON) for d in sorted({*depths, *more_depths})), *((d, 0.0) for d in depths)]
    with out.open("w", newline="") as file:
        rows = csv.writer(file)
        columns = "arm depth epsilon seeds tasks mean_return low_95 high_95 lead lead_low_95 lead_high_95 returns"
        rows.writerow(columns.split())
        for (depth, epsilon), (arm, result) in itertools.product(cells, results.items()):
            scores = final_scores(result, depth, epsilon)
            means = scores.mean(axis=1)
            lead = stats.paired_difference(means, final_scores(results[BASELINE], depth, epsilon).mean(axis=1))
            numbers = [means.mean(), *stats.bootstrap_interval(means, stats.mean), *lead]
            listed = " ".join(f"{value:.3f}" for value in means)
            rows.writerow([arm, depth, epsilon, *scores.shape, *(f"{number:.3f}" for number in numbers), listed])


def final_scores(result: run.Result, depth: int, epsilon: float) -> Float[np.ndarray, "seeds tasks"]:
    """Return of an episode of every test task, planned to some depth, with the last weights of each seed.

    Kept beside the run, since a deep plan for every step of 200 tasks takes minutes.
    """
    kept = result.folder / f"scores-step-{result.steps}-depth-{depth}-epsilon-{epsilon:g}.npy"
    if kept.exists():
        return np.load(kept, allow_pickle=False)
    system: Any = result.config.system
    acting = replace(system.acting, depths=(depth,), epsilon=epsilon)
    program = run.build(replace(result.config, system=replace(system, acting=acting)))
    scores = np.asarray(program.evaluate(program.place(result.state)).returns)[:, 0]
    np.save(kept, scores)
    return scores


# ----------------------------------------------------------------------------------------- what the model knows


def slopes(results: Results, folder: Path, name: str) -> list[Path]:
    """By depth: how far the slope of Q agrees with the plan's, how wrong the model is, how far plan and Q differ."""
    found = {arm: [_by_depth(result, i) for i in range(result.config.seeds)] for arm, result in results.items()}
    table, written = folder / f"{name}.csv", []
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "quantity", "depth", "seeds", "mean", "low_95", "high_95", "values"])
        for quantity, label in _QUANTITIES.items():
            arms = {arm: np.stack([one[quantity] for one in each]) for arm, each in found.items()}
            picture = folder / f"{name}-{quantity}.png"
            plot.lines(arms, range(DEEPEST + 1), picture, label, "depth of the plan", quantity.replace("-", " "))
            written.append(picture)
            for arm, values in arms.items():
                for depth, column in enumerate(values.T):
                    low, high = stats.bootstrap_interval(column, stats.mean)
                    listed = " ".join(f"{value:.4g}" for value in column)
                    numbers = [f"{number:.4g}" for number in (column.mean(), low, high)]
                    rows.writerow([arm, quantity, depth, len(column), *numbers, listed])
    return [*written, table]


_QUANTITIES = {
    "cosine": "Agreement of the slope of Q with that of the plan",
    "model-error": "Distance of the imagined from the true abstract state, relative to unrelated states'",
    "plan-gap": "Mean |plan - Q|",
}


def _by_depth(result: run.Result, seed: int) -> dict[str, np.ndarray]:
    model = jax.tree.map(lambda x: x[seed], result.params)
    return jax.device_get(depth_report(model, result.program.family, jax.random.key(seed)))


def depth_report(
    model: Abstract, family: Family, key: PRNGKeyArray, steps: int = 2_000, starts: int = 256
) -> dict[str, Float[Array, "depths"]]:
    """On random walks through test tasks: the quantities of `slopes` for plans of 0 to 5 steps, breadth 2."""
    k_walk, k_starts = jax.random.split(key)
    walk = random_transitions(family.env, family.test, steps, k_walk)
    see = sight(family.env)
    # Windows in which no episode ends, so that what was imagined can be compared with what came.
    ends = jnp.convolve(walk.last.astype(jnp.int32), jnp.ones(DEEPEST, jnp.int32))[DEEPEST - 1 : steps]
    whole = ends[: steps - DEEPEST] == 0
    first = jax.random.choice(k_starts, steps - DEEPEST, (starts,), p=whole / jnp.sum(whole))

    @jax.jit
    def report(model: Abstract) -> dict[str, Array]:
        states = jnp.stack([see(model.encoder, walk.obs[first + d]) for d in range(DEEPEST + 1)])
        x, action = states[0], walk.action[first]

        def values(x: Array, action: Array) -> Array:
            return depth_values(model, x, DEEPEST, 2, action[None])[:, 0]

        tables = jax.vmap(values)(x, action)
        slopes = jax.vmap(jax.jacrev(values))(x, action)
        apart = jax.vmap(lambda v: jax.vmap(lambda w: distance("cosine", v[0], w))(v))(slopes)
        imagined = [x]
        for d in range(DEEPEST):
            imagined.append(jax.vmap(model.next)(imagined[-1], walk.action[first + d]))
        unrelated = _mean_distance(x, jnp.roll(x, 1, axis=0))
        errors = [_mean_distance(a, b) / unrelated for a, b in zip(imagined, states, strict=True)]
        return {
            "cosine": 1 - jnp.mean(apart, axis=0),
            "model-error": jnp.stack(errors),
            "plan-gap": jnp.mean(jnp.abs(tables - tables[:, :1]), axis=0),
        }

    return report(model)


def _mean_distance(x: Float[Array, "B *abstract"], y: Float[Array, "B *abstract"]) -> Float[Array, ""]:
    return jnp.mean(jnp.linalg.norm((x - y).reshape(x.shape[0], -1), axis=1))


# ------------------------------------------------------------------------------------------------ portraits


def portraits(results: Results, folder: Path, name: str) -> list[Path]:
    """Every state of each arm's task as a point of its abstract space, with the transitions that the model predicts.

    A table says how far points lie apart, beside how wrong the model is about a step.
    """
    written, found = [], {}
    for arm, result in results.items():
        model = jax.tree.map(lambda x: x[0], result.params)
        env = result.program.family.env
        obs, shade = everything(env)
        points, targets = jax.device_get(_predicted(env, model, obs))
        picture = folder / f"{name}-{arm.replace(' ', '-')}.png"
        plot.space(points, targets, shade, env.action_names, picture, f"{arm}: {len(points)} states")
        table = picture.with_suffix(".csv")
        header = ",".join(["shade", *(f"x{i}" for i in range(points.shape[1]))])
        np.savetxt(table, np.column_stack([shade, points]), "%.5g", ",", header=header, comments="")
        written += [picture, table]
        found[arm] = _precision(model, result.program.family, points)
    summary = folder / f"{name}.csv"
    with summary.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "distance", "least", "median", "largest"])
        for arm, distances in found.items():
            for label, values in distances.items():
                if len(values):
                    shown = np.min(values), np.median(values), np.max(values)
                    rows.writerow([arm, label, *(f"{value:.3g}" for value in shown)])
    return [*written, summary]


def _precision(
    model: Abstract, family: Family, points: Float[np.ndarray, "N width"], steps: int = 5_000
) -> dict[str, Float[np.ndarray, "n"]]:
    """Distances in the abstract space: between states, and of predictions for a random walk."""
    walk = random_transitions(family.env, family.train, steps, jax.random.key(0))
    see = sight(family.env)
    x, next_x = see(model.encoder, walk.obs), see(model.encoder, walk.next_obs)
    predicted = jax.vmap(model.next)(x, walk.action)
    alive = np.asarray(walk.discount) > 0
    moved = np.any(np.asarray(walk.obs != walk.next_obs).reshape(steps, -1), axis=1)
    apart = np.linalg.norm(points[:, None] - points, axis=-1) + np.diag(np.full(len(points), np.inf))
    move, error = (np.linalg.norm(predicted - other, axis=1) for other in (x, next_x))
    return {
        "nearest other state": apart.min(axis=1),
        "predicted from true next state": error[alive & moved],
        "predicted move where nothing moves": move[alive & ~moved],
    }


def everything(env: Any) -> tuple[Array, np.ndarray]:
    """Every observation of a small environment, and a number for its colour."""
    if isinstance(env, SimpleMaze):
        cells = np.argmax(env.all_boards.reshape(-1, 64) == env.all_boards.max(), axis=1)
        return jnp.asarray(env.all_boards), cells % 8
    if isinstance(env, Catcher):
        states = np.array([*itertools.product(range(SIDE), (0, SIDE - 1), range(SIDE))], np.uint8)
        return jnp.asarray(states), states[:, 0]
    raise TypeError(f"no list of all observations of {type(env).__name__}")


@functools.partial(jax.jit, static_argnums=0)
def _predicted(env: Any, model: Abstract, obs: Array) -> tuple[Array, Array]:
    """The abstract states [N, width], and where each action leads from there [N, actions, width]."""
    x = sight(env)(model.encoder, obs)
    return x, jax.vmap(jax.vmap(model.next, (None, 0)), (0, None))(x, jnp.arange(model.actions))
