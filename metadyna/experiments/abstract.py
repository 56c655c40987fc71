"""Reports on runs of CRAR and GMAS: scores by planning depth, slopes and model errors by depth, portraits of spaces."""

import csv
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.data.datasets import random_transitions
from metadyna.envs.catcher import SIDE, Catcher
from metadyna.envs.labyrinths import Mazes
from metadyna.envs.maze import Labyrinth, SimpleMaze
from metadyna.envs.maze_references import normalised, optimal_return
from metadyna.experiments import tables
from metadyna.experiments.kinds import of_kind
from metadyna.experiments.records import Measured, Records
from metadyna.experiments.reports import Curve
from metadyna.experiments.tables import Row
from metadyna.improve.slopes import distance
from metadyna.models.abstract import Abstract
from metadyna.nets.sight import sight
from metadyna.pictures import plots
from metadyna.planning.tree import depth_values
from metadyna.runs import loop, stats
from metadyna.systems.crar import CRAR
from metadyna.systems.gmas import GMAS
from metadyna.types import Env, Family

DEPTHS = (0, 1, 3, 5)
"""At which the labyrinths are planned in the text's figure."""
EPSILON = 0.1
BASELINE = "CRAR"
DEEPEST = 5


def measure(result: loop.Result) -> Measured:
    """Of one seed in the labyrinths: its curve, the scores of its last weights, and what its model knows by depth.

    Scores are means over all test tasks, by depth and probability of a random action. The deepest plan is tried with
    random actions only: agents that go in circles make every episode a full one.
    """
    system = of_kind(result.config.system, CRAR, GMAS)
    rows = [row for row in result.metrics if "eval/return" in row]
    names = [f"depth {depth}" for depth in system.acting.depths]
    curve = {name: [row[f"eval/episode_{i}/return"] for row in rows] for i, name in enumerate(names)}
    scores = {_cell(d, system.acting.epsilon): curve[f"depth {d}"][-1] for d in system.acting.depths}
    for cell in [*((depth, EPSILON) for depth in DEPTHS), *((depth, 0.0) for depth in system.acting.depths)]:
        if _cell(*cell) not in scores:
            scores[_cell(*cell)] = _score(result, *cell)
    return {
        "updates": result.steps,
        "minutes": round(result.metrics[-1]["time/seconds"] / 60, 1),
        "curve": {"updates": [row["step"] for row in rows], **curve},
        "scores": scores,
        "by_depth": {name: values.tolist() for name, values in _by_depth(result).items()},
    }


def _cell(depth: int, epsilon: float) -> str:
    return f"depth {depth}, epsilon {epsilon:g}"


def _score(result: loop.Result, depth: int, epsilon: float) -> float:
    """Mean return over all test tasks, planned to some depth with the last weights."""
    system = of_kind(result.config.system, CRAR, GMAS)
    acting = replace(system.acting, depths=(depth,), epsilon=epsilon)
    program = loop.build(replace(result.config, system=replace(system, acting=acting)))
    return float(np.mean(program.evaluate(program.place(result.state)).returns))


def _by_depth(result: loop.Result) -> dict[str, np.ndarray]:
    model = jax.tree.map(lambda x: x[0], result.params)
    return jax.device_get(depth_report(model, result.program.family, jax.random.key(result.config.seed)))


def panels(records: Records, folder: Path, name: str) -> list[Path]:
    """Curves of every arm by distance and evaluation depth, and tables of scores and leads."""
    picture = folder / f"{name}.png"
    rows = {"cosine": ("cosine", BASELINE), "L2": ("L2", BASELINE)}
    grid = {
        (row, f"depth {depth}"): {arm: _curve(each, depth) for arm, each in records.items() if arm.startswith(kinds)}
        for row, kinds in rows.items()
        for depth in DEPTHS
    }
    plots.panels(grid, picture, "Return on mazes never seen, by evaluation depth", "updates")
    return [picture, *_tabulate(records, folder, name)]


def _curve(each: Sequence[Measured], depth: int) -> Curve:
    """Updates and scores; where no curve was drawn, the last ones."""
    if f"depth {depth}" in each[0]["curve"]:
        return each[0]["curve"]["updates"], np.array([one["curve"][f"depth {depth}"] for one in each])
    return [each[0]["updates"]], np.array([[one["scores"][_cell(depth, EPSILON)]] for one in each])


