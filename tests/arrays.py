"""Arrays of NumPy for tests: they cost no compilation."""

import jax
import numpy as np


def normal(*shape, seed=0):
    """Standard normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def uniform(*shape, low=-1.0):
    """Numbers up to 1."""
    return np.random.default_rng(0).uniform(low, 1, shape).astype(np.float32)


def replaced(array, where, value):
    """A copy in which some entries have another value."""
    array = array.copy()
    array[where] = value
    return array


def flat(tree):
    """All numbers in a row."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
