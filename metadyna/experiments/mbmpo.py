"""Reports on MB-MPO: returns by real steps beside rivals, and why a policy that adapts to models should do well.

Clavera et al. 2018, section 6: sample efficiency, model bias, plasticity where models disagree, tailored data
collection, long horizons.
"""

import csv
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.collect import replay
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_returns
from metadyna.envs.control import OneTask, PointMass
from metadyna.experiments.records import Measured
from metadyna.improve.meta import MetaPPO, MetaTRPO
from metadyna.models.bounded import Nearby
from metadyna.models.fit import FitState
from metadyna.models.gaussian import Standardiser
from metadyna.models.imagine import Predictor, WorldModel, open_loop_errors
from metadyna.models.world import known_world
from metadyna.pictures import plots
from metadyna.policies.distributions import normal_kl
from metadyna.policies.gaussian import GaussianPolicy, practise
from metadyna.runs import loop, stats
from metadyna.systems.mbmpo import MBMPO, State
from metadyna.types import Collector

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

Records = Mapping[str, Sequence[Measured]]
Curve = tuple[Sequence[int], Float[np.ndarray, "seeds points"]]


def measure(result: loop.Result) -> Measured:
    """Of one seed, by real steps: returns that were lived while learning, with drawn actions; those of evaluations with
    the mean action; and what the iterations told."""
    rows = result.metrics

    def noted(key: str) -> dict[str, list[Any]]:
        found = [row for row in rows if key in row]
        return {"steps": [row["step"] for row in found], "values": [float(f"{row[key]:.5g}") for row in found]}

    return {
        "lived": noted("train/episode_return"),
        "evaluated": noted("eval/return"),
        "told": {name: noted(key) for name, key in TOLD.items()},
        "minutes": round(rows[-1]["time/seconds"] / 60, 1),
    }


def curve(each: Sequence[Measured], kind: str) -> Curve:
    """What every seed returned, `lived` in windows or as `evaluated`, at the steps of the first."""
    seeds = [_windows(one["lived"]) if kind == "lived" else (one[kind]["steps"], one[kind]["values"]) for one in each]
    steps = list(seeds[0][0])
    return steps, np.array([np.interp(steps, at, values) for at, values in seeds])


