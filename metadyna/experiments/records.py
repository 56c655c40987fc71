"""What was found with a seed, kept in a small file of its own: a figure can be drawn again where the run is not."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metadyna.errors import UserError, unknown
from metadyna.provenance import machine
from metadyna.runs import loop
from metadyna.runs.config import Config, to_dict

Measured = Mapping[str, Any]
"""Plain JSON values by name."""

Trial = Callable[[int], Measured]


@dataclass(frozen=True)
class Study:
    """Arms whose seeds run one by one; what is measured of each finished run is all that the report needs."""

    name: str
    title: str
    arms: Mapping[str, Config | Trial]
    """Runs, or anything else that can be measured as a function of a seed."""
    seeds: int
    measure: Callable[[loop.Result], Measured]
    report: Callable[[Mapping[str, Sequence[Measured]], Path, str], list[Path]]
    """Draw and tabulate the records of every arm in a folder, under the study's name."""
    runs_of: str | None = None
    """Name of a study whose runs these are, if it has them already."""

    def record(self, out: Path, arm: str, seed: int) -> Path:
        """Where the record of one run is kept; the run is in the folder beside it."""
        return out / (self.runs_of or self.name) / arm.replace(" ", "-") / f"seed-{seed}.json"

    def conduct(self, out: Path, arm: str, seed: int) -> Measured:
        """What was measured of one seed of an arm, which is run if it has no record yet."""
        if arm not in self.arms:
            raise unknown("arm", arm, self.arms)
        place, one = self.record(out, arm, seed), self.arms[arm]
        if not isinstance(one, Config):
            print(f"{arm}, seed {seed}: {place}")
            return kept(place, seed, repr(one), lambda: one(seed))["measured"]
        config = replace(one, seed=seed, seeds=1)

        def find() -> Measured:
            folder = place.with_suffix("")
            print(f"{arm}, seed {seed}: {folder}")
            begun = (folder / "config.json").exists()
            result = loop.resume(folder, config) if begun else loop.run(config, folder)
            if result.interrupted:
                print(f"interrupted during '{arm}', seed {seed}; the same command goes on from there")
                raise KeyboardInterrupt
            return self.measure(result)

        return kept(place, seed, json.loads(json.dumps(to_dict(config))), find)["measured"]


def kept(place: Path, seed: int, settings: Any, find: Callable[[], Measured]) -> dict[str, Any]:
    """The record in a file, or a new one of what `find` finds.

    Raises `UserError` if the file is damaged, or if it was made with other settings.
    """
    if not place.exists():
        started = time.monotonic()
        found = {"seed": seed, "settings": settings, "measured": find()}
        found |= {"minutes": round((time.monotonic() - started) / 60, 2), "environment": machine.environment_record()}
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(".partial")  # whatever bears the name is complete
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(place)
    try:
        found = json.loads(place.read_text())
        before, _ = found["settings"], found["measured"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{place} is damaged; remove it to measure again") from None
    if before != settings:
        differing = "; ".join(_differences(before, settings))
        raise UserError(f"{place} was measured with other settings ({differing}); remove it to measure again")
    return found


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """One phrase per setting: `name: before -> now`."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [f"{name}: {before} -> {now}".removeprefix(": ")] if before != now else []
    keys = dict.fromkeys([*before, *now])
    each = ((key, before.get(key, "nothing"), now.get(key, "nothing")) for key in keys)
    return [line for key, old, new in each for line in _differences(old, new, f"{name}.{key}".removeprefix("."))]