def controls(records: Records, folder: Path, name: str) -> list[Path]:
    """Curves of every arm planned three steps ahead, and tables of scores and leads."""
    picture = folder / f"{name}.png"
    curves = {arm: _curve(each, 3) for arm, each in records.items()}
    updates, _ = next(iter(curves.values()))
    arms = {arm: values for arm, (_, values) in curves.items()}
    plots.lines(arms, updates, picture, "Return on mazes never seen, planning three steps ahead", "updates", "return")
    return [picture, *_tabulate(records, folder, name)]


Cell = tuple[str, int, float]
"""When (last, or the mean of the curve), planned to which depth, with what probability of a random action."""


def _tabulate(records: Records, folder: Path, name: str) -> list[Path]:
    """Scores of every arm, and its leads with the same seeds and tasks over the first and its shallower kin."""
    scored = {arm: _scores(each) for arm, each in records.items()}
    where = ["when", "depth", "epsilon"]
    scores = [
        Row([arm, *cell], values, [_normalised(float(np.mean(values)))])
        for arm, cells in scored.items()
        for cell, values in cells.items()
    ]
    table = tables.write(folder / f"{name}.csv", ["arm", *where], scores, ".3f", ["normalised_score"])
    baseline = next(iter(records))
    over = [(arm, baseline) for arm in records if arm != baseline]
    over += [(deep, shallow) for shallow in records for deep in records if _deeper(deep, shallow)]
    leads = [_lead(scored, *pair, cell) for pair in over for cell in scored[baseline]]
    found = tables.write(folder / f"{name}-leads.csv", ["arm", "over", *where], leads, ".3f", ["detectable"])
    return [table, found]


def _lead(scored: Mapping[str, Mapping[Cell, Sequence[float]]], arm: str, other: str, cell: Cell) -> Row:
    """An arm's lead over another in a cell, seed by seed, and the least that as many seeds would show."""
    two = scored[arm][cell], scored[other][cell]
    return Row([arm, other, *cell], np.subtract(*two), [stats.detectable_difference(*two)])


def _normalised(mean_return: float) -> float:
    """Where a mean over the labyrinths' test tasks lies between finding nothing (0) and the shortest tours (1)."""
    return float(np.asarray(normalised(Labyrinth(), mean_return, _shortest_tours())))


@functools.cache
def _shortest_tours() -> float:
    """Mean return over the test tasks of the figures."""
    tours = functools.partial(optimal_return, Labyrinth())
    return float(jnp.mean(jax.vmap(tours)(Mazes("published", "test").enumerate())))


def _scores(each: Sequence[Measured]) -> dict[Cell, Sequence[float]]:
    """What every seed returned, by cell."""
    found: dict[Cell, Sequence[float]] = {}
    for cell in each[0]["scores"]:
        depth, epsilon = (part.split()[1] for part in cell.split(", "))
        found["last", int(depth), float(epsilon)] = [one["scores"][cell] for one in each]
    for key in each[0]["curve"]:
        if key.startswith("depth "):
            found["mean of the curve", int(key.split()[1]), EPSILON] = [np.mean(one["curve"][key]) for one in each]
    return found


def _deeper(one: str, other: str) -> bool:
    """Whether two arms differ in the depth of training alone, which ends their names."""
    kinds, depths = zip(*(arm.rpartition(" ")[::2] for arm in (one, other)), strict=True)
    return kinds[0] == kinds[1] != "" and all(map(str.isdigit, depths)) and int(depths[0]) > int(depths[1])


# ----------------------------------------------------------------------------------------- what the model knows


def slopes(records: Records, folder: Path, name: str) -> list[Path]:
    """By depth: how far the slope of Q agrees with the plan's, how wrong the model is, how far plan and Q differ."""
    rows, pictures = [], []
    for quantity, label in _QUANTITIES.items():
        arms = {arm: np.array([one["by_depth"][quantity] for one in each]) for arm, each in records.items()}
        picture = folder / f"{name}-{quantity}.png"
        plots.lines(arms, range(DEEPEST + 1), picture, label, "depth of the plan", quantity.replace("-", " "))
        pictures.append(picture)
        rows += [Row([arm, quantity, depth], v) for arm, values in arms.items() for depth, v in enumerate(values.T)]
    return [*pictures, tables.write(folder / f"{name}.csv", ["arm", "quantity", "depth"], rows)]


