"""What planning in a learnt model gains and where the model deceives it, measured on the pendulum.

Five measurements, each a function of a seed that returns numbers by name: how soon PETS plans as well as one who knows
the dynamics, how planners and horizons compare on one model, how errors compound, how far a planner's promise exceeds
what it keeps, and what an ensemble is worth where data are few. The agents are the parts of `systems/mpc.py`; the true
dynamics stand in for a model where truth is wanted.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.collect import replay
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_returns
from metadyna.collect.windows import History
from metadyna.envs.control import OneTask, Pendulum
from metadyna.experiments.kinds import of_kind
from metadyna.experiments.presets import PETS_QUICK
from metadyna.models import fit as fits
from metadyna.models.fit import Fit, FitState, Rows
from metadyna.models.gaussian import GaussianEnsemble
from metadyna.models.imagine import open_loop_errors, sequence_returns
from metadyna.models.truth import TrueDynamics
from metadyna.models.worlds import World, known_world
from metadyna.planning.mpc import acting, at_first
from metadyna.runs import stats
from metadyna.search import maximise
from metadyna.search.random import RandomShooting
from metadyna.systems.mpc import PETS
from metadyna.types import TimeStep, Transition, box

Lists = dict[str, list[float]]
"""Numbers by label: of several episodes, or along a line."""

PENDULUM = Pendulum()
WORLD = known_world(PENDULUM)
COLLECTOR = DeviceCollector(PENDULUM, OneTask())
AGENT = of_kind(PETS_QUICK.system, PETS)
FIT = Fit(holdout=0.0, max_epochs=100_000, max_updates=2_000)
"""How a model is learnt from nothing."""


LEAST_REWARD = -(math.pi**2 + 0.1 * 8**2 + 0.001 * 2**2)
"""Upside down, at the largest speed and torque."""


TRUTH = TrueDynamics(PENDULUM)
"""What a planner would know that knew everything."""


@dataclass(frozen=True)
class Trials:
    """Return of every planned episode of PETS, and of planning on the true dynamics from the same start.

    The first episode is random; the model is fitted with 2,000 updates after it, then with 600 after every episode.
    """

    episodes: int = 9

    def __call__(self, seed: int) -> Lists:
        """Along a line: episode after episode."""
        k_data, k_init, *keys = jax.random.split(jax.random.key(seed), 2 + self.episodes)
        room = 200 * (self.episodes + 1)
        data = jax.tree.map(lambda x: jnp.resize(x, (room, *x.shape[1:])), random_rows(1, k_data))
        state = fits.start(AGENT.model, AGENT.model.create(4, 3, k_init))
        found: Lists = {"PETS": [], "true dynamics": []}
        for trial, key in enumerate(keys):
            k_fit, k_play = jax.random.split(key)
            at = 200 * (trial + 1)
            settings = replace(FIT, max_updates=600) if trial else FIT
            state = go_on(settings, AGENT.model, state, data, at, k_fit)
            lived = planned_episodes(AGENT, WORLD.world(state.ensemble), 1, k_play)
            data = jax.tree.map(lambda old, new, at=at: old.at[at : at + 200].set(new), data, flat(lived))
            found["PETS"] += episode_returns(lived).tolist()
            found["true dynamics"] += play(AGENT, TRUTH, 1, k_play)
        return found


@dataclass(frozen=True)
class Planners:
    """Returns of whole episodes, planned on one model of `data` random episodes from the same starts."""

    data: int = 10
    episodes: int = 10

    def __call__(self, seed: int) -> Lists:
        """Arms differ in the planner; all but the first and the last plan in the same learnt model."""
        k_data, k_fit, k_play = jax.random.split(jax.random.key(seed), 3)
        model = learn(AGENT.model, random_rows(self.data, k_data), k_fit)
        planner = AGENT.planner
        shooting = replace(planner, search=RandomShooting(candidates=sum(planner.search.populations)))
        arms: dict[str, tuple[PETS, World]] = {
            "CEM, true dynamics": (AGENT, TRUTH),
            "CEM, learnt model": (AGENT, model),
            "random shooting": (replace(AGENT, planner=shooting), model),
            "CEM, horizon 5": (replace(AGENT, planner=replace(planner, horizon=5)), model),
        }
        found = {arm: play(system, model, self.episodes, k_play) for arm, (system, model) in arms.items()}
        return {**found, "random actions": episode_returns(random_episodes(self.episodes, k_play)).tolist()}


@dataclass(frozen=True)
class Compounding:
    """Root mean squared error of the observation after 1 … `horizon` steps without looking, by episodes of data."""

    data: tuple[int, ...] = (1, 10)
    horizon: int = 50
    trajectories: int = 100

    def __call__(self, seed: int) -> Lists:
        """Means over members and over the beginnings of episodes that were not learnt from."""
        k_data, k_fit, k_test = jax.random.split(jax.random.key(seed), 3)
        test = random_episodes(self.trajectories, k_test)
        played = test.obs[0], test.action[: self.horizon], test.next_obs[: self.horizon]
        errors = jax.vmap(open_loop_errors, in_axes=(None, 0, 1, 1))
        found = {}
        for episodes in self.data:
            rows = jax.tree.map(lambda x, n=episodes: x[: 200 * n], random_rows(max(self.data), k_data))
            model = learn(AGENT.model, rows, k_fit)
            error = jnp.mean(errors(model, *played), axis=(0, 1))
            found[f"{200 * episodes:,} transitions"] = error.tolist()
        return found


@dataclass(frozen=True)
class Exploitation:
    """Promised minus kept return of open-loop sequences; the data's torques reach `reach` of what planning may use."""

    reach: float = 0.25
    data: int = 10
    starts: int = 100

    def __call__(self, seed: int) -> Lists:
        """Of random and of planned sequences, before and after one planned episode joins the data."""
        k_data, k_fit, k_start, k_more, k_test = jax.random.split(jax.random.key(seed), 5)
        rows = random_rows(self.data, k_data, self.reach)
        model = learn(AGENT.model, rows, k_fit)
        starts = random_episodes(self.starts, k_start).obs[0]
        found = {}
        for round_, label in enumerate(("", ", after 1 planned episode")):
            if round_:
                more = flat(planned_episodes(AGENT, model, 1, k_more))
                rows = jax.tree.map(lambda *x: jnp.concatenate(x), rows, more)
                model = learn(AGENT.model, rows, k_fit)
            for kind, planned in (("random sequences", False), ("planned sequences", True)):
                promised, kept = promises(model, starts, planned, k_test)
                found[kind + label] = (promised - kept).tolist()
        return found


