"""Seeded runs of a minute in which something is learnt."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from metadyna.experiments.presets import preset
from metadyna.runs.loop import run

pytestmark = pytest.mark.slow


def test_mb_mpo_finds_home_in_the_plane(tmp_path):
    """Reference card of MB-MPO, S1: from -46 of random actions to -15 or better; the optimum is -10.3."""
    config = replace(preset("mb-mpo", "point"), steps=4_500, eval_every=4_500)
    result = run(config, tmp_path / "run", progress=False)
    lived = [row["train/episode_return"] for row in result.metrics if "train/episode_return" in row]
    assert lived[0] < -35
    assert np.asarray(result.evaluate().returns).mean() > -15


def test_maml_learns_to_adapt(tmp_path):
    """A step on a goal's own episodes, which was worth little, is soon worth much, on goals never seen too."""
    config = preset("maml", "quick")
    small: Any = replace(config.system, tasks=10, episodes=10, shown_steps=1)
    iterations, steps = 15, 10 * 10 * 100 * 2
    config = replace(config, system=small, chunk=1, steps=iterations * steps, eval_every=iterations * steps)
    result = run(config, tmp_path / "run", progress=False)
    gains = [row["train/return_1"] - row["train/return_0"] for row in result.metrics if "train/return_1" in row]
    before, after = np.asarray(result.evaluate().returns)[0].mean(axis=1)
    assert after - before > max(10, np.mean(gains[:2]) + 8)
