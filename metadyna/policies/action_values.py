"""Action-value networks for agents that see discrete observations, an instruction and a context.

Sizes follow the published code of DREAM (Liu et al. 2021). Every policy has `step`, one observation at a time as an
agent acts, and `unroll`, the same values for whole padded episodes at once as a learner needs them. `lengths`, where
given, counts the observations of each episode that are valued; what comes out beyond them means nothing.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.nets.distinct import Distinct, embed_distinct
from metadyna.nets.layers import MLP, DiscreteEncoder, Dueling, Embedding, Linear
from metadyna.nets.recurrent import LSTM, LSTMState
from metadyna.types import Discrete, EnvSpec, sizes


class ExplorePolicy(eqx.Module):
    """Recurrent action values of (observation, previous action)."""

    state: DiscreteEncoder
    action: Embedding
    mix: Linear
    lstm: LSTM
    values: Dueling

    @staticmethod
    def create(spec: EnvSpec, key: PRNGKeyArray) -> "ExplorePolicy":
        """Sizes after the reference implementation."""
        (actions,) = sizes(spec.action)
        k_state, k_action, k_mix, k_lstm, k_values = jax.random.split(key, 5)
        return ExplorePolicy(
            DiscreteEncoder.create(sizes(spec.observation), 64, k_state),
            Embedding.create(actions + 1, 16, k_action),
            Linear.create(64 + 16, 64, k_mix),
            LSTM.create(64, 64, k_lstm),
            Dueling.create(64, actions, k_values),
        )

    def step(
        self, memory: LSTMState, obs: Array, prev_action: Int[Array, ""]
    ) -> tuple[Float[Array, "actions"], LSTMState]:
        """Values of one observation; `prev_action` is -1 at the start of an episode."""
        inputs = jnp.concatenate([self.state(obs), self.action(prev_action + 1)])
        memory = self.lstm.step(memory, self.lstm.project(self.mix(jax.nn.relu(inputs))))
        return self.values(memory[0]), memory

    def unroll(
        self,
        obs: Int[Array, "T1 B components"],
        prev_action: Int[Array, "T1 B"],
        distinct: Distinct,
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "T1 B actions"]:
        """The same values for whole episodes; from the ReLU to the gates all is linear and sums over the inputs."""
        of_state, of_action = self.mix.split((64, 16))
        gates = Linear(self.lstm.project.weight, jnp.zeros_like(self.lstm.project.bias))
        by_state = embed_distinct(lambda x: self.lstm.project(of_state(jax.nn.relu(self.state(x)))), distinct, obs)
        by_action = jax.vmap(lambda x: gates(of_action(jax.nn.relu(x))))(self.action.table)[prev_action + 1]
        return jax.vmap(jax.vmap(self.values))(self.lstm.unroll(by_state + by_action, lengths))


class RecurrentPolicy(eqx.Module):
    """Action values of (history of observations, instruction, context): REC."""

    state: DiscreteEncoder
    instruction: DiscreteEncoder
    mix: Linear
    lstm: LSTM
    trunk: MLP
    values: Dueling

    @staticmethod
    def create(spec: EnvSpec, instruction: Discrete, context: int, key: PRNGKeyArray) -> "RecurrentPolicy":
        """Sizes after the reference implementation."""
        k_state, k_instruction, k_mix, k_lstm, k_trunk, k_values = jax.random.split(key, 6)
        return RecurrentPolicy(
            DiscreteEncoder.create(sizes(spec.observation), 64, k_state),
            DiscreteEncoder.create(instruction.sizes, 64, k_instruction),
            Linear.create(64 + 64, 64, k_mix),
            LSTM.create(64, 64, k_lstm),
            MLP.create((64 + context, 256, 64), k_trunk),
            Dueling.create(64, sizes(spec.action)[0], k_values),
        )

    def initial(self, batch: tuple[int, ...]) -> LSTMState:
        """Empty memory."""
        return self.lstm.initial(batch)

    def step(
        self, memory: LSTMState, obs: Array, instruction: Array, context: Float[Array, "context"]
    ) -> tuple[Float[Array, "actions"], LSTMState]:
        """Values of one observation."""
        inputs = jnp.concatenate([self.state(obs), self.instruction(instruction)])
        memory = self.lstm.step(memory, self.lstm.project(self.mix(jax.nn.relu(inputs))))
        return self.values(self.trunk(jnp.concatenate([memory[0], context]))), memory

    def unroll(
        self,
        obs: Int[Array, "T1 B components"],
        instruction: Int[Array, "B parts"],
        context: Float[Array, "B context"],
        distinct: Distinct,
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "T1 B actions"]:
        """The same values for whole episodes; what an episode holds constant is computed once."""
        of_state, of_instruction = self.mix.split((64, 64))
        gates = Linear(self.lstm.project.weight, jnp.zeros_like(self.lstm.project.bias))
        by_state = embed_distinct(lambda x: self.lstm.project(of_state(jax.nn.relu(self.state(x)))), distinct, obs)
        by_instruction = jax.vmap(lambda x: gates(of_instruction(jax.nn.relu(self.instruction(x)))))(instruction)
        hidden = self.lstm.unroll(by_state + jnp.broadcast_to(by_instruction[None], by_state.shape), lengths)
        of_hidden, of_context = self.trunk.layers[0].split((64, context.shape[-1]))
        by_context = jax.vmap(of_context)(context)
        return head_over_time(self, jax.vmap(jax.vmap(of_hidden))(hidden) + by_context[None])


class FeedForwardPolicy(eqx.Module):
    """Action values of (observation, instruction, context): FF."""

    state: DiscreteEncoder
    instruction: DiscreteEncoder
    trunk: MLP
    values: Dueling

    @staticmethod
    def create(spec: EnvSpec, instruction: Discrete, context: int, key: PRNGKeyArray) -> "FeedForwardPolicy":
        """Sizes after the reference implementation's first release."""
        k_state, k_instruction, k_trunk, k_values = jax.random.split(key, 4)
        return FeedForwardPolicy(
            DiscreteEncoder.create(sizes(spec.observation), 64, k_state),
            DiscreteEncoder.create(instruction.sizes, 64, k_instruction),
            MLP.create((64 + 64 + context, 256, 64), k_trunk),
            Dueling.create(64, sizes(spec.action)[0], k_values),
        )

    def initial(self, batch: tuple[int, ...]) -> tuple[()]:
        """No memory."""
        return ()

    def step(
        self, memory: tuple[()], obs: Array, instruction: Array, context: Float[Array, "context"]
    ) -> tuple[Float[Array, "actions"], tuple[()]]:
        """Values of one observation."""
        return self.values(self.hidden(obs, instruction, context)), memory

    def hidden(self, obs: Array, instruction: Array, context: Float[Array, "context"]) -> Float[Array, "hidden"]:
        """What the values are read from."""
        return self.trunk(jnp.concatenate([self.state(obs), self.instruction(instruction), context]))

    def unroll(
        self,
        obs: Int[Array, "T1 B components"],
        instruction: Int[Array, "B parts"],
        context: Float[Array, "B context"],
        distinct: Distinct,
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "T1 B actions"]:
        """The same values for whole episodes."""
        of_state, of_instruction, of_context = self.trunk.layers[0].split((64, 64, context.shape[-1]))
        by_state = embed_distinct(lambda x: of_state(self.state(x)), distinct, obs)
        by_episode = jax.vmap(lambda i, z: of_instruction(self.instruction(i)) + of_context(z))(instruction, context)
        return head_over_time(self, by_state + by_episode[None])


def head_over_time(
    policy: RecurrentPolicy | FeedForwardPolicy, hidden: Float[Array, "T1 B hidden"]
) -> Float[Array, "T1 B actions"]:
    """The rest of the trunk after its first layer, and the values, for every step."""
    output = policy.trunk.layers[1]
    return jax.vmap(jax.vmap(lambda x: policy.values(output(jax.nn.relu(x)))))(hidden)


def greedy_or_random(
    values: Float[Array, "actions"], epsilon: Float[Array, ""] | float, key: PRNGKeyArray
) -> Int[Array, ""]:
    """Take the best action, or with probability ε a uniformly random one."""
    k_coin, k_action = jax.random.split(key)
    random = jax.random.randint(k_action, (), 0, values.shape[-1])
    return jnp.where(jax.random.uniform(k_coin) < epsilon, random, jnp.argmax(values))
