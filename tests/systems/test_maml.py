"""MAML: who lives in training, and how an evaluation adapts."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from metadyna.adapt.gradient import GradientSteps
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import valid_steps
from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.improve.meta import MetaPPO, MetaTRPO
from metadyna.improve.trpo import TRPO
from metadyna.systems.maml import EMAML, MAML, ProMP

KEY = jax.random.key(0)
FAMILY = make("navigation")
COLLECTOR = DeviceCollector(replace(FAMILY.env, horizon=12), FAMILY.train)
SMALL = MAML(MetaTRPO(GradientSteps(rate=0.3)), widths=(4,), tasks=3, episodes=4)


def fresh(system):
    return jax.jit(lambda key: system.init(COLLECTOR, key))(KEY)


class Watching(DeviceCollector):
    """A collector that remembers who lived where."""

    def __init__(self):
        super().__init__(COLLECTOR.env, COLLECTOR.tasks)
        self.seen = []

    def episodes_of_each(self, act, params, carry, tasks, count, key):
        played = super().episodes_of_each(act, params, carry, tasks, count, key)
        self.seen.append((params, tasks, played.episodes))
        return played


def test_every_round_is_lived_by_the_policies_that_the_round_before_led_to():
    # With much damping conjugate gradients come out the same in whatever order numbers of 32 bits are added up.
    system = replace(SMALL, outer=MetaTRPO(GradientSteps(rate=0.3, steps=2), trust=TRPO(damping=0.1)))
    state = fresh(system)

    @jax.jit
    def iterate(state):
        collector = Watching()
        return system.iterate(state, collector, KEY)[0], collector.seen

    after, seen = iterate(state)
    policies, tasks, rounds = zip(*seen, strict=True)
    adapt = jax.jit(system.outer.adapt, static_argnums=3)
    assert len(rounds) == 3
    expected, inputs = system.outer.copies(state.meta, 3), state.meta.weights.inputs
    for number, lived in enumerate(rounds):
        same(policies[number], expected, rtol=1e-4, atol=1e-5)
        same(tasks[number], tasks[0])
        expected = adapt(state.meta, expected, system.outer.weigh(lived, inputs), number)
    assert len(np.unique(tasks[0].position)) == 6
    assert not np.array_equal(rounds[0].action, rounds[1].action)
    assert after.steps == sum(valid_steps(lived.last).sum() for lived in rounds)
    # and the outer step is on these rounds
    told = jax.jit(system.outer.update)(
        state.meta, state.optimiser, tuple(system.outer.weigh(lived, inputs) for lived in rounds)
    )
    same(after.meta, told[0], rtol=1e-3, atol=1e-4)
    moved = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - y).max(), after.meta.weights, state.meta.weights)
    assert max(jax.tree.leaves(moved)) > 0.02


def same(one, other, rtol=0.0, atol=0.0):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), one, other)


def test_e_maml_without_credit_is_refused():
    assert EMAML().outer.credit
    assert ProMP(outer=MetaTRPO()).outer == MetaTRPO()
    for outer in (MetaTRPO(), MetaPPO()):
        with pytest.raises(UserError, match=r"EMAML\.outer must be a MetaTRPO with credit = True"):
            EMAML(outer=outer)


TASKS = jax.tree.map(lambda x: x[:5], FAMILY.test.enumerate())


@jax.jit
def evaluate(meta):
    """A trial, and who lived where in it."""
    collector = Watching()
    return SMALL.trial(meta, collector, TASKS, KEY), collector.seen


def test_an_evaluation_adapts_to_every_task_from_the_same_start():
    meta = fresh(SMALL).meta
    shown, _ = evaluate(meta)
    assert shown.names == ("0 steps", "1 step", "2 steps", "3 steps")
    assert shown.episodes.reward.shape == (12, 5, 4, 4)
    one = jax.eval_shape(lambda meta: replace(SMALL, shown_steps=0).trial(meta, COLLECTOR, TASKS, KEY), meta)
    assert (one.names, one.episodes.reward.shape) == (("0 steps",), (12, 5, 1, 4))
    kept, _ = evaluate(meta._replace(rates=jax.tree.map(np.zeros_like, meta.rates)))
    same_rounds = (kept.episodes.action == shown.episodes.action).all(axis=(0, 1, 3, 4))
    assert same_rounds.tolist() == [True, False, False, False]


def test_an_evaluation_goes_on_with_smaller_steps_than_training_has():
    """From copies of what was learnt, one whole step as in training, then halves."""
    meta = fresh(SMALL).meta
    policies, _, rounds = zip(*evaluate(meta)[1], strict=True)

    @partial(jax.jit, static_argnums=2)
    def adapted(policies, lived, factor):
        weighed = SMALL.outer.weigh(lived, meta.weights.inputs)
        return SMALL.outer.adapt(meta, policies, weighed, 0, factor)

    expected = SMALL.outer.copies(meta, 5)
    for number, factor in enumerate((1.0, 0.5, 0.5)):
        same(policies[number], expected, rtol=1e-4, atol=1e-5)
        expected = adapted(expected, rounds[number], factor)
    same(policies[3], expected, rtol=1e-4, atol=1e-5)


def test_a_rectified_policy_answers_to_places_far_away_and_one_with_tanh_does_not():
    means = {}
    for activation in ("relu", "tanh"):
        policy = fresh(replace(SMALL, widths=(16,), activation=activation)).meta.weights
        says = jax.jit(lambda obs, policy=policy: policy(obs).mean)
        means[activation] = [says(scale * np.float32([0.3, -0.2])) for scale in np.float32([1e3, 1e4])]
    np.testing.assert_allclose(means["relu"][1], 10 * means["relu"][0], rtol=1e-2)
    np.testing.assert_allclose(means["tanh"][1], means["tanh"][0], rtol=1e-2)
