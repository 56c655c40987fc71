"""The suite's check of types at run time: beartype's, but for settings, which check themselves."""

import functools

from beartype import beartype


def checked(function):
    """What jaxtyping's import hook puts around every function, and around `__init__` of every dataclass."""
    strict = beartype(function)
    if function.__name__ != "__init__":
        return strict

    @functools.wraps(function)
    def init(self, *args, **kwargs):
        from metadyna.settings import Settings  # not before: this runs while metadyna is imported

        return (function if isinstance(self, Settings) else strict)(self, *args, **kwargs)

    return init
