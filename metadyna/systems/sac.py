"""SAC on its own: act, store, improve (Haarnoja et al. 2018, arXiv 1812.05905, Algorithm 1).

    for each iteration:
        for each environment step: a ~ π(·|s), s' ~ p(·|s, a), D ← D ∪ {(s, a, r, s')}
        for each gradient step: critics, policy, temperature and slow critics, on a batch from D

Differences from the paper: the first `warmup` steps are uniformly random, as in the authors' code, and several
copies of the environment may run side by side. The mathematics is in `improve/sac.py`.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from metadyna.collect import replay
from metadyna.collect.episodes import flat
from metadyna.errors import UserError
from metadyna.improve.repeat import repeat_updates
from metadyna.improve.sac import SAC, SACLearner
from metadyna.policies.acting import perform, practise_or_guess
from metadyna.policies.squashed import ActorCritic, SquashedPolicy
from metadyna.settings import Settings
from metadyna.types import Collected, Collector, Metrics, Task, Transition, Trial, box_sizes


class State(NamedTuple):
    """Learner, everything that was lived, the copies in mid-episode, and steps so far."""

    learner: SACLearner
    replay: replay.Ring
    env: Collected
    steps: Int[Array, ""]


@dataclass(frozen=True)
class SoftActorCritic(Settings):
    """SAC: off-policy control of maximum entropy (Haarnoja et al. 2018, arXiv 1812.05905)."""

    networks: ActorCritic = ActorCritic()
    """The policy and its critics."""
    sac: SAC = SAC()
    """How they are improved."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel * self.collect > self.capacity:
            raise UserError(
                f"SoftActorCritic.capacity = {self.capacity} is less than one iteration collects "
                f"({self.parallel} × {self.collect}); raise it"
            )

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the networks, start the copies, make room for the replay."""
        k_networks, k_env = jax.random.split(key)
        spec = collector.env.spec
        learner = self.sac.start(*self.networks.create(*box_sizes(spec), k_networks))
        env = collector.begin((), self.parallel, k_env)
        return State(learner, replay.init(replay.transition_shapes(spec), self.capacity), env, jnp.int32(0))

    def params(self, state: State) -> SquashedPolicy:
        """The weights that act."""
        return state.learner.actor

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Collect with the current policy, store, and improve."""
        k_env, k_learn = jax.random.split(key)
        acting = state.learner.actor, state.steps < self.warmup
        env, lived = collector.collect(practise_or_guess, acting, state.env, k_env, self.collect)
        state, metrics = collector.compute(self._improve, state._replace(env=()), lived, k_learn, spend=True)
        return state._replace(env=env), {**env.finished, **metrics}

    def trial(self, params: SquashedPolicy, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """One greedy episode of each task."""
        return Trial.of(collector.episodes(perform, params, (), tasks, key).episodes)

    def _improve(self, state: State, lived: Transition, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Store what was lived [T, B] and make the updates that it is due."""
        ring, new = replay.add(state.replay, flat(lived)), self.collect * self.parallel
        steps = state.steps + new
        due = jnp.where(steps > self.warmup, new * self.updates_per_step, 0)

        def update(learner: SACLearner, key: PRNGKeyArray) -> tuple[SACLearner, dict[str, Array]]:
            k_batch, k_update = jax.random.split(key)
            return self.sac.update(learner, replay.sample(ring, k_batch, self.sac.batch), k_update)

        learner, metrics = repeat_updates(update, state.learner, due, key)
        state = state._replace(learner=learner, replay=ring, steps=steps)
        return state, {f"train/{name}": value for name, value in metrics.items()}
