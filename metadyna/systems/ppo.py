"""PPO on its own (Schulman et al. 2017, arXiv 1707.06347, Algorithm 1).

    for each iteration:
        run π_old in B copies for T steps; compute advantages Â by GAE
        optimise the clipped surrogate for K epochs of minibatches; π_old ← π

Differences from the paper: observations are shifted and scaled by their running mean and standard deviation (unless
`normalise` is False), and rewards divided by the running standard deviation of the discounted return, as in every
implementation that is known to reach the paper's results (Engstrom et al. 2020); advantages are standardised per
minibatch. The mathematics is in `improve/ppo.py`.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.collect.episodes import flat
from metadyna.collect.returns import gae
from metadyna.errors import UserError
from metadyna.improve.ppo import PPO, OnPolicyBatch, PPOLearner
from metadyna.nets.inputs import Inputs
from metadyna.nets.layers import MLP
from metadyna.nets.moments import Moments
from metadyna.policies.acting import perform, practise
from metadyna.policies.direct import Policy, create
from metadyna.policies.distributions import Distribution
from metadyna.settings import Settings, Widths
from metadyna.types import Average, Collected, Collector, Metrics, Task, Transition, Trial


class Networks(NamedTuple):
    """Policy and value network, moved by one optimiser; both read observations as `Sight` shows them."""

    policy: Policy
    value: MLP


class Sight(eqx.Module):
    """How observations are read: as numbers, shifted and scaled by what was seen so far unless it is not to be."""

    seen: Moments
    inputs: Inputs = eqx.field(static=True)
    normalise: bool = eqx.field(static=True)

    def __call__(self, obs: Array) -> Float[Array, "*batch width"]:
        """Read any batch of observations."""
        return self.seen.normalise(self.inputs(obs)) if self.normalise else self.inputs(obs)

    def add(self, obs: Array) -> "Sight":
        """Having seen more rows."""
        return Sight(self.seen.add(self.inputs(obs)), self.inputs, self.normalise)


class Seeing(eqx.Module):
    """A policy behind its sight: what acts."""

    policy: Policy
    sight: Sight

    def __call__(self, obs: Array) -> Distribution:
        """The distribution over actions at one observation."""
        return self.policy(self.sight(obs))


class State(NamedTuple):
    """Learner, sight, discounted returns of every copy and their moments, the copies in mid-episode, steps so far."""

    learner: PPOLearner
    sight: Sight
    returns: Moments
    discounted: Float[Array, "B"]
    env: Collected
    steps: Int[Array, ""]


@dataclass(frozen=True)
class ProximalPolicyOptimisation(Settings):
    """PPO: on-policy control by clipped surrogates (Schulman et al. 2017, arXiv 1707.06347)."""

    ppo: PPO = PPO()
    """The update."""
    widths: Widths = (64, 64)
    """Hidden layers of policy and value network, with tanh."""
    log_std: Annotated[float, "[-5, 2]"] = 0.0
    """Log standard deviation of a fresh policy."""
    normalise: bool = True
    """Shift and scale observations by their running mean and standard deviation, or read them as they are."""
    parallel: Annotated[int, "[1, 65536]"] = 1
    """Copies of the environment."""
    collect: Annotated[int, "[1, 1000000]"] = 2_048
    """Steps of every copy per iteration."""
    discount: Annotated[float, "[0, 1]"] = 0.99
    """γ per step."""
    gae_decay: Annotated[float, "[0, 1]"] = 0.95
    """λ of the advantage estimate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # The advantage of a single row is standardised to 0, which moves nothing.
        if self.parallel * self.collect < 2 * self.ppo.minibatches:
            raise UserError(
                f"PPO.minibatches = {self.ppo.minibatches} leaves less than 2 rows each of what one iteration "
                f"collects ({self.parallel} × {self.collect}); lower it"
            )

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the networks and start the copies."""
        k_learner, k_env = jax.random.split(key)
        k_policy, k_value = jax.random.split(k_learner)
        spec = collector.env.spec
        inputs = Inputs.of(spec.observation)
        policy = create(spec, self.widths, k_policy, self.log_std, read=Inputs(inputs.width))
        weights = Networks(policy, MLP.create((inputs.width, *self.widths, 1), k_value, jax.nn.tanh))
        sight = Sight(Moments.empty((inputs.width,)), inputs, self.normalise)
        env = collector.begin((), self.parallel, k_env)
        zeros = jnp.zeros(self.parallel)
        return State(self.ppo.start(weights), sight, Moments.empty(), zeros, env, jnp.int32(0))

    def params(self, state: State) -> Seeing:
        """The weights that act."""
        return Seeing(state.learner.weights.policy, state.sight)

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Collect a batch with the current policy and learn from it."""
        k_env, k_learn = jax.random.split(key)
        env, lived = collector.collect(practise, self.params(state), state.env, k_env, self.collect)
        state, metrics = collector.compute(self._improve, state._replace(env=()), lived, k_learn, spend=True)
        return state._replace(env=env), {**env.finished, **metrics}

    def trial(self, params: Seeing, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """One episode of each task with the policy's most likely action."""
        return Trial.of(collector.episodes(perform, params, (), tasks, key).episodes)

    def _improve(self, state: State, lived: Transition, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Learn from [T, B] steps that were lived with the current policy."""
        obs, next_obs = state.sight(lived.obs), state.sight(lived.next_obs)
        discounted, returns = self._follow(state, lived)
        reward = jnp.clip(lived.reward / returns.std, -10, 10)
        value, next_value = (_values(state.learner.weights, x) for x in (obs, next_obs))
        advantage = gae(reward, self.discount * lived.discount, lived.last, value, next_value, self.gae_decay)
        batch = flat(OnPolicyBatch(obs, lived.action, lived.extras, advantage, advantage + value))

        def loss(weights: Networks, rows: OnPolicyBatch) -> tuple[Array, dict[str, Array]]:
            return self.ppo.loss(jax.vmap(weights.policy)(rows.obs), _values(weights, rows.obs), rows)

        learner, metrics = self.ppo.update(state.learner, batch, loss, key)
        sight = state.sight.add(flat(lived.obs))
        state = state._replace(learner=learner, sight=sight, returns=returns, discounted=discounted)
        state = state._replace(steps=state.steps + lived.reward.size)
        return state, {f"train/{name}": Average.of(value) for name, value in metrics.items()}

    def _follow(self, state: State, lived: Transition) -> tuple[Float[Array, "B"], Moments]:
        """Discounted return of every copy so far, and the moments of all of them."""

        def ahead(total: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            reward, last = now
            total = self.discount * total + reward
            return jnp.where(last, 0, total), total

        discounted, totals = jax.lax.scan(ahead, state.discounted, (lived.reward, lived.last))
        return discounted, state.returns.add(totals.ravel())


def _values(weights: Networks, seen: Float[Array, "*batch width"]) -> Float[Array, "*batch"]:
    """The value network's estimates."""
    return jax.vmap(weights.value)(seen.reshape(-1, seen.shape[-1])).reshape(seen.shape[:-1])
