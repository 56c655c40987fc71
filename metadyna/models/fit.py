"""Fitting an ensemble as MBPO does: bootstrap, held-out rows, early stop, elites (Janner et al. 2019; PETS without).

Data are arrays of a fixed capacity of which the first `count` rows are used, so that one compiled program serves
however much there is: shapes are those of the capacity, and only the numbers of rounds depend on the count.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metadyna.errors import UserError
from metadyna.models.gaussian import Ensemble, GaussianEnsemble, GaussianMLP, Standardiser, Weights
from metadyna.settings import Settings


class FitState(NamedTuple):
    """An ensemble and its optimiser, which goes on from fit to fit."""

    ensemble: Ensemble
    optimiser: optax.OptState


@dataclass(frozen=True)
class Fit(Settings):
    """How long to train and on what; the defaults are MBPO's, with a limit that its code does not have.

    PETS: `batch=32, holdout=0, max_epochs=5`. ME-TRPO: `batch=1000, holdout=0.33, bootstrap=False, patience=25`.
    """

    batch: Annotated[int, "[1, 65536]"] = 256
    """Rows per update and member."""
    holdout: Annotated[float, "[0, 1)"] = 0.2
    """Share of the rows to validate on. With 0 all epochs are run, the last weights kept and no member is preferred."""
    max_holdout: Annotated[int, "[1, 2000000000]"] = 5_000
    """Most rows to validate on."""
    bootstrap: bool = True
    """Each member learns from its own draw of the training rows, with replacement; else each from all of them."""
    max_epochs: Annotated[int, "[1, 2000000000]"] = 1_000
    """Most passes over the training rows in one fit."""
    max_updates: Annotated[int, "[1, 2000000000]"] = 1_000_000
    """Most optimiser steps in one fit."""
    patience: Annotated[int, "[0, 2000000000]"] = 5
    """Epochs without improvement that are allowed; one more ends the fit."""
    improvement: Annotated[float, "[0, 1)"] = 0.01
    """Fall of a member's validation error, relative to its best, that counts as an improvement."""
    warm_start: bool = True
    """Go on from the weights and the optimiser of the last fit, or start afresh."""


class _Progress(NamedTuple):
    """Where a fit has got to; `best` are each member's weights at its least validation error so far."""

    weights: Any
    optimiser: optax.OptState
    best: GaussianMLP
    errors: "_Errors"
    stale: Int[Array, ""]
    epochs: Int[Array, ""]
    updates: Int[Array, ""]
    loss: Float[Array, ""]


class _Errors(NamedTuple):
    """Each member's means over held-out rows.

    `squared`: its squared residual in units of the training targets' deviation. `likelihood`: (μ − y)² exp(−v) + v.
    """

    squared: Float[Array, "K"]
    likelihood: Float[Array, "K"]


class _Data(NamedTuple):
    """Rows in random order, each followed by `batch` rows of no meaning: first `held` to validate on, then `train`."""

    inputs: Float[Array, "rows inputs"]
    targets: Float[Array, "rows outputs"]
    held: Int[Array, ""]
    train: Int[Array, ""]


def init(model: GaussianEnsemble, inputs: int, outputs: int, key: PRNGKeyArray) -> FitState:
    """Draw an ensemble and start its optimiser."""
    ensemble = model.create(inputs, outputs, key)
    weights: Any = ensemble.weights
    return FitState(ensemble, model.optimiser.init(weights))


