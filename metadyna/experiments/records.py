"""What was found with a seed, kept in a small file of its own: a figure can be drawn again where the run is not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metadyna.errors import UserError
from metadyna.provenance import machine

Measured = Mapping[str, Any]
"""Plain JSON values by name."""

Records = Mapping[str, Sequence[Measured]]
"""What was measured of every seed, by arm."""

Settings = str | Mapping[str, Any]
"""What was measured: the configuration of a run as plain JSON values, or how else it is written."""


def write(place: Path, seed: int, settings: Settings, measured: Measured, minutes: float) -> None:
    """Keep what was measured, with what, how long it took and where; whatever bears the name is complete."""
    found = {"seed": seed, "settings": settings, "measured": measured}
    found |= {"minutes": round(minutes, 2), "environment": machine.environment_record()}
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(place)


def kept(place: Path, settings: Settings) -> Measured | None:
    """What a record says was measured; None if there is no record.

    Raises `UserError` if the file is damaged, or if it was made with other settings.
    """
    if not place.exists():
        return None
    try:
        found = json.loads(place.read_text())
        before, measured = found["settings"], found["measured"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{place} is damaged; remove it to measure again") from None
    differing = "; ".join(_differences(before, settings))
    if differing:
        raise UserError(f"{place} was measured with other settings ({differing}); remove it to measure again")
    return measured


def _differences(before: object, now: object, name: str = "") -> list[str]:
    """One phrase per setting: `name: before -> now`."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [f"{name}: {before} -> {now}".removeprefix(": ")] if before != now else []
    keys = dict.fromkeys([*before, *now])
    each = ((key, before.get(key, "nothing"), now.get(key, "nothing")) for key in keys)
    return [line for key, old, new in each for line in _differences(old, new, f"{name}.{key}".removeprefix("."))]
