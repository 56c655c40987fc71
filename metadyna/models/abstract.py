"""A world model in an abstract space that a Q-function shares: encoder, transition, reward, discount, value.

François-Lavet, Bengio, Precup, Pineau 2019, "Combined Reinforcement Learning via Abstract Representations"
(arXiv 1809.04506); layer sizes as in the authors' code, VinF/deer. Nothing is ever decoded: what keeps the abstract
states apart is that they must predict, and losses that spread them. Two forms: a map, whose sites keep the layout of
the picture, and a short vector, which can be drawn.
"""

import itertools
from dataclasses import dataclass
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metadyna.errors import UserError
from metadyna.nets.convolutions import Conv, ConvNet
from metadyna.nets.layers import MLP, Linear, glorot
from metadyna.nets.pictures import TRUNK_POOLS, Encoder
from metadyna.settings import Settings

SPREAD = 5.0
"""C_d: how fast the pull between two abstract states falls with their distance."""


class SpatialHead(eqx.Module):
    """Numbers from a map: convolutions, then linear layers."""

    convolutions: ConvNet
    dense: MLP

    @staticmethod
    def zeros(shape: tuple[int, int, int], outputs: int) -> "SpatialHead":
        """Build for a map [rows, columns, channels]; see `layers.glorot`."""
        rows, columns, channels = shape
        convolutions = ConvNet.zeros((2, 3, 2, 1), (channels, 16, 32, 16, 4), pools=(1, 2, 1, 1))
        return SpatialHead(convolutions, _dense((rows // 2) * (columns // 2) * 4, 200, 50, 20, outputs))

    def __call__(self, x: Float[Array, "rows columns channels"]) -> Float[Array, "outputs"]:
        """Map one map."""
        return self.dense(self.convolutions(x).reshape(-1))


class Abstract(eqx.Module):
    """Encoder e, change of state τ, reward ρ, discount g and action values Q, all on the abstract state x."""

    encoder: Encoder
    change: ConvNet | MLP
    reward: SpatialHead | MLP
    discount: SpatialHead | MLP
    value: SpatialHead | MLP
    actions: int = eqx.field(static=True)

    def next(self, x: Float[Array, "*abstract"], action: Int[Array, ""]) -> Float[Array, "*abstract"]:
        """x + τ(x, a)."""
        return x + self.change(with_action(x, action, self.actions))

    def pays(self, x: Float[Array, "*abstract"], action: Int[Array, ""]) -> Float[Array, ""]:
        """ρ(x, a)."""
        return self.reward(with_action(x, action, self.actions))[0]

    def goes_on(self, x: Float[Array, "*abstract"], action: Int[Array, ""]) -> Float[Array, ""]:
        """g(x, a): γ, or 0 where the MDP ends; a plain regression, not confined to [0, γ]."""
        return self.discount(with_action(x, action, self.actions))[0]

    def step(
        self, x: Float[Array, "*abstract"], action: Int[Array, ""]
    ) -> tuple[Float[Array, "*abstract"], Float[Array, ""], Float[Array, ""]]:
        """Imagine one action: next abstract state, reward, discount."""
        return self.next(x, action), self.pays(x, action), self.goes_on(x, action)


def with_action(x: Float[Array, "*abstract"], action: Int[Array, ""], actions: int) -> Float[Array, "*joined"]:
    """The action as one-hot channels, the same at every site, before those of the state."""
    chosen = jnp.broadcast_to(jax.nn.one_hot(action, actions), (*x.shape[:-1], actions))
    return jnp.concatenate([chosen, x], axis=-1)


@dataclass(frozen=True)
class Spatial(Settings):
    """An abstract state with one site per 6 × 6 pixels: a map that convolutions predict."""

    channels: Annotated[int, "[1, 1024]"] = 3
    """Numbers per site."""

    def create(self, picture: tuple[int, ...], actions: int, key: PRNGKeyArray) -> Abstract:
        """Draw the networks for pictures [height, width], multiples of 12."""
        height, width = _sides(picture, 12, "a map")  # 6 pixels per site, and the heads halve the map
        shape = (height // 6, width // 6, self.channels)
        channels = (actions + self.channels, 16, 32, 64, 32, 16, self.channels)
        model = Abstract(
            Encoder(_trunk(), Conv.zeros(1, 32, self.channels)),
            ConvNet.zeros((1, 2, 3, 2, 1, 1), channels, linear_end=True),
            self.judge(shape, actions, 1),
            self.judge(shape, actions, 1),
            SpatialHead.zeros(shape, actions),
            actions,
        )
        return glorot(model, key)

    def judge(self, shape: tuple[int, ...], actions: int, outputs: int) -> SpatialHead:
        """A network from an abstract state of some shape and an action to a few numbers, not drawn yet."""
        rows, columns, channels = shape
        return SpatialHead.zeros((rows, columns, channels + actions), outputs)


@dataclass(frozen=True)
class Vector(Settings):
    """An abstract state of a few numbers."""

    width: Annotated[int, "[1, 4096]"] = 2
    """How many."""

    def create(self, picture: tuple[int, ...], actions: int, key: PRNGKeyArray) -> Abstract:
        """Draw the networks for pictures [height, width], multiples of 6."""
        height, width = _sides(picture, 6, "a vector")
        model = Abstract(
            Encoder(_trunk(), _dense((height // 6) * (width // 6) * 32, 200, 100, 50, 10, self.width)),
            _dense(actions + self.width, 10, 30, 30, 10, self.width),
            self.judge((self.width,), actions, 1),
            self.judge((self.width,), actions, 1),
            _dense(self.width, 20, 50, 20, actions),
            actions,
        )
        return glorot(model, key)

    def judge(self, shape: tuple[int, ...], actions: int, outputs: int) -> MLP:
        """A network from an abstract state of some shape and an action to a few numbers, not drawn yet."""
        return _dense(shape[0] + actions, 10, 50, 20, outputs)


def _dense(*widths: int) -> MLP:
    return MLP(tuple(Linear.zeros(*each) for each in itertools.pairwise(widths)), jnp.tanh)


def _trunk() -> ConvNet:
    return ConvNet.zeros((2, 2, 3), (1, 8, 16, 32), pools=TRUNK_POOLS)


def _sides(picture: tuple[int, ...], unit: int, what: str) -> tuple[int, int]:
    """Height and width of a picture that can be encoded."""
    if len(picture) != 2 or any(side % unit or side < unit for side in picture):
        shown = " × ".join(map(str, picture))
        raise UserError(f"{what} is made of pictures [height, width] that are multiples of {unit}, not of {shown}")
    return picture[0], picture[1]


# ------------------------------------------------------------------------------------------------------ losses
# Arrays are batched [B, ...]; `x` and `next_x` are the encodings of a transition's two observations.


def transition_loss(
    model: Abstract,
    x: Float[Array, "B *abstract"],
    action: Int[Array, "B"],
    next_x: Float[Array, "B *abstract"],
    alive: Float[Array, "B"],
) -> Float[Array, ""]:
    """Mean squared error of x + τ(x, a), eq. 1; where the MDP ended there is nothing to predict."""
    error = (jax.vmap(model.next)(x, action) - next_x).reshape(x.shape[0], -1)
    return jnp.mean(alive[:, None] * error**2)


def reward_loss(
    model: Abstract, x: Float[Array, "B *abstract"], action: Int[Array, "B"], reward: Float[Array, "B"]
) -> Float[Array, ""]:
    """Mean squared error of ρ, eq. 1."""
    return jnp.mean((jax.vmap(model.pays)(x, action) - reward) ** 2)


def discount_loss(
    model: Abstract, x: Float[Array, "B *abstract"], action: Int[Array, "B"], discount: Float[Array, "B"]
) -> Float[Array, ""]:
    """Mean squared error of g, eq. 1; `discount` is γ, or 0 where the MDP ended."""
    return jnp.mean((jax.vmap(model.goes_on)(x, action) - discount) ** 2)


def range_loss(x: Float[Array, "B *abstract"]) -> Float[Array, ""]:
    """Keep every site within [-1, 1]: the excess of its largest squared channel over 1, eq. 3."""
    return jnp.mean(jnp.clip(jnp.max(x**2, axis=-1) - 1, 0, 100))


def spread_loss(
    x: Float[Array, "B *abstract"], other: Float[Array, "B *abstract"], counted: Float[Array, "B"] | float = 1.0
) -> Float[Array, ""]:
    """Drive two abstract states apart: mean exp(−C_d ‖x − x'‖₂), eq. 2; nothing pulls beyond ‖·‖² = 10."""
    squared = jnp.sum((x - other).reshape(x.shape[0], -1) ** 2, axis=1)
    return jnp.mean(counted * jnp.exp(-SPREAD * jnp.sqrt(jnp.clip(squared, 1e-6, 10))))


def unrelated(x: Float[Array, "B *abstract"]) -> Float[Array, "B *abstract"]:
    """A partner for every state of a batch of independent ones."""
    return jnp.roll(x, 1, axis=0)
