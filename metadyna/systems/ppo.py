"""PPO on its own (Schulman et al. 2017, arXiv 1707.06347, Algorithm 1).

    for each iteration:
        run π_old in B copies for T steps; compute advantages Â by GAE
        optimise the clipped surrogate for K epochs of minibatches; π_old ← π

Differences from the paper: observations are shifted and scaled by their running mean and standard deviation, and
rewards divided by the running standard deviation of the discounted return, as in every implementation that is known to
reach the paper's results (Engstrom et al. 2020); advantages are standardised per minibatch. The mathematics is in
`improve/ppo.py`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.collect.returns import gae
from metadyna.errors import UserError
from metadyna.improve.ppo import PPO, OnPolicyBatch, PPOLearner, values
from metadyna.nets.moments import Moments
from metadyna.policies.gaussian import GaussianPolicy
from metadyna.settings import Settings
from metadyna.types import Average, Collected, Collector, Metrics, TimeStep, Transition, box_sizes


class Params(NamedTuple):
    """What acting needs."""

    policy: GaussianPolicy
    seen: Moments


class State(NamedTuple):
    """Learner, running moments, the copies in mid-episode, and steps so far."""

    learner: PPOLearner
    seen: Moments
    returns: Moments
    discounted: Float[Array, "B"]
    env: Collected
    steps: Int[Array, ""]


@dataclass(frozen=True)
class ProximalPolicyOptimisation(Settings):
    """PPO: on-policy control by clipped surrogates (Schulman et al. 2017, arXiv 1707.06347)."""

    learner: PPO = PPO()
    """Networks and update."""
    parallel: Annotated[int, "[1, 65536]"] = 1
    """Copies of the environment."""
    collect: Annotated[int, "[1, 1000000]"] = 2_048
    """Steps of every copy per iteration."""
    discount: Annotated[float, "[0, 1]"] = 0.99
    """γ per step."""
    gae_decay: Annotated[float, "[0, 1]"] = 0.95
    """λ of the advantage estimate."""

    episode_names = ("episode",)

    def __post_init__(self) -> None:
        super().__post_init__()
        # The advantage of a single row is standardised to 0, which moves nothing.
        if self.parallel * self.collect < 2 * self.learner.minibatches:
            raise UserError(
                f"PPO.minibatches = {self.learner.minibatches} leaves less than 2 rows each of what one iteration "
                f"collects ({self.parallel} × {self.collect}); lower it"
            )

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the networks and start the copies."""
        k_learner, k_env = jax.random.split(key)
        observed, actions = box_sizes(collector.env.spec)
        learner = self.learner.init(observed, actions, k_learner)
        env = collector.begin((), self.parallel, k_env)
        return State(learner, Moments.empty((observed,)), Moments.empty(), jnp.zeros(self.parallel), env, jnp.int32(0))

    def params(self, state: State) -> Params:
        """The weights that act."""
        return Params(state.learner.weights.policy, state.seen)

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Collect a batch with the current policy and learn from it."""
        k_env, k_learn = jax.random.split(key)
        env, lived = collector.collect(practise, self.params(state), state.env, k_env, self.collect)
        learnt, metrics = self._improve(state._replace(env=()), lived, k_learn)
        return learnt._replace(env=env), {**env.finished, **metrics}

    def trial(self, params: Params, collector: Collector, tasks: Any, key: PRNGKeyArray) -> tuple[Transition, ...]:
        """One episode of each task with the policy's mean action."""
        return (collector.episodes(perform, params, (), tasks, key),)

    @partial(jax.jit, static_argnums=0)
    def _improve(self, state: State, lived: Transition, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Learn from [T, B] steps that were lived with the current policy."""
        weights = state.learner.weights
        obs, next_obs = (state.seen.normalise(x) for x in (lived.obs, lived.next_obs))
        discounted, returns = self._follow(state, lived)
        reward = jnp.clip(lived.reward / returns.std, -10, 10)
        value, next_value = values(weights.value, obs), values(weights.value, next_obs)
        advantage = gae(reward, self.discount * lived.discount, lived.last, value, next_value, self.gae_decay)
        batch = OnPolicyBatch(obs, lived.action, lived.extras, advantage, advantage + value)
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        learner, metrics = self.learner.train(state.learner, batch, key)
        state = State(
            learner,
            state.seen.add(lived.obs.reshape(-1, lived.obs.shape[-1])),
            returns,
            discounted,
            state.env,
            state.steps + lived.reward.size,
        )
        return state, {f"train/{name}": Average.of(value) for name, value in metrics.items()}

    def _follow(self, state: State, lived: Transition) -> tuple[Float[Array, "B"], Moments]:
        """Discounted return of every copy so far, and the moments of all of them."""

        def ahead(total: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            reward, last = now
            total = self.discount * total + reward
            return jnp.where(last, 0, total), total

        discounted, totals = jax.lax.scan(ahead, state.discounted, (lived.reward, lived.last))
        return discounted, state.returns.add(totals.ravel())


def practise(params: Params, carry: tuple[()], timestep: TimeStep, key: PRNGKeyArray) -> tuple[Array, tuple[()], Array]:
    """Draw an action; its log-density is noted."""
    action, log_prob = params.policy.sample(params.seen.normalise(timestep.obs), key)
    return action, carry, log_prob


def perform(
    params: Params, carry: tuple[()], timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, tuple[()], tuple[()]]:
    """Take the mean action."""
    del key
    return params.policy(params.seen.normalise(timestep.obs))[0], carry, ()