def fit(
    settings: Fit,
    model: GaussianEnsemble,
    state: FitState,
    inputs: Float[Array, "capacity inputs"],
    targets: Float[Array, "capacity outputs"],
    count: Int[Array, ""] | int,
    key: PRNGKeyArray,
) -> tuple[FitState, dict[str, Array]]:
    """Train every member on the first `count` rows; what the rest of the arrays holds, even NaN, does not matter.

    Held-out rows are drawn anew in every fit, and at least one is if there are two. A member's error is its mean
    squared residual on them in units of the training targets' deviation, so that no column outweighs the others. An
    epoch counts if it brings any member's error far enough below its own best; each member ends with its best
    weights, and the elites are those with the least error. That error is the mean's: the best weights may be from
    before the variance was learnt. With fewer than two rows to split nothing is learnt, and errors are infinite.

    The order of a member's rows is drawn once and the columns of the table [K, rows] are shuffled in every epoch, by
    one permutation for all members: one sort instead of K, and to each member alone the same as an order of its own.
    The last batch of an epoch is as short as what is left; the rows that fill it up have no weight.

    Janner et al. 2019, code jannerm/mbpo `bnn.py`; there the error is in the targets' units.
    """
    if settings.holdout == 0 and model.elites != model.members:
        raise UserError(
            "Fit.holdout = 0 leaves nothing to choose elites by; "
            f"GaussianEnsemble.elites = {model.elites} must be all members ({model.members})"
        )
    k_start, k_split, k_rows, k_epochs = jax.random.split(key, 4)
    if not settings.warm_start:
        elites = state.ensemble.elites
        state = init(model, inputs.shape[-1], targets.shape[-1], k_start)
        state = state._replace(ensemble=replace(state.ensemble, elites=elites))
    order, held = split(settings, count, inputs.shape[0], k_split)
    data = _arrange(settings, inputs, targets, order, held, jnp.asarray(count))
    rows = training_rows(settings, model.members, data.held, data.train, inputs.shape[0], k_rows)
    ensemble, unit = _scaled(model, state.ensemble, data)

    def going(progress: _Progress) -> Array:
        more = (progress.epochs < settings.max_epochs) & (progress.updates < settings.max_updates)
        return more & (progress.stale <= settings.patience) & (data.train > 0)

    def epoch(progress: _Progress) -> _Progress:
        k_epoch = jax.random.fold_in(k_epochs, progress.epochs)
        progress = _train(settings, model, ensemble, data, rows, progress, k_epoch)
        if settings.holdout == 0:
            return progress._replace(best=progress.weights.members)
        errors = _validate(settings, replace(ensemble, weights=progress.weights), data, unit)
        return _keep_best(settings, progress, errors)

    worst = jnp.full(model.members, jnp.inf, jnp.float32)
    start = ensemble.weights, state.optimiser, ensemble.weights.members, _Errors(worst, worst)
    progress = _Progress(*start, jnp.int32(0), jnp.int32(0), jnp.int32(0), jnp.float32(0))
    progress = lax.while_loop(going, epoch, progress)

    ranked = jnp.argsort(progress.errors.squared)[: model.elites]
    ensemble = replace(
        ensemble,
        weights=replace(progress.weights, members=progress.best),
        elites=jnp.where(progress.epochs > 0, ranked, ensemble.elites),
    )
    metrics = {"fit/epochs": progress.epochs, "fit/updates": progress.updates, "fit/train_loss": progress.loss}
    if settings.holdout > 0:
        metrics["fit/holdout_mse"] = jnp.mean(progress.errors.squared)
        if model.probabilistic:
            metrics["fit/holdout_nll"] = jnp.mean(progress.errors.likelihood)
    return FitState(ensemble, progress.optimiser), metrics


def split(
    settings: Fit, count: Int[Array, ""] | int, capacity: int, key: PRNGKeyArray
) -> tuple[Int[Array, "capacity"], Int[Array, ""]]:
    """Shuffle the used rows: their order, the unused after them, and how many of the first are held out."""
    order = _shuffled(count, capacity, key)
    if settings.holdout == 0:
        return order, jnp.int32(0)
    held = jnp.asarray(count * settings.holdout).astype(jnp.int32)
    return order, jnp.minimum(jnp.clip(held, 1, settings.max_holdout), count)


