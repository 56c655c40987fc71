"""Fitting an ensemble as MBPO does: bootstrap, held-out rows, early stop, elites (Janner et al. 2019; PETS without).

Rows are asked for by their slots in a ring, and only those that are stored, so that one compiled program serves however
many there are, and nothing is made of what is not used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from metadyna.collect import replay
from metadyna.errors import UserError
from metadyna.nets.moments import Moments
from metadyna.settings import Settings

Examples = PyTree
"""What a model learns from: inputs and targets, or whatever its loss reads, with the rows in front."""

_CHUNK = 1_024
"""Rows that are looked at together while their scales are found."""


class Rows(eqx.Module):
    """The items of a ring, read as a model's examples where they are asked for."""

    ring: replay.Ring
    read: Callable[[PyTree], Examples] = eqx.field(static=True)
    """From items of any batch to examples."""

    @property
    def capacity(self) -> int:
        """How many fit."""
        return replay.capacity(self.ring)

    @property
    def count(self) -> Int[Array, ""]:
        """How many there are: those in the first slots."""
        return replay.size(self.ring)

    def take(self, slots: Int[Array, "*rows"]) -> Examples:
        """The examples in some slots."""
        return self.read(jax.tree.map(lambda store: store[slots], self.ring.items))


@runtime_checkable
class Members(Protocol):
    """An ensemble of K members: an Equinox module whose weights are trained."""

    weights: Any
    """All that the optimiser moves; of it, `members` is what each member has for itself, stacked [K]."""
    elites: Int[Array, "elites"]
    """The preferred ones, the best first."""


Ensemble = TypeVar("Ensemble", bound=Members)


@runtime_checkable
class Fittable(Protocol[Ensemble]):
    """Settings of K members that can be fitted."""

    @property
    def members(self) -> int:
        """K."""
        ...

    @property
    def elites(self) -> int:
        """How many of them are preferred."""
        ...

    @property
    def probabilistic(self) -> bool:
        """Whether a likelihood means anything."""
        ...

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """What moves the weights."""
        ...

    def drawn_anew(self, ensemble: Ensemble, key: PRNGKeyArray) -> Ensemble:
        """An ensemble of the same shapes, as fresh as the first."""
        ...

    def scaled(self, ensemble: Ensemble, scales: PyTree) -> Ensemble:
        """The ensemble with the scales of the data that it is fitted to: `Moments` of every array of an example."""
        ...

    def loss(self, ensemble: Ensemble, examples: Examples, valid: Bool[Array, "n"]) -> Float[Array, ""]:
        """What is to fall: examples [K, n, ...] are each member's own."""
        ...

    def errors(self, ensemble: Ensemble, examples: Examples, scales: PyTree) -> "Errors":
        """Every member's errors on its own examples [K, n, ...]."""
        ...


class Errors(NamedTuple):
    """Each member's errors, of rows or on average.

    `squared`: the squared residual in units of the targets' deviation. `likelihood`: (μ − y)² exp(−v) + v.
    """

    squared: Float[Array, "K *n"]
    likelihood: Float[Array, "K *n"]


class FitState(NamedTuple):
    """An ensemble (`Members`) and its optimiser, which goes on from fit to fit."""

    ensemble: Any
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
    best: Any
    errors: Errors
    stale: Int[Array, ""]
    epochs: Int[Array, ""]
    updates: Int[Array, ""]
    loss: Float[Array, ""]


class _Split(NamedTuple):
    """Every member's slots in random order: first its `held` to validate on, from `first` on `train` to learn from.

    Between them may be one or two that are left over this time, so that all members learn from as many.
    """

    order: Int[Array, "K slots"]
    held: Int[Array, "K"]
    first: Int[Array, ""]
    train: Int[Array, ""]


def start(model: Fittable[Ensemble], ensemble: Ensemble) -> FitState:
    """Begin with an ensemble that has just been drawn."""
    return FitState(ensemble, model.optimiser.init(ensemble.weights))


