"""Model-predictive control: plan a sequence, take its first action, plan again (Chua et al. 2018, algorithm 1)."""

from dataclasses import dataclass
from typing import Annotated, Any

from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from metadyna.search import Score, maximise
from metadyna.search.cem import CEM
from metadyna.search.icem import ICEM
from metadyna.search.mppi import MPPI
from metadyna.search.random import RandomShooting
from metadyna.settings import Settings

Plan = Any
"""What is remembered from one real step to the next: the state of the search, a pytree of arrays."""


@dataclass(frozen=True)
class MPC(Settings):
    """Any search over any score of action sequences; models are the score's business."""

    search: RandomShooting | CEM | ICEM | MPPI = CEM()
    """What looks for the best sequence."""
    horizon: Annotated[int, "[1, 10000]"] = 25
    """Length of a sequence, in environment steps."""

    def init(self, action_shape: tuple[int, ...], low: ArrayLike, high: ArrayLike) -> Plan:
        """Start an episode; the bounds are finite and broadcast to [horizon, *action_shape]."""
        return self.search.init((self.horizon, *action_shape), low, high)

    def plan(self, score: Score, plan: Plan, key: PRNGKeyArray) -> tuple[Float[Array, "A"], Plan]:
        """The action to take now, inside the box, and the shifted plan: the warm start of the next step.

        `score` maps candidate sequences [N, H, A] and a key to returns [N] from the present state.
        """
        plan = maximise(self.search, score, plan, key)
        return self.search.solution(plan)[0], self.search.shift(plan)
