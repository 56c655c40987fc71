"""Checkpoints: bit-exact, atomic, verified, and clear about what is wrong with a bad one."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from metadyna.errors import UserError
from metadyna.provenance.hashes import state_sha256
from metadyna.runs import checkpoint
from metadyna.runs.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]


class Learner(NamedTuple):
    network: eqx.nn.Linear
    replay: dict
    key: jax.Array


def make_state(seed: int = 0) -> Learner:
    replay = {
        "int8": jnp.arange(-3, 3, dtype=jnp.int8),
        "uint8": jnp.full((2, 3), 255, jnp.uint8),
        "int32": jnp.array(-seed, jnp.int32),
        "uint32": jnp.array([2**32 - 1, seed], jnp.uint32),
        "float32": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45, seed], jnp.float32),
        "bfloat16": jnp.array([1.5, 3e38], jnp.bfloat16),
        "bool": jnp.array([True, False]),
        "nothing": jnp.zeros((0, 4), jnp.int8),
        "odd/name.['é']": jnp.ones((1, 1)),
    }
    return Learner(eqx.nn.Linear(3, 2, key=jax.random.key(seed)), replay, jax.random.split(jax.random.key(seed)))


def bytes_of(state) -> list[tuple]:
    leaves = jax.tree.leaves(state)
    data = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in data]


def only_folder(checkpoints: Checkpoints, iteration: int) -> Path:
    return checkpoints.folder / f"iteration-{iteration:09d}"


@pytest.mark.parametrize("abstract", [True, False])
def test_round_trip_is_bit_exact(tmp_path, abstract):
    checkpoints, state = Checkpoints(tmp_path / "new" / "folder"), make_state()
    checkpoints.save(7, state, {"env_steps": 700, "note": "é"})
    restored = checkpoints.restore(jax.eval_shape(make_state) if abstract else make_state(1))
    assert restored.iteration == 7
    assert restored.notes == []
    assert restored.metadata == {"env_steps": 700, "note": "é"}
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert bytes_of(restored.state) == bytes_of(state)
    for leaf in jax.tree.leaves(restored.state):
        assert isinstance(leaf, jax.Array)
        assert leaf.devices() == {jax.devices()[0]}
    assert jax.random.key_impl(restored.state.key) == jax.random.key_impl(state.key)


def test_float64_of_a_host_simulator_survives(tmp_path):
    state = {"qpos": np.array([1 / 3, 2 / 3])}
    Checkpoints(tmp_path).save(1, state, {})
    restored = Checkpoints(tmp_path).restore(state).state["qpos"]
    assert restored.dtype == np.float64
    np.testing.assert_array_equal(restored, state["qpos"])


def test_hash_depends_on_every_element_type_shape_and_path():
    state = make_state()
    hashes = {state_sha256(state)}
    leaves, structure = jax.tree.flatten(state)
    num_variants = 1
    for position, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        for element in range(leaf.size):
            flipped = np.array(leaf)
            flipped.reshape(-1).view(np.uint8)[element * leaf.dtype.itemsize] ^= 1
            hashes.add(state_sha256(structure.unflatten([*leaves[:position], flipped, *leaves[position + 1 :]])))
            num_variants += 1
    assert len(hashes) == num_variants
    four = np.arange(4, dtype=np.uint8)
    variants = [{"a": four}, {"b": four}, {"a": four.reshape(2, 2)}, {"a": four.view(np.int8)}, {"a": four, "b": four}]
    assert len({state_sha256(variant) for variant in variants}) == len(variants)
    assert state_sha256(jax.random.key(0)) != state_sha256(jax.random.key(1))
    assert state_sha256(state) == state_sha256(make_state())


def test_a_leaf_that_is_no_array_is_a_programming_error(tmp_path):
    with pytest.raises(TypeError, match=r"\['count'\] is int"):
        Checkpoints(tmp_path).save(1, {"count": 3}, {})


def test_rotation_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.iterations() == []
    for iteration in (1, 5, 30, 200):
        checkpoints.save(iteration, {"x": jnp.array(iteration)}, {})
    assert checkpoints.iterations() == [30, 200]
    assert checkpoints.restore({"x": jnp.array(0)}, iteration=30).state["x"] == 30
    with pytest.raises(UserError, match=r"no checkpoint of iteration 5 .* there are: 30, 200"):
        checkpoints.restore({"x": jnp.array(0)}, iteration=5)
    with pytest.raises(UserError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_going_back_removes_the_abandoned_future(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for iteration in (10, 20):
        checkpoints.save(iteration, {"x": jnp.array(iteration)}, {})
    checkpoints.save(15, {"x": jnp.array(15)}, {})
    assert checkpoints.iterations() == [10, 15]


def test_saving_an_iteration_again_replaces_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for value in (1, 2, 3):
        checkpoints.save(10, {"x": jnp.array(value)}, {})
        assert checkpoints.restore({"x": jnp.array(0)}).state["x"] == value
        assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def two(tmp_path) -> Checkpoints:
    """Iterations 1 and 2."""
    checkpoints = Checkpoints(tmp_path)
    for iteration in (1, 2):
        checkpoints.save(iteration, make_state(iteration), {"iteration": iteration})
    return checkpoints


def assert_falls_back(checkpoints: Checkpoints, reason: str) -> None:
    restored = checkpoints.restore(jax.eval_shape(make_state))
    assert restored.iteration == 1
    assert bytes_of(restored.state) == bytes_of(make_state(1))
    assert len(restored.notes) == 1
    assert restored.notes[0].startswith("skipped the checkpoint of iteration 2: ")
    assert reason in restored.notes[0]
    assert "\n" not in restored.notes[0]


def damage_every_file(folder: Path, damage) -> list[Path]:
    """Damage each file in turn, yielding while it is damaged."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        original = path.read_bytes()
        if original:
            damage(path, original)
            yield path
        path.write_bytes(original)


