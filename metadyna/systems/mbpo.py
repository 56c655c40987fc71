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
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.collect import replay
from metadyna.collect.episodes import flat
from metadyna.errors import UserError
from metadyna.improve.repeat import repeat_updates
from metadyna.improve.sac import SAC, SACLearner
from metadyna.models import fit as fits
from metadyna.models.fit import Fit, FitState, Rows
from metadyna.models.gaussian import GaussianEnsemble
from metadyna.models.imagine import branch
from metadyna.models.worlds import Meaning, World, learnt_world
from metadyna.policies.acting import perform, practise, practise_or_guess
from metadyna.policies.squashed import ActorCritic, SquashedPolicy
from metadyna.settings import Settings, check_ranges
from metadyna.types import Collected, Collector, Metrics, Task, Transition, Trial, box_sizes


class State(NamedTuple):
    """Policy, model, real and imagined experience, the copy in mid-episode, and steps so far."""

    learner: SACLearner
    model: FitState
    real: replay.Ring
    imagined: replay.Ring
    env: Collected
    steps: Int[Array, ""]


class Walk(NamedTuple):
    """Imagined rows, where the branches are, which of them go on, and rows and rewards so far."""

    ring: replay.Ring
    obs: Float[Array, "n obs"]
    alive: Bool[Array, "n"]
    rows: Int[Array, ""]
    rewards: Float[Array, ""]


@dataclass(frozen=True)
class MBPO(Settings):
    """MBPO: a policy trained on short imagined branches from real states (Janner et al. 2019, arXiv 1906.08253)."""

    networks: ActorCritic = ActorCritic()
    """The policy and its critics."""
    sac: SAC = SAC()
    """How they are improved."""
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
        k_networks, k_model, k_env = jax.random.split(key, 3)
        observed, actions = box_sizes(collector.env.spec)
        example = replay.transition_shapes(collector.env.spec)
        learnt_world(collector.env)  # complains of an environment that does not say when it ends
        return State(
            self.sac.start(*self.networks.create(observed, actions, k_networks)),
            fits.start(self.model, self.model.create(observed + actions, observed + 1, k_model)),
            replay.init(example, self.capacity),
            replay.init(example, self.retain * self.refresh * self.branches * self.horizon_end),
            collector.begin((), 1, k_env),
            jnp.int32(0),
        )

    def params(self, state: State) -> SquashedPolicy:
        """The weights that act."""
        return state.learner.actor

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Fit the model, imagine, and live `refresh` steps with updates after each."""
        k_refresh, k_live = jax.random.split(key)
        world, env = learnt_world(collector.env), state.env
        state, metrics = collector.compute(
            self._refresh, state._replace(env=()), k_refresh, static=(world,), spend=True
        )

        def live(state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
            k_env, k_learn = jax.random.split(key)
            acting = state.learner.actor, state.steps < self.warmup
            env, lived = collector.collect(practise_or_guess, acting, state.env, k_env, 1)
            state, metrics = collector.compute(self._improve, state._replace(env=()), lived, k_learn, spend=True)
            return state._replace(env=env), {**env.finished, **metrics}

        state, lived = collector.scan(live, state._replace(env=env), jax.random.split(k_live, self.refresh))
        return state, {**metrics, **jax.tree.map(lambda x: x.sum(axis=0), lived)}

    def trial(self, params: SquashedPolicy, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """One greedy episode of each task."""
        return Trial.of(collector.episodes(perform, params, (), tasks, key).episodes)

    def horizon(self, steps: Int[Array, ""] | int) -> Int[Array, ""]:
        """k after so many environment steps: grows linearly, rounded down (code jannerm/mbpo)."""
        share = (steps - self.horizon_from) / (self.horizon_until - self.horizon_from)
        grown = self.horizon_start + jnp.clip(share, 0, 1) * (self.horizon_end - self.horizon_start)
        return jnp.floor(grown + 1e-4).astype(jnp.int32)

    def _refresh(self, world: Meaning, state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Fit the model and imagine branches, once there is enough that was lived."""

        def refresh(
            at: tuple[FitState, replay.Ring], key: PRNGKeyArray
        ) -> tuple[tuple[FitState, replay.Ring], dict[str, Array]]:
            k_fit, k_start, k_branch = jax.random.split(key, 3)
            model, told = fits.fit(self.fit, self.model, at[0], Rows(state.real, world.examples), k_fit)
            starts = replay.sample(state.real, k_start, self.branches * self.refresh).obs
            imagined, reward = self._imagine(world.world(model.ensemble), state, at[1], starts, k_branch)
            told = {**told, "model/imagined_reward": reward, "model/horizon": 1.0 * self.horizon(state.steps)}
            return (model, imagined), told

        due = (state.steps >= self.warmup).astype(jnp.int32)
        (model, imagined), metrics = repeat_updates(refresh, (state.model, state.imagined), due, key)
        return state._replace(model=model, imagined=imagined), metrics

    def _imagine(
        self, world: World, state: State, ring: replay.Ring, starts: Float[Array, "n obs"], key: PRNGKeyArray
    ) -> tuple[replay.Ring, Float[Array, ""]]:
        """Branches of k steps from every start, one step of all of them at a time; mean reward of a step."""

        def advance(i: Array, walk: Walk) -> Walk:
            k_step = jax.random.fold_in(key, i)
            made = branch(world, practise, state.learner.actor, walk.obs, 1, k_step)
            made = jax.tree.map(lambda x: x[0], made._replace(extras=()))
            sound = walk.alive & jnp.isfinite(made.reward) & jnp.all(jnp.isfinite(made.next_obs), axis=-1)
            return Walk(
                replay.add_where(walk.ring, made, sound),
                made.next_obs,
                sound & ~made.last,
                walk.rows + jnp.sum(sound),
                walk.rewards + jnp.sum(jnp.where(sound, made.reward, 0)),
            )

        walk = Walk(ring, starts, jnp.ones(starts.shape[0], bool), jnp.int32(0), jnp.float32(0))
        walk = jax.lax.fori_loop(0, self.horizon(state.steps), advance, walk)
        return walk.ring, walk.rewards / jnp.maximum(walk.rows, 1)

    def _improve(self, state: State, lived: Transition, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Store a step and improve the policy on real and imagined rows."""
        real = replay.add(state.real, flat(lived))
        due = jnp.where(state.steps >= self.warmup, self.updates, 0)

        def update(learner: SACLearner, key: PRNGKeyArray) -> tuple[SACLearner, dict[str, Array]]:
            k_batch, k_update = jax.random.split(key)
            return self.sac.update(learner, self._batch(real, state.imagined, k_batch), k_update)

        learner, metrics = repeat_updates(update, state.learner, due, key)
        state = state._replace(learner=learner, real=real, steps=state.steps + 1)
        return state, {f"train/{name}": value for name, value in metrics.items()}

    def _batch(self, real: replay.Ring, imagined: replay.Ring, key: PRNGKeyArray) -> Transition:
        """Rows of both kinds, in fixed shares; real ones alone where no imagined row was ever sound."""
        k_real, k_imagined = jax.random.split(key)
        count = int(self.real_share * self.sac.batch)
        others = self.sac.batch - count
        dreamt = jax.lax.cond(
            replay.size(imagined) > 0,
            lambda: replay.sample(imagined, k_imagined, others),
            lambda: replay.sample(real, k_imagined, others),
        )
        return jax.tree.map(lambda *x: jnp.concatenate(x), replay.sample(real, k_real, count), dreamt)
