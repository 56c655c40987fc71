"""What a run is: settings that are written to `config.json` and read back as the same value."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from metadyna.errors import UserError, unknown
from metadyna.settings import Settings, field_hints, is_settings, options
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
        _refuse_unknown(self)
        if self.seed + self.seeds > 2**32:
            last = self.seed + self.seeds - 1
            raise UserError(f"Config.seed + Config.seeds - 1 = {last} is out of range; it must lie in [0, 4294967295]")


def system_name(system: System) -> str:
    """The name under which a system is listed."""
    return next(name for name, kind in SYSTEMS.items() if type(system) is kind)


def to_dict(config: Config) -> dict[str, Any]:
    """Every field, resolved, as plain JSON values; infinity is a float, which Python's JSON spells `Infinity`."""
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
    except (OSError, ValueError, RecursionError) as error:  # no JSON, or such as no run has written
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


def _refuse_unknown(settings: Settings) -> None:
    """Raise a `UserError` for parts whose class could not be found again: those that only inherit from a known one."""
    for name, hint in field_hints(type(settings)).items():
        part = getattr(settings, name)
        if isinstance(part, Settings):
            if type(part) not in options(hint):
                known = " or ".join(kind.__name__ for kind in options(hint) if is_settings(kind))
                where, own = f"{type(settings).__name__}.{name}", type(part).__name__
                raise UserError(f"{where} is a {own}, which could not be read back from config.json; choose {known}")
            _refuse_unknown(part)


def _plain(settings: Any) -> dict[str, Any]:
    """Fields by name. Where a field may hold settings of several kinds, theirs begin with the name of the kind."""
    record = {}
    for name, hint in field_hints(type(settings)).items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            several = {"kind": type(value).__name__} if _kinds(hint) else {}
            value = {**several, **_plain(value)}
        record[name] = value
    return record


def _kinds(hint: Any) -> dict[str, type]:
    """The settings that a field may hold by name, if there are several types that it may have."""
    several = options(hint) if len(options(hint)) > 1 else ()
    return {kind.__name__: kind for kind in several if is_settings(kind)}


def _build(kind: type, record: dict[str, Any], source: str) -> Any:
    """Make settings from plain values: every field once. Whether the values fit is for the settings to say."""
    hints = field_hints(kind)
    if record.keys() != hints.keys():
        wrong = sorted(record.keys() ^ hints.keys())
        raise UserError(f"{source}: fields do not match this version of {kind.__name__}: {', '.join(wrong)}")
    values = {name: _restored(value, hints[name], f"{source}: {name}") for name, value in record.items()}
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _restored(value: Any, hint: Any, source: str) -> Any:
    """What JSON has made lists and dictionaries of: tuples and settings."""
    if isinstance(value, list):
        return tuple(_restored(item, Any, source) for item in value)
    if not isinstance(value, dict):
        return value
    if is_settings(hint):
        return _build(hint, value, source)
    kinds = _kinds(hint)
    if not kinds:
        return value
    if value.get("kind") not in kinds:
        raise unknown(f"kind of {source}", str(value.get("kind")), kinds)
    fields = {key: item for key, item in value.items() if key != "kind"}
    return _build(kinds[value["kind"]], fields, source)
