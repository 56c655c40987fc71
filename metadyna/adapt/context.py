"""Contexts: what an agent knows of a task, as a vector.

DREAM (Liu et al. 2021) has two sources of the same vector: an encoder that is shown the hidden problem number during
meta-training, and a decoder that reads an exploration episode and must agree with the encoder.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.adapt.decoupled import Contexts, Lesson, distinct
from metadyna.collect.episodes import all_observations, episode_lengths
from metadyna.collect.returns import masked_mean
from metadyna.nets.distinct import Distinct, embed_distinct
from metadyna.nets.layers import MLP, DiscreteEncoder, Embedding
from metadyna.nets.recurrent import LSTM
from metadyna.settings import Settings
from metadyna.types import Problems, Transition, num_actions, sizes


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


# ------------------------------------------------------------------------------------------------------ sources


class EncodedAndDecoded(eqx.Module):
    """Weights of a source that knows a problem by its number and by what was lived: f and g."""

    encoder: ProblemEncoder
    decoder: TrajectoryDecoder


@dataclass(frozen=True)
class EncoderDecoder(Settings):
    """DREAM's source of contexts: f(μ) + ρ n of a problem's number, or g(τᵉ) of its exploration, which must agree.

    Only what is worth its price in a bottleneck is kept of the number; the defaults are the published code's.
    """

    width: Annotated[int, "[1, 4096]"] = 64
    """Size of encoding, decoding and context."""
    decoder_width: Annotated[int, "[1, 4096]"] = 128
    """Units of the decoder's LSTM."""
    encoder_hidden: Annotated[int, "[1, 4096]"] | None = None
    """Hidden units of f (code none, paper 256)."""
    noise: Annotated[float, "[0, 1000]"] = 0.1
    """Standard deviation ρ of the encoding's noise (code 0.1; paper ρ² = 0.1)."""
    bottleneck: Annotated[float, "[0, 1000000]"] | None = 10.0
    """K, the squared norm that an encoding may have for free; None drops both bottleneck and noise."""
    mixture: Literal["trial", "batch"] = "trial"
    """Decoder or encoder context by the parity of the iteration, or of the row within the batch."""
    target: Literal["same", "encoder", "online"] = "same"
    """The target's context: its own of the same kind, its own encoder's (the code), or the online network's."""

    explores = True

    @property
    def rho(self) -> float:
        """The noise that there is."""
        return 0.0 if self.bottleneck is None else self.noise

    def create(self, env: Problems, key: PRNGKeyArray) -> EncodedAndDecoded:
        """Draw f and g."""
        k_encoder, k_decoder = jax.random.split(key)
        observed, actions = sizes(env.spec.observation), num_actions(env.spec)
        return EncodedAndDecoded(
            ProblemEncoder.create(env.num_problems, self.width, k_encoder, hidden=self.encoder_hidden),
            TrajectoryDecoder.create(observed, actions, self.width, k_decoder, self.decoder_width),
        )

    def lived(self, iteration: Int[Array, ""] | int, batch: int) -> Bool[Array, "B"]:
        """Which rows take their context from the decoder: alternate rows, or alternate iterations."""
        if self.mixture == "batch":
            return jnp.arange(batch) % 2 == 0
        return jnp.broadcast_to(jnp.asarray(iteration) % 2 == 0, (batch,))

    def infer(
        self,
        env: Problems,
        weights: EncodedAndDecoded,
        lesson: Lesson,
        lived: Bool[Array, "B"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B width"]:
        """z = g(τᵉ) in the rows that are `lived`, f(μ) + ρ n in the others."""
        encoded = self._noisy(jax.vmap(weights.encoder)(lesson.problem), key)

        def decode() -> Array:
            return final_prefix(weights.decoder.prefixes(lesson.explore, distinct(env)), lesson.valid)

        decoded = jax.lax.cond(jnp.any(lived), decode, lambda: jnp.zeros_like(encoded))
        return jnp.where(lived[:, None], decoded, encoded)

    def learn(
        self,
        env: Problems,
        weights: EncodedAndDecoded,
        target: EncodedAndDecoded,
        lesson: Lesson,
        lived: Bool[Array, "B"],
        key: PRNGKeyArray,
    ) -> Contexts:
        """Contexts, and the losses ‖sg f(μ) − g(τᵉ_:t)‖² and max(‖f(μ)‖², K)."""
        k_online, k_slow = jax.random.split(key)
        encoding = jax.vmap(weights.encoder)(lesson.problem)
        decodings = weights.decoder.prefixes(lesson.explore, distinct(env))
        decoded = final_prefix(decodings, lesson.valid)
        context = jnp.where(lived[:, None], decoded, self._noisy(encoding, k_online))
        if self.target == "online":
            slow = jax.lax.stop_gradient(context)
        else:
            kind = lived if self.target == "same" else jnp.zeros_like(lived)
            slow = self.infer(env, target, lesson, kind, k_slow)
        losses = {"decoder_loss": decoder_loss(encoding, decodings, lesson.valid)}
        if self.bottleneck is not None:
            losses["bottleneck_loss"] = bottleneck_loss(encoding, self.bottleneck)
        return Contexts(context, slow, losses)

    def distances(self, env: Problems, weights: EncodedAndDecoded, lesson: Lesson) -> Float[Array, "T1 B"]:
        """d_t = ‖f(μ) − g(τᵉ_:t)‖²."""
        prefixes = weights.decoder.prefixes(lesson.explore, distinct(env))
        return distances(jax.vmap(weights.encoder)(lesson.problem), prefixes)

    def _noisy(self, encoding: Float[Array, "B width"], key: PRNGKeyArray | None) -> Float[Array, "B width"]:
        return encoding if key is None else encoding + self.rho * jax.random.normal(key, encoding.shape)


@dataclass(frozen=True)
class Told(Settings):
    """An upper bound: the relevant part of the problem's number, encoded, at test time too."""

    width: Annotated[int, "[1, 4096]"] = 64
    """Size of the encoding."""
    encoder_hidden: Annotated[int, "[1, 4096]"] | None = None
    """Hidden units of the encoder."""
    noise: Annotated[float, "[0, 1000]"] = 0.1
    """Standard deviation of the encoding's noise while learning."""
    bottleneck: Annotated[float, "[0, 1000000]"] | None = 10.0
    """The squared norm that an encoding may have for free; None drops both bottleneck and noise."""

    explores = False

    def create(self, env: Problems, key: PRNGKeyArray) -> ProblemEncoder:
        """Draw the encoder."""
        return ProblemEncoder.create(env.num_relevant, self.width, key, hidden=self.encoder_hidden)

    def lived(self, iteration: Int[Array, ""] | int, batch: int) -> Bool[Array, "B"]:
        """None: exploration tells nothing."""
        return jnp.zeros(batch, bool)

    def infer(
        self, env: Problems, weights: ProblemEncoder, lesson: Lesson, lived: Bool[Array, "B"], key: PRNGKeyArray | None
    ) -> Float[Array, "B width"]:
        """The encodings."""
        encoded = jax.vmap(weights)(env.relevant(lesson.problem))
        if key is None or self.bottleneck is None:
            return encoded
        return encoded + self.noise * jax.random.normal(key, encoded.shape)

    def learn(
        self,
        env: Problems,
        weights: ProblemEncoder,
        target: ProblemEncoder,
        lesson: Lesson,
        lived: Bool[Array, "B"],
        key: PRNGKeyArray,
    ) -> Contexts:
        """The encodings and their price."""
        k_online, k_slow = jax.random.split(key)
        online = self.infer(env, weights, lesson, lived, k_online)
        slow = self.infer(env, target, lesson, lived, k_slow)
        if self.bottleneck is None:
            return Contexts(online, slow, {})
        encoding = jax.vmap(weights)(env.relevant(lesson.problem))
        return Contexts(online, slow, {"bottleneck_loss": bottleneck_loss(encoding, self.bottleneck)})

    def distances(self, env: Problems, weights: ProblemEncoder, lesson: Lesson) -> Float[Array, "T1 B"]:
        """Nothing is left to know."""
        return jnp.zeros((lesson.valid.shape[0] + 1, lesson.valid.shape[1]))
