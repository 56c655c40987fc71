"""Meta-policy gradients: make the policy better that gradient steps lead to, not the one that they start from.

An iteration of experience is a tuple of rounds: what was lived with θ, with θ' after one inner step, and so on, each
with arrays [M, T, N] of tasks, steps and episodes. MAML (Finn et al. 2017), E-MAML (Stadie et al. 2018), ProMP
(Rothfuss et al. 2019) and MB-MPO (Clavera et al. 2018), whose tasks are models, learn from such rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metadyna.adapt.gradient import GradientSteps, Meta
from metadyna.collect.returns import masked_mean, standardise
from metadyna.improve.descend import descend
from metadyna.improve.on_policy import Weighed, dice, log_likelihood, log_probs, over_steps, surrogate, weigh_episodes
from metadyna.improve.ppo import clipped_surrogate
from metadyna.improve.trpo import TRPO
from metadyna.nets.inputs import Inputs
from metadyna.policies.direct import Policy
from metadyna.policies.distributions import Distribution
from metadyna.settings import Settings
from metadyna.types import Transition

Rounds = tuple[Weighed, ...]
"""What was lived before the first inner step, and after each: arrays [M, T, N]."""

Surrogate = Literal["log-likelihood", "ratio", "dice"]


@dataclass(frozen=True)
class MetaGradient(Settings):
    """The adaptation, and what experience is worth to it; the outer step is that of a subclass."""

    inner: GradientSteps = GradientSteps()
    """The adaptation."""
    surrogate: Surrogate = "log-likelihood"
    """What an inner step raises; they differ in their second derivatives."""
    discount: Annotated[float, "[0, 1]"] = 0.99
    """γ per step."""
    gae_decay: Annotated[float, "[0, 1]"] = 1.0
    """λ of the advantage estimate."""

    def copies(self, meta: Meta, count: int) -> Policy:
        """The initial policy, once for every task."""
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), meta.weights)

    def weigh(self, lived: Transition, inputs: Inputs) -> Weighed:
        """The advantages of every task's own episodes [T, M, N], as [M, T, N]; baselines read `inputs`."""
        by_task = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), lived)
        return jax.vmap(lambda episodes: weigh_episodes(episodes, inputs, self.discount, self.gae_decay))(by_task)

    def adapt(self, meta: Meta, policies: Any, data: Weighed, number: int, factor: float = 1.0) -> Any:
        """Inner step `number` of every task's policy [M], on its own data."""

        def one(policy: Policy, data: Weighed) -> Policy:
            return self.inner.step(policy, meta.rates, number, self._raised(data), factor)

        return jax.vmap(one)(policies, data)

    def adapted(self, meta: Meta, rounds: Rounds) -> list[Policy]:
        """θ⁰, θ¹(θ), …: every task's policy [M] before and after each inner step, as functions of θ."""

        def path(*data: Weighed) -> list[Policy]:
            return self.inner.path(meta, [self._raised(each) for each in data])

        if len(rounds) == 1:
            return [self.copies(meta, rounds[0].valid.shape[0])]
        return jax.vmap(path)(*rounds[:-1])

    def start(self, meta: Meta) -> optax.OptState:
        """The outer optimiser's state."""
        raise NotImplementedError

    def update(self, meta: Meta, optimiser: Any, rounds: Rounds) -> tuple[Meta, Any, dict[str, Array]]:
        """The outer step."""
        raise NotImplementedError

    def _raised(self, data: Weighed) -> Callable[[Policy], Float[Array, ""]]:
        """The objective of an inner step on one task's data."""
        if self.surrogate == "dice":
            return lambda policy: dice(policy, data, self.discount)
        return partial({"log-likelihood": log_likelihood, "ratio": surrogate}[self.surrogate], data=data)


