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
from functools import cache, partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from metadyna.collect import replay
from metadyna.errors import UserError
from metadyna.models import fit as fits
from metadyna.models.fit import Fit, FitState
from metadyna.models.gaussian import Ensemble, GaussianEnsemble
from metadyna.models.imagine import Propagation, WorldModel, sequence_returns
from metadyna.models.world import known_world
from metadyna.planning.mpc import MPC, Plan
from metadyna.search.cem import CEM
from metadyna.search.random import RandomShooting
from metadyna.settings import Settings, check_ranges
from metadyna.types import ActFn, Average, Collected, Collector, Metrics, TimeStep, Transition, box_sizes


class State(NamedTuple):
    """Model, everything that was lived, the copies in mid-episode, and steps so far."""

    model: FitState
    replay: replay.Ring
    env: Collected
    steps: Int[Array, ""]


class Params(NamedTuple):
    """What acting needs: the model, and whether it is still too early to plan."""

    model: Ensemble
    random: Bool[Array, ""]


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

    episode_names = ("episode",)

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
        _, actions = box_sizes(collector.env.spec)
        example = replay.transition_shapes(collector.env.spec)
        model = known_world(collector.env)
        inputs = jax.eval_shape(model.inputs, example.obs, example.action)
        targets = jax.eval_shape(model.targets, example.obs, example.reward, example.next_obs)
        state = fits.init(self.model, inputs.shape[0], targets.shape[0], k_model)
        plans = _batched(self.planner.init((actions,), -1.0, 1.0), self.parallel)
        env = collector.begin(plans, self.parallel, k_env)
        return State(state, replay.init(example, self.capacity), env, jnp.int32(0))

    def params(self, state: State) -> Params:
        """The weights that act."""
        return Params(state.model.ensemble, state.steps < self.warmup)

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Act by planning, then fit the model to all that was lived."""
        k_env, k_fit = jax.random.split(key)
        act = planned(self, collector.env)
        env, lived = collector.collect(act, self.params(state), state.env, k_env, self.collect)
        world = known_world(collector.env)
        model, ring, steps, metrics = self._learn(world, state.model, state.replay, lived, state.steps, k_fit)
        return State(model, ring, env, steps), {**env.finished, **metrics}

    def trial(self, params: Params, collector: Collector, tasks: Any, key: PRNGKeyArray) -> tuple[Transition, ...]:
        """One planned episode of each task."""
        batch = jax.tree.leaves(tasks)[0].shape[0]
        plans = _batched(self.planner.init(collector.env.spec.action.shape, -1.0, 1.0), batch)
        params = params._replace(random=jnp.bool_(False))
        return (collector.episodes(planned(self, collector.env), params, plans, tasks, key),)

    @partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
    def _learn(
        self,
        world: WorldModel,
        model: FitState,
        ring: replay.Ring,
        lived: Transition,
        steps: Int[Array, ""],
        key: PRNGKeyArray,
    ) -> tuple[FitState, replay.Ring, Int[Array, ""], Metrics]:
        """Store what was lived [T, B] and fit the model to all of it."""
        ring = replay.add(ring, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lived))
        examples, count = world.examples(ring.items), replay.size(ring)
        model, metrics = fits.fit(self.fit, self.model, model, *examples, count, key)
        steps = steps + self.collect * self.parallel
        return model, ring, steps, {name: Average.of(value) for name, value in metrics.items()}


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
def planned(system: PETS, env: Any) -> ActFn:
    """How a system acts in an environment; the same function for the same two, so that it compiles once."""
    world, actions = known_world(env), env.spec.action.shape

    def act(params: Params, plan: Plan, timestep: TimeStep, key: PRNGKeyArray) -> tuple[Array, Plan, tuple[()]]:
        def score(sequences: Array, key: PRNGKeyArray) -> Array:
            return sequence_returns(
                world, params.model, timestep.obs, sequences, key, system.particles, system.propagation
            )

        def guess(plan: Plan) -> tuple[Array, Plan]:
            return jax.random.uniform(key, actions, minval=-1, maxval=1), plan

        fresh = system.planner.init(actions, -1.0, 1.0)
        plan = jax.tree.map(lambda new, old: jnp.where(timestep.first, new, old), fresh, plan)
        action, plan = jax.lax.cond(params.random, guess, lambda plan: system.planner.plan(score, plan, key), plan)
        return action, plan, ()

    return act


def _batched(plan: Plan, batch: int) -> Plan:
    return jax.tree.map(lambda x: jnp.repeat(x[None], batch, axis=0), plan)
