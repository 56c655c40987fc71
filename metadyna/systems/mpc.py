"""Learn a model, plan with it, act, learn again: PETS and its ancestor.

PETS (Chua et al. 2018, arXiv 1805.12114, Algorithm 1):

    D ← one episode of random actions
    for each episode:
        fit an ensemble of probabilistic networks to D
        for each step: CEM over action sequences, scored by particles in the model; take the first action of the best
        D ← D ∪ the episode

MPC-RS (Nagabandi et al. 2018, arXiv 1708.02596, Algorithm 1) is the same with a deterministic network and random
shooting. The environment's reward is known to the planner in both.

Differences from the papers: networks and searches are smaller by default, so that a step takes milliseconds on two
cores (a cart-pole of the authors takes 3 x 500 units and a million predictions per step). Predicted ends of episodes
are obeyed.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.collect import replay
from metadyna.collect.episodes import flat
from metadyna.collect.windows import History
from metadyna.errors import UserError
from metadyna.models import fit as fits
from metadyna.models.fit import Fit, FitState, Rows
from metadyna.models.gaussian import Ensemble, GaussianEnsemble
from metadyna.models.imagine import Propagation, sequence_returns
from metadyna.models.worlds import Meaning, known_world
from metadyna.planning.mpc import MPC, Outlook, Planning, acting, at_first
from metadyna.search.cem import CEM
from metadyna.search.random import RandomShooting
from metadyna.settings import Settings, check_ranges
from metadyna.types import Act, Average, Collected, Collector, EnvSpec, Metrics, Task, Transition, Trial, box, box_sizes


class State(NamedTuple):
    """Model, everything that was lived, the copies in mid-episode, and steps so far."""

    model: FitState
    replay: replay.Ring
    env: Collected
    steps: Int[Array, ""]


@dataclass(frozen=True)
class PETS(Settings):
    """PETS: probabilistic ensembles with trajectory sampling (Chua et al. 2018, arXiv 1805.12114)."""

    model: GaussianEnsemble = GaussianEnsemble(members=5, elites=5, widths=(64, 64), weight_decay=(1e-4, 1e-4, 1e-4))
    """The networks."""
    fit: Fit = Fit(holdout=0.0, max_epochs=10_000, max_updates=1_000)
    """How they are trained after every `collect` steps."""
    planner: MPC = MPC(search=CEM(population=100, elites=10, iterations=4), horizon=25)
    """The search for actions."""
    particles: Annotated[int, "[1, 10000]"] = 5
    """Imagined futures per action sequence; a multiple of the model's elites."""
    propagation: Propagation = "TSinf"
    """How particles pass through the ensemble's members."""
    parallel: Annotated[int, "[1, 65536]"] = 1
    """Copies of the environment."""
    collect: Annotated[int, "[1, 1000000]"] = 200
    """Steps of every copy between two fits; an episode, in the paper."""
    warmup: Annotated[int, "[1, 2000000000]"] = 200
    """Environment steps of uniformly random actions at first."""
    capacity: Annotated[int, "[1, 2000000000]"] = 20_000
    """Transitions kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, capacity=f"[{self.parallel * self.collect}, 2000000000]")
        if self.propagation != "mean" and self.particles % self.model.elites:
            raise UserError(
                f"PETS.particles = {self.particles} cannot be shared equally among {self.model.elites} elites; "
                "choose a multiple"
            )

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the networks, start the copies, make room for the replay."""
        k_model, k_env = jax.random.split(key)
        spec = collector.env.spec
        observed, actions = box_sizes(spec)
        known_world(collector.env)  # complains of an environment whose reward is not known
        ensemble = self.model.create(observed + actions, observed, k_model)
        example = replay.transition_shapes(spec)
        env = collector.begin(self._at_first(spec, self.parallel), self.parallel, k_env)
        return State(fits.start(self.model, ensemble), replay.init(example, self.capacity), env, jnp.int32(0))

    def params(self, state: State) -> tuple[Ensemble, Bool[Array, ""]]:
        """The model to plan with, and whether it is still too early to."""
        return state.model.ensemble, state.steps < self.warmup

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Act by planning, then fit the model to all that was lived."""
        k_env, k_fit = jax.random.split(key)
        env, lived = collector.collect(self.acting(collector.env), self.params(state), state.env, k_env, self.collect)
        world = known_world(collector.env)
        given = state._replace(env=()), lived, k_fit
        state, metrics = collector.compute(self._learn, *given, static=(world,), spend=True)
        return state._replace(env=env), {**env.finished, **metrics}

    def trial(
        self, params: tuple[Ensemble, Bool[Array, ""]], collector: Collector, tasks: Task, key: PRNGKeyArray
    ) -> Trial:
        """One planned episode of each task."""
        plans = self._at_first(collector.env.spec, jax.tree.leaves(tasks)[0].shape[0])
        act, ready = self.acting(collector.env), (params[0], jnp.bool_(False))
        return Trial.of(collector.episodes(act, ready, plans, tasks, key).episodes)

    def acting(self, env: Any) -> Act:
        """Plan in the model, scoring sequences by particles."""
        return acting(self.planner, particles(known_world(env), self.particles, self.propagation), box(env.spec.action))

    def _at_first(self, spec: EnvSpec, batch: int) -> Planning:
        return at_first(self.planner, box(spec.action), History(jnp.zeros(spec.observation.shape)), batch)

    def _learn(self, world: Meaning, state: State, lived: Transition, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Store what was lived [T, B] and fit the model to all of it."""
        ring = replay.add(state.replay, flat(lived))
        model, metrics = fits.fit(self.fit, self.model, state.model, Rows(ring, world.examples), key)
        steps = state.steps + self.collect * self.parallel
        state = state._replace(model=model, replay=ring, steps=steps)
        return state, {name: Average.of(value) for name, value in metrics.items()}


@dataclass(frozen=True)
class RandomShootingMPC(PETS):
    """MPC-RS: a deterministic network and random shooting (Nagabandi et al. 2018, arXiv 1708.02596)."""

    model: GaussianEnsemble = GaussianEnsemble(
        members=1,
        elites=1,
        widths=(64, 64),
        probabilistic=False,
        weight_decay=(0.0, 0.0, 0.0),
        standardise_targets=True,
    )
    """The networks; the paper has one."""
    planner: MPC = MPC(search=RandomShooting(candidates=400), horizon=25)
    """The search for actions."""
    particles: Annotated[int, "[1, 10000]"] = 1
    """Imagined futures per action sequence; a multiple of the model's elites."""


@cache
def particles(world: Meaning, count: int, propagation: Propagation) -> Outlook:
    """What a model says that sequences return; the same function for the same settings, so that it compiles once."""

    def outlook(model: Ensemble, history: History, sequences: Array, key: PRNGKeyArray) -> Float[Array, "N"]:
        imagined = world.world(model)
        return sequence_returns(imagined, imagined.begin(history), sequences, key, count, propagation)

    return outlook
