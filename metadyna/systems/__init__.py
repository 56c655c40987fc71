"""One file per published system. Systems share parts, never each other."""

from metadyna.systems.dream import DREAM

System = DREAM

SYSTEMS: dict[str, type[System]] = {"dream": DREAM}
"""Every system by the name used on the command line."""
