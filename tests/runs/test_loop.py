"""The host loop: what a run leaves behind, and that stopping it in any way changes nothing."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

from metadyna import envs
from metadyna.errors import UserError
from metadyna.provenance.hashes import state_sha256
from metadyna.runs import checkpoint, loop
from metadyna.runs.checkpoint import Checkpoints
from metadyna.systems.dream import DREAM
from tests.tiny import PROGRAM, TINY, compiled_once, copy, home, sha256, shared, tiny, trained  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


def rows(result):
    """Metrics without the times."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in result.metrics]


def newest(folder):
    return max((folder / "checkpoints").iterdir())


# --- what is left behind


def test_a_run_folder_tells_everything():
    result = trained()
    names = {"config.json", "environment.json", "metrics.jsonl", "checkpoints", "tensorboard"}
    assert {path.name for path in result.folder.iterdir()} == names
    assert json.loads((result.folder / "environment.json").read_text())["versions"]["jax"] == jax.__version__
    assert len(list((result.folder / "checkpoints").iterdir())) == 3
    assert any((result.folder / "tensorboard").iterdir())
    assert 400 <= result.steps < 600
    assert not result.interrupted
    steps = [row["step"] for row in result.metrics]
    assert steps == sorted(set(steps))
    assert steps[-1] == result.steps
    assert {name for row in result.metrics for name in row} == {
        "step",
        *(f"train/{name}" for name in ("episode_return", "return_by_encoder", "return_by_decoder")),
        *(f"train/{name}" for name in ("exploration_length", "execution_length")),
        *(f"explore/{name}" for name in ("epsilon", "td_loss", "episode_reward")),
        *(f"execute/{name}" for name in ("epsilon", "td_loss", "decoder_loss", "bottleneck_loss")),
        *(f"eval/episode_{i}/{name}" for i in (0, 1) for name in ("return", "length")),
        *("eval/return", "time/seconds", "time/env_steps_per_second"),
    }


def test_evaluation_is_due_at_every_multiple_and_at_the_end():
    steps = [row["step"] for row in trained().metrics]
    due = [b for a, b in zip([0, *steps], steps, strict=False) if b // 200 > a // 200 or b >= 400]
    assert [row["step"] for row in trained().metrics if "eval/return" in row] == due


@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluate_plays_every_task_of_a_split(split):
    result = trained()
    evaluation = result.evaluate(split)
    tasks = len(result.program.tasks(split).problem)
    assert evaluation.returns.shape == evaluation.lengths.shape == (1, 2, tasks)
    if split == "test":  # with the keys of training: the same numbers
        assert float(np.mean(evaluation.returns[0, -1])) == pytest.approx(result.metrics[-1]["eval/return"])


def test_inspect_knows_the_state_that_training_ended_with():
    record, result = loop.inspect(trained().folder), trained()
    assert record["state_sha256"] == sha256(result)
    assert record["seed_sha256"] == [state_sha256(jax.tree.map(lambda x: x[0], result.state))]
    assert record["step"] == result.steps
    assert record["checkpoints"][-1] == len(result.metrics)
    assert record["notes"] == []


def test_chunks_are_compiled_once(monkeypatch):
    traced, iterate = [], DREAM.iterate
    monkeypatch.setattr(DREAM, "iterate", lambda *arguments: traced.append(1) or iterate(*arguments))
    program = PROGRAM(TINY)
    state = program.chunk(program.init())[0]
    first = len(traced)
    state = program.chunk(state)[0]
    program.chunk(program.place(loop.load(trained().folder).state))
    assert len(traced) == first > 0


@pytest.mark.parametrize("switch", ["JAX_ENABLE_X64=1", "jax.config"])
def test_64_bits_are_refused_in_one_line_before_anything_is_written(switch, tmp_path):
    script = f"""
import jax
if {switch!r} == "jax.config":
    jax.config.update("jax_enable_x64", True)
from metadyna.errors import UserError
from metadyna.experiments.presets import preset
from metadyna.runs import loop
for verb, start in [("run", lambda: loop.run(preset("sac", "quick"), {str(tmp_path / "new")!r}))] + [
    (verb.__name__, lambda verb=verb: verb({str(copy(tmp_path))!r})) for verb in (loop.resume, loop.load, loop.inspect)
]:
    try:
        start()
    except UserError as error:
        print(verb, error)
"""
    environment = {**os.environ, **({"JAX_ENABLE_X64": "1"} if "=" in switch else {})}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=root, check=True, capture_output=True, text=True
    )
    told = "MetaDyna computes in 32 bits, but JAX is set to 64; unset JAX_ENABLE_X64 (jax_enable_x64)"
    assert done.stdout.splitlines() == [f"{verb} {told}" for verb in ("run", "resume", "load", "inspect")]
    assert not (tmp_path / "new").exists()


