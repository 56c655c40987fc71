"""DREAM: decoupled reward-free exploration and execution in meta-RL (Liu, Raghunathan, Liang, Finn; ICML 2021).

A trial is an exploration episode without rewards, then an execution episode with an instruction, on one problem μ.
Execution learns from an encoding of the problem's number; exploration learns to make that encoding predictable.

    repeat                                                                                            (Algorithm 1)
        draw a problem μ and an instruction i
        roll out exploration:  τᵉ ~ π_explore(a | s, history)
        z = g(τᵉ) on even trials,  f(μ) + ρ n on odd ones
        roll out execution:    τˣ ~ π_execute(a | s, i, z)
        store the trial
        explore: DDQN on  r_t = d_{t−1} − d_t − c,   d_t = ‖f(μ) − g(τᵉ_:t)‖²
        execute: DDQN on the task's reward  +  ‖sg f(μ) − g(τᵉ_:t)‖²  +  max(‖f(μ)‖², K)

Names: μ `problem`, i `instruction`, z `context`, f `encoder`, g `decoder`, ρ `context.noise`, c `penalty`, K
`context.bottleneck`. The system is put together of a source of contexts (`adapt/context.py`) and an execution agent
(`improve/execution.py`), so that its hybrids are values.

Differences from the published code, each on purpose: the dueling mean is taken per state, not over the batch; targets
start as copies of the weights; target networks run from zero memory over the whole episode, not from stored states;
updates use finished trials only, so those due during an execution episode run right after it; ε is held during an
iteration and warm-up counts episodes for either policy; gradients of the
exploration reward are not mixed into the exploration network's clipped norm; the target's context is of the same kind
as the online one (`context.target="encoder"` gives the code's).
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.adapt.context import EncoderDecoder, Told, information_gain
from metadyna.adapt.decoupled import Attempt, Execution, Lesson, distinct
from metadyna.collect import replay
from metadyna.collect.episodes import (
    all_observations,
    episode_lengths,
    episode_returns,
    previous_actions,
    valid_steps,
)
from metadyna.errors import UserError
from metadyna.improve.ddqn import DDQN, DDQNLearner, double_q_target, td_loss
from metadyna.improve.execution import FeedForward, Recurrent
from metadyna.improve.planned import Planned
from metadyna.improve.repeat import repeat_updates
from metadyna.nets.recurrent import LSTMState
from metadyna.policies.action_values import ExplorePolicy, greedy_or_random
from metadyna.settings import Settings
from metadyna.types import (
    Act,
    Average,
    Collector,
    Metrics,
    Problems,
    Task,
    TimeStep,
    Transition,
    Trial,
    problems,
)


class ExecuteNets(eqx.Module):
    """Everything that the execution agent's optimiser moves: who executes, and where contexts come from."""

    policy: Any
    source: Any


class State(NamedTuple):
    """Everything that training needs to go on."""

    explore: DDQNLearner
    execute: DDQNLearner
    attempts: replay.Ring
    explore_steps: Int[Array, ""]
    execute_steps: Int[Array, ""]


class Params(NamedTuple):
    """What acting needs: the exploration policy, and the execution policy with its source of contexts."""

    explore: ExplorePolicy
    execute: ExecuteNets


