"""Model-predictive control: plan a sequence, take its first action, plan again (Chua et al. 2018, algorithm 1)."""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from metadyna.collect.windows import History, remember
from metadyna.search import Score, maximise
from metadyna.search.cem import CEM
from metadyna.search.icem import ICEM
from metadyna.search.mppi import MPPI
from metadyna.search.random import RandomShooting
from metadyna.settings import Settings
from metadyna.types import Act, Box, Params, TimeStep

Plan = Any
"""What is remembered from one real step to the next: the state of the search, a pytree of arrays."""

Tail = Literal["zero", "middle", "repeat"]


@dataclass(frozen=True)
class MPC(Settings):
    """Any search over any score of action sequences; models are the score's business."""

    search: RandomShooting | CEM | ICEM | MPPI = CEM()
    """What looks for the best sequence."""
    horizon: Annotated[int, "[1, 10000]"] = 25
    """Length of a sequence, in environment steps."""
    tail: Tail | None = None
    """The action of the step that comes into sight: zero, clipped into the box (PETS), the box's middle (mbrl-lib), or
    the last one again (iCEM); None: what the search's authors do."""

    def init(self, action_shape: tuple[int, ...], low: ArrayLike, high: ArrayLike) -> Plan:
        """Start an episode; the bounds are finite and broadcast to [horizon, *action_shape]."""
        shape = (self.horizon, *action_shape)
        return self.search.init(*(jnp.broadcast_to(jnp.asarray(bound, float), shape) for bound in (low, high)))

    def plan(self, score: Score, plan: Plan, key: PRNGKeyArray) -> tuple[Float[Array, "A"], Plan]:
        """The action to take now, inside the box, and the shifted plan: the warm start of the next step.

        `score` maps candidate sequences [N, H, A] and a key to returns [N] from the present state.
        """
        plan = maximise(self.search, score, plan, key)
        return self.search.solution(plan)[0], self.shift(plan)

    def shift(self, plan: Plan) -> Plan:
        """Start the search of the next real step from the answer, one step on."""
        return self.search.restart(plan, lambda sequence: advance(sequence, self._tail(plan, sequence)))

    def _tail(self, plan: Plan, sequence: Float[Array, "H *A"]) -> Float[Array, "*A"]:
        low, high = plan.low[-1], plan.high[-1]
        tail = self.tail or {ICEM: "repeat", RandomShooting: "middle"}.get(type(self.search), "zero")
        if tail == "repeat":
            return sequence[-1]
        return (low + high) / 2 if tail == "middle" else jnp.clip(jnp.zeros_like(low), low, high)


def advance(sequence: Float[Array, "H *A"], tail: Float[Array, "*A"]) -> Float[Array, "H *A"]:
    """Drop the first step, which has been taken, and append `tail`."""
    return jnp.roll(sequence, -1, axis=0).at[-1].set(tail)


# ------------------------------------------------------------------------------------------------------ acting


class Planning(NamedTuple):
    """The memory of an agent that plans: its plan, and what its model begins from."""

    plan: Plan
    history: History


@runtime_checkable
class Outlook(Protocol):
    """What sequences [N, H, A] are worth to who has lived a history."""

    def __call__(
        self, params: Params, history: History, sequences: Float[Array, "N H A"], key: PRNGKeyArray, /
    ) -> Float[Array, "N"]:
        """Returns from here; NaN for those that must lose."""
        ...


def at_first(planner: MPC, action: Box, history: History, batch: int) -> Planning:
    """The memory [B] with which episodes begin; `history` is that of one copy that has lived nothing yet."""
    one = Planning(planner.init(action.shape, action.low, action.high), history)
    return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], batch, axis=0), one)


@cache
def acting(planner: MPC, outlook: Outlook, action: Box) -> Act:
    """Act by planning; the same function for the same three, so that it compiles once.

    `params` are those of the outlook, and whether to take any action instead, as before there is a model to plan in.
    The plan starts anew with every episode. What is remembered of the past is as long as the window in the carry.
    """

    def act(
        params: tuple[Params, Bool[Array, ""]], carry: Planning, timestep: TimeStep, key: PRNGKeyArray
    ) -> tuple[Array, Planning, tuple[()]]:
        known, guesses = params
        fresh = planner.init(action.shape, action.low, action.high)
        plan = jax.tree.map(lambda new, old: jnp.where(timestep.first, new, old), fresh, carry.plan)
        history = remember(carry.history, timestep)

        def guess(plan: Plan) -> tuple[Array, Plan]:
            return jax.random.uniform(key, action.shape, minval=action.low, maxval=action.high), plan

        def decide(plan: Plan) -> tuple[Array, Plan]:
            return planner.plan(lambda sequences, key: outlook(known, history, sequences, key), plan, key)

        chosen, plan = jax.lax.cond(guesses, guess, decide, plan)
        return chosen, Planning(plan, history), ()

    return act
