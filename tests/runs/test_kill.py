"""Killed, interrupted and resumed on the command line, a run ends as if it had never been stopped."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from metadyna.runs import config, loop
from metadyna.runs.checkpoint import Checkpoints
from tests.tiny import TINY, compiled_once, home, sha256, tiny  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

LONG = replace(TINY, steps=1500)
FLAGS = [
    *("--preset", "code", "--task", "city-5x5", "--steps", 1500, "--chunk", 5, "--eval-every", 200),
    *("--checkpoint-seconds", 0, "--system.capacity", 64, "--system.parallel", 2, "--system.context.width", 8),
    *("--system.explore.warmup", 2, "--system.explore.batch", 4, "--system.explore.update-every", 8),
    *("--system.execute.warmup", 2, "--system.execute.batch", 4, "--system.execute.update-every", 8),
]


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "metadyna", *map(str, words)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XDG_CACHE_HOME": str(home() / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def newest(folder):
    return max(Checkpoints(folder / "checkpoints").iterations(), default=0)


def stop(process, folder, number, pause):
    """Send a signal a moment after the process has saved a checkpoint of its own."""
    before = newest(folder)
    while newest(folder) == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(pause)
    process.send_signal(number)
    printed, complained = process.communicate(timeout=60)
    return process.returncode, printed, complained


@pytest.mark.slow
def test_killed_and_interrupted_training_ends_as_uninterrupted_training(tmp_path):
    uninterrupted = sha256(loop.run(LONG, tmp_path / "uninterrupted", progress=False))
    folder, moments = tmp_path / "run", random.Random(0)

    code, printed, complained = stop(start("train", "dream", *FLAGS, "--out", folder), folder, signal.SIGINT, 0.1)
    assert code == 130
    assert complained.splitlines() == ["stopping after this chunk; once more to stop at once and lose it"]
    assert f"saved; go on with: metadyna resume {folder}" in printed
    assert config.load(folder) == LONG
    for _ in range(3):
        code, _, _ = stop(start("resume", folder), folder, signal.SIGKILL, moments.uniform(0, 0.5))
        assert code == -signal.SIGKILL
    assert newest(folder) < newest(tmp_path / "uninterrupted")

    last = start("resume", folder)
    printed, complained = last.communicate(timeout=300)
    assert (last.returncode, complained) == (0, "")
    assert "done: " in printed
    assert loop.inspect(folder)["state_sha256"] == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac", "pets", "mbpo"])
@pytest.mark.parametrize("task", ["pendulum", "inverted-pendulum"])
def test_a_killed_run_with_a_simulator_or_a_model_ends_as_an_uninterrupted_one(name, task, tmp_path):
    """On a pure environment and on MuJoCo; the command line is given a folder that holds only a configuration."""
    settings = tiny(name, task, steps=400, eval_every=200)
    uninterrupted = sha256(loop.run(settings, tmp_path / "uninterrupted", progress=False))
    folder, moments = tmp_path / "run", random.Random(name + task)
    config.save(settings, folder)
    for _ in range(2):
        code, _, _ = stop(start("resume", folder), folder, signal.SIGKILL, moments.uniform(0, 0.3))
        assert code == -signal.SIGKILL
    assert 0 < newest(folder) < newest(tmp_path / "uninterrupted")
    assert sha256(loop.resume(folder, progress=False)) == uninterrupted
