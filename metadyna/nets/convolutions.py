"""Convolutions of small pictures."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class Conv(eqx.Module):
    """Convolution of one picture with stride 1, padded with zeros to the same size.

    A kernel of even size reaches one pixel further down and right than up and left, as in TensorFlow.
    """

    weight: Float[Array, "rows columns inputs outputs"]
    bias: Float[Array, "outputs"]

    @staticmethod
    def zeros(size: int, inputs: int, outputs: int) -> "Conv":
        """A size × size kernel with nothing in it yet; see `glorot`."""
        return Conv(jnp.zeros((size, size, inputs, outputs)), jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "height width inputs"]) -> Float[Array, "height width outputs"]:
        """Map one picture."""
        return convolve(x, self.weight, "SAME") + self.bias[None, None]


def convolve(
    x: Float[Array, "height width inputs"], kernel: Float[Array, "rows columns inputs outputs"], padding: str
) -> Float[Array, "new_height new_width outputs"]:
    """Correlate a picture with a kernel; `padding` is SAME (see `Conv`) or VALID.

    On a CPU as one product of all shifted copies with the kernel: the compiler's own convolution is an order of
    magnitude slower inside loops.
    """
    rows, columns, _, outputs = kernel.shape
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x[None], kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
    if padding == "SAME":
        above, left = (rows - 1) // 2, (columns - 1) // 2
        x = jnp.pad(x, ((above, rows - 1 - above), (left, columns - 1 - left), (0, 0)))
    height, width = x.shape[0] - rows + 1, x.shape[1] - columns + 1
    shifted = [x[i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, outputs)


def max_pool(x: Float[Array, "height width channels"], size: int) -> Float[Array, "rows columns channels"]:
    """The largest of each size × size square; height and width must be multiples of `size`."""
    height, width, channels = x.shape
    return x.reshape(height // size, size, width // size, size, channels).max(axis=(1, 3))


class ConvNet(eqx.Module):
    """Convolutions, each followed by its activation and a pooling (1: none); the last may stay linear."""

    layers: tuple[Conv, ...]
    pools: tuple[int, ...] = eqx.field(static=True)
    activation: Callable = eqx.field(static=True)
    linear_end: bool = eqx.field(static=True)

    @staticmethod
    def zeros(
        sizes: Sequence[int],
        channels: Sequence[int],
        pools: Sequence[int] = (),
        activation: Callable[[Array], Array] = jnp.tanh,
        linear_end: bool = False,
    ) -> "ConvNet":
        """Build from kernel sizes and the list of channels, that of the input included; see `glorot`."""
        layers = tuple(Conv.zeros(*each) for each in zip(sizes, channels[:-1], channels[1:], strict=True))
        return ConvNet(layers, tuple(pools) or (1,) * len(sizes), activation, linear_end)

    def __call__(self, x: Float[Array, "height width inputs"]) -> Float[Array, "rows columns outputs"]:
        """Map one picture."""
        for i, (layer, size) in enumerate(zip(self.layers, self.pools, strict=True)):
            x = layer(x)
            x = x if self.linear_end and i == len(self.layers) - 1 else self.activation(x)
            x = max_pool(x, size) if size > 1 else x
        return x