def _windows(noted: Mapping[str, Sequence[Any]]) -> tuple[list[int], list[float]]:
    """Means over windows, at the last steps in them."""
    found: dict[int, list[tuple[int, float]]] = {}
    for step, value in zip(noted["steps"], noted["values"], strict=True):
        found.setdefault((step - 1) // WINDOW, []).append((step, value))
    return [pairs[-1][0] for pairs in found.values()], [float(np.mean([v for _, v in p])) for p in found.values()]


def gap(each: Sequence[Measured]) -> Curve:
    """What the policy of every iteration was promised, less what was lived with it in the next."""
    told = [(one["told"]["promised"], one["lived"]["values"]) for one in each]
    steps = told[0][0]["steps"][:-1]
    return steps, np.array([np.subtract(promised["values"][:-1], lived[-len(steps) :]) for promised, lived in told])


def rivals(records: Records, folder: Path, name: str) -> list[Path]:
    """Lived returns by real steps beside the published ones, promises of the models, and tables."""
    picture, promises, table, iterations = (
        folder / f"{name}{ending}" for ending in (".png", "-gap.png", ".csv", "-iterations.csv")
    )
    arms = {arm: curve(each, "lived") for arm, each in records.items()}
    title = "Half-cheetah, episodes of 200 steps: what was lived with drawn actions"
    marks = {arm: points for arm, points in PUBLISHED.items() if arm in arms}
    plots.curves(arms, picture, title, "real steps", "return", log_x=True, marks=marks)
    title = "What the models promise beyond what is kept"
    plots.curves({METHOD: gap(records[METHOD])}, promises, title, "real steps", "imagined - real return")
    _tabulate(records, table)
    _tabulate_told({METHOD: records[METHOD]}, iterations)
    return [picture, promises, table, iterations]


def variants(records: Records, folder: Path, name: str) -> list[Path]:
    """Lived returns by real steps of MB-MPO with other inner steps, and tables."""
    picture, table, iterations = (folder / f"{name}{ending}" for ending in (".png", ".csv", "-iterations.csv"))
    arms = {arm: curve(each, "lived") for arm, each in records.items()}
    title = "Half-cheetah: does adaptation help?"
    plots.curves(arms, picture, title, "real steps", "return")
    _tabulate(records, table)
    _tabulate_told(records, iterations)
    return [picture, table, iterations]


def _tabulate(records: Records, out: Path) -> None:
    """Every arm's returns by real steps; the steps after which its mean has once been as high as MB-MPO's last; and its
    lead over MB-MPO with the same seeds after as many steps."""
    header = "arm kind steps seeds mean_return low_95 high_95 steps_to_the_last_of_mb_mpo lead lead_low_95 lead_high_95"
    with out.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*header.split(" "), "returns"])
        for kind in ("lived", "evaluated"):
            base_steps, base = curve(records[METHOD], kind)
            for arm, each in records.items():
                steps, values = curve(each, kind)
                reached = np.flatnonzero(values.mean(axis=0) >= base[:, -1].mean())
                needed = steps[reached[0]] if len(reached) else ""
                for at, column in zip(steps, values.T, strict=True):
                    numbers = [column.mean(), *stats.bootstrap_interval(column, stats.mean)]
                    lead: Sequence[float] = []
                    if at in base_steps and len(base) == len(column) and arm != METHOD:
                        lead = stats.paired_difference(column, base[:, list(base_steps).index(at)])
                    listed = " ".join(f"{value:.1f}" for value in column)
                    numbers = [f"{number:.1f}" for number in numbers], [f"{number:.1f}" for number in lead] or [""] * 3
                    rows.writerow([arm, kind, at, len(column), *numbers[0], needed, *numbers[1], listed])


def _tabulate_told(records: Records, out: Path) -> None:
    """What the iterations told, mean over seeds."""
    with out.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "quantity", "steps", "seeds", "mean", "values"])
        for arm, each in records.items():
            for quantity in TOLD:
                steps = each[0]["told"][quantity]["steps"]
                for i, at in enumerate(steps):
                    values = [one["told"][quantity]["values"][i] for one in each]
                    listed = " ".join(f"{value:.4g}" for value in values)
                    rows.writerow([arm, quantity, at, len(values), f"{np.mean(values):.4g}", listed])


# ----------------------------------------------------------------------------------- the point in the plane

HALF = 1.8
"""The plane is surveyed in [-1.8, 1.8]², as in the authors' study."""
CELLS = 50
COARSE = 25
"""Cells per side that are kept in a record."""


def survey_run(result: loop.Result) -> Measured:
    """Of one seed on the point mass: its returns, and maps of the plane."""
    system: Any = result.config.system
    state = jax.tree.map(lambda x: x[0], result.state.system)
    seed = jax.random.key(result.config.seed)
    return {**measure(result), **survey(system, result.program.collector, state, seed)}


