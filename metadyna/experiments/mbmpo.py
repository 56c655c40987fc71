"""Reports on MB-MPO: returns by real steps beside rivals, with other inner steps, and over long horizons.

Clavera et al. 2018, section 6: sample efficiency, model bias, long horizons.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from metadyna.experiments import tables
from metadyna.experiments.kinds import of_kind
from metadyna.experiments.records import Measured, Records
from metadyna.experiments.reports import Curve, Noted, curve, noted
from metadyna.experiments.tables import Cell, Row
from metadyna.models.bounded import Nearby
from metadyna.models.imagine import open_loop_errors
from metadyna.models.worlds import known_world
from metadyna.pictures import plots
from metadyna.policies.acting import practise
from metadyna.runs import loop, stats
from metadyna.systems.mbmpo import MBMPO

METHOD = "MB-MPO"

PUBLISHED: Mapping[str, tuple[plots.Numbers, plots.Numbers]] = {
    METHOD: ((1e4, 2e4, 5e4, 1e5, 2e5, 4e5), (100, 285, 525, 590, 628, 640)),
    "ME-TRPO": ((1e4, 2e4, 5e4, 1e5, 2e5, 4e5), (-29, 93, 268, 381, 486, 555)),
    "MPC-RS": ((1e4, 2e4, 5e4, 1e5, 2e5), (10, 50, 60, 70, 74)),
    "TRPO": ((2e5, 1e6, 9.5e6), (0, 188, 560)),
    "PPO": ((2e5, 1e6, 9.5e6), (-48, 121, 220)),
}
"""Returns on the half-cheetah by real steps, read off the paper's figures 1 and 2 (± 10), of policies that draw their
actions, in an older simulator; its TRPO and PPO took 50,000 steps per batch."""

WINDOW = 4_000
"""Real steps over which returns are averaged, an iteration of the paper's."""

TOLD = {
    "promised": "train/promised_return",
    "adaptation gain": "train/adaptation_gain",
    "rejected": "train/rejected",
    "largest kl": "train/largest_kl",
    "held-out error": "fit/holdout_mse",
    "error on new": "model/error_on_new",
}
"""What is noted of every iteration, where a system tells it."""


def measure(result: loop.Result) -> Measured:
    """Of one seed, by real steps: returns that were lived while learning, with drawn actions; those of evaluations with
    the mean action; and what the iterations told."""
    rows = result.metrics
    return {
        "lived": noted(rows, "train/episode_return"),
        "evaluated": noted(rows, "eval/return"),
        "told": {name: noted(rows, key) for name, key in TOLD.items()},
        "minutes": round(rows[-1]["time/seconds"] / 60, 1),
    }


def returns(each: Sequence[Measured], kind: str) -> Curve:
    """What every seed returned, `lived` in windows or as `evaluated`, at the steps of the first."""
    return curve([windows(one["lived"]) if kind == "lived" else one[kind] for one in each])


