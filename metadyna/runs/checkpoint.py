"""Checkpoints that survive a power cut: the whole training state, written atomically, verified when read.

One checkpoint is one folder:

    iteration-000000012/
      arrays/           every non-empty leaf under its path, written by Orbax
      checkpoint.json   format marker, version, iteration, state_sha256, types of the leaves, metadata
      SHA256SUMS        checksum of every file above; `sha256sum -c SHA256SUMS` verifies it by hand

It is built under another name, flushed to the disk and then renamed: whatever bears the name is complete. The
checksums are compared before Orbax sees a file: a damaged one never reaches a parser.

Orbax is imported where it is used: loading it takes a good part of a warm start.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metadyna.errors import UserError
from metadyna.provenance.hashes import hash_arrays, host_arrays, is_key, leaf_types
from metadyna.types import PyTree

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

FORMAT = "metadyna-checkpoint"
VERSION = 1

_FOLDER_NAME = re.compile(r"iteration-(\d{9,})(?:\.(\d+))?")
_PARTIAL = ".partial-"
"""Prefix of a folder that is being built or removed; whatever carries it is not a checkpoint."""

_SPARE_BYTES = 1 << 20
"""Room beyond the arrays for indices and checksums when judging whether a checkpoint fits on the disk."""


class Restored(NamedTuple):
    """What came back from the disk; `notes` has one line per newer checkpoint that had to be skipped."""

    iteration: int
    state: PyTree
    metadata: dict[str, Any]
    notes: list[str]


class _Entry(NamedTuple):
    """One checkpoint folder; a later `attempt` at the same iteration supersedes the earlier ones."""

    iteration: int
    attempt: int
    path: Path


class _Unusable(Exception):
    """Why one checkpoint cannot be used."""


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them.

    Any number of processes may read; one may write. Reading changes nothing on the disk.
    """

    def __init__(self, folder: Path, keep: int = 3):
        """Nothing is created before the first save. `keep` is at least 1."""
        if keep < 1:
            raise UserError(f"keep is {keep}; at least 1 checkpoint must be kept")
        self.folder = Path(folder)
        self.keep = keep

    def iterations(self) -> list[int]:
        """Iterations with a complete checkpoint, ascending; complete does not yet mean undamaged."""
        return sorted({entry.iteration for entry in self._entries()})

    def save(self, iteration: int, state: PyTree, metadata: dict[str, Any]) -> None:
        """Write one checkpoint and return when it is on the disk.

        `metadata` is JSON. A process killed at any instant leaves the old set, or that and the new checkpoint.
        Checkpoints of later iterations are then removed: they belong to a future that this run has left.
        Raises UserError when the disk refuses; what was there before stays.
        """
        arrays = host_arrays(state)
        record = {
            "format": FORMAT,
            "version": VERSION,
            "iteration": iteration,
            "state_sha256": hash_arrays(leaf_types(state), arrays),
            "leaves": leaf_types(state),
            "metadata": metadata,
        }
        text = json.dumps(record, indent=1)
        partial = self.folder / f"{_PARTIAL}{iteration}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            _require_space(self.folder, arrays)
            _write(partial, arrays, text)
            os.rename(partial, self._free_path(iteration))
            _sync(self.folder)
            self._rotate(iteration)
        # Orbax reports a failing disk as OSError, ValueError or RuntimeError, depending on where it noticed.
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(self._save_failure(error)) from error

    def restore(self, like_state: PyTree, iteration: int | None = None) -> Restored:
        """Load the newest good checkpoint, or the one of `iteration` and no other.

        `like_state` gives structure, shapes and dtypes, and may hold `jax.ShapeDtypeStruct` leaves. A damaged
        or foreign checkpoint is skipped with a note. Leaves come back as JAX arrays on the default device; as
        numpy arrays where JAX would narrow their dtype (float64 of a host simulator). Raises UserError if no
        checkpoint is good.
        """
        notes = []
        for entry in self._candidates(iteration):
            try:
                state, metadata = _read(entry, like_state)
            except _Unusable as problem:
                notes.append(f"skipped the checkpoint of iteration {entry.iteration}: {problem}")
            else:
                return Restored(entry.iteration, state, metadata, notes)
        raise UserError(
            f"no usable checkpoint in {self.folder}: {'; '.join(notes)}; "
            "resume with the settings the run was started with, or start again in an empty folder"
        )

    def _entries(self) -> list[_Entry]:
        """Complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        named = ((_FOLDER_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted(_Entry(int(name[1]), int(name[2] or 0), path) for name, path in named if name)

    def _candidates(self, iteration: int | None) -> list[_Entry]:
        """Checkpoints to try, best first."""
        entries = self._entries()
        if not entries:
            raise UserError(f"no checkpoint in {self.folder}; give the folder of a run that has saved one")
        if iteration is not None:
            entries = [entry for entry in entries if entry.iteration == iteration]
        if not entries:
            known = ", ".join(map(str, self.iterations()))
            raise UserError(f"no checkpoint of iteration {iteration} in {self.folder}; there are: {known}")
        return entries[::-1]

    def _free_path(self, iteration: int) -> Path:
        """Name for a new checkpoint; saving an iteration again leaves the old one whole."""
        attempts = [entry.attempt for entry in self._entries() if entry.iteration == iteration]
        suffix = f".{max(attempts) + 1}" if attempts else ""
        return self.folder / f"iteration-{iteration:09d}{suffix}"

    def _rotate(self, newest: int) -> None:
        """Remove all but the last attempts at the `keep` latest iterations up to `newest`."""
        latest = {entry.iteration: entry for entry in self._entries() if entry.iteration <= newest}
        kept = [latest[iteration] for iteration in sorted(latest)[-self.keep :]]
        for entry in self._entries():
            if entry not in kept:
                # Removing a tree is not atomic; without its name, half a tree cannot pass for a checkpoint.
                entry.path.rename(self.folder / f"{_PARTIAL}{entry.path.name}")
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove what an interrupted save or rotation left. Only the one writer may do this."""
        for path in self.folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(path)

    def _save_failure(self, error: Exception) -> str:
        """One line: which folder, why, and what is still there."""
        iterations = self.iterations()
        last = f"the last one, of iteration {iterations[-1]}, is intact" if iterations else "there is no earlier one"
        return f"cannot save a checkpoint in {self.folder}: {_reason(error)}; {last}"


