"""What on-policy learners make of experience that was lived, or imagined, with the policy they improve."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from metadyna.collect.episodes import valid_steps
from metadyna.collect.returns import gae, masked_mean, rewards_to_go, standardise
from metadyna.improve.baseline import LinearBaseline
from metadyna.improve.trpo import TRPO
from metadyna.nets.inputs import Inputs
from metadyna.policies.acting import PolicyFn
from metadyna.policies.distributions import Distribution
from metadyna.types import Transition

P = TypeVar("P", bound=PolicyFn)


class Weighed(NamedTuple):
    """Steps [T, B] with their standardised advantages; `target` is the return that a baseline is to predict."""

    steps: Transition
    time: Float[Array, "T B"]
    advantage: Float[Array, "T B"]
    target: Float[Array, "T B"]
    valid: Bool[Array, "T B"]


def weigh(
    steps: Transition,
    baseline: LinearBaseline,
    began: Int[Array, "B"],
    valid: Bool[Array, "T B"],
    discount: float,
    decay: float,
) -> Weighed:
    """Advantages by GAE. The first steps are number `began` of their episodes; steps that are not valid do not count.

    What was cut off, by a time limit or by the end of the experience, is worth the baseline's estimate.
    """
    time = _times(steps.last, began).astype(jnp.float32)
    value, next_value = baseline(steps.obs, time), baseline(steps.next_obs, time + 1)
    discounts = discount * steps.discount
    advantage = gae(steps.reward, discounts, steps.last, value, next_value, decay)
    cut = steps.last.at[-1].set(True)
    target = rewards_to_go(steps.reward + jnp.where(cut, next_value * discounts, 0), discount, cut)
    return Weighed(steps, time, standardise(advantage, valid), target, valid)


def weigh_episodes(episodes: Transition, inputs: Inputs, discount: float, decay: float) -> Weighed:
    """Advantages of whole episodes [T, B] beside a baseline that is fitted to them alone, reading `inputs`.

    Nothing counts after an episode's last step, nor after step T: the baseline knows the time, so it need not.
    """
    steps, valid = whole(episodes)
    began = jnp.zeros(steps.reward.shape[1], jnp.int32)
    baseline = LinearBaseline.zero(inputs)
    lived = weigh(steps, baseline, began, valid, discount, decay)
    return weigh(steps, refit(baseline, lived), began, valid, discount, decay)


def whole(episodes: Transition) -> tuple[Transition, Bool[Array, "T B"]]:
    """Episodes [T, B] with nothing to come after their last step, nor after step T; and which steps are theirs."""
    valid, last = valid_steps(episodes.last), episodes.last.at[-1].set(True)
    reward, alive = jnp.where(valid, episodes.reward, 0), jnp.where(last, 0, episodes.discount)
    return episodes._replace(reward=reward, discount=alive, last=last), valid


def refit(baseline: LinearBaseline, data: Weighed) -> LinearBaseline:
    """Fit the baseline that the next experience is weighed by."""
    obs, time, target, valid = (
        x.reshape(-1, *x.shape[2:]) for x in (data.steps.obs, data.time, data.target, data.valid)
    )
    return baseline.fit(obs, time, target, valid)


def surrogate(policy: PolicyFn, data: Weighed) -> Float[Array, ""]:
    """E[π(a|s) / π_old(a|s) Â] over the valid steps, whose `extras` are log π_old. Schulman et al. 2015, eq. 14."""
    log_prob = log_probs(policy, data)
    return masked_mean(jnp.exp(log_prob - data.steps.extras) * data.advantage, data.valid)


def log_likelihood(policy: PolicyFn, data: Weighed) -> Float[Array, ""]:
    """E[log π(a|s) Â]: the surrogate of REINFORCE, whose second derivative lacks the product of two scores."""
    return masked_mean(log_probs(policy, data) * data.advantage, data.valid)


def dice(policy: PolicyFn, data: Weighed, discount: float) -> Float[Array, ""]:
    """Mean of box_t r̃_t, box_t = exp(c_t − stop(c_t)), c_t = Σ_{t' ≤ t} log π: right in every derivative.

    Foerster et al. 2018, eq. 8.
    """
    so_far = jnp.cumsum(jnp.where(data.valid, log_probs(policy, data), 0), axis=0)
    box = jnp.exp(so_far - jax.lax.stop_gradient(so_far))
    return masked_mean(box * dice_worth(data, discount), data.valid)


def dice_worth(data: Weighed, discount: float) -> Float[Array, "T B"]:
    """r̃_t: γᵗ r_t less what a polynomial of time explains of it, standardised, as in the code of ProMP."""
    reward = discount**data.time * data.steps.reward
    unseen = jnp.zeros((*reward.shape, 0))
    rows = unseen.reshape(reward.size, 0), data.time.ravel(), reward.ravel(), data.valid.ravel()
    return standardise(reward - LinearBaseline.zero(Inputs()).fit(*rows)(unseen, data.time), data.valid)


def trust_region_step(settings: TRPO, policy: P, data: Weighed) -> tuple[P, dict[str, Float[Array, ""]]]:
    """One step of TRPO on experience that was lived with this policy."""
    old = over_steps(policy, data.steps.obs)

    def kl(new: Distribution) -> Array:
        return masked_mean(old.kl(new), data.valid)

    def says(candidate: P) -> Distribution:
        return over_steps(candidate, data.steps.obs)

    policy, metrics = settings.update(policy, lambda candidate: surrogate(candidate, data), kl, says)
    return policy, {**metrics, "entropy": masked_mean(old.entropy(), data.valid)}


def over_steps(policy: PolicyFn, obs: PyTree) -> Distribution:
    """What a policy says at every one of [T, B] observations."""
    return jax.vmap(jax.vmap(policy))(obs)


def log_probs(policy: PolicyFn, data: Weighed) -> Float[Array, "T B"]:
    """The log-density that a policy gives to what was done."""
    return over_steps(policy, data.steps.obs).log_prob(data.steps.action)


def _times(last: Bool[Array, "T B"], began: Int[Array, "B"]) -> Int[Array, "T B"]:
    """Steps since the start of the episode, for every step."""

    def ahead(time: Array, last: Array) -> tuple[Array, Array]:
        return jnp.where(last, 0, time + 1), time

    return jax.lax.scan(ahead, jnp.asarray(began), last)[1]
