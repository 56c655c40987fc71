"""Settings: frozen dataclasses that are the configuration and the part, and that are checked when they are made."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from metadyna.errors import UserError, unknown


class Settings:
    """Base of frozen dataclasses none of whose fields can have a wrong type or lie out of its range.

    Every number has its range beside its type, written as in mathematics, also within options and tuples:
    `Annotated[float, "(0, 1]"] | None`. NaN lies in no range, infinity in those that end in `inf]`. A number must also
    lie in its range once the device has rounded it to 32 bits.

    Numbers and booleans of NumPy become Python's, and whole numbers floats where a float is wanted, so that equal
    settings are written alike. A range that depends on other fields is checked by a subclass with `check_ranges`, in a
    `__post_init__` that calls this one first.
    """

    def __post_init__(self) -> None:
        """Raise a `UserError` unless every field fits."""
        kind = type(self)
        for name, hint in field_hints(kind).items():
            value = _fitted(getattr(self, name), hint, f"{kind.__name__}.{name}")
            object.__setattr__(self, name, value)


Widths = tuple[Annotated[int, "[1, 65536]"], ...]
"""Units of hidden layers, from the input; of none where a network is to be linear."""

Horizon = Annotated[int, "[1, 2147483647]"]
"""Longest episode in steps, which are counted in 32 bits."""


class Interval(NamedTuple):
    """The numbers between two ends, each of which may be one of them."""

    low: float
    high: float
    with_low: bool
    with_high: bool

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """Read an interval written as in mathematics: `(0, 1]`."""
        low, high = (float(end) for end in text[1:-1].split(","))
        return cls(low, high, text[0] == "[", text[-1] == "]")

    def holds(self, value: Any) -> bool:
        """Whether a number lies in the interval, and NaN does not; a float must still do so when it has 32 bits."""
        if not self._between(value, self.low, self.high):
            return False
        if not isinstance(value, float):
            return True
        with np.errstate(over="ignore"):
            return self._between(*np.array([value, self.low, self.high], np.float32))

    def _between(self, value: Any, low: Any, high: Any) -> bool:
        above = value >= low if self.with_low else value > low
        below = value <= high if self.with_high else value < high
        return bool(above and below)


def check_ranges(settings: Any, **ranges: str) -> None:
    """Raise a `UserError` unless every named field lies in its interval, which other fields may have decided."""
    for name, interval in ranges.items():
        _check_range(getattr(settings, name), interval, f"{type(settings).__name__}.{name}")


@functools.cache
def field_hints(kind: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields by name, with their ranges."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return types.MappingProxyType({field.name: hints[field.name] for field in dataclasses.fields(kind)})


def bare(hint: Any) -> tuple[Any, str | None]:
    """A type without its range, and the range."""
    if typing.get_origin(hint) is not Annotated:
        return hint, None
    inner, *notes = typing.get_args(hint)
    return inner, next((note for note in notes if isinstance(note, str)), None)


def options(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have: the members of a union, else the one that it is."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def is_settings(hint: Any) -> bool:
    """Whether a type is one of settings, and no union of several."""
    return isinstance(hint, type) and issubclass(hint, Settings)


def _fitted(value: Any, hint: Any, name: str) -> Any:
    """The value as the field of this name is to hold it."""
    option = next((option for option in options(hint) if _takes(bare(option)[0], value)), None)
    if option is None:
        if typing.get_origin(hint) is Literal and isinstance(value, str):
            raise unknown(name, value, typing.get_args(hint))
        raise UserError(f"{name} = {_shown(value)} is {_with_article(type(value))}; it must be {_described(hint)}")
    kind, interval = bare(option)
    if typing.get_origin(kind) is tuple:
        return _fitted_tuple(value, kind, name)
    if kind is int or kind is float:
        if interval is None:
            raise TypeError(f"{name} is a number without a range; annotate it, such as Annotated[int, '[1, 10]']")
        return _check_range(_as_python(kind, value), interval, name)
    return kind(value) if kind is bool or kind is str else value


def _fitted_tuple(value: tuple[Any, ...], kind: Any, name: str) -> tuple[Any, ...]:
    elements = typing.get_args(kind)
    if elements[-1] is Ellipsis:
        elements = elements[:1] * len(value)
    if len(elements) != len(value):
        raise UserError(f"{name} = {_shown(value)} has {len(value)} elements; it must be {_described(kind)}")
    each = enumerate(zip(value, elements, strict=True))
    return tuple(_fitted(item, element, f"{name}[{index}]") for index, (item, element) in each)


def _takes(kind: Any, value: Any) -> bool:
    """Whether a value is of a type, whatever its range and elements."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(kind))
    if origin is not None:  # a tuple, or a function of some signature
        return isinstance(value, origin)
    if kind is Any or getattr(kind, "_is_protocol", False):  # to look for what a protocol asks would compute it
        return True
    if kind is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    return isinstance(value, kind)


def _as_python(kind: type, value: Any) -> int | float:
    """A number as Python's own; a whole number beyond all floats is infinite."""
    try:
        return kind(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _check_range(value: int | float, interval: str, name: str) -> int | float:
    if not Interval.parse(interval).holds(value):
        raise UserError(f"{name} = {_shown(value)} is out of range; it must lie in {interval}")
    return value


def _shown(value: Any) -> str:
    """A value in one line that is not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _described(hint: Any) -> str:
    """A type in words."""
    kind, interval = bare(hint)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if interval is not None:
        return f"{_described(kind)} in {interval}"
    if len(options(kind)) > 1:
        return " or ".join(_described(option) for option in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner[-1] is Ellipsis:
        return f"a tuple, each {_described(inner[0])}"
    if origin is tuple:
        return f"a tuple of {len(inner)}: {', '.join(map(_described, inner))}"
    if origin is not None:
        return "a function"
    if kind is bool or kind is type(None):
        return "True or False" if kind is bool else "None"
    return _with_article(kind)


def _with_article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'aeiouAEIOU' else 'a'} {kind.__name__}"