def test_a_flipped_bit_in_any_file_is_noticed(two):
    generator = random.Random(0)

    def flip(path, original):
        flipped = bytearray(original)
        flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)

    damaged = []
    for _ in range(3):
        for path in damage_every_file(only_folder(two, 2), flip):
            assert_falls_back(two, "damaged: ")
            damaged.append(path.name)
    assert {"checkpoint.json", "SHA256SUMS", "manifest.ocdbt", "_METADATA"} <= set(damaged)
    assert two.restore(make_state()).iteration == 2


def test_a_truncated_file_is_noticed(two):
    for path in damage_every_file(only_folder(two, 2), lambda path, old: path.write_bytes(old[: len(old) // 2])):
        assert_falls_back(two, path.name)


def test_a_missing_file_is_noticed(two):
    for path in damage_every_file(only_folder(two, 2), lambda path, _: path.unlink()):
        assert_falls_back(two, path.name)


def test_a_wrong_state_hash_is_noticed(two):
    record_path = only_folder(two, 2) / "checkpoint.json"
    record = json.loads(record_path.read_text())
    rewrite(record_path, {**record, "state_sha256": "0" * 64})
    assert_falls_back(two, "does not match its state_sha256")


def rewrite(record_path: Path, record: dict) -> None:
    """Change checkpoint.json the way a tool would: with valid checksums."""
    record_path.write_text(json.dumps(record))
    (record_path.parent / "SHA256SUMS").write_text(checkpoint._checksums(record_path.parent))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "other"}, "foreign"),
        ({"version": 99}, "of format version 99"),
        ({"iteration": 3}, "written at iteration 3"),
    ],
)
def test_a_foreign_record_is_skipped(two, change, reason):
    record_path = only_folder(two, 2) / "checkpoint.json"
    rewrite(record_path, {**json.loads(record_path.read_text()), **change})
    assert_falls_back(two, reason)


def test_arrays_that_orbax_cannot_read_are_skipped(two):
    folder = only_folder(two, 2)
    shutil.rmtree(folder / "arrays")
    (folder / "SHA256SUMS").write_text(checkpoint._checksums(folder))
    assert_falls_back(two, "unreadable")


