"""Settings: what can be made has the right types and lies in its ranges; everything else is refused in one line."""

import importlib
import math
import pkgutil
import typing
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import pytest

import metadyna
from metadyna.errors import UserError
from metadyna.improve.abstract import AbstractLearning
from metadyna.improve.ppo import PPO
from metadyna.improve.sac import SAC
from metadyna.models.gaussian import GaussianEnsemble
from metadyna.planning.mpc import MPC
from metadyna.policies.squashed import ActorCritic
from metadyna.runs.config import Config
from metadyna.search.cem import CEM
from metadyna.search.mppi import MPPI
from metadyna.settings import Interval, Settings, Widths, bare, check_ranges, field_hints, options
from metadyna.systems.mbpo import MBPO
from metadyna.systems.ppo import ProximalPolicyOptimisation
from metadyna.systems.sac import SoftActorCritic


@dataclass(frozen=True)
class Inner(Settings):
    share: Annotated[float, "[0, 1]"] = 0.5


@dataclass(frozen=True)
class Another(Settings):
    pass


@dataclass(frozen=True)
class Wider(Inner):
    more: bool = False


@dataclass(frozen=True)
class Everything(Settings):
    count: Annotated[int, "[1, 10]"] = 3
    rate: Annotated[float, "(0, 1)"] = 0.5
    limit: Annotated[float, "(0, inf]"] = 1.0
    maybe: Annotated[float, "[-5, 5]"] | None = None
    switch: bool = False
    name: str = "a"
    choice: Literal["red", "green"] = "red"
    widths: Widths = (8,)
    pair: tuple[Annotated[int, "[0, 9]"], Annotated[float, "[0, 9]"]] = (1, 2.0)
    nested: tuple[tuple[Annotated[float, "[-1, 1]"], ...] | None, ...] | None = None
    inner: Inner = Inner()
    either: Inner | Another = Another()


def made(**values: Any) -> Everything:
    return Everything(**values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"count": 40.0}, "Everything.count = 40.0 is a float; it must be an int in [1, 10]"),
        ({"count": True}, "Everything.count = True is a bool; it must be an int in [1, 10]"),
        ({"count": np.bool_(True)}, "Everything.count = np.True_ is a bool; it must be an int in [1, 10]"),
        ({"count": "3"}, "Everything.count = '3' is a str; it must be an int in [1, 10]"),
        ({"count": None}, "Everything.count = None is a NoneType; it must be an int in [1, 10]"),
        ({"count": 0}, "Everything.count = 0 is out of range; it must lie in [1, 10]"),
        ({"count": 10**400}, "is out of range; it must lie in [1, 10]"),
        ({"rate": True}, "Everything.rate = True is a bool; it must be a float in (0, 1)"),
        ({"rate": math.nan}, "Everything.rate = nan is out of range; it must lie in (0, 1)"),
        ({"rate": 1}, "Everything.rate = 1.0 is out of range; it must lie in (0, 1)"),
        ({"rate": 1e-60}, "Everything.rate = 1e-60 is out of range"),  # 0 in 32 bits
        ({"rate": 1 - 1e-12}, "is out of range; it must lie in (0, 1)"),  # 1 in 32 bits
        ({"limit": -math.inf}, "Everything.limit = -inf is out of range; it must lie in (0, inf]"),
        ({"limit": math.nan}, "Everything.limit = nan is out of range"),
        ({"maybe": math.nan}, "Everything.maybe = nan is out of range; it must lie in [-5, 5]"),
        ({"maybe": "x"}, "Everything.maybe = 'x' is a str; it must be a float in [-5, 5] or None"),
        ({"maybe": 10**400}, "Everything.maybe = inf is out of range"),
        ({"switch": 1}, "Everything.switch = 1 is an int; it must be True or False"),
        ({"name": 5}, "Everything.name = 5 is an int; it must be a str"),
        ({"choice": "gren"}, "unknown Everything.choice 'gren'; did you mean green"),
        ({"choice": 5}, "Everything.choice = 5 is an int; it must be one of red, green"),
        ({"widths": [8]}, "Everything.widths = [8] is a list; it must be a tuple, each an int in [1, 65536]"),
        ({"widths": (8, 0)}, "Everything.widths[1] = 0 is out of range; it must lie in [1, 65536]"),
        ({"widths": (8, 8.0)}, "Everything.widths[1] = 8.0 is a float; it must be an int in [1, 65536]"),
        ({"pair": (1,)}, "Everything.pair = (1,) has 1 elements; it must be a tuple of 2: an int in"),
        ({"pair": (1.0, 1)}, "Everything.pair[0] = 1.0 is a float"),
        ({"nested": ((0.5,), (2.0,))}, "Everything.nested[1][0] = 2.0 is out of range; it must lie in [-1, 1]"),
        ({"nested": (0.5,)}, "Everything.nested[0] = 0.5 is a float; it must be a tuple, each a float in"),
        ({"inner": Another()}, "Everything.inner = Another() is an Another; it must be an Inner"),
        ({"inner": Inner}, "is a type; it must be an Inner"),
        ({"either": None}, "Everything.either = None is a NoneType; it must be an Inner or an Another"),
        ({"count": np.zeros((99, 9))}, "... is a ndarray; it must be an int in [1, 10]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_short_line(values, told):
    with pytest.raises(UserError) as error:
        made(**values)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"count": np.int64(5)}, 5),
        ({"count": np.uint8(5)}, 5),
        ({"rate": np.float32(0.1)}, float(np.float32(0.1))),
        ({"rate": np.float64(0.1)}, 0.1),
        ({"limit": 3}, 3.0),
        ({"limit": np.int32(3)}, 3.0),
        ({"limit": math.inf}, math.inf),
        ({"limit": 1e300}, 1e300),
        ({"maybe": 5}, 5.0),
        ({"switch": np.bool_(True)}, True),
        ({"name": np.str_("b")}, "b"),
        ({"widths": ()}, ()),
        ({"widths": (np.int64(4), 5)}, (4, 5)),
        ({"pair": (np.int64(4), 5)}, (4, 5.0)),
        ({"nested": (None, (np.float32(0.5), 1), ())}, (None, (0.5, 1.0), ())),
        ({"either": Inner(np.float32(0.25))}, Inner(0.25)),
        ({"inner": Wider(0.25)}, Wider(0.25)),
    ],
)
def test_numbers_of_numpy_and_whole_numbers_become_what_the_field_says(values, kept):
    (name,) = values
    held = getattr(made(**values), name)
    assert repr(held) == repr(kept)  # which tells types apart where equality does not


