"""Contexts: what an agent knows of a task, as a vector.

DREAM (Liu et al. 2021) has two sources of the same vector: an encoder that is shown the hidden problem number during
meta-training, and a decoder that reads an exploration episode and must agree with the encoder.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.collect.episodes import all_observations, episode_lengths
from metadyna.collect.returns import masked_mean
from metadyna.nets.distinct import Distinct, embed_distinct
from metadyna.nets.layers import MLP, DiscreteEncoder, Embedding
from metadyna.nets.recurrent import LSTM
from metadyna.types import Transition


class ProblemEncoder(eqx.Module):
    """f(μ): embeds a problem number."""

    table: Embedding
    mlp: MLP

    @staticmethod
    def create(
        problems: int, width: int, key: PRNGKeyArray, entry: int = 32, hidden: int | None = None
    ) -> "ProblemEncoder":
        """Table of width `entry`, then one linear layer, or two with `hidden` units between."""
        k_table, k_mlp = jax.random.split(key)
        widths = (entry, width) if hidden is None else (entry, hidden, width)
        return ProblemEncoder(Embedding.create(problems, entry, k_table), MLP.create(widths, k_mlp))

    def __call__(self, problem: Int[Array, ""]) -> Float[Array, "width"]:
        """Embed one problem, without noise."""
        return self.mlp(self.table(problem))


class TrajectoryDecoder(eqx.Module):
    """g(τ): embeds every prefix of an episode of (observation, action, next observation)."""

    state: DiscreteEncoder
    action: Embedding
    transition: MLP
    lstm: LSTM
    output: MLP

    @staticmethod
    def create(
        sizes: tuple[int, ...], actions: int, width: int, key: PRNGKeyArray, memory: int = 128
    ) -> "TrajectoryDecoder":
        """Sizes after the reference implementation of DREAM; `memory` is the width of the LSTM."""
        k_state, k_action, k_transition, k_lstm, k_output = jax.random.split(key, 5)
        return TrajectoryDecoder(
            DiscreteEncoder.create(sizes, 64, k_state),
            Embedding.create(actions, 32, k_action),
            MLP.create((64 + 64 + 32, 128, 64), k_transition),
            LSTM.create(64, memory, k_lstm),
            MLP.create((memory, 128, width), k_output),
        )

    def prefixes(self, episodes: Transition, distinct: Distinct) -> Float[Array, "T1 B width"]:
        """Embed the prefixes of 0, 1, …, T steps of padded episodes [T, B].

        The empty prefix is the output of the LSTM's zero state: a learned constant.
        """
        hidden_layer, output_layer = self.transition.layers
        before, after, action = hidden_layer.split((64, 64, 32))
        observation = all_observations(episodes)
        # A transition's hidden layer is a sum of three look-ups: each part is mapped once per distinct value.
        from_state = embed_distinct(lambda x: before(self.state(x)), distinct, observation[:-1])
        to_state = embed_distinct(lambda x: after(self.state(x)), distinct, observation[1:])
        by_action = jax.vmap(action)(self.action.table)[episodes.action]
        hidden = jax.nn.relu(from_state + to_state + by_action)
        project = jax.vmap(jax.vmap(lambda x: self.lstm.project(output_layer(x))))
        states = self.lstm.unroll(project(hidden), episode_lengths(episodes.last))
        states = jnp.concatenate([jnp.zeros_like(states[:1]), states])
        return jax.vmap(jax.vmap(self.output))(states)


def final_prefix(prefixes: Float[Array, "T1 B width"], valid: Bool[Array, "T B"]) -> Float[Array, "B width"]:
    """The embedding of each whole episode, of which the `valid` steps count."""
    length = jnp.sum(valid, axis=0)
    return jnp.take_along_axis(prefixes, length[None, :, None], axis=0)[0]


def distances(encoding: Float[Array, "B width"], prefixes: Float[Array, "T1 B width"]) -> Float[Array, "T1 B"]:
    """Squared distance of every prefix's embedding to the problem's: ‖f(μ) − g(τ_:t)‖²."""
    return jnp.sum((encoding[None] - prefixes) ** 2, axis=-1)


def decoder_loss(
    encoding: Float[Array, "B width"], prefixes: Float[Array, "T1 B width"], valid: Bool[Array, "T B"]
) -> Float[Array, ""]:
    """Mean of ‖sg[f(μ)] − g(τ_:t)‖² over all prefixes, the empty one included."""
    valid_prefix = jnp.concatenate([jnp.ones_like(valid[:1]), valid])
    return masked_mean(distances(jax.lax.stop_gradient(encoding), prefixes), valid_prefix)


def bottleneck_loss(encoding: Float[Array, "B width"], free: float) -> Float[Array, ""]:
    """Mean of max(‖f(μ)‖², K): with noise of fixed scale a norm bounds the information.

    The paper prints min; max is what works and what its code runs.
    """
    return jnp.mean(jnp.maximum(jnp.sum(encoding**2, axis=-1), free))


def information_gain(distance: Float[Array, "T1 B"], valid: Bool[Array, "T B"], penalty: float) -> Float[Array, "T B"]:
    """Exploration reward d_{t−1} − d_t − c of every valid step, 0 on padding."""
    return jnp.where(valid, distance[:-1] - distance[1:] - penalty, 0.0)
