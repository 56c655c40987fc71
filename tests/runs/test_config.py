"""Configurations: written and read back as the same value, and strict about everything else."""

import contextlib
import json
import math
import typing
from dataclasses import dataclass, replace
from typing import Any, Literal

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from metadyna.adapt.context import EncoderDecoder
from metadyna.data.source import Gathering
from metadyna.errors import UserError
from metadyna.experiments.presets import PRESETS, preset
from metadyna.improve.abstract import AbstractLearning
from metadyna.improve.ddqn import DDQN
from metadyna.improve.meta import MetaPPO, MetaTRPO
from metadyna.improve.sac import SAC
from metadyna.models.abstract import Vector
from metadyna.planning.mpc import MPC
from metadyna.policies.squashed import ActorCritic
from metadyna.runs import config
from metadyna.runs.config import Config, differences, flat, from_dict, to_dict
from metadyna.search.cem import CEM
from metadyna.search.icem import ICEM
from metadyna.search.mppi import MPPI
from metadyna.search.random import RandomShooting
from metadyna.settings import Interval, Settings, bare, field_hints, is_settings, options
from metadyna.systems import SYSTEMS
from metadyna.systems.crar import CRAR
from metadyna.systems.dream import DREAM
from metadyna.systems.gmas import GMAS, FarDiscount, ModelError, Uniform
from metadyna.systems.maml import MAML
from metadyna.systems.mpc import PETS
from metadyna.systems.sac import SoftActorCritic

BASE = Config(system=DREAM(), task="city-5x5")
NAMES = [(system, name) for system in PRESETS for name in PRESETS[system]]


