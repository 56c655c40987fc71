"""Settings whose field may hold several kinds, where one is known to be there."""

from typing import TypeVar

Kind = TypeVar("Kind")


def of_kind(value: object, *kinds: type[Kind]) -> Kind:
    """The same value, which is of one of these kinds; raises TypeError if it is not."""
    if not isinstance(value, kinds):
        raise TypeError(f"expected {' or '.join(kind.__name__ for kind in kinds)}, got {type(value).__name__}")
    return value
