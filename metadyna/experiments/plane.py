"""MB-MPO on a point in the plane: why a policy that adapts to models should do well, and models that err as made to.

Clavera et al. 2018, section 6: plasticity where models disagree, tailored data collection.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.adapt.gradient import Meta
from metadyna.collect import replay
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_returns
from metadyna.envs.control import OneTask, PointMass
from metadyna.experiments import mbmpo, tables
from metadyna.experiments.kinds import of_kind
from metadyna.experiments.records import Measured, Records
from metadyna.experiments.tables import Row
from metadyna.improve.meta import MetaPPO, MetaTRPO
from metadyna.models.fit import FitState
from metadyna.models.gaussian import Standardiser
from metadyna.models.worlds import Meaning, World, known_world
from metadyna.pictures import plots
from metadyna.policies.acting import practise
from metadyna.policies.direct import Policy
from metadyna.runs import loop, stats
from metadyna.systems.mbmpo import MBMPO, State
from metadyna.types import Collector

HALF = 1.8
"""The plane is surveyed in [-1.8, 1.8]², as in the authors' study."""
CELLS = 50
COARSE = 25
"""Cells per side that are kept in a record."""


def survey_run(result: loop.Result) -> Measured:
    """Of one seed on the point mass: its returns, and maps of the plane."""
    system = of_kind(result.config.system, MBMPO)
    state = jax.tree.map(lambda x: x[0], result.state.system)
    seed = jax.random.key(result.config.seed)
    return {**mbmpo.measure(result), **survey(system, result.program.collector, state, seed)}


def survey(system: MBMPO, collector: Collector, state: State, key: PRNGKeyArray) -> Measured:
    """Over a grid of the plane: where the models disagree and are wrong, where the policy gives way, and where it has
    lived; and how these go together, as rank correlations over all cells.

    The models are asked for where the action -s/2 leads, a slow way home. The policy adapts to each task's own real
    episodes, and gives way by KL(π_θ || π_θ'), averaged over tasks.
    """
    side = (np.arange(CELLS) + 0.5) / CELLS * 2 * HALF - HALF
    places = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
    actions = jnp.clip(-0.5 * places, -1, 1)
    plane: Any = collector.env
    world = known_world(plane).world(state.model.ensemble)
    told = jax.jit(_predictions)(world, places, actions)
    truth = jax.vmap(lambda s, a: plane.advance(None, s, a, key))(places, actions)
    yielded = jax.jit(_yielding, static_argnums=(0, 1))(system.outer, collector, state.meta, places, key)
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
        "correlations": {" and ".join(pair): stats.rank_correlation(*(maps[name] for name in pair)) for pair in pairs},
        "means": {name: float(values.mean()) for name, values in maps.items() if name != "distance"},
        "maps": {name: _coarse(values) for name, values in maps.items() if name != "distance"},
    }


def _predictions(world: World, places: Float[Array, "n 2"], actions: Float[Array, "n 2"]) -> Float[Array, "K n 2"]:
    """Where each member says that an action leads."""
    places, actions = (jnp.broadcast_to(x, (world.num_members, *x.shape)) for x in (places, actions))
    return world.step(places, actions, None)[1].obs


def _yielding(
    outer: MetaTRPO | MetaPPO, collector: DeviceCollector, meta: Meta, places: Float[Array, "n 2"], key: PRNGKeyArray
) -> Float[Array, "n"]:
    """KL(π_θ || π_θ') by place, mean over 40 tasks that adapt to ten real episodes each."""
    count = 40
    policies = outer.copies(meta, count)
    k_tasks, *k_rounds = jax.random.split(key, 1 + max(1, outer.inner.steps))
    tasks = jax.vmap(collector.tasks.sample)(jax.random.split(k_tasks, count))
    for number, k_round in enumerate(k_rounds[: outer.inner.steps]):
        lived = collector.episodes_of_each(practise, policies, (), tasks, 10, k_round).episodes
        policies = outer.adapt(meta, policies, outer.weigh(lived, meta.weights.inputs), number)
    before = jax.vmap(meta.weights)(places)

    def moved(policy: Policy) -> Float[Array, "n"]:
        return before.kl(jax.vmap(policy)(places))

    return jnp.mean(jax.vmap(moved)(policies), axis=0)


def _lived(obs: Float[np.ndarray, "rows 2"]) -> Float[np.ndarray, "cells"]:
    """Stored observations in every cell, rows of the grid first."""
    edges = np.linspace(-HALF, HALF, CELLS + 1)
    return np.histogram2d(obs[:, 1], obs[:, 0], bins=(edges, edges))[0].ravel()


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
    pictures, rows = [], []
    for arm, each in records.items():
        pictures.append(folder / f"{name}-{arm.replace(' ', '-')}.png")
        grids = {label: np.array(each[0]["maps"][key]) for key, label in shown.items()}
        grids = {label: np.log10(1 + grid) if label.startswith("log10") else grid for label, grid in grids.items()}
        plots.maps(grids, HALF, pictures[-1], f"{title} ({arm}, first seed)")
        for kind, words in (("correlations", "rank correlation of"), ("means", "mean")):
            rows += [Row([arm, f"{words} {key}"], [one[kind][key] for one in each]) for key in each[0][kind]]
        rows.append(Row([arm, "return of the mean action"], [one["evaluated"]["values"][-1] for one in each]))
    return [*pictures, tables.write(folder / f"{name}.csv", ["arm", "quantity"], rows)]


class FaultyPoint(eqx.Module):
    """The point's own dynamics with an error of every member's, which grows with the distance from the goal.

    Stands for an ensemble (`worlds.Predictor`) whose disagreement is known. An error is drawn from
    N(bias, `spread`²), times the squared share of the largest distance in [-2, 2]² (the authors' study of plasticity).
    """

    biases: Float[Array, "K 2"]
    spread: float = eqx.field(static=True, default=0.01)
    num_outputs: int = eqx.field(static=True, default=2)

    @property
    def num_members(self) -> int:
        """K."""
        return self.biases.shape[0]

    @property
    def input_scale(self) -> Standardiser:
        """As they come."""
        return Standardiser.identity(4)

    @property
    def target_scale(self) -> Standardiser:
        """As they come."""
        return Standardiser.identity(self.num_outputs)

    @property
    def elites(self) -> Int[Array, "K"]:
        """All of them."""
        return jnp.arange(self.num_members)

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
        self, world: Meaning, state: State, model: FitState, key: PRNGKeyArray
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
        trial = jax.jit(lambda policy, key: faulty.trial(policy, collector, tasks, key))(faulty.params(state), key)
        evaluated = {"steps": [int(state.steps)], "values": [float(jnp.mean(episode_returns(trial.episodes)))]}
        return {"evaluated": evaluated, **survey(faulty, collector, state, k_survey)}