def test_replacing_a_field_checks_it():
    with pytest.raises(UserError, match=r"Everything.count = True is a bool"):
        replace(Everything(), count=True)


def test_a_range_may_depend_on_other_fields():
    check_ranges(Everything(), count="[3, 3]")
    with pytest.raises(UserError, match=r"Everything.count = 3 is out of range; it must lie in \[4, 9\]"):
        check_ranges(Everything(), count="[4, 9]")


def test_a_number_without_a_range_is_a_mistake_of_the_program():
    @dataclass(frozen=True)
    class Careless(Settings):
        count: int | None = None

    Careless()
    with pytest.raises(TypeError, match=r"Careless.count is a number without a range"):
        Careless(3)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[0, 1]", (0, 0.5, 1), (-1e-9, 1.001, math.nan, math.inf)),
        ("(0, 1)", (1e-30, 0.999), (0, 1, 1e-60)),
        ("[0.1, 0.3]", (0.1, 0.3), (0.0999, 0.3001)),  # whose 32 bits are more than these
        ("[-inf, inf]", (-math.inf, 0, math.inf), (math.nan,)),
    ],
)
def test_intervals(text, inside, outside):
    assert [value for value in inside if not Interval.parse(text).holds(value)] == []
    assert [value for value in outside if Interval.parse(text).holds(value)] == []


# --- those of the package


