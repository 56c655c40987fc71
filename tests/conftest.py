"""Suite settings: silent broadcasting raises, warnings are errors, shapes and types are checked at run time."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("metadyna", "beartype.beartype")