@pytest.mark.parametrize(
    "other",
    [
        {"x": jnp.zeros(3)},
        {"x": jnp.zeros(2, jnp.int32)},
        {"y": jnp.zeros(2)},
        {"x": jnp.zeros(2), "y": jnp.zeros(2)},
        [jnp.zeros(2)],
    ],
)
def test_a_foreign_state_is_one_clear_error(tmp_path, other):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, {"x": jnp.zeros(2)}, {})
    with pytest.raises(
        UserError, match=r"iteration 4: foreign: the leaf .* in the checkpoint and .* in this run; re"
    ) as e:
        checkpoints.restore(other)
    assert "\n" not in str(e.value)


def test_nothing_to_restore_is_one_clear_error(tmp_path, two):
    with pytest.raises(UserError, match="no checkpoint in"):
        Checkpoints(tmp_path / "absent").restore(make_state())
    foreign = tmp_path / "foreign"
    (foreign / "iteration-000000001").mkdir(parents=True)
    with pytest.raises(UserError, match="SHA256SUMS is missing"):
        Checkpoints(foreign).restore(make_state())
    for folder in two.folder.glob("iteration-*"):
        (folder / "checkpoint.json").write_text("")
    with pytest.raises(UserError, match=r"iteration 2: damaged.*iteration 1: damaged") as error:
        two.restore(make_state())
    assert "\n" not in str(error.value)


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        UserError, match=r"cannot save a checkpoint in .*file/run: Not a directory; there is no earlier"
    ):
        Checkpoints(tmp_path / "file" / "run").save(1, {"x": jnp.zeros(2)}, {})


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def orbax_without_space(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: failed to write [os_error_code='28' source locations=...]\nmore")


@pytest.mark.parametrize(
    ("target", "failure"),
    [("shutil.disk_usage", no_space), ("os.fsync", no_space), ("os.rename", no_space), ("save", orbax_without_space)],
)
def test_full_disk_leaves_the_old_set(two, monkeypatch, target, failure):
    with monkeypatch.context() as patch:
        if target == "save":
            patch.setattr(orbax.checkpoint.Checkpointer, "save", failure)
        else:
            patch.setattr(target, failure)
        with pytest.raises(UserError, match="No space left on device; the last one, of iteration 2, is intact") as e:
            two.save(3, make_state(3), {})
    assert "\n" not in str(e.value)
    assert sorted(path.name for path in two.folder.iterdir()) == ["iteration-000000001", "iteration-000000002"]
    two.save(3, make_state(3), {})
    assert two.restore(make_state()).iteration == 3


def test_a_state_larger_than_the_disk_is_refused_in_time(two, monkeypatch):
    usage = shutil.disk_usage(two.folder)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="No space left on device"):
        two.save(3, make_state(3), {})
    assert two.iterations() == [1, 2]


def test_leftovers_are_no_checkpoints_and_the_next_save_removes_them(two):
    shutil.copytree(only_folder(two, 2), two.folder / ".partial-3")
    (two.folder / "iteration-000000009.orbax-checkpoint-tmp").mkdir()
    assert two.iterations() == [1, 2]
    two.save(4, make_state(4), {})
    assert not list(two.folder.glob(".partial-*"))
    assert two.iterations() == [1, 2, 4]


def test_quiet_even_when_orbax_is_not(tmp_path, caplog, capfd):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(), {})
    checkpoints.restore(make_state())
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


SAVE_FOREVER = """
import sys
from pathlib import Path
import jax.numpy as jnp
from metadyna.runs.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
iteration = max(checkpoints.iterations(), default=0)
while True:
    iteration += 1
    checkpoints.save(iteration, {"x": jnp.full(200_000, iteration), "y": jnp.arange(iteration)}, {})
    print(iteration, flush=True)
"""


def test_sigkill_at_any_moment_loses_nothing(tmp_path):
    generator = random.Random(time.time_ns())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for _ in range(4):
        command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(generator.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
            reported = [int(line) for line in process.stdout.read().split()]
        iterations = Checkpoints(tmp_path).iterations()
        assert iterations
        if reported:
            assert iterations[-1] >= reported[-1]
        for iteration in iterations:
            like = {"x": jnp.zeros(200_000, jnp.int32), "y": jnp.zeros(iteration, jnp.int32)}
            restored = Checkpoints(tmp_path).restore(like, iteration)
            assert restored.notes == []
            assert (restored.state["x"] == iteration).all()
