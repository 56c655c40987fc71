"""MAML: who lives in training, and how an evaluation adapts."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.adapt.gradient import GradientSteps, Meta
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import valid_steps
from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.improve.meta import MetaPPO, MetaTRPO, Rounds
from metadyna.systems.maml import EMAML, MAML, ProMP

KEY = jax.random.key(0)
FAMILY = make("navigation")
COLLECTOR = DeviceCollector(replace(FAMILY.env, horizon=12), FAMILY.train)
SMALL = MAML(MetaTRPO(GradientSteps(rate=0.3)), widths=(4,), tasks=3, episodes=4)


@cache
def fresh(system):
    return jax.jit(lambda key: system.init(COLLECTOR, key))(KEY)


lived_by_each = jax.jit(COLLECTOR.episodes_of_each, static_argnums=(0, 4))


class Watching(DeviceCollector):
    """A collector that remembers who lived where; every round of every test is one program."""

    def __init__(self):
        super().__init__(COLLECTOR.env, COLLECTOR.tasks)
        self.seen = []

    def episodes_of_each(self, act, params, carry, tasks, count, key):
        played = lived_by_each(act, params, carry, tasks, count, key)
        self.seen.append((params, tasks, played.episodes))
        return played


@dataclass(frozen=True)
class Remembering(MetaTRPO):
    """An outer step that remembers what it was given; the true one takes long to compile, and has tests of its own."""

    def start(self, meta: Meta) -> Any:
        """A number, to be told from others."""
        del meta
        return jnp.float32(7)

    def update(self, meta: Meta, optimiser: Any, rounds: Rounds) -> tuple[Meta, Any, dict[str, jax.Array]]:
        """Add a twentieth to all weights."""
        moved = meta._replace(weights=jax.tree.map(lambda x: x + 0.05, meta.weights))
        return moved, (meta, optimiser, rounds), {"kl": jnp.float32(0)}


def test_every_round_is_lived_by_the_policies_that_the_round_before_led_to():
    system = replace(SMALL, outer=Remembering(GradientSteps(rate=0.3, steps=2, learnt_rates="step")))
    state, collector = fresh(system), Watching()
    rates = jax.tree.map(lambda x: np.stack([x[0], np.float32(0.3) * x[1]]), state.meta.rates)  # another for each step
    state = state._replace(meta=state.meta._replace(rates=rates))
    after, _ = system.iterate(state, collector, KEY)
    policies, tasks, rounds = zip(*collector.seen, strict=True)
    assert len(rounds) == 3
    expected, weighed, steps = copies(state.meta.weights, 3), [], 0
    for number, lived in enumerate(rounds):
        same(policies[number], expected, rtol=1e-4, atol=1e-5)
        same(tasks[number], tasks[0])
        at = min(number, 1)
        own = state.meta._replace(rates=jax.tree.map(lambda x, at=at: x[at : at + 1], rates))
        expected, data, count = onward(own, expected, lived)
        weighed.append(data)
        steps += int(count)
    assert len(np.unique(tasks[0].position)) == 6
    assert not np.array_equal(rounds[0].action, rounds[1].action)
    assert after.steps == steps
    # and the outer step is on these rounds, from where the iteration began
    same(after.optimiser, (state.meta, np.float32(7), tuple(weighed)), rtol=1e-4, atol=1e-5)
    moved = state.meta._replace(weights=jax.tree.map(lambda x: np.asarray(x) + 0.05, state.meta.weights))
    same(after.meta, moved, rtol=1e-6)


@jax.jit
def onward(meta, policies, lived):
    """Policies after an inner step at the first rate on what they lived, that weighed, and how many steps it was."""
    weighed = SMALL.outer.weigh(lived, meta.weights.inputs)
    return SMALL.outer.adapt(meta, policies, weighed, 0), weighed, valid_steps(lived.last).sum()


def copies(weights, count):
    return jax.tree.map(lambda x: np.broadcast_to(x, (count, *x.shape)), weights)


def same(one, other, rtol=0.0, atol=0.0):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), one, other)


def test_e_maml_without_credit_is_refused():
    assert EMAML().outer.credit
    assert ProMP(outer=MetaTRPO()).outer == MetaTRPO()
    for outer in (MetaTRPO(), MetaPPO()):
        with pytest.raises(UserError, match=r"EMAML\.outer must be a MetaTRPO with credit = True"):
            EMAML(outer=outer)


TASKS = jax.tree.map(lambda x: np.asarray(x)[:3], FAMILY.test.enumerate())


def evaluate(meta):
    """A trial, and who lived where in it."""
    collector = Watching()
    return SMALL.trial(meta, collector, TASKS, KEY), collector.seen


def test_an_evaluation_adapts_to_every_task_from_the_same_start():
    meta = fresh(SMALL).meta
    shown, _ = evaluate(meta)
    assert shown.names == ("0 steps", "1 step", "2 steps", "3 steps")
    assert shown.episodes.reward.shape == (12, 3, 4, 4)
    one = jax.eval_shape(lambda meta: replace(SMALL, shown_steps=0).trial(meta, COLLECTOR, TASKS, KEY), meta)
    assert (one.names, one.episodes.reward.shape) == (("0 steps",), (12, 3, 1, 4))
    kept, _ = evaluate(meta._replace(rates=jax.tree.map(np.zeros_like, meta.rates)))
    kept_action, action = (np.asarray(each.episodes.action) for each in (kept, shown))
    same_rounds = (kept_action == action).all(axis=(0, 1, 3, 4))
    assert same_rounds.tolist() == [True, False, False, False]


def test_an_evaluation_goes_on_with_smaller_steps_than_training_has():
    """From copies of what was learnt, one whole step as in training, then halves."""
    meta = fresh(SMALL).meta
    policies, _, rounds = zip(*evaluate(meta)[1], strict=True)
    expected = copies(meta.weights, 3)
    for number, factor in enumerate((1.0, 0.5, 0.5)):
        same(policies[number], expected, rtol=1e-4, atol=1e-5)
        smaller = meta._replace(rates=jax.tree.map(lambda x, f=factor: np.float32(f) * np.asarray(x), meta.rates))
        expected, *_ = onward(smaller, expected, rounds[number])
    same(policies[3], expected, rtol=1e-4, atol=1e-5)


def test_a_rectified_policy_answers_to_places_far_away_and_one_with_tanh_does_not():
    means = {}
    for activation in ("relu", "tanh"):
        policy = fresh(replace(SMALL, widths=(16,), activation=activation)).meta.weights
        says = jax.jit(lambda obs, policy=policy: policy(obs).mean)
        means[activation] = [says(scale * np.float32([0.3, -0.2])) for scale in np.float32([1e3, 1e4])]
    np.testing.assert_allclose(means["relu"][1], 10 * means["relu"][0], rtol=1e-2)
    np.testing.assert_allclose(means["tanh"][1], means["tanh"][0], rtol=1e-2)
