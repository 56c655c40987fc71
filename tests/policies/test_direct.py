"""Policies that are learnt directly: what they are for which spaces, and how they begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.errors import UserError
from metadyna.nets.inputs import Inputs
from metadyna.policies.direct import LOG_STD_RANGE, CategoricalPolicy, GaussianPolicy, create, num_outputs
from metadyna.types import Box, Discrete, EnvSpec

KEY = jax.random.key(0)
PUSH, CHOICE = Box((2,), -1.0, 1.0), Discrete((3,))


@pytest.mark.parametrize(("observed", "obs"), [(Box((3,)), jnp.ones(3)), (Discrete((2, 4)), jnp.array([1, 3]))])
def test_actions_begin_as_noise_that_knows_nothing(observed, obs):
    """Means near 0 of the deviation asked for, and choices that are almost equally likely."""
    pushes = create(EnvSpec(observed, PUSH, 10), (8,), KEY, log_std=-0.5)
    choices = create(EnvSpec(observed, CHOICE, 10), (8,), KEY)
    assert isinstance(pushes, GaussianPolicy)
    assert isinstance(choices, CategoricalPolicy)
    said = pushes(obs)
    np.testing.assert_allclose(said.mode(), 0, atol=0.05)
    np.testing.assert_allclose(said.log_std, -0.5, atol=1e-4)
    np.testing.assert_allclose(jax.nn.softmax(choices(obs).logits), 1 / 3, atol=0.02)
    assert said.sample(KEY).shape == (2,)
    assert choices(obs).sample(KEY).dtype == jnp.int32
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((pushes, choices)))


def test_what_is_read_may_be_told():
    policy = create(EnvSpec(Box((5,)), PUSH, 10), (8,), KEY, read=Inputs(3))
    assert policy.inputs == Inputs(3)
    assert policy(jnp.ones(3)).mean.shape == (2,)


@pytest.mark.parametrize("far", [-50.0, 50.0])
def test_no_deviation_leaves_its_range(far):
    low, high = LOG_STD_RANGE
    log_std = create(EnvSpec(Box((3,)), PUSH, 10), (8,), KEY, log_std=far).log_std
    np.testing.assert_allclose(log_std, low if far < 0 else high, atol=1e-3)


@pytest.mark.parametrize("space", [Discrete((3, 2)), Box((2, 2)), Box((2,), 0.0, 255.0, "uint8")])
def test_other_actions_are_refused_in_one_line(space):
    with pytest.raises(UserError, match="needs a vector of floats or one choice of a few") as refused:
        num_outputs(space)
    assert "\n" not in str(refused.value)
