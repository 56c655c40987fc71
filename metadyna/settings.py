"""Checks for settings: frozen dataclasses that are the configuration and the part."""

import math
from typing import Any

from metadyna.errors import UserError


def check_ranges(settings: Any, **ranges: str) -> None:
    """Raise a `UserError` unless every named field lies in its interval, written as in mathematics: `(0, 1]`.

    Call from `__post_init__`, so that an impossible setting cannot exist.
    """
    for name, interval in ranges.items():
        value = getattr(settings, name)
        if not _inside(value, interval):
            kind = type(settings).__name__
            raise UserError(f"{kind}.{name} = {value} is out of range; it must lie in {interval}")


def _inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below and not math.isnan(value)