def windows(lived: Noted) -> Noted:
    """Means over windows, at the last steps in them."""
    found: dict[int, list[tuple[int, float]]] = {}
    for step, value in zip(lived["steps"], lived["values"], strict=True):
        found.setdefault(int(step - 1) // WINDOW, []).append((int(step), value))
    means = [float(np.mean([value for _, value in pairs])) for pairs in found.values()]
    return {"steps": [pairs[-1][0] for pairs in found.values()], "values": means}


def gap(each: Sequence[Measured]) -> Curve:
    """What the policy of every iteration was promised, less what was lived with it in the next."""
    told = [(one["told"]["promised"], one["lived"]["values"]) for one in each]
    steps = told[0][0]["steps"][:-1]
    return steps, np.array([np.subtract(promised["values"][:-1], lived[-len(steps) :]) for promised, lived in told])


def rivals(records: Records, folder: Path, name: str) -> list[Path]:
    """Lived returns by real steps beside the published ones, promises of the models, and tables."""
    picture, promises = folder / f"{name}.png", folder / f"{name}-gap.png"
    arms = {arm: returns(each, "lived") for arm, each in records.items()}
    title = "Half-cheetah, episodes of 200 steps: what was lived with drawn actions"
    marks = {arm: points for arm, points in PUBLISHED.items() if arm in arms}
    plots.curves(arms, picture, title, "real steps", "return", log_x=True, marks=marks)
    title = "What the models promise beyond what is kept"
    plots.curves({METHOD: gap(records[METHOD])}, promises, title, "real steps", "imagined - real return")
    told = {METHOD: records[METHOD]}
    return [picture, promises, _tabulate(records, folder, name), _tabulate_told(told, folder, name)]


def variants(records: Records, folder: Path, name: str) -> list[Path]:
    """Lived returns by real steps of MB-MPO with other inner steps, and tables."""
    picture = folder / f"{name}.png"
    arms = {arm: returns(each, "lived") for arm, each in records.items()}
    title = "Half-cheetah: does adaptation help?"
    plots.curves(arms, picture, title, "real steps", "return")
    return [picture, _tabulate(records, folder, name), _tabulate_told(records, folder, name)]


def _tabulate(records: Records, folder: Path, name: str) -> Path:
    """Every arm's returns by real steps; the steps after which its mean has once been as high as MB-MPO's last; and its
    lead over MB-MPO with the same seeds after as many steps."""
    rows = []
    for kind in ("lived", "evaluated"):
        ours = returns(records[METHOD], kind)
        for arm, each in records.items():
            steps, values = returns(each, kind)
            reached = np.flatnonzero(values.mean(axis=0) >= ours[1][:, -1].mean())
            needed = str(steps[reached[0]]) if len(reached) else ""
            for at, column in zip(steps, values.T, strict=True):
                lead = ["", "", ""] if arm == METHOD else _lead(column, at, ours)
                rows.append(Row([arm, kind, at], column, [needed, *lead]))
    extras = ["steps_to_the_last_of_mb_mpo", "lead", "lead_low_95", "lead_high_95"]
    return tables.write(folder / f"{name}.csv", ["arm", "kind", "steps"], rows, ".1f", extras)


def _lead(values: Float[np.ndarray, "seeds"], at: int, ours: Curve) -> Sequence[Cell]:
    """The mean lead over ours after as many steps and its interval; blank where the same seeds were not noted then."""
    steps, base = ours
    if at not in steps or len(base) != len(values):
        return ["", "", ""]
    return stats.paired_difference(values, base[:, list(steps).index(at)])


def _tabulate_told(records: Records, folder: Path, name: str) -> Path:
    """What the iterations told."""
    rows = [
        Row([arm, quantity, at], [one["told"][quantity]["values"][i] for one in each])
        for arm, each in records.items()
        for quantity in TOLD
        for i, at in enumerate(each[0]["told"][quantity]["steps"])
    ]
    return tables.write(folder / f"{name}-iterations.csv", ["arm", "quantity", "steps"], rows)


# ---------------------------------------------------------------------------------------------- long horizons

LOOKED_AT = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def measure_open_loop(result: loop.Result) -> Measured:
    """Of one seed: its returns, and how wrong the models are after 1 to 1,000 steps without looking.

    Errors are root mean squares over the entries of the observation, each in deviations of its own, and medians over
    members and episodes of the last policy, drawn actions and all. Imagination keeps near the data, as in training.
    """
    system = of_kind(result.config.system, MBMPO)
    state = jax.tree.map(lambda x: x[0], result.state.system)
    collector, key = result.program.collector, jax.random.key(result.config.seed)
    lived = collector.episodes(practise, state.meta.weights, (), result.program.tasks("test"), key).episodes
    spread = jnp.std(lived.next_obs, axis=(0, 1))
    world = known_world(collector.env).world(Nearby(state.model.ensemble, system.reach))
    errors = jax.jit(jax.vmap(lambda o, a, t: open_loop_errors(world, o, a, t, spread), in_axes=(0, 1, 1)))
    error = np.asarray(jnp.median(errors(lived.obs[0], lived.action, lived.next_obs), axis=(0, 1)))
    horizons = [h for h in LOOKED_AT if h <= len(error)]
    return {**measure(result), "horizons": horizons, "errors": [float(error[h - 1]) for h in horizons]}


def long_horizons(records: Records, folder: Path, name: str) -> list[Path]:
    """Returns by real steps and open-loop error by horizon, for each imagined horizon; and a table."""
    picture, wrong = folder / f"{name}.png", folder / f"{name}-error.png"
    arms = {arm: returns(each, "lived") for arm, each in records.items()}
    title = "Half-cheetah, episodes of 1,000 steps, by the imagined horizon"
    plots.curves(arms, picture, title, "real steps", "return")
    errors = {arm: (each[0]["horizons"], np.array([one["errors"] for one in each])) for arm, each in records.items()}
    title = "Error of the models without looking, in deviations of what was lived"
    plots.curves(errors, wrong, title, "steps", "error", log_x=True, log=True)
    rows = [
        Row([arm, quantity, at], column)
        for quantity, found in (("return", arms), ("error", errors))
        for arm, (x, values) in found.items()
        for at, column in zip(x, values.T, strict=True)
    ]
    return [picture, wrong, tables.write(folder / f"{name}.csv", ["arm", "quantity", "at"], rows)]