def training_rows(
    settings: Fit,
    members: int,
    held: Int[Array, ""],
    train: Int[Array, ""],
    capacity: int,
    key: PRNGKeyArray,
) -> Int[Array, "K capacity"]:
    """Which rows of the split each member learns from, all in [held, held + train); the first `train` are one pass."""
    if settings.bootstrap:
        drawn = jax.random.bits(key, (members, capacity))  # so many that the remainder is as good as uniform
    else:
        drawn = jax.vmap(lambda k: _shuffled(train, capacity, k))(jax.random.split(key, members))
    return held + (drawn % jnp.maximum(train, 1).astype(drawn.dtype)).astype(jnp.int32)


def calibration(
    ensemble: Ensemble, inputs: Float[Array, "n inputs"], targets: Float[Array, "n outputs"]
) -> dict[str, Array]:
    """How far to trust the elites' equal mixture.

    `calibration/within_50`, `_90` and `_95` [outputs] are the shares of targets inside the mixture's central
    interval of that probability, which a calibrated model matches; `calibration/nll` is the mean of −log p in nats.
    """
    if not ensemble.weights.members.probabilistic:
        raise UserError("a deterministic ensemble predicts no intervals; GaussianEnsemble.probabilistic must be True")
    mean, log_variance = ensemble.best().predict_all(inputs)
    scaled = (targets[None] - mean) * jnp.exp(-log_variance / 2)
    # A target lies in a central interval if the mixture's distribution function there does; no quantile is needed.
    level = jnp.mean(jax.scipy.stats.norm.cdf(scaled), axis=0)
    inside = {p: jnp.mean(jnp.abs(level - 0.5) <= p / 200, axis=0) for p in (50, 90, 95)}
    log_density = -0.5 * jnp.sum(scaled**2 + log_variance + jnp.log(2 * jnp.pi), axis=-1)
    likelihood = jax.nn.logsumexp(log_density, axis=0) - jnp.log(mean.shape[0])
    return {f"calibration/within_{p}": share for p, share in inside.items()} | {
        "calibration/nll": -jnp.mean(likelihood)
    }