def _require_space(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise ENOSPC before Orbax meets it: its writer threads print tracebacks that nothing can catch."""
    needed = sum(array.nbytes for array in arrays.values()) + _SPARE_BYTES
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write(folder: Path, arrays: dict[str, np.ndarray], record: str) -> None:
    """Write one checkpoint and flush it to the disk, names included."""
    import orbax.checkpoint as ocp

    folder.mkdir()
    stored = {path: array for path, array in arrays.items() if array.size}  # Orbax refuses arrays of size 0
    with _quiet_orbax() as orbax:
        orbax.save((folder / "arrays").absolute(), args=ocp.args.PyTreeSave(stored))
    (folder / "checkpoint.json").write_text(record, encoding="utf-8")
    (folder / "SHA256SUMS").write_text(_checksums(folder), encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _read(entry: _Entry, like_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """State and metadata of one checkpoint, verified. Raises _Unusable."""
    try:
        _verify_checksums(entry.path)
        record = _verified_record(entry, leaf_types(like_state))
        arrays = _load_arrays(entry.path / "arrays", like_state)
    except OSError as error:  # a failing disk, or another process rotated the checkpoint away meanwhile
        raise _Unusable(f"unreadable: {_reason(error)}") from error
    if hash_arrays(record["leaves"], arrays) != record["state_sha256"]:
        raise _Unusable("damaged: the state does not match its state_sha256")
    return _rebuild(like_state, arrays), record["metadata"]


def _checksums(folder: Path) -> str:
    """One line per file in the format of sha256sum, SHA256SUMS itself excepted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "SHA256SUMS")
    digests = ((hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(folder)) for path in files)
    return "".join(f"{digest}  {path.as_posix()}\n" for digest, path in digests)