def fit(
    settings: Fit, model: Fittable, state: FitState, rows: Rows, key: PRNGKeyArray
) -> tuple[FitState, dict[str, Array]]:
    """Train every member on the stored rows; what the empty slots hold, even NaN, does not matter.

    Every member holds some rows of its own out to validate on, at least one if there are two. It never validates on a
    row that it once learnt from, in this fit or a later one (`held_out`): else a warm start would know the answers. Its
    error is the mean squared residual on them in units of the targets' deviation, so that no column outweighs the
    others. An epoch counts if it brings any member's error far enough below its own best; each member ends with its
    best weights, and the elites are those with the least error. That error is the mean's: the best weights may be from
    before the variance was learnt. With fewer than two rows to split nothing is learnt, and errors are infinite.

    The order of a member's rows is drawn once and the columns of the table [K, rows] are shuffled in every epoch, by
    one permutation for all members: one sort instead of K, and to each member alone the same as an order of its own.
    The last batch of an epoch is as short as what is left; the rows that fill it up have no weight.

    Janner et al. 2019, code jannerm/mbpo `bnn.py`; there the error is in the targets' units, and the rows to validate
    on are the same for all members and drawn anew in every fit: what a warm start knew of them made errors look small.
    """
    if settings.holdout == 0 and model.elites != model.members:
        raise UserError(
            "Fit.holdout = 0 leaves nothing to choose elites by; "
            f"GaussianEnsemble.elites = {model.elites} must be all members ({model.members})"
        )
    k_start, k_split, k_rows, k_epochs = jax.random.split(key, 4)
    state = state if settings.warm_start else _afresh(model, state, k_start)
    split = _split(settings, model.members, rows, k_split)
    table = training_rows(settings, model.members, split.train, rows.capacity, k_rows)
    scales = _scales(rows)
    ensemble = model.scaled(state.ensemble, scales)
    ensemble = jax.tree.map(lambda new, old: jnp.where(split.train > 0, new, old), ensemble, state.ensemble)

    def going(progress: _Progress) -> Array:
        more = (progress.epochs < settings.max_epochs) & (progress.updates < settings.max_updates)
        return more & (progress.stale <= settings.patience) & (split.train > 0)

    def epoch(progress: _Progress) -> _Progress:
        k_epoch = jax.random.fold_in(k_epochs, progress.epochs)
        progress = _train(settings, model, ensemble, rows, split, table, progress, k_epoch)
        if settings.holdout == 0:
            return progress._replace(best=progress.weights.members)
        return _keep_best(
            settings, progress, _validate(settings, model, _with(ensemble, progress.weights), rows, split, scales)
        )

    worst = jnp.full(model.members, jnp.inf, jnp.float32)
    first = ensemble.weights, state.optimiser, ensemble.weights.members, Errors(worst, worst)
    progress = _Progress(*first, jnp.int32(0), jnp.int32(0), jnp.int32(0), jnp.float32(0))
    progress = lax.while_loop(going, epoch, progress)
    return FitState(_elected(model, ensemble, progress), progress.optimiser), _told(settings, model, progress)


def _afresh(model: Fittable[Ensemble], state: FitState, key: PRNGKeyArray) -> FitState:
    """New weights and their optimiser; who was preferred is so until there is something to choose by."""
    fresh = start(model, model.drawn_anew(state.ensemble, key))
    return fresh._replace(ensemble=eqx.tree_at(lambda e: e.elites, fresh.ensemble, state.ensemble.elites))


def _elected(model: Fittable[Ensemble], ensemble: Ensemble, progress: _Progress) -> Ensemble:
    """Every member at its best, and those with the least error preferred."""
    ranked = jnp.argsort(progress.errors.squared)[: model.elites]
    elites = jnp.where(progress.epochs > 0, ranked, ensemble.elites)
    best = eqx.tree_at(lambda weights: weights.members, progress.weights, progress.best)
    return eqx.tree_at(lambda e: e.elites, _with(ensemble, best), elites)


def _told(settings: Fit, model: Fittable, progress: _Progress) -> dict[str, Array]:
    """What is said of a fit; a likelihood only where the model has one."""
    metrics = {"fit/epochs": progress.epochs, "fit/updates": progress.updates, "fit/train_loss": progress.loss}
    if settings.holdout > 0:
        metrics["fit/holdout_mse"] = jnp.mean(progress.errors.squared)
        if model.probabilistic:
            metrics["fit/holdout_nll"] = jnp.mean(progress.errors.likelihood)
    return metrics


