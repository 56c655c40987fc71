"""TRPO on its own (Schulman et al. 2015, arXiv 1502.05477, Algorithm 1; batches and baseline of Duan et al. 2016).

    for each iteration:
        run π_old in B copies for T steps; fit the linear baseline; compute advantages Â by GAE
        raise E[π/π_old Â] subject to E[KL(π_old || π)] ≤ δ: conjugate gradients, then a line search

The mathematics is in `improve/trpo.py` and `improve/on_policy.py`.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from metadyna.improve.baseline import LinearBaseline
from metadyna.improve.on_policy import refit, trust_region_step, weigh
from metadyna.improve.trpo import TRPO
from metadyna.policies.acting import perform, practise
from metadyna.policies.direct import Policy, create
from metadyna.settings import Settings, Widths
from metadyna.types import Average, Collected, Collector, Metrics, Task, Transition, Trial


class State(NamedTuple):
    """Policy, baseline, the copies in mid-episode, and steps so far."""

    policy: Policy
    baseline: LinearBaseline
    env: Collected
    steps: Int[Array, ""]


@dataclass(frozen=True)
class TrustRegionPolicyOptimisation(Settings):
    """TRPO: on-policy control with a bound on every step (Schulman et al. 2015, arXiv 1502.05477)."""

    trpo: TRPO = TRPO()
    """The step."""
    widths: Widths = (32, 32)
    """Hidden layers of the policy, with tanh."""
    log_std: Annotated[float, "[-5, 2]"] = 0.0
    """Log standard deviation of a fresh policy."""
    parallel: Annotated[int, "[1, 65536]"] = 10
    """Copies of the environment."""
    collect: Annotated[int, "[1, 1000000]"] = 1_000
    """Steps of every copy per iteration."""
    discount: Annotated[float, "[0, 1]"] = 0.99
    """γ per step."""
    gae_decay: Annotated[float, "[0, 1]"] = 1.0
    """λ of the advantage estimate."""

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the policy and start the copies."""
        k_policy, k_env = jax.random.split(key)
        policy = create(collector.env.spec, self.widths, k_policy, self.log_std)
        env = collector.begin((), self.parallel, k_env)
        return State(policy, LinearBaseline.zero(policy.inputs), env, jnp.int32(0))

    def params(self, state: State) -> Policy:
        """The weights that act."""
        return state.policy

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Collect a batch with the current policy and take one step."""
        began = state.env.lengths
        env, lived = collector.collect(practise, state.policy, state.env, key, self.collect)
        state, metrics = collector.compute(self._improve, state._replace(env=()), lived, began, spend=True)
        return state._replace(env=env), {**env.finished, **metrics}

    def trial(self, params: Policy, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """One episode of each task with the policy's most likely action."""
        return Trial.of(collector.episodes(perform, params, (), tasks, key).episodes)

    def _improve(self, state: State, lived: Transition, began: Int[Array, "B"]) -> tuple[State, Metrics]:
        """Learn from [T, B] steps that were lived with this policy; the first were step `began` of their episodes."""
        all_steps = jnp.ones_like(lived.last)
        data = weigh(lived, state.baseline, began, all_steps, self.discount, self.gae_decay)
        policy, metrics = trust_region_step(self.trpo, state.policy, data)
        baseline, steps = refit(state.baseline, data), state.steps + lived.reward.size
        state = state._replace(policy=policy, baseline=baseline, steps=steps)
        return state, {f"train/{name}": Average.of(value) for name, value in metrics.items()}