def _shuffled(count: Int[Array, ""] | int, capacity: int, key: PRNGKeyArray) -> Int[Array, "capacity"]:
    """0 … count − 1 in random order, then the rest."""
    # A replay is mostly empty at first, and sorting all of it would cost more than an epoch on what there is. So the
    # least of these sizes that holds all used rows is sorted.
    sizes = [capacity]
    while sizes[0] > 2_000:
        sizes.insert(0, -(-sizes[0] // 4))

    def first(size: int) -> Callable[[], Array]:
        def shuffle() -> Array:
            row = jnp.arange(size)
            # Should a used row draw the largest number, the stable sort still puts it before the unused.
            bits = jnp.where(row < count, jax.random.bits(key, (size,)), jnp.uint32(2**32 - 1))
            return jnp.concatenate([jnp.argsort(bits), jnp.arange(size, capacity)])

        return shuffle

    return lax.switch(jnp.searchsorted(jnp.array(sizes), count), [first(size) for size in sizes])


def _arrange(settings: Fit, inputs: Array, targets: Array, order: Array, held: Array, count: Array) -> _Data:
    """Put the rows in order, with room for a whole batch after the last."""
    padded = jnp.concatenate([order, jnp.zeros(settings.batch, order.dtype)])
    return _Data(inputs[padded], targets[padded], held, (count - held).astype(jnp.int32))


def _scaled(model: GaussianEnsemble, ensemble: Ensemble, data: _Data) -> tuple[Ensemble, Array]:
    """Set the scales to those of the training rows; also the deviation of the targets, the unit of errors."""
    row = jnp.arange(data.inputs.shape[0])
    chosen = (row >= data.held) & (row < data.held + data.train)
    old = ensemble.input_scale, ensemble.target_scale
    new = Standardiser.of(data.inputs, chosen), Standardiser.of(data.targets, chosen)
    unit = new[1].std
    if not model.standardise_targets:
        new = new[0], old[1]
    inputs, targets = jax.tree.map(lambda n, o: jnp.where(data.train > 0, n, o), new, old)
    return replace(ensemble, input_scale=inputs, target_scale=targets), unit


def _train(
    settings: Fit,
    model: GaussianEnsemble,
    ensemble: Ensemble,
    data: _Data,
    rows: Int[Array, "K capacity"],
    progress: _Progress,
    key: PRNGKeyArray,
) -> _Progress:
    """One pass over the training rows; the loss is the mean over its updates."""
    capacity = rows.shape[1]
    order = jnp.concatenate([_shuffled(data.train, capacity, key), jnp.zeros(settings.batch, jnp.int32)])
    batches = (data.train + settings.batch - 1) // settings.batch
    batches = jnp.minimum(batches, settings.max_updates - progress.updates)

    def loss(weights: Weights, inputs: Array, targets: Array, valid: Array) -> Array:
        return model.loss(replace(ensemble, weights=weights), inputs, targets, valid)

    def update(i: Array, state: tuple[Any, optax.OptState, Array]) -> tuple[Any, optax.OptState, Array]:
        weights, optimiser, total = state
        valid = _valid(settings, i, data.train)
        chosen = rows[:, lax.dynamic_slice_in_dim(order, i * settings.batch, settings.batch)]
        value, gradients = jax.value_and_grad(loss)(weights, data.inputs[chosen], data.targets[chosen], valid)
        changes, optimiser = model.optimiser.update(gradients, optimiser)
        return optax.apply_updates(weights, changes), optimiser, total + value

    start = progress.weights, progress.optimiser, jnp.float32(0)
    weights, optimiser, total = lax.fori_loop(0, batches, update, start)
    return progress._replace(
        weights=weights,
        optimiser=optimiser,
        epochs=progress.epochs + 1,
        updates=progress.updates + batches,
        loss=total / jnp.maximum(batches, 1),
    )


def _validate(settings: Fit, ensemble: Ensemble, data: _Data, unit: Float[Array, "outputs"]) -> _Errors:
    """Errors on the held-out rows, batch by batch, so that few rows cost little whatever the capacity."""

    def add(i: Array, totals: _Errors) -> _Errors:
        start = i * settings.batch
        x, y = (lax.dynamic_slice_in_dim(a, start, settings.batch) for a in (data.inputs, data.targets))
        mean, log_variance = ensemble.predict_all(x)
        residual = mean - y[None]
        squared = (residual / unit[None, None]) ** 2
        likelihood = residual**2 * jnp.exp(-log_variance) + log_variance
        valid = _valid(settings, i, data.held)[None]
        summed = (jnp.sum(jnp.where(valid, jnp.mean(e, axis=-1), 0.0), axis=1) for e in (squared, likelihood))
        return jax.tree.map(jnp.add, totals, _Errors(*summed))

    batches = (data.held + settings.batch - 1) // settings.batch
    zeros = jnp.zeros(ensemble.num_members)
    totals = lax.fori_loop(0, batches, add, _Errors(zeros, zeros))
    return jax.tree.map(lambda total: total / jnp.maximum(data.held, 1), totals)


def _valid(settings: Fit, batch: Array, count: Array) -> Bool[Array, "batch"]:
    """The rows of a batch that exist."""
    return batch * settings.batch + jnp.arange(settings.batch) < count


def _keep_best(settings: Fit, progress: _Progress, errors: _Errors) -> _Progress:
    """Take over the weights of the members that improved; a NaN never does."""
    better = errors.squared < (1 - settings.improvement) * progress.errors.squared

    def newer(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *(1 for _ in new.shape[1:])), new, old)

    return progress._replace(
        best=jax.tree.map(newer, progress.weights.members, progress.best),
        errors=jax.tree.map(newer, errors, progress.errors),
        stale=jnp.where(jnp.any(better), 0, progress.stale + 1),
    )