def survey(system: MBMPO, collector: Collector, state: State, key: PRNGKeyArray) -> Measured:
    """Over a grid of the plane: where the models disagree and are wrong, where the policy gives way, and where it has
    lived; and how these go together, as rank correlations over all cells.

    The models are asked for where the action -s/2 leads, a slow way home. The policy adapts to each task's own real
    episodes, and gives way by KL(π_θ || π_θ'), averaged over tasks.
    """
    side = (np.arange(CELLS) + 0.5) / CELLS * 2 * HALF - HALF
    places = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
    actions = jnp.clip(-0.5 * places, -1, 1)
    world = known_world(collector.env)
    told = jax.jit(_predictions, static_argnums=0)(world, state.model.ensemble, places, actions)
    truth = jax.vmap(lambda s, a: collector.env.advance(None, s, a, key))(places, actions)
    yielded = jax.jit(_yielding, static_argnums=(0, 1))(system.learner, collector, state.meta, places, key)
    maps = {
        # From the first member on, so that members that agree give exactly 0.
        "disagreement": jnp.mean(jnp.std(told - told[:1], axis=0), axis=-1),
        "error": jnp.mean(jnp.abs(told - truth[None]), axis=(0, 2)),
        "yielding": yielded,
        "lived": jnp.asarray(_lived(np.asarray(state.real.items.obs[: int(replay.size(state.real))]))),
        "distance": jnp.linalg.norm(places, axis=1),
    }
    maps = {name: np.asarray(values, np.float64) for name, values in maps.items()}
    pairs = itertools.combinations(("disagreement", "yielding", "distance", "error", "lived"), 2)
    return {
        "correlations": {" and ".join(pair): _rank_correlation(*(maps[name] for name in pair)) for pair in pairs},
        "means": {name: float(values.mean()) for name, values in maps.items() if name != "distance"},
        "maps": {name: _coarse(values) for name, values in maps.items() if name != "distance"},
    }


def _predictions(
    world: WorldModel, ensemble: Predictor, places: Float[Array, "n 2"], actions: Float[Array, "n 2"]
) -> Float[Array, "K n 2"]:
    """Where each member says that an action leads."""
    members = ensemble.num_members
    places, actions = (jnp.broadcast_to(x, (members, *x.shape)) for x in (places, actions))
    return world.step(ensemble, places, actions, None)[0]


def _yielding(
    learner: MetaTRPO | MetaPPO, collector: DeviceCollector, meta: Any, places: Float[Array, "n 2"], key: PRNGKeyArray
) -> Float[Array, "n"]:
    """KL(π_θ || π_θ') by place, mean over 40 tasks that adapt to ten real episodes each."""
    count = 40
    policies = learner.copies(meta, count)
    k_tasks, *k_rounds = jax.random.split(key, 1 + max(1, learner.inner.steps))
    tasks = jax.vmap(collector.tasks.sample)(jax.random.split(k_tasks, count))
    for number, k_round in enumerate(k_rounds[: learner.inner.steps]):
        lived = collector.episodes_of_each(practise, policies, tasks, 10, k_round)
        policies = learner.adapt(meta, policies, learner.weigh(lived), number)
    mean, log_std = jax.vmap(meta.weights)(places)

    def moved(policy: GaussianPolicy) -> Float[Array, "n"]:
        new_mean, new_log_std = jax.vmap(policy)(places)
        return normal_kl(mean, log_std, new_mean, new_log_std)

    return jnp.mean(jax.vmap(moved)(policies), axis=0)


def _lived(obs: Float[np.ndarray, "rows 2"]) -> Float[np.ndarray, "cells"]:
    """Stored observations in every cell, rows of the grid first."""
    edges = np.linspace(-HALF, HALF, CELLS + 1)
    return np.histogram2d(obs[:, 1], obs[:, 0], bins=(edges, edges))[0].ravel()


def _rank_correlation(x: Float[np.ndarray, "cells"], y: Float[np.ndarray, "cells"]) -> float:
    """Spearman's; 0 where one of them is the same everywhere."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(x, y).statistic)


def _coarse(values: Float[np.ndarray, "cells"]) -> list[list[float]]:
    """Means of blocks of cells, to three digits."""
    step = CELLS // COARSE
    blocks = values.reshape(COARSE, step, COARSE, step).mean(axis=(1, 3))
    return [[float(f"{value:.3g}") for value in row] for row in blocks]


def regularisation(records: Records, folder: Path, name: str) -> list[Path]:
    """Where models disagree and where the policy gives way, for every arm's first seed; and the correlations."""
    shown = {"disagreement": "spread of the models", "yielding": "KL(before || after the inner step)"}
    return _maps(records, folder, name, shown, "Where models disagree, and policies adapt")


def tailored(records: Records, folder: Path, name: str) -> list[Path]:
    """Where the data lie and where the models are wrong, for every arm's first seed; and the correlations."""
    shown = {"lived": "log10(1 + steps lived per cell)", "error": "error of the models"}
    return _maps(records, folder, name, shown, "Where data lie, and models are wrong")