@dataclass(frozen=True)
class MetaTRPO(MetaGradient):
    """A step of TRPO on the adapted policies' surrogate, differentiated through the adaptation."""

    trust: TRPO = TRPO(damping=1e-5)
    """The outer step; its bound is on KL(π_old || π_θ'(θ)), after the last inner step."""
    every_step: bool = False
    """Average the outer objective over all inner steps (MAML++), instead of the last."""
    credit: bool = False
    """Credit the initial policy with what its sample led to (E-MAML)."""

    def start(self, meta: Meta) -> optax.OptState:
        """TRPO keeps nothing."""
        del meta
        return ()

    def update(self, meta: Meta, optimiser: Any, rounds: Rounds) -> tuple[Meta, Any, dict[str, Array]]:
        """One outer step."""
        last = rounds[-1]

        def says(candidate: Meta) -> Distribution:
            return jax.vmap(over_steps)(self.adapted(candidate, rounds)[-1], last.steps.obs)

        old = says(meta)

        def kl(new: Distribution) -> Array:
            return jnp.mean(jax.vmap(masked_mean)(old.kl(new), last.valid))

        meta, told = self.trust.update(meta, lambda candidate: self.objective(candidate, rounds), kl, says)
        return meta, optimiser, told

    def objective(self, meta: Meta, rounds: Rounds) -> Float[Array, ""]:
        """Mean over tasks of E[π_θ'/π_old Â], θ' = θ'(θ)."""
        adapted = self.adapted(meta, rounds)
        each = [jnp.mean(jax.vmap(surrogate)(*pair)) for pair in zip(adapted, rounds, strict=True)]
        several = self.every_step and len(each) > 1
        value = sum(each[1:], jnp.float32(0)) / (len(each) - 1) if several else each[-1]
        return value + self._credit(meta, rounds) if self.credit else value

    def _credit(self, meta: Meta, rounds: Rounds) -> Float[Array, ""]:
        """Mean over tasks of mean r̂ · mean log π_θ(pre-update actions), r̂ the post-update rewards, standardised over
        all tasks (Stadie et al. 2018; as in the code of ProMP)."""
        first, last = rounds[0], rounds[-1]
        worth = jax.vmap(masked_mean)(standardise(last.steps.reward, last.valid), last.valid)

        def sampled(data: Weighed) -> Array:
            return masked_mean(log_probs(meta.weights, data), data.valid)

        return jnp.mean(worth * jax.vmap(sampled)(first))


@dataclass(frozen=True)
class MetaPPO(MetaGradient):
    """Steps of Adam on the adapted policies' clipped surrogate, near the policy that sampled (ProMP, Algorithm 1)."""

    surrogate: Surrogate = "ratio"
    """What an inner step raises; they differ in their second derivatives."""
    learning_rate: Annotated[float, "(0, 1]"] = 1e-3
    """Adam's step size."""
    updates: Annotated[int, "[1, 10000]"] = 5
    """Steps of Adam, each on all of the experience."""
    clip: Annotated[float, "(0, 1)"] = 0.3
    """ε: probability ratios beyond 1 ± ε earn nothing more."""
    kl_weight: Annotated[float, "[0, 1000000]"] = 5e-4
    """η: price of KL(π_old || π_θ) before the inner step."""

    def start(self, meta: Meta) -> optax.OptState:
        """Adam's moments."""
        moving: Any = meta
        return optax.adam(self.learning_rate).init(moving)

    def update(self, meta: Meta, optimiser: Any, rounds: Rounds) -> tuple[Meta, Any, dict[str, Array]]:
        """All outer steps."""
        first = rounds[0]
        old = jax.lax.stop_gradient(jax.vmap(over_steps, (None, 0))(meta.weights, first.steps.obs))

        def loss(candidate: Meta) -> tuple[Array, dict[str, Array]]:
            new = jax.vmap(over_steps, (None, 0))(candidate.weights, first.steps.obs)
            kl = jnp.mean(jax.vmap(masked_mean)(old.kl(new), first.valid))
            gain = self.objective(candidate, rounds)
            return self.kl_weight * kl - gain, {"inner_kl": kl, "surrogate_gain": gain}

        def update(learner: tuple[Meta, Any], _: None) -> tuple[tuple[Meta, Any], dict[str, Array]]:
            meta, optimiser = learner
            slope, told = jax.grad(loss, has_aux=True)(meta)
            return descend(optax.adam(self.learning_rate), meta, slope, optimiser), told

        (meta, optimiser), told = jax.lax.scan(update, (meta, optimiser), None, length=self.updates)
        return meta, optimiser, {name: values[-1] for name, values in told.items()}

    def objective(self, meta: Meta, rounds: Rounds) -> Float[Array, ""]:
        """Mean over tasks of E[min(ρ Â, clip(ρ, 1 - ε, 1 + ε) Â)], ρ = π_θ'/π_old, θ' = θ'(θ)."""

        def clipped(policy: Policy, data: Weighed) -> Array:
            earned = clipped_surrogate(log_probs(policy, data) - data.steps.extras, data.advantage, self.clip)
            return masked_mean(earned, data.valid)

        return jnp.mean(jax.vmap(clipped)(self.adapted(meta, rounds)[-1], rounds[-1]))