@pytest.mark.parametrize(("system", "name"), NAMES)
def test_every_preset_survives_the_disk(system, name, tmp_path):
    value = replace(preset(system, name), stop_at=0.75, seed=2**32 - 4, seeds=4)
    config.save(value, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert config.load(tmp_path) == value
    assert hash(config.load(tmp_path)) == hash(value)


# --- every value of every field


def values(hint: Any, now: Any = None) -> strategies.SearchStrategy[Any]:
    """What a field may hold, by its type and range; settings are drawn from what the field holds now, or by default."""
    kind, interval = bare(hint)
    if len(options(kind)) > 1:
        return strategies.one_of([values(option, now) for option in options(kind)])
    if kind is int or kind is float:
        return one_number(kind, Interval.parse(interval))
    if kind in SIMPLE:
        return SIMPLE[kind]
    if is_settings(kind):
        return some_settings(now if type(now) is kind else kind())
    elements = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return strategies.sampled_from(elements)
    assert typing.get_origin(kind) is tuple
    if elements[-1] is Ellipsis:
        return strategies.lists(values(elements[0]), max_size=4).map(tuple)
    return strategies.tuples(*map(values, elements))


SIMPLE = {bool: strategies.booleans(), str: strategies.text(), type(None): strategies.none()}


def one_number(kind: type, interval: Interval) -> strategies.SearchStrategy[Any]:
    """A number of the range, often one of its ends, and where a float is wanted sometimes a whole one."""
    low, high = interval.low, interval.high
    if kind is int:
        return strategies.integers(int(low), int(high)).filter(interval.holds)
    drawn = [strategies.floats(low, high), strategies.sampled_from([low, high])]
    if math.ceil(max(low, -9)) <= math.floor(min(high, 9)):
        drawn.append(strategies.integers(math.ceil(max(low, -9)), math.floor(min(high, 9))))
    return strategies.one_of(drawn).filter(lambda value: interval.holds(float(value)))


@strategies.composite
def some_settings(draw: Any, settings: Settings) -> Settings:
    """Settings whose fields are drawn one after the other; what does not go with the others is left as it is."""
    hints = field_hints(type(settings))
    for name in draw(strategies.lists(strategies.sampled_from([*hints]), max_size=8) if hints else strategies.just([])):
        value = draw(values(hints[name], getattr(settings, name)))
        with contextlib.suppress(UserError):
            settings = replace(settings, **{name: value})
    return settings


def read_back(config: Config) -> Config:
    return from_dict(json.loads(json.dumps(to_dict(config))))


BRIEFLY = hypothesis.settings(max_examples=10, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("start", [*(Config(kind(), "a") for kind in SYSTEMS.values()), *(preset(*n) for n in NAMES)])
@BRIEFLY
@hypothesis.given(data=strategies.data())
def test_whatever_can_be_made_is_read_back(start, data):
    config = data.draw(some_settings(start))
    assert read_back(config) == config
    assert repr(read_back(config)) == repr(config)  # which tells types apart where equality does not


@pytest.mark.parametrize(
    "system",
    [
        CRAR(learning=AbstractLearning(directions=(None, (1, 0.0), (-0.5,)), gradient_clip=math.inf)),
        CRAR(form=Vector(np.int64(3)), data=Gathering(time_limit=5, dataset="some/data-v0")),
        *(GMAS(weighting=weighting, doubt=0.5) for weighting in (Uniform(), FarDiscount(), ModelError())),
        *(PETS(planner=MPC(search=search)) for search in (CEM(), ICEM(), MPPI(smoothing=0), RandomShooting())),
        *(MAML(outer=outer, widths=()) for outer in (MetaTRPO(), MetaPPO(learning_rate=1))),
        DREAM(EncoderDecoder(bottleneck=None, encoder_hidden=7)),
        SoftActorCritic(ActorCritic(layer_norm=np.bool_(True)), SAC(target_entropy=np.float32(0.1))),
    ],
)
def test_options_unions_nested_tuples_and_infinity_are_read_back(system):
    config = Config(system, "a", stop_at=1)
    assert read_back(config) == config
    assert repr(read_back(config)) == repr(config)


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
        ("eval_every", 10**10, "Config.eval_every = 10000000000 is out of range"),
        ("checkpoint_seconds", float("inf"), "Config.checkpoint_seconds = inf is out of range"),
        ("system.explore.batch", 0, "config: system: explore: DDQN.batch = 0 is out of range"),
        ("system.explore.batch", [1], r"DDQN.batch = \(1,\) is a tuple"),
        ("system.explore.batch", {"kind": "DDQN"}, "is a dict; it must be an int"),
        ("system.explore.batch", None, "system: explore: fields do not match this version of DDQN: batch"),
        ("system.gamma", 0.9, "fields do not match this version of DREAM: gamma"),
        ("steps", "many", r"Config.steps = 'many' is a str; it must be an int in \[1, 2000000000\]"),
        ("steps", 1.5, "Config.steps = 1.5 is a float"),
        ("seed", True, "Config.seed = True is a bool"),
        ("stop_at", "never", "Config.stop_at = 'never' is a str; it must be a float in .* or None"),
        ("system.explore", 3, "config: system: DREAM.explore = 3 is an int; it must be a DDQN"),
        ("system.exploration", "learnt", "unknown DREAM.exploration 'learnt'; did you mean learned"),
        ("steps", 0, r"Config.steps = 0 is out of range; it must lie in \[1, 2000000000\]"),
        ("steps", 3_000_000_000, "out of range"),
        ("system.context.noise", float("nan"), "EncoderDecoder.noise = nan is out of range"),
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


@dataclass(frozen=True)
class OwnSearch(CEM):
    pass


@dataclass(frozen=True)
class OwnSystem(PETS):
    pass


@pytest.mark.parametrize(
    ("system", "told"),
    [
        (OwnSystem(), "Config.system is a OwnSystem, which could not be read back from config.json; choose CRAR or"),
        (
            PETS(planner=MPC(search=OwnSearch())),
            "MPC.search is a OwnSearch, .* choose RandomShooting or CEM",
        ),
    ],
)
def test_classes_that_no_version_knows_are_no_part_of_a_run(system, told):
    with pytest.raises(UserError, match=told):
        Config(system, "a")


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
        (b"[" * 100_000, "cannot be read"),
        (b"9" * 10_000, "cannot be read"),
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
    other = replace(
        BASE, steps=5, system=replace(BASE.system, context=EncoderDecoder(bottleneck=None), explore=DDQN(batch=7))
    )
    assert differences(BASE, BASE) == []
    assert differences(BASE, other) == [
        "steps: 1000000 -> 5",
        "system.context.bottleneck: 10.0 -> None",
        "system.explore.batch: 32 -> 7",
        "system.explore.warmup: 8000 -> 500",
    ]
    assert flat(BASE)["system.name"] == "dream"