def _maps(records: Records, folder: Path, name: str, shown: Mapping[str, str], title: str) -> list[Path]:
    """A picture of maps for each arm, and a table of correlations, means and last returns."""
    pictures, table = [], folder / f"{name}.csv"
    for arm, each in records.items():
        pictures.append(folder / f"{name}-{arm.replace(' ', '-')}.png")
        grids = {label: np.array(each[0]["maps"][key]) for key, label in shown.items()}
        grids = {label: np.log10(1 + grid) if label.startswith("log10") else grid for label, grid in grids.items()}
        plots.maps(grids, HALF, pictures[-1], f"{title} ({arm}, first seed)")
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "quantity", "seeds", "mean", "low_95", "high_95", "values"])
        for arm, each in records.items():
            quantities = {f"rank correlation of {key}": [one["correlations"][key] for one in each]
                          for key in each[0]["correlations"]}  # fmt: skip
            quantities |= {f"mean {key}": [one["means"][key] for one in each] for key in each[0]["means"]}
            quantities["return of the mean action"] = [one["evaluated"]["values"][-1] for one in each]
            for quantity, values in quantities.items():
                numbers = np.mean(values), *stats.bootstrap_interval(values, stats.mean)
                listed = " ".join(f"{value:.4g}" for value in values)
                rows.writerow([arm, quantity, len(values), *(f"{number:.4g}" for number in numbers), listed])
    return [*pictures, table]


class FaultyPoint(eqx.Module):
    """The point's own dynamics with an error of every member's, which grows with the distance from the goal.

    Stands for an ensemble (`models.imagine.Predictor`) whose disagreement is known. An error is drawn from
    N(bias, `spread`²), times the squared share of the largest distance in [-2, 2]² (the authors' study of plasticity).
    """

    biases: Float[Array, "K 2"]
    spread: float = eqx.field(static=True, default=0.01)
    num_inputs: int = eqx.field(static=True, default=4)
    num_outputs: int = eqx.field(static=True, default=2)

    @property
    def num_members(self) -> int:
        """K."""
        return self.biases.shape[0]

    @property
    def input_scale(self) -> Standardiser:
        """As they come."""
        return Standardiser.identity(self.num_inputs)

    @property
    def target_scale(self) -> Standardiser:
        """As they come."""
        return Standardiser.identity(self.num_outputs)

    def best(self) -> "FaultyPoint":
        """All of them."""
        return self

    def only(self, member: Int[Array, ""]) -> "FaultyPoint":
        """One member alone."""
        return FaultyPoint(self.biases[member][None])

    def sample(
        self, inputs: Float[Array, "K n inputs"], noise: Float[Array, "K n outputs"] | None
    ) -> Float[Array, "K n outputs"]:
        """How the position changes."""
        place, action = jnp.split(inputs, 2, axis=-1)
        error = jnp.broadcast_to(self.biases[:, None], place.shape)
        if noise is not None:
            error = error + self.spread * noise
        return PointMass().reach * action + error * jnp.sum(place**2, axis=-1, keepdims=True) / 8


