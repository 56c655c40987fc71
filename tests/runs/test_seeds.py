"""Several seeds in one program compute what each of them computes alone, to the last bit."""

import functools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.pictures import plots
from metadyna.runs import loop, seeds
from metadyna.runs.evaluate import Evaluation
from metadyna.runs.log import RunLog, read_metrics
from metadyna.runs.program import DeviceProgram
from tests.tiny import PROGRAM, TINY, compiled_once, home  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

TOGETHER = replace(TINY, seeds=3, stop_at=0.035)  # between the scores of `varied_scores`


@pytest.fixture(scope="module", autouse=True)
def varied_scores():
    """Agents that have hardly learned all score the same; score them by a weight, so that some stop early."""

    def score(self, state, split="test"):
        weight = state.system.execute.weights.source.encoder.table.table
        returns = jnp.broadcast_to(weight.mean(axis=(1, 2))[:, None, None], (self.config.seeds, 2, 4))
        return Evaluation(returns, jnp.ones((self.config.seeds, 2, 4)), ("exploration", "execution"), "last")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceProgram, "evaluate", score)
        yield


@functools.cache
def together():
    return loop.run(TOGETHER, home() / "together", progress=False)


@functools.cache
def alone(k):
    return loop.run(replace(TOGETHER, seed=k, seeds=1), home() / f"alone-{k}", progress=False)


def simulate(start, scale):
    """Loops whose number of rounds differs between seeds."""
    rounds = jnp.int32(start)
    value = jax.lax.while_loop(lambda s: s[0] < rounds, lambda s: (s[0] + 1, jnp.sin(s[1]) * scale), (0, start))
    return {"value": value[1], "rounds": value[0]}


def test_over_seeds_equals_a_loop():
    starts, scales = jnp.array([3.0, 50.0, 7.0, 0.0]), jnp.array([[1.0, 2.0], [0.5, 3.0], [0.1, 1.5], [9.0, 9.0]])
    starts = jnp.broadcast_to(starts[:, None], (4, 2))

    def one(start, scale):
        return jax.vmap(simulate)(start, scale)

    together = seeds.over_seeds(one, seeds.mesh(4))(starts, scales)
    alone = [seeds.over_seeds(one, seeds.mesh(1))(starts[i : i + 1], scales[i : i + 1]) for i in range(4)]
    looped = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *alone)
    jax.tree.map(np.testing.assert_array_equal, together, looped)
    assert together["rounds"].tolist() == [[3, 3], [50, 50], [7, 7], [0, 0]]
    expected = [np.asarray(jax.jit(one)(starts[i], scales[i])["value"]) for i in range(4)]
    np.testing.assert_allclose(together["value"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("devices", "count", "used"),
    [(1, 1, 1), (1, 5, 1), (4, 1, 1), (4, 3, 3), (4, 4, 4), (4, 5, 1), (4, 6, 3), (4, 8, 4), (4, 9, 3), (4, 10, 2)],
)
def test_as_many_devices_as_divide_the_seeds(devices, count, used, monkeypatch):
    monkeypatch.setattr(seeds.jax, "devices", lambda: jax.local_devices() * devices)
    assert seeds.mesh(count).size == used


def test_cores_are_used_and_change_no_number():
    script = """
import jax, jax.numpy as jnp, numpy as np
from metadyna.runs import seeds
seeds.use_cores(2)
assert len(jax.devices()) == 2
one, x = lambda x: jnp.tanh(x @ x), jax.random.normal(jax.random.key(0), (2, 40, 40))
spread = seeds.over_seeds(one, seeds.mesh(2))(seeds.place(x, seeds.mesh(2)))
assert len(spread.devices()) == 2
for i in range(2):
    alone = seeds.over_seeds(one, seeds.mesh(1))(x[i : i + 1])
    np.testing.assert_array_equal(spread[i], alone[0])
seeds.use_cores(1)  # too late, and harmless
assert len(jax.devices()) == 2
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, cwd=root, timeout=120)


def test_seeds_together_equal_each_seed_alone():
    record = loop.inspect(together().folder)
    stopped = np.asarray(together().state.stopped)
    assert 0 < stopped.sum() < 3
    assert len(set(record["iteration"])) > 1
    for k in range(3):
        assert loop.inspect(alone(k).folder)["seed_sha256"] == [record["seed_sha256"][k]]
        assert bool(alone(k).state.stopped[0]) == bool(stopped[k])


def test_seeds_that_were_interrupted_together_end_together(tmp_path):
    half = loop.run(replace(TOGETHER, steps=100), tmp_path, progress=False)
    whole = loop.resume(half.folder, TOGETHER, progress=False)
    assert loop.inspect(whole.folder)["state_sha256"] == loop.inspect(together().folder)["state_sha256"]


def test_a_seed_that_has_stopped_does_not_move_the_others():
    """Each seed's returns are logged, and drawn, at its own steps, those that it has when alone."""
    rows = together().metrics
    stopped = np.asarray(together().state.stopped)
    counts = [row.get("steps", [row["step"]] * 3) for row in rows]
    assert [row["step"] for row in rows] == [int(np.mean(each)) for each in counts]
    assert all("steps" in row or len({*each}) == 1 for row, each in zip(rows, counts, strict=True))
    assert (np.diff(counts, axis=0) >= 0).all()
    assert counts[-1] == [int(n) for n in jax.vmap(TOGETHER.system.steps)(together().state.system)]
    assert max(count for count, ended in zip(counts[-1], stopped, strict=True) if ended) < min(
        count for count, ended in zip(counts[-1], stopped, strict=True) if not ended
    )
    curves = plots._curves(together().folder, "train/episode_return")
    for k in range(3):
        for metric in ("train/episode_return", "eval/return"):
            of_one, of_all = plots._curves(alone(k).folder, metric)[0], plots._curves(together().folder, metric)[k]
            both = np.isin(of_all.steps, of_one.steps)  # in company a seed is evaluated where the others are due, too
            np.testing.assert_array_equal(of_all.steps[both], of_one.steps)
            np.testing.assert_array_equal(of_all.values[both], of_one.values)
    assert len({curve.steps[-1] for curve in curves}) > 1


def test_what_was_logged_after_the_checkpoint_is_dropped_though_the_mean_is_the_same_number(tmp_path):
    with RunLog(tmp_path) as log:
        for steps in ([5, 5, 5], [5, 5, 6], [5, 5, 7], [5, 5, 8]):
            log.write(steps, {"loss": 0.0})
    RunLog(tmp_path, np.mean([5, 5, 6])).close()
    assert [row.get("steps") for row in read_metrics(tmp_path)] == [None, [5, 5, 6]]
    assert [row["step"] for row in read_metrics(tmp_path)] == [5, 5]


def test_metrics_are_lists_by_seed():
    assert all(len(row["train/episode_return"]) == 3 for row in together().metrics[:2])
    scores = [row["eval/return"] for row in together().metrics if "eval/return" in row]
    assert all(len(score) == 3 for score in scores)