_QUANTITIES = {
    "cosine": "Agreement of the slope of Q with that of the plan",
    "model-error": "Distance of the imagined from the true abstract state, relative to unrelated states'",
    "plan-gap": "Mean |plan - Q|",
}


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


def portray(result: loop.Result) -> Measured:
    """Every state of a small task as a point of its abstract space, and where each action is predicted to lead."""
    model = jax.tree.map(lambda x: x[0], result.params)
    env = result.program.family.env
    obs, shade = everything(env)
    points, targets = jax.device_get(_predicted(env, model, obs))
    return {
        "points": points.tolist(),
        "targets": targets.tolist(),
        "shade": shade.tolist(),
        "actions": list(env.action_names),
        "distances": _precision(model, result.program.family, points),
    }


def portraits(records: Records, folder: Path, name: str) -> list[Path]:
    """Each arm's first seed: its states as points of the abstract space, with the transitions that the model predicts.

    A table says how far points lie apart, beside how wrong the model is about a step.
    """
    written, summary = [], folder / f"{name}.csv"
    with summary.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "distance", "least", "median", "largest"])
        for arm, (first, *_) in records.items():
            points, targets, shade = (np.array(first[key]) for key in ("points", "targets", "shade"))
            picture = folder / f"{name}-{arm.replace(' ', '-')}.png"
            plots.space(points, targets, shade, first["actions"], picture, f"{arm}: {len(points)} states")
            table = picture.with_suffix(".csv")
            header = ",".join(["shade", *(f"x{i}" for i in range(points.shape[1]))])
            np.savetxt(table, np.column_stack([shade, points]), "%.5g", ",", header=header, comments="")
            written += [picture, table]
            for label, values in first["distances"].items():
                rows.writerow([arm, label, *(f"{value:.3g}" for value in values)])
    return [*written, summary]


def _precision(
    model: Abstract, family: Family, points: Float[np.ndarray, "N width"], steps: int = 5_000
) -> dict[str, list[float]]:
    """Least, median and largest distances in the abstract space: of states, and of predictions on a random walk."""
    walk = random_transitions(family.env, family.train, steps, jax.random.key(0))
    see = jax.jit(sight(family.env))
    x, next_x = see(model.encoder, walk.obs), see(model.encoder, walk.next_obs)
    predicted = jax.vmap(model.next)(x, walk.action)
    alive = np.asarray(walk.discount) > 0
    moved = np.any(np.asarray(walk.obs != walk.next_obs).reshape(steps, -1), axis=1)
    apart = np.linalg.norm(points[:, None] - points, axis=-1) + np.diag(np.full(len(points), np.inf))
    move, error = (np.linalg.norm(predicted - other, axis=1) for other in (x, next_x))
    distances = {
        "nearest other state": apart.min(axis=1),
        "predicted from true next state": error[alive & moved],
        "predicted move where nothing moves": move[alive & ~moved],
    }
    summaries = {name: (np.min, np.median, np.max) for name, values in distances.items() if len(values)}
    return {name: [float(of(distances[name])) for of in each] for name, each in summaries.items()}


def everything(env: Env) -> tuple[Array, np.ndarray]:
    """Every observation of a small environment, and a number for its colour."""
    if isinstance(env, SimpleMaze):
        cells = np.argmax(env.all_boards.reshape(-1, 64) == env.all_boards.max(), axis=1)
        return jnp.asarray(env.all_boards), cells % 8
    if isinstance(env, Catcher):
        states = np.array([*itertools.product(range(SIDE), (0, SIDE - 1), range(SIDE))], np.uint8)
        return jnp.asarray(states), states[:, 0]
    raise TypeError(f"no list of all observations of {type(env).__name__}")


@functools.partial(jax.jit, static_argnums=0)
def _predicted(env: Env, model: Abstract, obs: Array) -> tuple[Array, Array]:
    """The abstract states [N, width], and where each action leads from there [N, actions, width]."""
    x = sight(env)(model.encoder, obs)
    return x, jax.vmap(jax.vmap(model.next, (None, 0)), (0, None))(x, jnp.arange(model.actions))