@dataclass(frozen=True)
class _Faulty(MBMPO):
    """MB-MPO in models that are wrong by what is drawn anew where others would be fitted."""

    bias: Annotated[float, "[0, 1000]"] = 0.05
    """Largest entry of a member's bias."""

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Begin with models that are right."""
        return super().init(collector, key)._replace(model=_as_fitted(jnp.zeros((self.model.members, 2))))

    def _fit(
        self, world: WorldModel, state: State, model: FitState, key: PRNGKeyArray
    ) -> tuple[FitState, dict[str, Array]]:
        biases = jax.random.uniform(key, (self.model.members, 2), minval=-self.bias, maxval=self.bias)
        return _as_fitted(biases), {}


def _as_fitted(biases: Float[Array, "K 2"]) -> FitState:
    ensemble: Any = FaultyPoint(biases)
    return FitState(ensemble, ())


@dataclass(frozen=True)
class FaultyModels:
    """Some iterations of MB-MPO in models with known errors, surveyed; as a function of a seed.

    With a bias of 0 the models never disagree: whatever then goes together, does so for other reasons.
    """

    system: MBMPO
    iterations: int
    bias: float = 0.05
    """Largest entry of a member's bias."""

    def __call__(self, seed: int) -> Measured:
        """The survey, and the mean return of a hundred episodes of the mean action."""
        collector, tasks = DeviceCollector(PointMass(), OneTask()), OneTask(100).enumerate()
        faulty = _Faulty(**vars(self.system), bias=self.bias)
        iterate: Callable[..., Any] = jax.jit(lambda state, key: faulty.iterate(state, collector, key))
        key = jax.random.key(seed)
        k_init, k_survey, *keys = jax.random.split(key, 2 + self.iterations)
        state = faulty.init(collector, k_init)
        for k_iteration in keys:
            state, _ = iterate(state, k_iteration)
        (played,) = jax.jit(lambda policy, key: faulty.trial(policy, collector, tasks, key))(faulty.params(state), key)
        evaluated = {"steps": [int(state.steps)], "values": [float(jnp.mean(episode_returns(played)))]}
        return {"evaluated": evaluated, **survey(faulty, collector, state, k_survey)}


# ---------------------------------------------------------------------------------------------- long horizons

LOOKED_AT = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def measure_open_loop(result: loop.Result) -> Measured:
    """Of one seed: its returns, and how wrong the models are after 1 to 1,000 steps without looking.

    Errors are root mean squares over the entries of the observation, each in deviations of its own, and medians over
    members and episodes of the last policy, drawn actions and all. Imagination keeps near the data, as in training.
    """
    system: Any = result.config.system
    state = jax.tree.map(lambda x: x[0], result.state.system)
    collector, key = result.program.collector, jax.random.key(result.config.seed)
    lived = collector.episodes(practise, state.meta.weights, (), result.program.tasks("test"), key)
    obs, spread = jnp.concatenate([lived.obs[:1], lived.next_obs]), jnp.std(lived.next_obs, axis=(0, 1))
    models, world = Nearby(state.model.ensemble, system.reach), known_world(collector.env)
    errors = jax.jit(jax.vmap(lambda o, a: open_loop_errors(world, models, o, a, spread), in_axes=1))
    error = np.asarray(jnp.median(errors(obs, lived.action), axis=(0, 1)))
    horizons = [h for h in LOOKED_AT if h <= len(error)]
    return {**measure(result), "horizons": horizons, "errors": [float(error[h - 1]) for h in horizons]}


def long_horizons(records: Records, folder: Path, name: str) -> list[Path]:
    """Returns by real steps and open-loop error by horizon, for each imagined horizon; and a table."""
    picture, wrong, table = (folder / f"{name}{ending}" for ending in (".png", "-error.png", ".csv"))
    arms = {arm: curve(each, "lived") for arm, each in records.items()}
    title = "Half-cheetah, episodes of 1,000 steps, by the imagined horizon"
    plots.curves(arms, picture, title, "real steps", "return")
    errors = {arm: (each[0]["horizons"], np.array([one["errors"] for one in each])) for arm, each in records.items()}
    title = "Error of the models without looking, in deviations of what was lived"
    plots.curves(errors, wrong, title, "steps", "error", log_x=True, log=True)
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "quantity", "at", "seeds", "mean", "low_95", "high_95", "values"])
        for quantity, each in (("return", arms), ("error", errors)):
            for arm, (x, values) in each.items():
                for at, column in zip(x, values.T, strict=True):
                    numbers = column.mean(), *stats.bootstrap_interval(column, stats.mean)
                    listed = " ".join(f"{value:.4g}" for value in column)
                    rows.writerow([arm, quantity, at, len(column), *(f"{number:.4g}" for number in numbers), listed])
    return [picture, wrong, table]
