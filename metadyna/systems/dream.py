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

Names: μ `problem`, i `instruction`, z `context`, f `encoder`, g `decoder`, ρ `noise`, c `penalty`, K `bottleneck`.

Differences from the published code, each on purpose: the dueling mean is taken per state, not over the batch; targets
start as copies of the weights; target networks run from zero memory over the whole episode, not from stored states;
updates use finished trials only, so those due during an execution episode run right after it; ε is held during an
iteration and warm-up counts episodes for either policy; gradients of the
exploration reward are not mixed into the exploration network's clipped norm; the target's context is of the same kind
as the online one (`target_context="encoder"` gives the code's behaviour).
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.adapt.context import (
    ProblemEncoder,
    TrajectoryDecoder,
    bottleneck_loss,
    decoder_loss,
    distances,
    final_prefix,
    information_gain,
)
from metadyna.collect import replay
from metadyna.collect.episodes import all_observations, episode_lengths, episode_returns, previous_actions, valid_steps
from metadyna.errors import UserError
from metadyna.improve.ddqn import DDQN, Learner, double_q_target, td_loss
from metadyna.improve.repeat import repeat_updates
from metadyna.nets.distinct import Distinct
from metadyna.nets.recurrent import LSTMState
from metadyna.policies.action_values import ExplorePolicy, FeedForwardPolicy, RecurrentPolicy, greedy_or_random
from metadyna.settings import Settings
from metadyna.types import Average, Collector, EnvSpec, Metrics, TimeStep, Transition, sizes


class Trial(NamedTuple):
    """An exploration episode and the execution episode that it served; arrays are [B, ...], episodes [B, T, ...]."""

    problem: Int[Array, "B"]
    instruction: Int[Array, "B components"]
    explore: Transition
    execute: Transition


class State(NamedTuple):
    """Everything that training needs to go on."""

    explore: Learner
    execute: Learner
    trials: replay.Ring
    explore_steps: Int[Array, ""]
    execute_steps: Int[Array, ""]


class Params(NamedTuple):
    """What acting needs: the exploration policy, and the execution policy with encoder and decoder."""

    explore: ExplorePolicy
    execute: "ExecuteNets"


@dataclass(frozen=True)
class DREAM(Settings):
    """DREAM: explore to recover what execution needs of a problem (Liu et al. 2021, arXiv 2008.02790).

    The defaults are the published code's.
    """

    memory: bool = True
    """Recurrent execution policy (REC), else feed-forward (FF)."""
    execute_batch: Literal["episodes", "steps"] = "episodes"
    """Execution learns from whole episodes, or from single steps (published for FF; REC needs episodes)."""
    exploration: Literal["learned", "random", "none"] = "learned"
    """Who explores: the learned policy, uniformly random actions, or nobody (execution sees an empty episode)."""
    oracle: bool = False
    """Upper bound: the execution policy is told the relevant part of the problem number, at test time too."""
    noise: Annotated[float, "[0, 1000]"] = 0.1
    """Standard deviation ρ of the encoding's noise (code 0.1; paper ρ² = 0.1)."""
    bottleneck: Annotated[float, "[0, 1000000]"] | None = 10.0
    """K, the squared norm that an encoding may have for free; None drops both bottleneck and noise."""
    penalty: Annotated[float, "[-1000, 1000]"] = 0.1
    """Cost c per exploration step (code 0.1, paper 0.01)."""
    context_width: Annotated[int, "[1, 4096]"] = 64
    """Size of encoding, decoding and context."""
    decoder_width: Annotated[int, "[1, 4096]"] = 128
    """Units of the decoder's LSTM."""
    encoder_hidden: Annotated[int, "[1, 4096]"] | None = None
    """Hidden units of f (code none, paper 256)."""
    mixture: Literal["trial", "batch"] = "trial"
    """Decoder or encoder context by the parity of the iteration, or of the row within the batch."""
    target_context: Literal["same", "encoder", "online"] = "same"
    """The target's context: its own of the same kind, its own encoder's (the code), or the online network's."""
    parallel: Annotated[int, "[1, 65536]"] = 1
    """Trials per iteration."""
    capacity: Annotated[int, "[1, 2000000000]"] = 16_000
    """Trials kept for replay."""
    explore: DDQN = DDQN(warmup=8_000)
    """Schedule of the exploration policy."""
    execute: DDQN = DDQN(warmup=500)
    """Schedule of the execution policy, encoder and decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory and self.execute_batch == "steps":
            raise UserError("DREAM.execute_batch = steps needs memory = False; a recurrent policy needs episodes")
        if self.parallel > self.capacity:
            raise UserError(f"DREAM.parallel = {self.parallel} exceeds DREAM.capacity = {self.capacity}")

    @property
    def episode_names(self) -> tuple[str, ...]:
        """What the episodes of `trial` are for."""
        return "exploration", "execution"

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the weights and allocate the replay."""
        k_explore, k_execute = jax.random.split(key)
        spec = collector.env.spec
        explore = ExplorePolicy.create(spec, k_explore)
        problems = collector.env.num_relevant if self.oracle else spec.num_problems
        execute = ExecuteNets.create(spec, problems, self, k_execute)
        now, epsilons = jnp.int32(0), (jnp.float32(1), jnp.float32(1))
        trial = jax.eval_shape(partial(self._practise, collector), Params(explore, execute), now, epsilons, key)
        one_trial = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), trial)
        zero = jnp.int32(0)
        return State(
            self.explore.init(explore),
            self.execute.init(execute),
            replay.init(one_trial, self.capacity),
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
        k_trial, k_explore, k_execute = jax.random.split(key, 3)
        epsilons = (self.explore.epsilon(state.explore_steps), self.execute.epsilon(state.execute_steps))
        iteration = state.trials.added // self.parallel
        new = self._practise(collector, self.params(state), iteration, epsilons, k_trial)
        trials = replay.add(state.trials, new)

        explored, executed = self._lengths(new)
        explore_steps = state.explore_steps + jnp.sum(explored)
        execute_steps = state.execute_steps + jnp.sum(executed)
        distinct = Distinct.create(collector.env.observations, sizes(collector.env.spec.observation))

        def update_explore(learner: Learner, key: PRNGKeyArray) -> tuple[Learner, dict[str, Array]]:
            batch = replay.sample(trials, key, self.explore.batch)
            loss = partial(
                self._explore_loss,
                target=learner.target,
                execute=state.execute.weights,
                batch=batch,
                distinct=distinct,
            )
            return self.explore.descend(learner, loss)

        def update_execute(learner: Learner, key: PRNGKeyArray) -> tuple[Learner, dict[str, Array]]:
            k_batch, k_noise = jax.random.split(key)
            loss = partial(
                self._execute_loss,
                target=learner.target,
                batch=self._execute_batch(trials, k_batch),
                by_decoder=self._by_decoder(iteration, self.execute.batch),
                distinct=distinct,
                key=k_noise,
            )
            return self.execute.descend(learner, loss)

        due_explore = self.explore.updates_due(state.explore_steps, explore_steps, trials.added)
        due_explore = due_explore if self.exploration == "learned" and not self.oracle else jnp.int32(0)
        due_execute = self.execute.updates_due(state.execute_steps, execute_steps, trials.added)
        explore, explore_metrics = repeat_updates(update_explore, state.explore, due_explore, k_explore)
        execute, execute_metrics = repeat_updates(update_execute, state.execute, due_execute, k_execute)

        metrics = {
            **self._returns(new, self._by_decoder(iteration, self.parallel)),
            "train/exploration_length": Average.of(explored),
            "train/execution_length": Average.of(executed),
            "explore/epsilon": Average.of(epsilons[0]),
            "execute/epsilon": Average.of(epsilons[1]),
            **{f"explore/{name}": value for name, value in explore_metrics.items()},
            **{f"execute/{name}": value for name, value in execute_metrics.items()},
        }
        state = State(explore, execute, trials, explore_steps, execute_steps)
        return state, metrics

    def trial(self, params: Params, collector: Collector, tasks: Any, key: PRNGKeyArray) -> tuple[Transition, ...]:
        """What the agent does on tasks it has never seen: the greedy episodes [T, B] of a trial, in order."""
        by_decoder = jnp.full(tasks.problem.shape, not self.oracle)
        trial = self._play(params, collector, tasks, by_decoder, (0.0, 0.0), 0.0, key)
        return time_major(trial.explore), time_major(trial.execute)

    # ---------------------------------------------------------------------------------------------- acting

    @partial(jax.jit, static_argnums=(0, 1))  # traced once: for the shapes of the replay, and to be run
    def _practise(
        self,
        collector: Collector,
        params: Params,
        iteration: Int[Array, ""],
        epsilons: tuple[Any, Any],
        key: PRNGKeyArray,
    ) -> Trial:
        """Trials on training tasks."""
        k_tasks, k_play = jax.random.split(key)
        tasks = jax.vmap(collector.tasks.sample)(jax.random.split(k_tasks, self.parallel))
        by_decoder = self._by_decoder(iteration, self.parallel)
        return self._play(params, collector, tasks, by_decoder, epsilons, self._rho, k_play)

    def _play(
        self,
        params: Params,
        collector: Collector,
        tasks: Any,
        by_decoder: Bool[Array, "B"],
        epsilons: tuple[Any, Any],
        noise: float,
        key: PRNGKeyArray,
    ) -> Trial:
        """Explore, form the context, execute."""
        batch = tasks.problem.shape[0]
        problem = collector.env.relevant(tasks.problem) if self.oracle else tasks.problem
        k_goal, k_explore, k_noise, k_execute = jax.random.split(key, 4)
        # An exploration episode has a goal of its own: unseen, unrewarded, but reaching it ends the episode.
        hidden = jax.vmap(collector.tasks.hidden_goal)(tasks, jax.random.split(k_goal, batch))
        epsilon = epsilons[0] if self.exploration == "learned" else 1.0
        memory = params.explore.lstm.initial((batch,))
        explore = collector.episodes(explore_act, (params.explore, epsilon), memory, hidden, k_explore)

        distinct = Distinct.create(collector.env.observations, sizes(collector.env.spec.observation))
        context = self._context(params.execute, problem, explore, by_decoder, noise, distinct, k_noise)
        policy = params.execute.policy
        carry = (policy.initial((batch,)), tasks.goal, context)
        execute = collector.episodes(execute_act, (policy, epsilons[1]), carry, tasks, k_execute)
        return Trial(problem, tasks.goal, batch_major(explore), batch_major(execute))

    def _context(
        self,
        nets: "ExecuteNets",
        problem: Int[Array, "B"],
        explore: Transition,
        by_decoder: Bool[Array, "B"],
        noise: float,
        distinct: Distinct,
        key: PRNGKeyArray,
    ) -> Float[Array, "B width"]:
        """z = g(τᵉ) in the rows `by_decoder`, f(μ) + ρ n in the others."""
        encoded = _noisy(jax.vmap(nets.encoder)(problem), noise, key)

        def decode() -> Array:
            return final_prefix(nets.decoder.prefixes(explore, distinct), self._explored(explore))

        decoded = jax.lax.cond(jnp.any(by_decoder), decode, lambda: jnp.zeros_like(encoded))
        return jnp.where(by_decoder[:, None], decoded, encoded)

    def _by_decoder(self, iteration: Int[Array, ""] | int, batch: int) -> Bool[Array, "B"]:
        """Which rows take their context from the decoder: alternate iterations, or alternate rows."""
        if self.oracle:
            return jnp.zeros(batch, bool)
        if self.mixture == "batch":
            return jnp.arange(batch) % 2 == 0
        return jnp.broadcast_to(jnp.asarray(iteration) % 2 == 0, (batch,))

    def _explored(self, explore: Transition) -> Bool[Array, "T B"]:
        """The exploration steps that count; none if nobody explores."""
        valid = valid_steps(explore.last)
        return jnp.zeros_like(valid) if self.exploration == "none" or self.oracle else valid

    def _returns(self, trials: Trial, by_decoder: Bool[Array, "B"]) -> Metrics:
        """Returns while practising: of all trials, and apart by where the context came from."""
        returns = episode_returns(time_major(trials.execute))
        return {
            "train/episode_return": Average.of(returns),
            "train/return_by_encoder": Average.over(returns, ~by_decoder),
            "train/return_by_decoder": Average.over(returns, by_decoder),
        }

    def _lengths(self, trials: Trial) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
        explored = jnp.sum(self._explored(time_major(trials.explore)), axis=0)
        return explored, episode_lengths(time_major(trials.execute).last)

    @property
    def _rho(self) -> float:
        return 0.0 if self.bottleneck is None else self.noise

    # -------------------------------------------------------------------------------------------- learning

    def _explore_loss(
        self,
        weights: ExplorePolicy,
        target: ExplorePolicy,
        execute: "ExecuteNets",
        batch: Trial,
        distinct: Distinct,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Recurrent DDQN on whole exploration episodes, rewarded by the current encoder and decoder."""
        episodes = time_major(batch.explore)
        valid = valid_steps(episodes.last)
        distance = distances(jax.vmap(execute.encoder)(batch.problem), execute.decoder.prefixes(episodes, distinct))
        reward = information_gain(distance, valid, self.penalty)

        observations, actions = all_observations(episodes), previous_actions(episodes.action)
        valued = episode_lengths(episodes.last) + 1
        online = weights.unroll(observations, actions, distinct, valued)
        slow = target.unroll(observations, actions, distinct, valued)
        goal = double_q_target(reward, self.explore.discount * episodes.discount, online[1:], slow[1:])
        loss = td_loss(online[:-1], episodes.action, goal, valid)
        return loss, {"td_loss": loss, "episode_reward": jnp.mean(jnp.sum(reward, axis=0))}

    def _execute_batch(self, trials: replay.Ring, key: PRNGKeyArray) -> Trial:
        """Whole episodes, or single steps as episodes of T = 1."""
        if self.execute_batch == "episodes":
            return replay.sample(trials, key, self.execute.batch)
        lengths = episode_lengths(time_major(trials.items.execute).last)
        stored = jnp.arange(self.capacity) < trials.added
        slots, times = replay.sample_steps(jnp.where(stored, lengths, 0), key, self.execute.batch)
        batch = replay.take(trials, slots)
        rows = jnp.arange(self.execute.batch)
        return batch._replace(execute=jax.tree.map(lambda x: x[rows, times][:, None], batch.execute))

    def _execute_loss(
        self,
        weights: "ExecuteNets",
        target: "ExecuteNets",
        batch: Trial,
        by_decoder: Bool[Array, "B"],
        distinct: Distinct,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """DDQN given the context, the decoder's regression on the encoder, and the bottleneck."""
        k_online, k_target = jax.random.split(key)
        explore, execute = time_major(batch.explore), time_major(batch.execute)
        encoding = jax.vmap(weights.encoder)(batch.problem)
        decodings = weights.decoder.prefixes(explore, distinct)
        decoded = final_prefix(decodings, self._explored(explore))
        context = jnp.where(by_decoder[:, None], decoded, _noisy(encoding, self._rho, k_online))
        if self.target_context == "online":
            slow_context = jax.lax.stop_gradient(context)
        else:
            kind = by_decoder if self.target_context == "same" else jnp.zeros_like(by_decoder)
            slow_context = self._context(target, batch.problem, explore, kind, self._rho, distinct, k_target)

        observations = all_observations(execute)
        valued = episode_lengths(execute.last) + 1
        online = weights.policy.unroll(observations, batch.instruction, context, distinct, valued)
        slow = target.policy.unroll(observations, batch.instruction, slow_context, distinct, valued)
        goal = double_q_target(execute.reward, self.execute.discount * execute.discount, online[1:], slow[1:])
        losses = {"td_loss": td_loss(online[:-1], execute.action, goal, valid_steps(execute.last))}
        if not self.oracle:
            losses["decoder_loss"] = decoder_loss(encoding, decodings, self._explored(explore))
        if self.bottleneck is not None:
            losses["bottleneck_loss"] = bottleneck_loss(encoding, self.bottleneck)
        return sum(losses.values(), jnp.float32(0)), losses


# ------------------------------------------------------------------------------------------------- networks


class ExecuteNets(eqx.Module):
    """Everything that the execution agent's optimiser moves."""

    policy: RecurrentPolicy | FeedForwardPolicy
    encoder: ProblemEncoder
    decoder: TrajectoryDecoder

    @staticmethod
    def create(spec: EnvSpec, problems: int, settings: DREAM, key: PRNGKeyArray) -> "ExecuteNets":
        """Draw policy, encoder f and decoder g."""
        k_policy, k_encoder, k_decoder = jax.random.split(key, 3)
        width = settings.context_width
        policy = RecurrentPolicy if settings.memory else FeedForwardPolicy
        return ExecuteNets(
            policy.create(spec, width, k_policy),
            ProblemEncoder.create(problems, width, k_encoder, hidden=settings.encoder_hidden),
            TrajectoryDecoder.create(
                sizes(spec.observation), sizes(spec.action)[0], width, k_decoder, settings.decoder_width
            ),
        )


# -------------------------------------------------------------------------------------------------- helpers


def explore_act(
    params: tuple[ExplorePolicy, Any], memory: LSTMState, timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, LSTMState, tuple[()]]:
    """ε-greedy exploration: sees observation and previous action only."""
    policy, epsilon = params
    values, memory = policy.step(memory, timestep.obs, timestep.prev_action)
    return greedy_or_random(values, epsilon, key), memory, ()


def execute_act(
    params: tuple[Any, Any], carry: tuple[Any, Array, Array], timestep: TimeStep, key: PRNGKeyArray
) -> tuple[Array, tuple[Any, Array, Array], tuple[()]]:
    """ε-greedy execution, given the instruction and the context."""
    policy, epsilon = params
    memory, instruction, context = carry
    values, memory = policy.step(memory, timestep.obs, instruction, context)
    return greedy_or_random(values, epsilon, key), (memory, instruction, context), ()


def _noisy(encoding: Float[Array, "B width"], scale: float, key: PRNGKeyArray) -> Float[Array, "B width"]:
    return encoding + scale * jax.random.normal(key, encoding.shape)


def batch_major(episodes: Transition) -> Transition:
    """[T, B, ...] to [B, T, ...]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), episodes)


time_major = batch_major
"""[B, T, ...] to [T, B, ...]: the same exchange of axes."""
