"""MBPO: train a policy on short imagined branches from real states (Janner et al. 2019, arXiv 1906.08253, Algorithm 2).

    for each epoch:
        fit an ensemble to D_env, reward included
        for each environment step:
            act with π; D_env ← D_env ∪ the step
            M times: from a state of D_env, roll π out for k steps in the model; D_model ← D_model ∪ the branch
            G times: improve π (SAC) on batches of D_model and a little of D_env

The model is fitted and all branches of the next `refresh` steps are rolled out every `refresh` environment steps, as in
the authors' code. Members are drawn anew for every row and step, among the elites.

Differences from the code: what was lived is stored at once, not at the end of an episode; a branch that has ended
leaves no rows; the share of real rows is exact in every batch.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.collect import replay
from metadyna.errors import UserError
from metadyna.improve.repeat import repeat_updates
from metadyna.improve.sac import SAC, SACLearner
from metadyna.models import fit as fits
from metadyna.models.fit import Fit, FitState
from metadyna.models.gaussian import GaussianEnsemble
from metadyna.models.imagine import WorldModel, branch
from metadyna.models.world import learnt_world
from metadyna.policies.squashed import Actor, perform, practise
from metadyna.settings import Settings, check_ranges
from metadyna.types import Average, Collected, Collector, Metrics, Transition, box_sizes


class State(NamedTuple):
    """Policy, model, real and imagined experience, the copy in mid-episode, and steps so far."""

    learner: SACLearner
    model: FitState
    real: replay.Ring
    imagined: replay.Ring
    env: Collected
    steps: Int[Array, ""]


Walk = tuple[replay.Ring, Float[Array, "n obs"], Bool[Array, "n"], Float[Array, ""]]
"""Imagined rows, where the branches are, which of them go on, and the rewards so far."""


@dataclass(frozen=True)
class MBPO(Settings):
    """MBPO: a policy trained on short imagined branches from real states (Janner et al. 2019, arXiv 1906.08253)."""

    learner: SAC = SAC()
    """The policy's networks and update."""
    model: GaussianEnsemble = GaussianEnsemble()
    """The networks of the model."""
    fit: Fit = Fit(max_updates=5_000)
    """How they are trained."""
    refresh: Annotated[int, "[1, 1000000]"] = 250
    """Environment steps between two fits."""
    branches: Annotated[int, "[1, 1000000]"] = 400
    """M: imagined branches per environment step."""
    updates: Annotated[int, "[0, 1000]"] = 20
    """G: policy updates per environment step."""
    real_share: Annotated[float, "[0, 1]"] = 0.05
    """Share of real rows in a batch."""
    horizon_start: Annotated[int, "[1, 10000]"] = 1
    """k: steps of a branch at first."""
    horizon_end: Annotated[int, "[1, 10000]"] = 1
    """Steps of a branch in the end."""
    horizon_from: Annotated[int, "[0, 2000000000]"] = 20_000
    """Environment step at which branches begin to grow."""
    horizon_until: Annotated[int, "[1, 2000000000]"] = 150_000
    """Environment step at which they have grown."""
    retain: Annotated[int, "[1, 10000]"] = 4
    """Fits whose branches are kept, at the longest branches."""
    warmup: Annotated[int, "[1, 2000000000]"] = 5_000
    """Environment steps of uniformly random actions at first."""
    capacity: Annotated[int, "[1, 2000000000]"] = 1_000_000
    """Real transitions kept."""

    episode_names = ("episode",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self,
            horizon_end=f"[{self.horizon_start}, 10000]",
            horizon_until=f"({self.horizon_from}, 2000000000]",
            capacity=f"[{self.refresh}, 2000000000]",
        )
        if self.warmup % self.refresh:
            raise UserError(
                f"MBPO.warmup = {self.warmup} is not a multiple of MBPO.refresh = {self.refresh}; "
                "the model is fitted when the random steps are over"
            )

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw all networks, start the environment, make room."""
        k_learner, k_model, k_env = jax.random.split(key, 3)
        observed, actions = box_sizes(collector.env.spec)
        example = replay.transition_shapes(collector.env.spec)
        learnt_world(collector.env)  # complains of an environment that does not say when it ends
        return State(
            self.learner.init(observed, actions, k_learner),
            fits.init(self.model, observed + actions, observed + 1, k_model),
            replay.init(example, self.capacity),
            replay.init(example, self.retain * self.refresh * self.branches * self.horizon_end),
            collector.begin((), 1, k_env),
            jnp.int32(0),
        )

    def params(self, state: State) -> Actor:
        """The weights that act."""
        return state.learner.actor

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Fit the model, imagine, and live `refresh` steps with updates after each."""
        k_refresh, k_live = jax.random.split(key)
        world = learnt_world(collector.env)
        model, imagined, metrics = self._refresh(world, state, k_refresh)
        state = state._replace(model=model, imagined=imagined)

        def live(state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
            k_env, k_learn = jax.random.split(key)
            acting = state.learner.actor, state.steps < self.warmup
            env, lived = collector.collect(practise, acting, state.env, k_env, 1)
            changed = self._improve(state.learner, state.real, state.imagined, lived, state.steps, k_learn)
            learner, real, steps, metrics = changed
            state = state._replace(learner=learner, real=real, env=env, steps=steps)
            return state, {**env.finished, **metrics}

        state, lived = collector.repeat(live, state, jax.random.split(k_live, self.refresh))
        return state, {**metrics, **lived}

    def trial(self, params: Actor, collector: Collector, tasks: Any, key: PRNGKeyArray) -> tuple[Transition, ...]:
        """One greedy episode of each task."""
        return (collector.episodes(perform, params, (), tasks, key),)

    def horizon(self, steps: Int[Array, ""] | int) -> Int[Array, ""]:
        """k after so many environment steps: grows linearly, rounded down (code jannerm/mbpo)."""
        share = (steps - self.horizon_from) / (self.horizon_until - self.horizon_from)
        grown = self.horizon_start + jnp.clip(share, 0, 1) * (self.horizon_end - self.horizon_start)
        return jnp.floor(grown + 1e-4).astype(jnp.int32)

    @partial(jax.jit, static_argnums=(0, 1))
    def _refresh(self, world: WorldModel, state: State, key: PRNGKeyArray) -> tuple[FitState, replay.Ring, Metrics]:
        """Fit the model and imagine branches, once there is enough that was lived."""
        k_fit, k_start, k_branch = jax.random.split(key, 3)

        def refresh() -> tuple[FitState, replay.Ring, dict[str, Array]]:
            examples, count = world.examples(state.real.items), replay.size(state.real)
            model, metrics = fits.fit(self.fit, self.model, state.model, *examples, count, k_fit)
            starts = replay.sample(state.real, k_start, self.branches * self.refresh).obs
            imagined, rewards = self._imagine(world, model, state, starts, k_branch)
            metrics = {**metrics, "model/imagined_reward": rewards, "model/horizon": 1.0 * self.horizon(state.steps)}
            return model, imagined, metrics

        def skip() -> tuple[FitState, replay.Ring, dict[str, Array]]:
            shapes = jax.eval_shape(refresh)[2]
            return state.model, state.imagined, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        due = state.steps >= self.warmup
        model, imagined, metrics = jax.lax.cond(due, refresh, skip)
        return model, imagined, {name: Average(x * due, due.astype(jnp.int32)) for name, x in metrics.items()}

    def _imagine(
        self, world: WorldModel, model: FitState, state: State, starts: Float[Array, "n obs"], key: PRNGKeyArray
    ) -> tuple[replay.Ring, Float[Array, ""]]:
        """Branches of k steps from every start, one step of all of them at a time; mean reward of a step."""

        def advance(i: Array, walk: Walk) -> Walk:
            ring, obs, alive, total = walk
            k_step = jax.random.fold_in(key, i)
            acting = state.learner.actor, jnp.bool_(False)
            made = branch(world, model.ensemble, practise, acting, obs, 1, k_step)
            made = jax.tree.map(lambda x: x[0], made)
            sound = alive & jnp.isfinite(made.reward) & jnp.all(jnp.isfinite(made.next_obs), axis=-1)
            total = total + jnp.sum(jnp.where(sound, made.reward, 0))
            return replay.add_where(ring, made, sound), made.next_obs, sound & ~made.last, total

        walk = state.imagined, starts, jnp.ones(starts.shape[0], bool), jnp.float32(0)
        ring, _, _, total = jax.lax.fori_loop(0, self.horizon(state.steps), advance, walk)
        return ring, total / jnp.maximum(ring.added - state.imagined.added, 1)

    @partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
    def _improve(
        self,
        learner: SACLearner,
        real: replay.Ring,
        imagined: replay.Ring,
        lived: Transition,
        steps: Int[Array, ""],
        key: PRNGKeyArray,
    ) -> tuple[SACLearner, replay.Ring, Int[Array, ""], Metrics]:
        """Store a step and improve the policy on real and imagined rows."""
        real = replay.add(real, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lived))
        due = jnp.where(steps >= self.warmup, self.updates, 0)

        def update(learner: SACLearner, key: PRNGKeyArray) -> tuple[SACLearner, dict[str, Array]]:
            k_batch, k_update = jax.random.split(key)
            return self.learner.update(learner, self._batch(real, imagined, k_batch), k_update)

        learner, metrics = repeat_updates(update, learner, due, key)
        return learner, real, steps + 1, {f"train/{name}": value for name, value in metrics.items()}

    def _batch(self, real: replay.Ring, imagined: replay.Ring, key: PRNGKeyArray) -> Transition:
        """Rows of both kinds, in fixed shares; either may be none."""
        k_real, k_imagined = jax.random.split(key)
        count = int(self.real_share * self.learner.batch)
        parts = replay.sample(real, k_real, count), replay.sample(imagined, k_imagined, self.learner.batch - count)
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
