"""One file per published system. Systems share parts, never each other."""

import functools
import operator
from typing import TYPE_CHECKING

from metadyna.systems.crar import CRAR
from metadyna.systems.dream import DREAM
from metadyna.systems.gmas import GMAS
from metadyna.systems.maml import EMAML, MAML, ProMP
from metadyna.systems.mbmpo import MBMPO
from metadyna.systems.mbpo import MBPO
from metadyna.systems.metrpo import METRPO
from metadyna.systems.mpc import PETS, RandomShootingMPC
from metadyna.systems.ppo import ProximalPolicyOptimisation
from metadyna.systems.rl2 import RL2
from metadyna.systems.sac import SoftActorCritic
from metadyna.systems.trpo import TrustRegionPolicyOptimisation

SYSTEMS: dict[str, type] = {
    "crar": CRAR,
    "dream": DREAM,
    "e-maml": EMAML,
    "gmas": GMAS,
    "maml": MAML,
    "mb-mpo": MBMPO,
    "mbpo": MBPO,
    "me-trpo": METRPO,
    "mpc-rs": RandomShootingMPC,
    "pets": PETS,
    "promp": ProMP,
    "ppo": ProximalPolicyOptimisation,
    "rl2": RL2,
    "sac": SoftActorCritic,
    "trpo": TrustRegionPolicyOptimisation,
}
"""Every system by the name used on the command line."""

if TYPE_CHECKING:
    from metadyna.types import System
else:
    System = functools.reduce(operator.or_, SYSTEMS.values())
"""Any of them: what a configuration may hold, and is read back as."""

OFFLINE = (CRAR, GMAS)
"""Systems that learn from a data set: the steps of their runs are updates."""
