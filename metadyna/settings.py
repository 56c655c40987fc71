"""Checks for settings: frozen dataclasses that are the configuration and the part."""

import math
import typing
from typing import Any

from metadyna.errors import UserError, unknown


def check_ranges(settings: Any, **ranges: str) -> None:
    """Raise a `UserError` unless every named field lies in its interval, written as in mathematics: `(0, 1]`.

    Call from `__post_init__`, so that an impossible setting cannot exist.
    """
    for name, interval in ranges.items():
        value = getattr(settings, name)
        if not _inside(value, interval):
            kind = type(settings).__name__
            raise UserError(f"{kind}.{name} = {value} is out of range; it must lie in {interval}")


def check_choices(settings: Any, *names: str) -> None:
    """Raise a `UserError` unless every named field, annotated with a `Literal`, holds one of its values."""
    hints = typing.get_type_hints(type(settings))
    for name in names:
        choices, value = typing.get_args(hints[name]), getattr(settings, name)
        if value not in choices:
            raise unknown(f"{type(settings).__name__}.{name}", str(value), choices)


def _inside(value: float | int, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below and not math.isnan(value)
