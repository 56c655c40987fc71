"""One file per published system. Systems share parts, never each other."""

from metadyna.systems.crar import CRAR
from metadyna.systems.dream import DREAM
from metadyna.systems.gmas import GMAS
from metadyna.systems.maml import EMAML, MAML, ProMP
from metadyna.systems.mbmpo import MBMPO
from metadyna.systems.mbpo import MBPO
from metadyna.systems.metrpo import METRPO
from metadyna.systems.mpc import PETS, RandomShootingMPC
from metadyna.systems.ppo import ProximalPolicyOptimisation
from metadyna.systems.sac import SoftActorCritic
from metadyna.systems.trpo import TrustRegionPolicyOptimisation

System = (
    CRAR
    | DREAM
    | EMAML
    | GMAS
    | MAML
    | MBMPO
    | MBPO
    | METRPO
    | PETS
    | RandomShootingMPC
    | ProMP
    | ProximalPolicyOptimisation
    | SoftActorCritic
    | TrustRegionPolicyOptimisation
)

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
    "sac": SoftActorCritic,
    "trpo": TrustRegionPolicyOptimisation,
}
"""Every system by the name used on the command line."""

OFFLINE = (CRAR, GMAS)
"""Systems that learn from a data set: the steps of their runs are updates."""
