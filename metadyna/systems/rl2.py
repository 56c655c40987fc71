"""RL²: fast reinforcement learning by slow reinforcement learning (Duan et al. 2016, arXiv 1611.02779).

The learner that adapts is the memory of a recurrent network; PPO finds its weights over many tasks. A trial is n
episodes of one task, and memory is emptied where a trial begins, not where an episode does.

    repeat
        draw tasks; in each, with an empty memory h, live n episodes:
            h ← GRU(h; s_t, a_{t−1}, r_{t−1}, whether an episode begins);  a_t ~ π(· | h)
        advantages by GAE over the whole trial: what is found out in one episode is paid in later ones
        PPO on whole trials, h being run anew from the first step for every update

Differences from the text: PPO in the place of TRPO, as in the launchers of the authors' code; the GRU's gates are those
of PyTorch, without weight normalisation; value network and policy have a GRU each. At test time the most likely action
is taken.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.collect import trials
from metadyna.collect.episodes import episode_returns, swapped
from metadyna.collect.returns import gae
from metadyna.improve.ppo import PPO, OnPolicyBatch, PPOLearner
from metadyna.nets.layers import Linear
from metadyna.policies.recalling import Recall, RecallingPolicy, Seen, perform, practise
from metadyna.settings import Settings, check_ranges
from metadyna.types import Average, Collector, Metrics, Task, Transition, Trial


class Networks(eqx.Module):
    """Actor and critic, moved by one optimiser; the critic has a memory of its own."""

    actor: RecallingPolicy
    recall: Recall
    value: Linear

    def values(self, seen: Seen) -> Float[Array, "T B"]:
        """What is still to be earned in the trial, as the critic estimates it."""
        return jax.vmap(jax.vmap(self.value))(self.recall.over(seen))[..., 0]


class State(NamedTuple):
    """Networks with their optimiser, and steps so far."""

    learner: PPOLearner
    steps: Int[Array, ""]


@dataclass(frozen=True)
class RL2(Settings):
    """RL²: the memory of a recurrent policy learns the task; PPO over whole trials learns the policy (Duan 2016)."""

    ppo: PPO = PPO(learning_rate=1e-3, epochs=4, minibatches=4)
    """The updates; a row is a trial."""
    width: Annotated[int, "[1, 4096]"] = 128
    """Units of either GRU; the paper has 256."""
    log_std: Annotated[float, "[-5, 2]"] = 0.0
    """Log standard deviation of a fresh policy of numbers."""
    trials: Annotated[int, "[1, 1000000]"] = 512
    """Trials per iteration."""
    episodes: Annotated[int, "[1, 10000]"] = 2
    """n, episodes of a trial."""
    discount: Annotated[float, "[0, 1]"] = 0.99
    """γ per step of the trial, over the ends of its episodes."""
    gae_decay: Annotated[float, "[0, 1]"] = 0.95
    """λ of the advantage estimate; the paper has 0.3 for bandits and 0.99 for mazes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, trials=f"[{self.ppo.minibatches}, 1000000]")

    def init(self, collector: Collector, key: PRNGKeyArray) -> State:
        """Draw the networks."""
        k_actor, k_critic, k_value = jax.random.split(key, 3)
        actor = RecallingPolicy.create(collector.env.spec, self.width, k_actor, self.log_std)
        critic = Recall.create(collector.env.spec, self.width, k_critic), Linear.create(self.width, 1, k_value)
        return State(self.ppo.start(Networks(actor, *critic)), jnp.int32(0))

    def params(self, state: State) -> RecallingPolicy:
        """The weights that act."""
        return state.learner.weights.actor

    def steps(self, state: State) -> Int[Array, ""]:
        """Environment steps so far."""
        return state.steps

    def iterate(self, state: State, collector: Collector, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """Live one trial in every task, and learn from all of them."""
        k_tasks, k_live, k_learn = jax.random.split(key, 3)
        tasks = jax.vmap(collector.tasks.sample)(jax.random.split(k_tasks, self.trials))
        actor = self.params(state)
        memory = actor.recall.initial(self.trials)
        lived = trials.live(collector, practise, actor, memory, tasks, self.episodes, k_live).episodes
        return collector.compute(self._learn, state, lived, k_learn, spend=True)

    def trial(self, params: RecallingPolicy, collector: Collector, tasks: Task, key: PRNGKeyArray) -> Trial:
        """n episodes of each task with one memory; all of them count."""
        memory = params.recall.initial(jax.tree.leaves(tasks)[0].shape[0])
        lived = trials.live(collector, perform, params, memory, tasks, self.episodes, key).episodes
        names = tuple(f"episode {i + 1}" for i in range(self.episodes))
        return Trial(jax.tree.map(lambda x: x[:, :, :, None], lived), names, "sum")

    def _learn(self, state: State, lived: Transition, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """PPO on trials [T, N, n]."""
        steps, valid = trials.joined(lived)
        seen, weights = Seen.during(steps), state.learner.weights
        value = jnp.where(valid, weights.values(seen), 0)
        next_value = jnp.concatenate([value[1:], jnp.zeros_like(value[:1])])  # a finite trial is worth nothing after
        reward, onwards = jnp.where(valid, steps.reward, 0), jnp.full(value.shape, self.discount)
        advantage = gae(reward, onwards, jnp.zeros_like(valid), value, next_value, self.gae_decay)
        batch = OnPolicyBatch((seen, valid), steps.action, steps.extras, advantage, advantage + value)

        def loss(weights: Networks, rows: OnPolicyBatch) -> tuple[Array, dict[str, Array]]:
            batch = swapped(rows)  # whole trials [T, n], over which the memories are run
            seen, valid = batch.obs
            return self.ppo.loss(weights.actor.over(seen), weights.values(seen), batch, valid)

        learner, metrics = self.ppo.update(state.learner, swapped(batch), loss, key)
        told = {f"train/{name}": Average.of(value) for name, value in metrics.items()}
        told["train/trial_return"] = Average.of(jnp.sum(episode_returns(lived), axis=-1))
        return State(learner, state.steps + jnp.sum(valid, dtype=jnp.int32)), told