@dataclass(frozen=True)
class DREAM(Settings):
    """DREAM: explore to recover what execution needs of a problem (Liu et al. 2021, arXiv 2008.02790).

    The defaults are the published code's.
    """

    context: EncoderDecoder | Told = EncoderDecoder()
    """Where contexts come from."""
    execution: Recurrent | FeedForward | Planned = Recurrent()
    """Who executes."""
    exploration: Literal["learned", "random", "none"] = "learned"
    """Who explores: the learned policy, uniformly random actions, or nobody (execution sees an empty episode)."""
    penalty: Annotated[float, "[-1000, 1000]"] = 0.1
    """Cost c per exploration step (code 0.1, paper 0.01)."""
    parallel: Annotated[int, "[1, 65536]"] = 1
    """Trials per iteration."""
    capacity: Annotated[int, "[1, 2000000000]"] = 16_000
    """Trials kept for replay."""
    explore: DDQN = DDQN(warmup=8_000)
    """Schedule of the exploration policy."""
    execute: DDQN = DDQN(warmup=500)
    """Schedule of the execution policy and the source of contexts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel > self.capacity:
            raise UserError(f"DREAM.parallel = {self.parallel} exceeds DREAM.capacity = {self.capacity}")

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the weights and allocate the replay."""
        k_explore, k_execute = jax.random.split(key)
        k_policy, k_source = jax.random.split(k_execute)
        env, zero = problems(collector.env), jnp.int32(0)
        policy = self.execution.create(env, self.context.width, k_policy)
        execute = ExecuteNets(policy, self.context.create(env, k_source))
        return State(
            self.explore.start(ExplorePolicy.create(env.spec, k_explore)),
            self.execute.start(execute),
            replay.init(_shapes(env), self.capacity),
            zero,
            zero,
        )

    def params(self, state: State) -> Params:
        """The weights that act."""
        return Params(state.explore.weights, state.execute.weights)

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far, of both kinds of episode."""
        return state.explore_steps + state.execute_steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Collect `parallel` trials, then make the updates that their steps are due."""
        k_trial, *k_learn = jax.random.split(key, 3)
        k_tasks, k_play = jax.random.split(k_trial)
        tasks = jax.vmap(collector.tasks.sample)(jax.random.split(k_tasks, self.parallel))
        lived = self.context.lived(state.attempts.added // self.parallel, self.parallel)
        epsilons = self.explore.epsilon(state.explore_steps), self.execute.epsilon(state.execute_steps)
        new = self._play(self.params(state), collector, tasks, lived, epsilons, k_play, noisy=True)
        return collector.compute(self._learn, state, new, *k_learn, static=(problems(collector.env),), spend=True)

    def trial(self, params: Params, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """What the agent does on tasks it has never seen: greedy exploration, then greedy execution."""
        everywhere = jnp.full(jax.tree.leaves(tasks)[0].shape[0], self.context.explores)
        played = self._play(params, collector, tasks, everywhere, (0.0, 0.0), key).swapped()
        return Trial.of(played.explore, played.execute, names=("exploration", "execution"))

    # ---------------------------------------------------------------------------------------------- acting

    def _play(
        self,
        params: Params,
        collector: Collector,
        tasks: Task,
        lived: Bool[Array, "B"],
        epsilons: tuple[Array | float, Array | float],
        key: PRNGKeyArray,
        noisy: bool = False,
    ) -> Attempt:
        """Explore, form the context, execute."""
        env, batch = problems(collector.env), lived.shape[0]
        problem, instruction = env.problem(tasks), env.instruction(tasks)
        k_goal, k_explore, k_noise, k_execute = jax.random.split(key, 4)
        # An exploration episode has a goal of its own: unseen, unrewarded, but reaching it ends the episode.
        hidden = jax.vmap(env.otherwise)(tasks, jax.random.split(k_goal, batch))
        epsilon = epsilons[0] if self.exploration == "learned" else 1.0
        memory = params.explore.lstm.initial((batch,))
        explore = collector.episodes(explore_act, (params.explore, epsilon), memory, hidden, k_explore).episodes

        nets, noise = params.execute, k_noise if noisy else None
        lesson = self._lesson(problem, explore)
        context = collector.compute(self.context.infer, nets.source, lesson, lived, noise, static=(env,))
        carry = self.execution.initial(nets.policy, batch), instruction, context
        act = executing(self.execution, env)
        execute = collector.episodes(act, (nets.policy, epsilons[1]), carry, tasks, k_execute).episodes
        return Attempt(problem, instruction, explore, execute).swapped()

    def _lesson(self, problem: Int[Array, "B"], explore: Transition) -> Lesson:
        """What a context may be made of; no step counts if nobody explores."""
        valid = valid_steps(explore.last)
        nobody = self.exploration == "none" or not self.context.explores
        return Lesson(problem, explore, jnp.zeros_like(valid) if nobody else valid)

    # -------------------------------------------------------------------------------------------- learning

    def _learn(
        self, env: Problems, state: State, new: Attempt, k_explore: PRNGKeyArray, k_execute: PRNGKeyArray
    ) -> tuple[State, Metrics]:
        """Store new trials, and make the updates that their steps are due."""
        lived = self.context.lived(state.attempts.added // self.parallel, self.parallel)
        attempts, played = replay.add(state.attempts, new), new.swapped()
        explored = jnp.sum(self._lesson(played.problem, played.explore).valid, axis=0)
        executed, returns = episode_lengths(played.execute.last), episode_returns(played.execute)
        explore_steps = state.explore_steps + jnp.sum(explored)
        execute_steps = state.execute_steps + jnp.sum(executed)

        def update_explore(learner: DDQNLearner, key: PRNGKeyArray) -> tuple[DDQNLearner, dict[str, Array]]:
            batch = replay.sample(attempts, key, self.explore.batch).swapped()
            source = state.execute.weights.source
            return self.explore.update(learner, lambda w: self._explore_loss(env, w, learner.target, source, batch))

        def update_execute(learner: DDQNLearner, key: PRNGKeyArray) -> tuple[DDQNLearner, dict[str, Array]]:
            k_batch, k_noise = jax.random.split(key)
            batch = self._execute_batch(attempts, k_batch).swapped()
            kind = self.context.lived(state.attempts.added // self.parallel, self.execute.batch)
            return self.execute.update(
                learner, lambda w: self._execute_loss(env, w, learner.target, batch, kind, k_noise)
            )

        due_explore = self.explore.updates_due(state.explore_steps, explore_steps, attempts.added)
        due_explore = due_explore if self.exploration == "learned" and self.context.explores else jnp.int32(0)
        due_execute = self.execute.updates_due(state.execute_steps, execute_steps, attempts.added)
        explore, told_explore = repeat_updates(update_explore, state.explore, due_explore, k_explore)
        execute, told_execute = repeat_updates(update_execute, state.execute, due_execute, k_execute)

        metrics = {
            "train/episode_return": Average.of(returns),
            "train/return_by_encoder": Average.over(returns, ~lived),
            "train/return_by_decoder": Average.over(returns, lived),
            "train/exploration_length": Average.of(explored),
            "train/execution_length": Average.of(executed),
            "explore/epsilon": Average.of(self.explore.epsilon(state.explore_steps)),
            "execute/epsilon": Average.of(self.execute.epsilon(state.execute_steps)),
            **{f"explore/{name}": value for name, value in told_explore.items()},
            **{f"execute/{name}": value for name, value in told_execute.items()},
        }
        return State(explore, execute, attempts, explore_steps, execute_steps), metrics

    def _explore_loss(
        self, env: Problems, weights: ExplorePolicy, target: ExplorePolicy, source: Any, batch: Attempt
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Recurrent DDQN on whole exploration episodes, rewarded by what the source of contexts gains by each step."""
        episodes, valid = batch.explore, valid_steps(batch.explore.last)
        distances = self.context.distances(env, source, Lesson(batch.problem, episodes, valid))
        reward = information_gain(distances, valid, self.penalty)

        observations, actions = all_observations(episodes), previous_actions(episodes.action)
        known, valued = distinct(env), episode_lengths(episodes.last) + 1
        online = weights.unroll(observations, actions, known, valued)
        slow = target.unroll(observations, actions, known, valued)
        goal = double_q_target(reward, self.explore.discount * episodes.discount, online[1:], slow[1:])
        loss = td_loss(online[:-1], episodes.action, goal, valid)
        return loss, {"td_loss": loss, "episode_reward": jnp.mean(jnp.sum(reward, axis=0))}

    def _execute_loss(
        self,
        env: Problems,
        weights: ExecuteNets,
        target: ExecuteNets,
        batch: Attempt,
        lived: Bool[Array, "B"],
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """What the execution agent and the source of contexts have to learn, added up."""
        lesson = self._lesson(batch.problem, batch.explore)
        contexts = self.context.learn(env, weights.source, target.source, lesson, lived, key)
        discount = self.execute.discount
        losses = self.execution.losses(env, weights.policy, target.policy, batch, contexts, discount)
        losses = {**losses, **contexts.losses}
        return sum(losses.values(), jnp.float32(0)), losses

    def _execute_batch(self, attempts: replay.Ring, key: PRNGKeyArray) -> Attempt:
        """Whole episodes, or single steps as episodes of T = 1."""
        if self.execution.whole:
            return replay.sample(attempts, key, self.execute.batch)
        lengths = episode_lengths(jnp.swapaxes(attempts.items.execute.last, 0, 1))
        stored = jnp.arange(self.capacity) < replay.size(attempts)
        slots, times = replay.sample_steps(jnp.where(stored, lengths, 0), key, self.execute.batch)
        batch = replay.take(attempts, slots)
        rows = jnp.arange(self.execute.batch)
        return batch._replace(execute=jax.tree.map(lambda x: x[rows, times][:, None], batch.execute))


# -------------------------------------------------------------------------------------------------- helpers


def explore_act(
    params: tuple[ExplorePolicy, Any], memory: LSTMState, timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, LSTMState, tuple[()]]:
    """ε-greedy exploration: sees observation and previous action only."""
    policy, epsilon = params
    values, memory = policy.step(memory, timestep.obs, timestep.prev_action)
    return greedy_or_random(values, epsilon, key), memory, ()


@cache
def executing(execution: Execution, env: Problems) -> Act:
    """ε-greedy execution, given the instruction and the context in the carry; the same function for the same two."""

    def act(
        params: tuple[Any, Any], carry: tuple[Any, Array, Array], timestep: TimeStep, key: PRNGKeyArray
    ) -> tuple[Array, tuple[Any, Array, Array], tuple[()]]:
        policy, epsilon = params
        memory, instruction, context = carry
        values, memory = execution.act(env, policy, memory, timestep.obs, instruction, context)
        return greedy_or_random(values, epsilon, key), (memory, instruction, context), ()

    return act


def _shapes(env: Problems) -> Attempt:
    """Shapes of one trial, to allocate room for."""
    step = replay.transition_shapes(env.spec)
    episode = jax.tree.map(lambda x: jax.ShapeDtypeStruct((env.spec.horizon, *x.shape), x.dtype), step)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    shapes: Any = number, jax.ShapeDtypeStruct(env.instruction_space.shape, jnp.int32), episode, episode
    return Attempt(*shapes)
