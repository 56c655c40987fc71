"""SAC on its own: act, store, improve (Haarnoja et al. 2018, arXiv 1812.05905, Algorithm 1).

    for each iteration:
        for each environment step: a ~ π(·|s), s' ~ p(·|s, a), D ← D ∪ {(s, a, r, s')}
        for each gradient step: critics, policy, temperature and slow critics, on a batch from D

Differences from the paper: the first `warmup` steps are uniformly random, as in the authors' code, and several
copies of the environment may run side by side. The mathematics is in `improve/sac.py`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from metadyna.collect import replay
from metadyna.errors import UserError
from metadyna.improve.repeat import repeat_updates
from metadyna.improve.sac import SAC, SACLearner
from metadyna.policies.squashed import Actor, perform, practise
from metadyna.settings import Settings
from metadyna.types import Collected, Collector, Metrics, Transition, box_sizes


class State(NamedTuple):
    """Learner, everything that was lived, the copies in mid-episode, and steps so far."""

    learner: SACLearner
    replay: replay.Ring
    env: Collected
    steps: Int[Array, ""]


@dataclass(frozen=True)
class SoftActorCritic(Settings):
    """SAC: off-policy control of maximum entropy (Haarnoja et al. 2018, arXiv 1812.05905)."""

    learner: SAC = SAC()
    """Networks and update."""
    parallel: Annotated[int, "[1, 65536]"] = 1
    """Copies of the environment."""
    collect: Annotated[int, "[1, 1000000]"] = 1
    """Steps of every copy per iteration."""
    updates_per_step: Annotated[int, "[0, 1000]"] = 1
    """Updates per environment step, once warm."""
    warmup: Annotated[int, "[0, 2000000000]"] = 1_000
    """Environment steps of uniformly random actions, without updates."""
    capacity: Annotated[int, "[1, 2000000000]"] = 1_000_000
    """Transitions kept."""

    episode_names = ("episode",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel * self.collect > self.capacity:
            raise UserError(
                f"SoftActorCritic.capacity = {self.capacity} is less than one iteration collects "
                f"({self.parallel} × {self.collect}); raise it"
            )

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the networks, start the copies, make room for the replay."""
        k_learner, k_env = jax.random.split(key)
        spec = collector.env.spec
        learner = self.learner.init(*box_sizes(spec), k_learner)
        env = collector.begin((), self.parallel, k_env)
        return State(learner, replay.init(replay.transition_shapes(spec), self.capacity), env, jnp.int32(0))

    def params(self, state: State) -> Actor:
        """The weights that act."""
        return state.learner.actor

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Collect with the current policy, store, and improve."""
        k_env, k_learn = jax.random.split(key)
        acting = state.learner.actor, state.steps < self.warmup
        env, lived = collector.collect(practise, acting, state.env, k_env, self.collect)
        learner, ring, steps, metrics = self._improve(state.learner, state.replay, lived, state.steps, k_learn)
        return State(learner, ring, env, steps), {**env.finished, **metrics}

    def trial(self, params: Actor, collector: Collector, tasks: Any, key: PRNGKeyArray) -> tuple[Transition, ...]:
        """One greedy episode of each task."""
        return (collector.episodes(perform, params, (), tasks, key),)

    @partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
    def _improve(
        self, learner: SACLearner, ring: replay.Ring, lived: Transition, steps: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[SACLearner, replay.Ring, Int[Array, ""], Metrics]:
        """Store what was lived [T, B] and make the updates that it is due."""
        ring = replay.add(ring, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lived))
        steps = steps + self.collect * self.parallel
        due = jnp.where(steps > self.warmup, self.collect * self.parallel * self.updates_per_step, 0)

        def update(learner: SACLearner, key: PRNGKeyArray) -> tuple[SACLearner, dict[str, Array]]:
            k_batch, k_update = jax.random.split(key)
            return self.learner.update(learner, replay.sample(ring, k_batch, self.learner.batch), k_update)

        learner, metrics = repeat_updates(update, learner, due, key)
        return learner, ring, steps, {f"train/{name}": value for name, value in metrics.items()}
