"""The hash of a state."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metadyna.types import PyTree


def state_sha256(state: PyTree) -> str:
    """Hash every array leaf: path, dtype, shape and bytes, in the order of the paths.

    Typed PRNG keys count as their key data. Equal hashes mean bit-identical states. Raises TypeError for a
    leaf that is not an array.
    """
    return hash_arrays(leaf_types(state), host_arrays(state))


def leaf_types(state: PyTree) -> dict[str, str]:
    """Type of each leaf by path, such as `float32[3,4]`; the same for concrete and abstract leaves."""
    types = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(f"state leaf {name or 'at the root'} is {type(leaf).__name__}, not an array")
        types[name] = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return types


def host_arrays(state: PyTree) -> dict[str, np.ndarray]:
    """Leaves by path as numpy arrays; typed keys as key data."""
    arrays = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, state)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(arrays))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def is_key(leaf: Any) -> bool:
    """Whether a concrete or abstract leaf is a typed PRNG key."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) if hasattr(leaf, "dtype") else False


def hash_arrays(types: dict[str, str], arrays: dict[str, np.ndarray]) -> str:
    """Hash of leaves whose types and values are given by path."""
    sha256 = hashlib.sha256()
    for path in sorted(types):
        # JSON keeps the boundary between path, type and data unambiguous.
        sha256.update(json.dumps([path, types[path]]).encode())
        sha256.update(arrays[path].tobytes())
    return sha256.hexdigest()