# --- stopping and going on


def test_half_and_half_is_the_whole(tmp_path):
    half = loop.run(replace(TINY, steps=100), tmp_path / "half", progress=False)
    assert half.steps < 200  # the next evaluation lies ahead
    whole = loop.resume(half.folder, TINY, progress=False)
    assert sha256(whole) == sha256(trained())
    without_end = [
        {k: v for k, v in row.items() if row["step"] != half.steps or "eval" not in k} for row in rows(whole)
    ]
    assert without_end == rows(trained())
    assert loop.load(half.folder).config == TINY


def test_a_target_that_is_dropped_lets_a_seed_go_on(tmp_path):
    early = loop.run(replace(TINY, stop_at=-1e9), tmp_path / "early", progress=False)
    assert early.steps < 400
    assert sha256(loop.resume(early.folder, progress=False)) == sha256(early)
    assert sha256(loop.resume(early.folder, TINY, progress=False)) == sha256(trained())
    assert loop.load(early.folder).config.stop_at is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_chunk_saves_and_loses_nothing(number, tmp_path, monkeypatch):
    write = loop.RunLog.write

    def write_then_signal(self, step, metrics):
        write(self, step, metrics)
        os.kill(os.getpid(), number)

    handler = signal.getsignal(number)  # ignored, where a shell has put the tests in the background
    with monkeypatch.context() as patch:
        patch.setattr(loop.RunLog, "write", write_then_signal)
        cut = loop.run(replace(TINY, checkpoint_seconds=60.0), tmp_path / "run", progress=False)
    assert cut.interrupted
    assert len(cut.metrics) == 1
    assert signal.getsignal(number) is handler
    assert Checkpoints(cut.folder / "checkpoints").iterations() == [1]
    assert sha256(loop.resume(cut.folder, progress=False)) == sha256(trained())


def test_resuming_a_finished_run_does_nothing(tmp_path):
    folder = copy(tmp_path)

    def files():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = files()
    assert sha256(loop.resume(folder, progress=False)) == sha256(trained())
    assert files() == before


def test_a_run_without_a_checkpoint_starts_anew(tmp_path):
    folder = copy(tmp_path)
    shutil.rmtree(folder / "checkpoints")
    (folder / "environment.json").unlink()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        loop.load(folder)
    result = loop.resume(folder, progress=False)
    assert sha256(result) == sha256(trained())
    assert rows(result) == rows(trained())
    assert (folder / "environment.json").exists()


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    folder = copy(tmp_path)
    file = newest(folder) / "checkpoint.json"
    file.write_bytes(file.read_bytes()[:-100])
    result = loop.resume(folder, progress=False)
    assert sha256(result) == sha256(trained())
    assert rows(result) == rows(trained())
    assert len(result.notes) == 1
    assert "skipped the checkpoint" in result.notes[0]


def test_without_a_good_checkpoint_nothing_is_touched(tmp_path):
    folder = copy(tmp_path)
    for file in (folder / "checkpoints").rglob("checkpoint.json"):
        file.write_text("{}")
    with pytest.raises(UserError, match="no usable checkpoint"):
        loop.resume(folder, progress=False)
    assert rows(replace(trained(), folder=folder)) == rows(trained())


# --- what is refused


@contextlib.contextmanager
def refused(told):
    with pytest.raises(UserError, match=told) as error:
        yield
    assert "\n" not in str(error.value)


def test_an_existing_run_is_not_overwritten():
    with refused("already holds a run; continue it with `metadyna resume"):
        loop.run(TINY, trained().folder)


