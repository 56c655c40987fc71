"""What a run is: settings that are written to `config.json` and read back as the same value."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from metadyna.errors import UserError, unknown
from metadyna.settings import Settings
from metadyna.systems import SYSTEMS, System

FORMAT = "metadyna-run-1"
PARTIAL = "config.json.partial"


@dataclass(frozen=True)
class Config(Settings):
    """One run: a system, the tasks it meta-trains on, and for how long."""

    system: System
    """The method and its settings."""
    task: str
    """Name of a task family; `metadyna list` shows them."""
    steps: Annotated[int, "[1, 2000000000]"] = 1_000_000
    """Environment steps per seed, or updates where a system learns from a data set; ends at the first chunk there."""
    seed: Annotated[int, "[0, 4294967295]"] = 0
    """First seed."""
    seeds: Annotated[int, "[1, 4096]"] = 1
    """Independent runs in one program, with seeds `seed`, `seed + 1`, …"""
    chunk: Annotated[int, "[1, 1000000]"] = 100
    """Iterations per compiled call; metrics are logged once per chunk."""
    eval_every: Annotated[int, "[1, 2000000000]"] = 25_000
    """Environment steps between evaluations on every task of the test split."""
    stop_at: Annotated[float, "[-1000000000, 1000000000]"] | None = None
    """End a seed early once its evaluation return reaches this."""
    checkpoint_seconds: Annotated[float, "[0, 1000000000]"] = 60.0
    """Wall time between checkpoints; when they are taken does not change what is computed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed + self.seeds > 2**32:
            last = self.seed + self.seeds - 1
            raise UserError(f"Config.seed + Config.seeds - 1 = {last} is out of range; it must lie in [0, 4294967295]")


def system_name(system: System) -> str:
    """The name under which a system is listed."""
    return next(name for name, kind in SYSTEMS.items() if type(system) is kind)


def to_dict(config: Config) -> dict[str, Any]:
    """Every field, resolved, as plain JSON values."""
    fields = {**_plain(config), "system": {"name": system_name(config.system), **_plain(config.system)}}
    return {"format": FORMAT, **fields}


def from_dict(record: Any, source: str = "config") -> Config:
    """Invert `to_dict`. Raises `UserError` for anything that is not a complete configuration."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{source} is not a {FORMAT} configuration")
    record = {key: value for key, value in record.items() if key != "format"}
    system = record.get("system")
    if not isinstance(system, dict) or "name" not in system:
        raise UserError(f"{source}: system has no name; it must be one of {', '.join(SYSTEMS)}")
    if system["name"] not in SYSTEMS:
        raise unknown("system", str(system["name"]), SYSTEMS)
    kind = SYSTEMS[system["name"]]
    fields = {key: value for key, value in system.items() if key != "name"}
    return _build(Config, {**record, "system": _build(kind, fields, f"{source}: system")}, source)


def save(config: Config, folder: Path) -> None:
    """Write `config.json`, all or nothing: without it the folder is no run. Raises `UserError` if the disk refuses."""
    partial = folder / PARTIAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(to_dict(config), indent=2) + "\n")
        partial.replace(folder / "config.json")
    except OSError as error:
        raise unwritable(folder, error) from None


def unwritable(folder: Path, error: OSError) -> UserError:
    """Build the error for a run folder that the disk refuses."""
    return UserError(f"cannot write to {folder}: {error.strerror or error}; free or choose another disk")


def load(folder: Path) -> Config:
    """Read the configuration of a run folder. Raises `UserError` if the folder is no run."""
    path = folder / "config.json"
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run folder: it has no config.json") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return from_dict(record, str(path))


def differences(old: Config, new: Config) -> list[str]:
    """One line per field in which two configurations differ: `name: old -> new`."""
    before, after = flat(old), flat(new)
    names = sorted(before.keys() | after.keys())
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names if before.get(name) != after.get(name)]


def flat(config: Config) -> dict[str, Any]:
    """Every field by its dotted name."""
    return flatten(to_dict(config))


def flatten(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    names: dict[str, Any] = {}
    for key, value in record.items():
        names.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return names


def _plain(settings: Any) -> dict[str, Any]:
    """Fields by name. Where a field may hold settings of several kinds, theirs begin with the name of the kind."""
    hints, record = typing.get_type_hints(type(settings)), {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            several = {"kind": type(value).__name__} if _kinds(hints[field.name]) else {}
            value = {**several, **_plain(value)}
        record[field.name] = value
    return record


def _kinds(hint: Any) -> dict[str, type]:
    """The settings that a field may hold by name, if there are several."""
    return {
        kind.__name__: kind
        for kind in typing.get_args(hint)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }


def _build(kind: type, record: dict[str, Any], source: str) -> Any:
    """Make a dataclass from plain values, strictly: every field once, every value of its field's type."""
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    if record.keys() != names:
        wrong = sorted(record.keys() ^ names)
        raise UserError(f"{source}: fields do not match this version of {kind.__name__}: {', '.join(wrong)}")
    values = {}
    for name, value in record.items():
        hint = hints[name]
        kinds = _kinds(hint)
        if kinds and isinstance(value, dict):
            if value.get("kind") not in kinds:
                raise unknown(f"kind of {source}: {name}", str(value.get("kind")), kinds)
            hint = kinds[value["kind"]]
            value = {key: item for key, item in value.items() if key != "kind"}
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            value = _build(typing.cast(type, hint), value, f"{source}: {name}")
        elif typing.get_origin(hint) is tuple and isinstance(value, list):
            value = tuple(value)  # JSON has no tuples
        if not dataclasses.is_dataclass(value) and not _fits(value, hint):
            raise UserError(f"{source}: {name} = {value!r} is not {_expected(hint)}")
        values[name] = value
    return kind(**values)


def _expected(hint: Any) -> str:
    """A type in words."""
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_expected(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return f"a {getattr(hint, '__name__', hint)}"


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
