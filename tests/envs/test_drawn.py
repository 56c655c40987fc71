"""Test tasks: what they are to the training tasks, in every family."""

import jax
import numpy as np
import pytest

from metadyna import envs
from metadyna.envs import TASKS, make, meaning_of_test
from metadyna.envs.control import BODIES, OneTask
from metadyna.envs.drawn import Drawn

KEY = jax.random.key(0)
CONTINUA = [
    "navigation",
    "double-integrator",
    "pendulum-rods",
    "pendulum-rods-switching",
    "bandit-5x10",
    "half-cheetah-velocity",
]


def rows(tasks):
    """Tasks as tuples of all their numbers."""
    columns = [np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(tasks)]
    return {tuple(row) for row in np.concatenate(columns, axis=1).tolist()}


@pytest.mark.parametrize("name", CONTINUA)
def test_a_continuum_is_tested_on_draws_of_its_own(name):
    family = make(name)
    assert isinstance(family.test, Drawn)
    assert meaning_of_test(family) == "test tasks are unseen draws of the same law"
    tests = rows(family.test.enumerate())
    assert len(tests) == family.test.count
    assert tests == rows(family.test.enumerate())
    assert not tests & rows(family.train.enumerate())
    assert not tests & rows(jax.vmap(family.train.sample)(jax.random.split(KEY, 1000)))
    assert rows(jax.vmap(family.test.sample)(jax.random.split(KEY, 50))) <= tests


def test_draws_are_of_the_law_of_training():
    tests, trained = Drawn(BODIES, 4000).enumerate(), jax.vmap(BODIES.sample)(jax.random.split(KEY, 4000))
    for one, other, (low, high) in zip(tests, trained, BODIES.ranges, strict=True):
        assert low <= one.min() < one.max() <= high
        error = (high - low) / 12**0.5 * (2 / 4000) ** 0.5
        assert float(np.mean(one)) == pytest.approx(float(np.mean(other)), abs=4 * error)


@pytest.mark.parametrize("name", sorted({*TASKS} - {*CONTINUA}))
def test_what_is_said_of_test_tasks_is_so(name):
    family = envs.make(name)
    meaning = meaning_of_test(family)
    if meaning == "one task":
        assert isinstance(family.train, OneTask)
        return
    train, test = (rows(split.enumerate()) for split in (family.train, family.test))
    if meaning == "test tasks are the training tasks":
        assert train == test
    else:
        assert meaning == "test tasks are held out"
        assert not train & test