def test_what_is_no_empty_folder_is_left_alone(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file"):
        with refused("is not an empty folder"):
            loop.run(TINY, out)
    with refused(f"cannot write to {tmp_path}/file/run: Not a directory"):
        loop.run(TINY, tmp_path / "file" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_task_leaves_no_folder(tmp_path):
    with refused("unknown task 'city-5x'; did you mean city-5x5"):
        loop.run(replace(TINY, task="city-5x"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", [loop.resume, loop.load, loop.inspect])
def test_a_folder_that_is_no_run_is_refused(verb, tmp_path):
    with refused("is not a run folder"):
        verb(tmp_path)


def test_settings_that_alter_the_computation_may_not_change(tmp_path):
    folder, other = copy(tmp_path), replace(TINY, steps=500, chunk=7, system=replace(TINY.system, penalty=0.2))
    with refused(r"was started with other settings: chunk: 5 -> 7; system.penalty: 0.1 -> 0.2"):
        loop.resume(folder, other)
    assert loop.load(folder).config == TINY
    record = json.loads((folder / "config.json").read_text())
    record["system"]["penalty"] = 0.2
    (folder / "config.json").write_text(json.dumps(record))
    for verb in (loop.resume, loop.load):
        with refused(r"config.json was changed since the checkpoint: system.penalty: 0.1 -> 0.2"):
            verb(folder)


# --- what stops a run


def poisoned(state):
    """The state with one weight of the execution policy that is not a number."""
    paths = jax.tree_util.tree_leaves_with_path(state)
    chosen = next(path for path, _ in paths if ".execute.weights.policy" in jax.tree_util.keystr(path))
    return jax.tree_util.tree_map_with_path(lambda path, x: x * np.float32(np.nan) if path == chosen else x, state)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    folder = copy(tmp_path)
    checkpoints = Checkpoints(folder / "checkpoints")
    iteration = checkpoints.iterations()[0]
    good = checkpoints.restore(loop.load(folder).state, iteration)
    for later in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    checkpoints.save(iteration + 1, poisoned(good.state), {**good.metadata, "chunk": iteration + 1})
    with refused(
        r"^not finite at step \d+: execute/.*execute/td_loss.*; training stopped; .* keeps its last good checkpoint"
    ):
        loop.resume(folder, progress=False)
    assert checkpoints.iterations() == [iteration, iteration + 1]


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    program, calls = shared(TINY), []
    chunk = program.chunk

    def diverge(state):
        calls.append(1)
        state, *rest = chunk(state)
        return (poisoned(state) if len(calls) == 2 else state), *rest

    monkeypatch.setitem(program.__dict__, "chunk", diverge)
    with refused(r"^not finite at step \d+: weight \.execute\.policy.*; training stopped"):
        loop.run(TINY, tmp_path / "run", progress=False)
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "run" / "checkpoints").iterations() == [1]


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, monkeypatch):
    asked, usage = [], shutil.disk_usage

    def full(path):
        asked.append(path)
        return usage(path)._replace(free=0) if len(asked) > 2 else usage(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "disk_usage", full)
        with refused(
            "cannot save a checkpoint in .*: No space left on device; the last one, of iteration 2, is intact"
        ):
            loop.run(TINY, tmp_path / "run", progress=False)
    assert sha256(loop.resume(tmp_path / "run", progress=False)) == sha256(trained())


# --- simulators that break


class Fragile(gymnasium.Env):
    """Breaks in the second episode, unless mended."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    mended = False
    episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.episodes = 0, self.episodes + 1
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        self.time += 1
        if self.episodes == 2 and self.time == 5 and not Fragile.mended:
            raise RuntimeError("motor 3 is on fire")
        return np.full(2, self.time, np.float32), float(action[0]), False, self.time == 30, {}


def test_a_simulator_that_breaks_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "TASKS", dict(envs.TASKS))
    envs.register("fragile", Fragile)
    config = tiny("sac", "fragile", steps=60, eval_every=1000)
    with pytest.raises(UserError, match=r"fragile failed at step 5: RuntimeError: motor 3 is on fire"):
        loop.run(config, tmp_path / "run", progress=False)
    assert loop.load(tmp_path / "run").steps == 20  # the chunk before the one that broke
    monkeypatch.setattr(Fragile, "mended", True)
    assert loop.resume(tmp_path / "run", progress=False).steps == 60


def test_a_system_that_cannot_do_with_a_task_leaves_no_folder(tmp_path):
    for name in ("sac", "pets", "mbpo"):
        with pytest.raises(UserError):
            loop.run(tiny(name, "city-5x5" if name == "sac" else "fragile-is-unknown"), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="does not say"):
        loop.run(tiny("mbpo", "point-direction"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