def _verify_checksums(folder: Path) -> None:
    """Raise _Unusable, naming one file, unless every file is as it was written."""
    recorded_path = folder / "SHA256SUMS"
    if not recorded_path.is_file():
        raise _Unusable("SHA256SUMS is missing; metadyna did not write this folder, or it was deleted")
    recorded = recorded_path.read_text(encoding="utf-8", errors="replace")
    actual = _checksums(folder)
    if recorded != actual:
        # The line of a file that changed or vanished stands on one side only.
        changed = set(recorded.split("\n")) ^ set(actual.split("\n"))
        name = min((line.partition("  ")[2] for line in changed), default="") or "SHA256SUMS"
        raise _Unusable(f"damaged: {name[:100]!r} is missing or not as it was written")


def _verified_record(entry: _Entry, expected: dict[str, str]) -> dict[str, Any]:
    """Read checkpoint.json; raise _Unusable unless format, iteration and leaf types are right."""
    try:
        record = json.loads((entry.path / "checkpoint.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _Unusable("checkpoint.json is missing or is not JSON") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise _Unusable(f"foreign: checkpoint.json does not carry the format '{FORMAT}'")
    if record.get("version") != VERSION:
        raise _Unusable(f"of format version {record.get('version')}; this metadyna reads version {VERSION}")
    if record.get("iteration") != entry.iteration:
        raise _Unusable(f"renamed: it was written at iteration {record.get('iteration')}")
    for path in sorted(expected.keys() | record["leaves"].keys()):
        there, here = record["leaves"].get(path, "absent"), expected.get(path, "absent")
        if there != here:
            raise _Unusable(f"foreign: the leaf {path} is {there} in the checkpoint and {here} in this run")
    return record


def _load_arrays(folder: Path, like_state: PyTree) -> dict[str, np.ndarray]:
    """Leaves by path; those of size 0 were never written."""
    import orbax.checkpoint as ocp

    leaves = jax.tree_util.tree_leaves_with_path(like_state)
    stored_as = {jax.tree_util.keystr(path): _stored_as(leaf) for path, leaf in leaves}
    wanted = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path, leaf in stored_as.items() if leaf.size}
    try:
        with _quiet_orbax() as orbax:
            arrays = orbax.restore(folder.absolute(), args=ocp.args.PyTreeRestore(restore_args=wanted))
    except Exception as error:  # whatever Orbax makes of arrays that it did not write
        raise _Unusable(f"unreadable: {_reason(error)}") from error
    empty = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in stored_as.items() if not leaf.size}
    return {**arrays, **empty}


def _stored_as(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype under which a leaf is written."""
    if is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _rebuild(like_state: PyTree, arrays: dict[str, np.ndarray]) -> PyTree:
    """Put the arrays into the structure of `like_state`."""

    def place(path: Any, like: Any) -> Any:
        array = arrays[jax.tree_util.keystr(path)]
        if is_key(like):
            return jax.random.wrap_key_data(jnp.array(array), impl=_key_implementation(like))
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            return array
        return jnp.array(array)

    return jax.tree_util.tree_map_with_path(place, like_state)


def _key_implementation(key: Any) -> Any:
    """Generator of a typed key; asked inside a trace because `key_impl` refuses abstract keys outside one."""
    found = []
    jax.eval_shape(lambda traced: found.append(jax.random.key_impl(traced)), key)
    return found[0]


@contextlib.contextmanager
def _quiet_orbax() -> "Iterator[ocp.Checkpointer]":
    """A checkpointer whose log lines and deprecation warnings do not reach the user; errors still raise."""
    import orbax.checkpoint as ocp

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                yield checkpointer
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _sync(path: Path) -> None:
    """Flush one file, or the list of names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    """What went wrong in a few words; tensorstore hides the number of the system's error in its text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else f"{type(error).__name__}: {error}".splitlines()[0][:200]