@dataclass(frozen=True)
class FewData:
    """What is planned in a model of few transitions, whose torques reach `reach` of what planning may use.

    The data, the starts and the test steps follow from the seed alone, so models of the same seed are pairs.
    """

    members: int = 5
    bootstrap: bool = True
    """Whether each member learns from its own draw of the data; else each from all of them."""
    data: int = 3
    """Random episodes of 200 steps that are learnt from."""
    reach: float = 0.25
    starts: int = 40
    tests: int = 5
    """Random episodes with the full torque that errors are measured on."""

    def __call__(self, seed: int) -> Mapping[str, float]:
        """Means over starts and test steps; of several members also whether they disagree where they are wrong.

        Where a member flies off, a promise counts as the least that a sequence can earn.
        """
        k_data, k_fit, k_start, k_plan, k_test = jax.random.split(jax.random.key(seed), 5)
        settings = replace(AGENT.model, members=self.members, elites=self.members)
        rows = random_rows(self.data, k_data, self.reach)
        model = learn(settings, rows, k_fit, replace(FIT, bootstrap=self.bootstrap))
        starts = random_episodes(self.starts, k_start).obs[0]
        promised, kept = promises(model, starts, True, k_plan)
        error, disagreement = one_step_errors(model, random_rows(self.tests, k_test))
        found = {
            "promised - kept return": float(
                jnp.mean(jnp.maximum(promised, LEAST_REWARD * AGENT.planner.horizon) - kept)
            ),
            "kept return": float(jnp.mean(kept)),
            "error of a full-torque step": float(jnp.sqrt(jnp.mean(error**2))),
        }
        if self.members > 1:
            found["rank correlation of disagreement and error"] = stats.rank_correlation(
                np.asarray(error), np.asarray(disagreement)
            )
        return found


