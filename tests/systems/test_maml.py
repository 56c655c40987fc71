"""MAML: how an evaluation adapts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from metadyna.adapt.gradient import GradientSteps
from metadyna.envs import make
from metadyna.improve.meta import MetaTRPO
from metadyna.rollout import DeviceCollector
from metadyna.systems.maml import MAML

KEY = jax.random.key(0)
FAMILY = make("navigation")
COLLECTOR = DeviceCollector(replace(FAMILY.env, horizon=12), FAMILY.train)
SMALL = MAML(MetaTRPO(GradientSteps(rate=0.3)), widths=(4,), tasks=3, episodes=4)


def test_an_evaluation_adapts_to_every_task_from_the_same_start():
    assert SMALL.episode_names == ("0 steps", "1 step", "2 steps", "3 steps")
    assert replace(SMALL, shown_steps=0).episode_names == ("0 steps",)
    tasks = jax.tree.map(lambda x: x[:5], FAMILY.test.enumerate())
    meta = SMALL.init(COLLECTOR, KEY).meta
    shown = jax.jit(lambda meta: SMALL.trial(meta, COLLECTOR, tasks, KEY))(meta)
    assert [episode.reward.shape for episode in shown] == [(12, 5)] * 4
    still = meta._replace(rates=jax.tree.map(lambda rate: 0 * rate, meta.rates))
    kept = jax.jit(lambda meta: SMALL.trial(meta, COLLECTOR, tasks, KEY))(still)
    np.testing.assert_array_equal(kept[0].action, shown[0].action)
    assert all(not np.array_equal(x.action, y.action) for x, y in zip(kept[1:], shown[1:], strict=True))


def test_a_rectified_policy_answers_to_places_far_away_and_one_with_tanh_does_not():
    means = {}
    for activation in ("relu", "tanh"):
        policy = replace(SMALL, widths=(16,), activation=activation).init(COLLECTOR, KEY).meta.weights
        means[activation] = [policy(scale * jnp.array([0.3, -0.2]))[0] for scale in (1e3, 1e4)]
    np.testing.assert_allclose(means["relu"][1], 10 * means["relu"][0], rtol=1e-2)
    np.testing.assert_allclose(means["tanh"][1], means["tanh"][0], rtol=1e-2)
