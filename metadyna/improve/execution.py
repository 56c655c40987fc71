"""Execution agents (`adapt.decoupled.Execution`) that act on the values they learn."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.adapt.decoupled import Attempt, Contexts, distinct
from metadyna.collect.episodes import all_observations, episode_lengths, valid_steps
from metadyna.improve.ddqn import double_q_target, td_loss
from metadyna.nets.recurrent import LSTMState
from metadyna.policies.action_values import FeedForwardPolicy, RecurrentPolicy
from metadyna.settings import Settings
from metadyna.types import Problems

Policy = RecurrentPolicy | FeedForwardPolicy


def value_loss(
    env: Problems, weights: Policy, target: Policy, attempts: Attempt, contexts: Contexts, discount: float
) -> Float[Array, ""]:
    """Mean squared error of double DQN's target over the execution steps of episodes [T, B]."""
    execute, known = attempts.execute, distinct(env)
    observations, valued = all_observations(execute), episode_lengths(execute.last) + 1
    online = weights.unroll(observations, attempts.instruction, contexts.online, known, valued)
    slow = target.unroll(observations, attempts.instruction, contexts.slow, known, valued)
    goal = double_q_target(execute.reward, discount * execute.discount, online[1:], slow[1:])
    return td_loss(online[:-1], execute.action, goal, valid_steps(execute.last))


@dataclass(frozen=True)
class Recurrent(Settings):
    """Values of the history of observations: REC, learnt from whole episodes."""

    whole = True

    def create(self, env: Problems, context: int, key: PRNGKeyArray) -> RecurrentPolicy:
        """Draw the weights."""
        return RecurrentPolicy.create(env.spec, env.instruction_space, context, key)

    def initial(self, weights: RecurrentPolicy, batch: int) -> LSTMState:
        """Empty memories [B]."""
        return weights.initial((batch,))

    def act(
        self,
        env: Problems,
        weights: RecurrentPolicy,
        memory: LSTMState,
        obs: Array,
        instruction: Array,
        context: Float[Array, "context"],
    ) -> tuple[Float[Array, "actions"], LSTMState]:
        """Values of one copy's history."""
        return weights.step(memory, obs, instruction, context)

    def losses(
        self,
        env: Problems,
        weights: RecurrentPolicy,
        target: RecurrentPolicy,
        attempts: Attempt,
        contexts: Contexts,
        discount: float,
    ) -> dict[str, Float[Array, ""]]:
        """The temporal-difference error."""
        return {"td_loss": value_loss(env, weights, target, attempts, contexts, discount)}


@dataclass(frozen=True)
class FeedForward(Settings):
    """Values of the observation alone: FF."""

    batch: Literal["episodes", "steps"] = "steps"
    """Learn from whole episodes, or from single steps as published."""

    @property
    def whole(self) -> bool:
        """Whether it learns from whole episodes."""
        return self.batch == "episodes"

    def create(self, env: Problems, context: int, key: PRNGKeyArray) -> FeedForwardPolicy:
        """Draw the weights."""
        return FeedForwardPolicy.create(env.spec, env.instruction_space, context, key)

    def initial(self, weights: FeedForwardPolicy, batch: int) -> tuple[()]:
        """No memory."""
        return ()

    def act(
        self,
        env: Problems,
        weights: FeedForwardPolicy,
        memory: tuple[()],
        obs: Array,
        instruction: Array,
        context: Float[Array, "context"],
    ) -> tuple[Float[Array, "actions"], tuple[()]]:
        """Values of one copy's observation."""
        return weights.step(memory, obs, instruction, context)

    def losses(
        self,
        env: Problems,
        weights: FeedForwardPolicy,
        target: FeedForwardPolicy,
        attempts: Attempt,
        contexts: Contexts,
        discount: float,
    ) -> dict[str, Float[Array, ""]]:
        """The temporal-difference error."""
        return {"td_loss": value_loss(env, weights, target, attempts, contexts, discount)}
