"""Configurations: written and read back as the same value, and strict about everything else."""

import json
from dataclasses import replace

import pytest

from metadyna.errors import UserError
from metadyna.experiments.presets import PRESETS, preset
from metadyna.improve.ddqn import DDQN
from metadyna.runs import config
from metadyna.runs.config import Config, differences, flat, from_dict, to_dict
from metadyna.systems.dream import DREAM

BASE = Config(system=DREAM(), task="city-5x5")
NAMES = [(system, name) for system in PRESETS for name in PRESETS[system]]


@pytest.mark.parametrize(("system", "name"), NAMES)
def test_every_preset_survives_the_disk(system, name, tmp_path):
    value = replace(preset(system, name), stop_at=0.75, seed=2**32 - 4, seeds=4)
    config.save(value, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert config.load(tmp_path) == value
    assert hash(config.load(tmp_path)) == hash(value)


def changed(path, value):
    """A valid record with one entry set, or removed where the value is None."""
    record = json.loads(json.dumps(to_dict(BASE)))
    *parents, last = path.split(".")
    place = record
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("steps", None, "fields do not match this version of Config: steps"),
        ("system.explore.batch", None, "system: explore: fields do not match this version of DDQN: batch"),
        ("system.gamma", 0.9, "fields do not match this version of DREAM: gamma"),
        ("steps", "many", "steps = 'many' is not a int"),
        ("steps", 1.5, "steps = 1.5 is not a int"),
        ("seed", True, "seed = True is not a int"),
        ("stop_at", "never", "stop_at = 'never' is not a float | None"),
        ("system.explore", 3, "explore = 3 is not a DDQN"),
        ("system.exploration", "learnt", "exploration = 'learnt' is not one of learned, random, none"),
        ("steps", 0, r"Config.steps = 0 is out of range; it must lie in \[1, 2000000000\]"),
        ("steps", 3_000_000_000, "out of range"),
        ("system.noise", float("nan"), "DREAM.noise = nan is out of range"),
        ("system.name", None, "system has no name; it must be one of crar, dream"),
        ("system.name", "drean", "unknown system 'drean'; did you mean dream"),
        ("system", "dream", "system has no name"),
        ("format", "metadyna-run-9", "is not a metadyna-run-1 configuration"),
        ("format", None, "is not a metadyna-run-1 configuration"),
    ],
)
def test_whatever_is_not_a_complete_configuration_is_refused(path, value, told):
    with pytest.raises(UserError, match=told) as error:
        from_dict(changed(path, value))
    assert "\n" not in str(error.value)


def test_a_seed_beyond_32_bits_is_refused():
    with pytest.raises(UserError, match=r"seeds - 1 = 4294967296 is out of range"):
        replace(BASE, seed=2**32 - 1, seeds=2)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is not a run folder: it has no config.json"),
        (b"{", "cannot be read: Expecting"),
        (b"", "cannot be read: Expecting"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "is not a metadyna-run-1 configuration"),
        (b'{"format": "other"}', "is not a metadyna-run-1 configuration"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(content, told, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        config.load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory"):
        config.load(tmp_path / "file")


def test_differences_name_every_field_once():
    other = replace(BASE, steps=5, system=replace(BASE.system, bottleneck=None, explore=DDQN(batch=7)))
    assert differences(BASE, BASE) == []
    assert differences(BASE, other) == [
        "steps: 1000000 -> 5",
        "system.bottleneck: 10.0 -> None",
        "system.explore.batch: 32 -> 7",
        "system.explore.warmup: 8000 -> 500",
    ]
    assert flat(BASE)["system.name"] == "dream"