def kinds(base: type = Settings) -> list[type]:
    """Every settings class of the package."""
    for module in pkgutil.walk_packages(metadyna.__path__, "metadyna."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    below = [kind for each in base.__subclasses__() for kind in (each, *kinds(each))]
    return sorted({kind for kind in below if kind.__module__.startswith("metadyna.")}, key=lambda kind: kind.__name__)


def numbers(hint: Any, interval: str | None = None) -> list[tuple[type, str | None]]:
    """Every number that a field may hold, at any depth, with its range."""
    kind, own = bare(hint)
    if kind in (int, float):
        return [(kind, own)]
    inner = options(kind) if len(options(kind)) > 1 else typing.get_args(kind)
    return [number for each in inner for number in numbers(each, own or interval)]


NUMBERS = [
    (f"{kind.__name__}.{name}", number, interval)
    for kind in kinds()
    for name, hint in field_hints(kind).items()
    for number, interval in numbers(hint)
]


def test_the_package_has_settings():
    assert len(kinds()) > 50
    assert {Config, SAC, MBPO, GaussianEnsemble} <= set(kinds())
    assert len(NUMBERS) > 200


@pytest.mark.parametrize(("name", "number", "interval"), NUMBERS, ids=[name for name, *_ in NUMBERS])
def test_every_number_has_a_range_that_the_machine_can_hold(name, number, interval):
    assert interval is not None
    low, high, with_low, with_high = Interval.parse(interval)
    assert low < high
    if number is int:
        assert low >= -(2**31)
        assert high < (2**32 if name == "Config.seed" else 2**31)  # the seed is unsigned
    else:
        # Infinity is a value like any other where it means something, and no end of what is meant to be finite.
        assert math.isfinite(low) or with_low
        assert math.isfinite(high) or with_high
        assert all(math.isinf(end) or abs(end) < float(np.finfo(np.float32).max) for end in (low, high))


@pytest.mark.parametrize("kind", [kind for kind in kinds() if field_hints(kind)])
def test_every_settings_class_is_checked(kind):
    """A `__post_init__` that does not begin with the one of `Settings` would skip its checks, or look before them."""
    broken = object.__new__(kind)
    for name in field_hints(kind):
        object.__setattr__(broken, name, object())
    with pytest.raises(UserError, match=rf"{kind.__name__}.\w+ = <object object at .*> is an object; it must be"):
        broken.__post_init__()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SAC(batch=40.0), "SAC.batch = 40.0 is a float"),
        (lambda: ActorCritic(widths=(0,)), r"ActorCritic.widths\[0\] = 0 is out of range"),
        (lambda: ProximalPolicyOptimisation(widths=(64, -1)), r"Optimisation.widths\[1\] = -1 is out of range"),
        (lambda: ProximalPolicyOptimisation(log_std=math.nan), "Optimisation.log_std = nan is out of range"),
        (lambda: SAC(target_entropy=math.nan), "SAC.target_entropy = nan is out of range"),
        (lambda: GaussianEnsemble(weight_decay=(0.0, math.nan)), r"weight_decay\[1\] = nan is out of range"),
        (lambda: AbstractLearning(directions=((math.nan,),)), r"directions\[0\]\[0\] = nan is out of range"),
        (lambda: AbstractLearning(directions=((0.0,),)), "directions holds one of length 0"),
        (lambda: MPC(search="cem"), "it must be a RandomShooting or a CEM or an ICEM or a MPPI"),
        (lambda: MPC(horizon=10**10), "MPC.horizon = 10000000000 is out of range"),
        (lambda: CEM(population=10, elites=11), r"CEM.elites = 11 is out of range; it must lie in \[1, 10\]"),
        (lambda: MPPI(temperature=0), "MPPI.temperature = 0.0 is out of range"),
        (lambda: Config(MBPO(), "ant", steps=40.0), "Config.steps = 40.0 is a float"),
        (lambda: Config(MBPO(), "ant", seeds=True), "Config.seeds = True is a bool"),
        (lambda: Config(MBPO(), "ant", seed=1.5), "Config.seed = 1.5 is a float"),
        (lambda: Config(MBPO(), "ant", stop_at=math.nan), "Config.stop_at = nan is out of range"),
        (lambda: Config(MBPO(), "ant", eval_every=10**10), "Config.eval_every = 10000000000 is out of range"),
        (lambda: Config(MBPO(), "ant", checkpoint_seconds=math.inf), "Config.checkpoint_seconds = inf is out of range"),
        (lambda: Config(MBPO(), None), "Config.task = None is a NoneType"),
        (lambda: Config(SAC(), "ant"), "is a SAC; it must be a CRAR or"),
        (lambda: ProximalPolicyOptimisation(PPO(minibatches=32), collect=63), "leaves less than 2 rows each"),
        (lambda: SoftActorCritic(parallel=100, capacity=10), "capacity = 10 is less than one iteration collects"),
    ],
)
def test_settings_that_could_not_work_cannot_be_made(make, told):
    with pytest.raises(UserError, match=told) as error:
        make()
    assert "\n" not in str(error.value)


def test_two_rows_are_a_minibatch():
    assert ProximalPolicyOptimisation(PPO(minibatches=32), collect=64).collect == 64


def test_a_run_may_be_described_by_numbers_of_numpy():
    config = Config(MBPO(), "ant", steps=np.int64(5), seeds=np.int8(2), stop_at=np.float32(0.5))
    assert repr(config) == repr(Config(MBPO(), "ant", steps=5, seeds=2, stop_at=0.5))
