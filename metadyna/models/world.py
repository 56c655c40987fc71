"""The world model that fits an environment: what the ensemble must predict, and what is known without it."""

from functools import cache
from typing import Any

from metadyna.errors import UserError
from metadyna.models.imagine import WorldModel
from metadyna.types import Known


@cache
def known_world(env: Any) -> WorldModel:
    """Reward and end are the environment's own functions of what is observed."""
    if not isinstance(env, Known):
        raise UserError(
            f"this method needs the reward as a function of what is observed, but {type(env).__name__} has none; "
            "choose a method that learns the reward, such as mbpo"
        )
    return WorldModel(
        reward=lambda obs, action, next_obs: env.reward(None, obs, action, next_obs),
        terminated=lambda next_obs: env.terminated(None, next_obs),
    )


@cache
def learnt_world(env: Any) -> WorldModel:
    """The ensemble predicts the reward; the end is the environment's own function of what is observed."""
    if not callable(getattr(env, "terminated", None)):
        raise UserError(f"this method needs to know when an episode ends, but {type(env).__name__} does not say")
    return WorldModel(terminated=lambda next_obs: env.terminated(None, next_obs))