@partial(jax.jit, static_argnums=2)
def promises(
    model: World, starts: Float[Array, "n obs"], planned: bool, key: PRNGKeyArray
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """What a model promises for a sequence of AGENT's horizon, and what the true dynamics pay for it."""
    planner = AGENT.planner

    def one(obs: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        k_search, k_promise = jax.random.split(key)
        start = model.begin(History(obs))

        def promise(sequences: Array, key: PRNGKeyArray) -> Array:
            return sequence_returns(model, start, sequences, key, AGENT.particles, AGENT.propagation)

        sequence = jax.random.uniform(k_search, (planner.horizon, 1), minval=-1, maxval=1)
        if planned:
            found = maximise(planner.search, promise, planner.init((1,), -1.0, 1.0), k_search)
            sequence = planner.search.solution(found)
        kept = sequence_returns(TRUTH, TRUTH.begin(History(obs)), sequence[None], k_promise, 1)[0]
        return promise(sequence[None], k_promise)[0], kept

    return jax.lax.map(lambda each: one(*each), (starts, jax.random.split(key, starts.shape[0])))


@jax.jit
def one_step_errors(model: World, rows: Transition) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """By row, root mean squares over the entries of the observation: the error of the members' mean, and their
    deviation from it."""
    starts = jax.vmap(lambda obs: model.begin(History(obs)))(rows.obs)
    everywhere = jax.tree.map(lambda x: jnp.broadcast_to(x, (model.num_members, *x.shape)), (starts, rows.action))
    latent, action = everywhere
    told = model.step(latent, action, None)[1].obs
    mean = jnp.mean(told, axis=0)
    error = jnp.sqrt(jnp.mean((mean - rows.next_obs) ** 2, axis=-1))
    return error, jnp.sqrt(jnp.mean((told - mean[None]) ** 2, axis=(0, 2)))


# ------------------------------------------------------------------------------------------ collecting and learning


@partial(jax.jit, static_argnums=0)
def random_episodes(count: int, key: PRNGKeyArray, reach: float | Array = 1.0) -> Transition:
    """Episodes [200, count] of actions uniform in ± `reach`."""

    def act(reach: float | Array, carry: Any, timestep: TimeStep, key: PRNGKeyArray) -> tuple[Array, Any, tuple[()]]:
        return jax.random.uniform(key, (1,), minval=-reach, maxval=reach), carry, ()

    return COLLECTOR.episodes(act, reach, (), OneTask(count).enumerate(), key).episodes


def random_rows(episodes: int, key: PRNGKeyArray, reach: float = 1.0) -> Transition:
    """The transitions [200 × episodes] of random episodes, one after the other."""
    return flat(random_episodes(episodes, key, reach))


def planned_episodes(system: PETS, model: World, count: int, key: PRNGKeyArray) -> Transition:
    """Episodes [200, count] that a system plans in a model; the starts depend on `count` and the key alone."""
    return _player(system, count)(model, key)


@cache
def _player(system: PETS, count: int) -> Callable[[World, PRNGKeyArray], Transition]:
    """Compiled once for each system and kind of model."""

    def outlook(model: World, history: History, sequences: Array, key: PRNGKeyArray) -> Array:
        return sequence_returns(model, model.begin(history), sequences, key, system.particles, system.propagation)

    action, observed = box(PENDULUM.spec.action), jnp.zeros(PENDULUM.spec.observation.shape)
    act = acting(system.planner, outlook, action)

    @jax.jit
    def plan(model: World, key: PRNGKeyArray) -> Transition:
        plans, ready = at_first(system.planner, action, History(observed), count), (model, jnp.bool_(False))
        return COLLECTOR.episodes(act, ready, plans, OneTask(count).enumerate(), key).episodes

    return plan


def play(system: PETS, model: World, count: int, key: PRNGKeyArray) -> list[float]:
    """Returns of planned episodes."""
    return episode_returns(planned_episodes(system, model, count, key)).tolist()


def flat(episodes: Transition) -> Transition:
    """Episodes [T, B] as rows [B T], episode after episode."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), episodes)


def learn(model: GaussianEnsemble, rows: Transition, key: PRNGKeyArray, settings: Fit | None = None) -> World:
    """A model of the pendulum, from nothing."""
    k_init, k_fit = jax.random.split(key)
    fresh = fits.start(model, model.create(4, 3, k_init))
    return WORLD.world(go_on(settings or FIT, model, fresh, rows, rows.reward.shape[0], k_fit).ensemble)


@partial(jax.jit, static_argnums=(0, 1))
def go_on(
    settings: Fit, model: GaussianEnsemble, state: FitState, rows: Transition, count: int | Array, key: PRNGKeyArray
) -> FitState:
    """Fit a model to the first `count` rows."""
    ring = replay.full(rows)._replace(next=jnp.int32(count), laps=jnp.int32(0))
    return fits.fit(settings, model, state, Rows(ring, WORLD.examples), key)[0]
