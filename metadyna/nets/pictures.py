"""An encoder of small pictures."""

import equinox as eqx
from jaxtyping import Array, Float

from metadyna.nets.convolutions import Conv, ConvNet
from metadyna.nets.layers import MLP

TRUNK_POOLS = (1, 2, 3)
"""Pooling of the encoder's convolutions: together they make one site of 6 × 6 pixels."""


class Encoder(eqx.Module):
    """From a picture to an abstract state: e(s)."""

    trunk: ConvNet
    head: Conv | MLP

    def __call__(self, picture: Float[Array, "height width"]) -> Float[Array, "*abstract"]:
        """Encode one picture."""
        return self.finish(self.trunk(picture[..., None]))

    def finish(self, sites: Float[Array, "rows columns channels"]) -> Float[Array, "*abstract"]:
        """What follows the trunk."""
        return self.head(sites) if isinstance(self.head, Conv) else self.head(sites.reshape(-1))