def _with(ensemble: Ensemble, weights: Any) -> Ensemble:
    return eqx.tree_at(lambda e: e.weights, ensemble, weights)


def held_out(settings: Fit, members: int, rows: Rows) -> Bool[Array, "K capacity"]:
    """Which slots hold rows that each member validates on.

    Every row has a number for life, spread evenly over [0, 1) (multiples of the golden ratio), and member k holds it
    out while it is within the share to hold out above k / K, around the circle. The share never grows, so a row may be
    given up to learn from, and never the other way round. So all rows are learnt from by most members, and by as many.
    Where the share comes to less than two rows of a full ring it may find none, and the next row above k / K is held
    out, whatever it was before.
    """
    place = replay.serials(rows.ring) * jnp.uint32(2_654_435_769)  # 2³² / golden ratio, modulo 2³²
    begin = (np.arange(members) * 2**32 // members).astype(np.uint32)
    number = (place[None] - begin[:, None]).astype(jnp.float32) / 2.0**32
    used = jnp.arange(rows.capacity)[None] < rows.count
    share = jnp.minimum(settings.holdout, settings.max_holdout / jnp.maximum(rows.count, 1))
    least = jnp.min(number, axis=1, where=used, initial=1.0, keepdims=True)
    return used & ((number < share) | (number == least)) if settings.holdout else jnp.zeros(number.shape, bool)


def _split(settings: Fit, members: int, rows: Rows, key: PRNGKeyArray) -> _Split:
    """Shuffle the rows of each side, for every member."""
    held = held_out(settings, members, rows)
    shuffle = partial(_shuffled, rows.count, rows.capacity)
    order = jax.vmap(shuffle)(jax.random.split(key, members), ~held)
    counts = jnp.sum(held, axis=1)
    padded = jnp.concatenate([order, jnp.zeros((members, settings.batch), order.dtype)], axis=1)
    first = jnp.max(counts)
    return _Split(padded, counts, first, rows.count - first)


def _scales(rows: Rows) -> PyTree:
    """Mean and deviation of every column, chunk by chunk; most members learn from any row."""
    shapes = jax.eval_shape(rows.take, jnp.int32(0))

    def add(i: Array, moments: PyTree) -> PyTree:
        slots = i * _CHUNK + jnp.arange(_CHUNK)
        chunk = rows.take(jnp.minimum(slots, rows.capacity - 1))
        valid = slots < rows.count
        return jax.tree.map(
            lambda old, new: old.add(new, valid), moments, chunk, is_leaf=lambda x: isinstance(x, Moments)
        )

    empty = jax.tree.map(lambda x: Moments.empty(x.shape), shapes)
    return lax.fori_loop(0, (rows.count + _CHUNK - 1) // _CHUNK, add, empty)


def training_rows(
    settings: Fit, members: int, train: Int[Array, ""], capacity: int, key: PRNGKeyArray
) -> Int[Array, "K capacity"]:
    """Which of `train` rows each member learns from; the first `train` are one pass."""
    if settings.bootstrap:
        drawn = jax.random.bits(key, (members, capacity))  # so many that the remainder is as good as uniform
    else:
        drawn = jax.vmap(lambda k: _shuffled(train, capacity, k))(jax.random.split(key, members))
    return (drawn % jnp.maximum(train, 1).astype(drawn.dtype)).astype(jnp.int32)


def _shuffled(
    count: Int[Array, ""], capacity: int, key: PRNGKeyArray, late: Bool[Array, "capacity"] | None = None
) -> Int[Array, "capacity"]:
    """0 … count − 1 in random order, those that are `late` after the others, then the rest."""
    # A replay is mostly empty at first, and sorting all of it would cost more than an epoch on what there is. So the
    # least of these sizes that holds all used rows is sorted.
    sizes = [capacity]
    while sizes[0] > 2_000:
        sizes.insert(0, -(-sizes[0] // 4))

    def first(size: int) -> Callable[[], Array]:
        def shuffle() -> Array:
            row = jnp.arange(size)
            bits = jax.random.bits(key, (size,))
            if late is not None:
                bits = bits // 2 + late[:size].astype(jnp.uint32) * jnp.uint32(2**31)
            # Should a used row draw the largest number, the stable sort still puts it before the unused.
            bits = jnp.where(row < count, bits, jnp.uint32(2**32 - 1))
            return jnp.concatenate([jnp.argsort(bits), jnp.arange(size, capacity)])

        return shuffle

    return lax.switch(jnp.searchsorted(jnp.array(sizes), count), [first(size) for size in sizes])


def _train(
    settings: Fit,
    model: Fittable[Ensemble],
    ensemble: Ensemble,
    rows: Rows,
    split: _Split,
    table: Int[Array, "K capacity"],
    progress: _Progress,
    key: PRNGKeyArray,
) -> _Progress:
    """One pass over the training rows; the loss is the mean over its updates."""
    shuffled = _shuffled(split.train, table.shape[1], key)
    columns = jnp.concatenate([shuffled, jnp.zeros(settings.batch, jnp.int32)])
    batches = (split.train + settings.batch - 1) // settings.batch
    batches = jnp.minimum(batches, settings.max_updates - progress.updates)

    def loss(weights: Any, examples: Examples, valid: Array) -> Array:
        return model.loss(_with(ensemble, weights), examples, valid)

    def update(i: Array, state: tuple[Any, optax.OptState, Array]) -> tuple[Any, optax.OptState, Array]:
        weights, optimiser, total = state
        valid = _valid(settings, i, split.train)
        places = table[:, lax.dynamic_slice_in_dim(columns, i * settings.batch, settings.batch)]
        chosen = jnp.take_along_axis(split.order, split.first + places, axis=1)
        value, gradients = jax.value_and_grad(loss)(weights, rows.take(chosen), valid)
        changes, optimiser = model.optimiser.update(gradients, optimiser)
        return optax.apply_updates(weights, changes), optimiser, total + value

    first = progress.weights, progress.optimiser, jnp.float32(0)
    weights, optimiser, total = lax.fori_loop(0, batches, update, first)
    return progress._replace(
        weights=weights,
        optimiser=optimiser,
        epochs=progress.epochs + 1,
        updates=progress.updates + batches,
        loss=total / jnp.maximum(batches, 1),
    )


def _validate(
    settings: Fit, model: Fittable[Ensemble], ensemble: Ensemble, rows: Rows, split: _Split, scales: PyTree
) -> Errors:
    """Mean errors on the held-out rows, batch by batch, so that few rows cost little whatever the capacity."""

    def add(i: Array, totals: Errors) -> Errors:
        slots = lax.dynamic_slice_in_dim(split.order, i * settings.batch, settings.batch, axis=1)
        errors = model.errors(ensemble, rows.take(slots), scales)
        valid = i * settings.batch + jnp.arange(settings.batch)[None] < split.held[:, None]
        return jax.tree.map(lambda total, new: total + jnp.sum(jnp.where(valid, new, 0.0), axis=1), totals, errors)

    batches = (split.first + settings.batch - 1) // settings.batch
    zeros = jnp.zeros(model.members)
    totals = lax.fori_loop(0, batches, add, Errors(zeros, zeros))
    return jax.tree.map(lambda total: total / jnp.maximum(split.held, 1), totals)


def _valid(settings: Fit, batch: Array, count: Array) -> Bool[Array, "batch"]:
    """The rows of a batch that exist."""
    return batch * settings.batch + jnp.arange(settings.batch) < count


def _keep_best(settings: Fit, progress: _Progress, errors: Errors) -> _Progress:
    """Take over the weights of the members that improved; a NaN never does."""
    better = errors.squared < (1 - settings.improvement) * progress.errors.squared

    def newer(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *(1 for _ in new.shape[1:])), new, old)

    return progress._replace(
        best=jax.tree.map(newer, progress.weights.members, progress.best),
        errors=jax.tree.map(newer, errors, progress.errors),
        stale=jnp.where(jnp.any(better), 0, progress.stale + 1),
    )
