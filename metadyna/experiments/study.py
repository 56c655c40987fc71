"""What a figure is drawn from: arms that are run with several seeds, and a report on the records that they leave."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metadyna.errors import unknown
from metadyna.experiments import records, reports
from metadyna.experiments.records import Measured, Records, Settings
from metadyna.runs import loop
from metadyna.runs.config import Config, to_dict

Arm = Config | Callable[[int], Measured]
"""A run, or anything else that can be measured as a function of a seed."""


@dataclass(frozen=True)
class Study:
    """Arms that are compared. Every seed of an arm leaves a record, which is all that the report needs."""

    name: str
    arms: Mapping[str, Arm]
    """A function of a seed is written, in its records, as its `repr`."""
    seeds: int
    report: Callable[[Records, Path, str], list[Path]]
    """Draw and tabulate the records of every arm in a folder, under the study's name."""
    measure: Callable[[loop.Result], Measured] = reports.learnt
    """What is kept of a finished run of one seed."""
    company: bool = False
    """Whether the seeds of an arm run in one program, which is faster where a step is small, or one by one."""
    runs_of: str | None = None
    """Name of a study whose runs these are, if it has them already."""

    def record(self, out: Path, arm: str, seed: int) -> Path:
        """Where the record of one seed is kept; runs are in folders beside it."""
        return self._folder(out, arm) / f"seed-{seed}.json"

    def conduct(self, out: Path, arm: str, seeds: range) -> list[Measured]:
        """What was measured of an arm's seeds; those that have no record yet are run.

        Raises `UserError` if a record was made with other settings.
        """
        if arm not in self.arms:
            raise unknown("arm", arm, self.arms)
        missing = [seed for seed in seeds if self._kept(out, arm, seed) is None]
        groups = [missing] if self.company and missing else [[seed] for seed in missing]
        for group in groups:
            started = time.monotonic()
            measured = self._measured(out, arm, group)
            minutes = (time.monotonic() - started) / 60
            for seed in group:
                place = self.record(out, arm, seed)
                records.write(place, seed, settings(self.arms[arm], seed), measured[seed], minutes)
        return [kept for seed in seeds if (kept := self._kept(out, arm, seed)) is not None]

    def _folder(self, out: Path, arm: str) -> Path:
        return out / (self.runs_of or self.name) / arm.replace(" ", "-")

    def _kept(self, out: Path, arm: str, seed: int) -> Measured | None:
        return records.kept(self.record(out, arm, seed), settings(self.arms[arm], seed))

    def _measured(self, out: Path, arm: str, group: Sequence[int]) -> Mapping[int, Measured]:
        """Run some seeds together, or what was begun of them to its end, and measure each."""
        one, first, last = self.arms[arm], group[0], group[-1]
        if not isinstance(one, Config):
            print(f"{arm}, seed {first}: {self.record(out, arm, first)}")
            return {seed: one(seed) for seed in group}
        named = f"seed {first}" if first == last else f"seeds {first} to {last}"
        folder = self._folder(out, arm) / named.replace(" ", "-")
        print(f"{arm}, {named}: {folder}")
        config = replace(one, seed=first, seeds=last - first + 1)
        begun = (folder / "config.json").exists()
        result = loop.resume(folder, config) if begun else loop.run(config, folder)
        if result.interrupted:
            print(f"interrupted during '{arm}', {named}; the same command goes on from there")
            raise KeyboardInterrupt
        return {seed: self.measure(alone(result, seed - first)) for seed in group}


def settings(arm: Arm, seed: int) -> Settings:
    """How an arm's seed is written in its record: as if it had run alone, for company does not change it."""
    if not isinstance(arm, Config):
        return repr(arm)
    return json.loads(json.dumps(to_dict(replace(arm, seed=seed, seeds=1))))


@dataclass(frozen=True)
class _Alone(loop.Result):
    """A seed of a run that had several."""

    index: int = 0

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows, with this seed's numbers where each seed has its own, and without those that it lacks."""
        rows = super().metrics
        own = [{name: v[self.index] if isinstance(v, list) else v for name, v in row.items()} for row in rows]
        return [{name: value for name, value in row.items() if np.isfinite(value)} for row in own]


def alone(result: loop.Result, index: int) -> loop.Result:
    """One seed of a run, as if it had run alone."""
    config = result.config
    if config.seeds == 1:
        return result
    state = jax.tree.map(lambda x: x[index : index + 1], result.state)
    return _Alone(result.folder, replace(config, seed=config.seed + index, seeds=1), state, index=index)
