"""No key is used twice: in one iteration of any system, what is drawn is drawn from keys of its own.

JAX's own checker (`jax.debug_key_reuse`) takes a slice of an array of keys for a use, and so refuses most programs.
This one looks at the keys that a program really draws from, splits and folds into while it runs.
"""

from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.random import prng

from metadyna.improve.trpo import TRPO
from tests.tiny import ABSTRACT, CONTINUOUS, PROGRAM, TINY, tiny

KEY = jax.random.key(0)


class Uses:
    """Which keys were used, and for what: drawn from, split, or folded into with a number."""

    def __init__(self):
        self.drawn, self.split, self.folded = Counter(), Counter(), Counter()

    def watch(self, patch):
        draw, split, fold = prng.random_bits, prng.random_split, prng.random_fold_in

        def watched_draw(keys, **settings):
            self._note(self.drawn, keys)
            return draw(keys, **settings)

        def watched_split(keys, **settings):
            self._note(self.split, keys)
            return split(keys, **settings)

        def watched_fold(keys, numbers):
            self._note(self.folded, keys, numbers)
            return fold(keys, numbers)

        patch.setattr(prng, "random_bits", watched_draw)
        patch.setattr(prng, "random_split", watched_split)
        patch.setattr(prng, "random_fold_in", watched_fold)

    def forget(self):
        for book in (self.drawn, self.split, self.folded):
            book.clear()

    def _note(self, book, keys, *more):
        def note(*numbers):
            book[tuple(int(x) for array in numbers for x in np.ravel(array))] += 1

        jax.debug.callback(note, prng.random_unwrap(keys), *more)

    def twice(self):
        """Keys of which more was made than may be."""
        jax.effects_barrier()
        kinds = {"drawn": self.drawn, "split": self.split}
        again = [
            f"{name} {count} times: {key}" for name, uses in kinds.items() for key, count in uses.items() if count > 1
        ]
        folded = {key[:2] for key in self.folded}
        # fold_in(key, i) and split(key)[i] are the same key
        both = self.drawn.keys() & (self.split.keys() | folded) | self.split.keys() & folded
        return again + [f"used in two ways: {key}" for key in both]


@pytest.fixture(scope="module")
def watching():
    """Programs that were traced before do not tell, and those that are traced now must not tell others."""
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        uses = Uses()
        uses.watch(patch)
        yield uses
    jax.clear_caches()


@pytest.fixture
def uses(watching):
    watching.forget()
    return watching


@pytest.fixture
def keyless(monkeypatch):
    """TRPO's step, which takes long to compile, draws nothing: it is looked at and not taken."""
    update = TRPO.update

    def looked_at(self, weights, *functions):
        step = jax.make_jaxpr(partial(update, self), static_argnums=range(1, 1 + len(functions)), return_shape=True)
        program, (_, told) = step(weights, *functions)
        assert not any(word in str(program) for word in ("random", "threefry"))
        return weights, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), told)

    monkeypatch.setattr(TRPO, "update", looked_at)


@pytest.fixture
def flat(monkeypatch):
    """A gradient draws what its function draws and nothing else: it is not taken, which would take long to compile."""

    def both(function, has_aux=False):
        return lambda x, *more: (function(x, *more), jax.tree.map(jnp.zeros_like, x))

    def slope(function, has_aux=False):
        def found(x, *more):
            value, zeros = both(function)(x, *more)
            return (zeros, value[1]) if has_aux else zeros

        return found

    monkeypatch.setattr(jax, "value_and_grad", both)
    monkeypatch.setattr(jax, "grad", slope)


def test_reuse_is_found(uses):

    @jax.jit
    def twice(key):
        return jax.random.normal(key) + jax.random.uniform(key)

    @jax.jit
    def parent_and_child(key):
        return jax.random.normal(key) + jax.random.normal(jax.random.split(key)[0])

    @jax.jit
    def over_and_over(key):
        return jax.lax.scan(lambda x, _: (x + jax.random.normal(key), None), 0.0, None, length=3)[0]

    @jax.jit
    def right(key):
        def step(x, i):
            return x + jax.random.normal(jax.random.fold_in(key, i)), None

        return jax.lax.scan(step, 0.0, jax.numpy.arange(3))[0]

    @jax.jit
    def split_and_folded(key):
        return jax.random.normal(jax.random.split(key)[0]) + jax.random.normal(jax.random.fold_in(key, 7))

    for function, found in ((twice, 1), (parent_and_child, 1), (over_and_over, 1), (split_and_folded, 1), (right, 0)):
        uses.forget()
        jax.block_until_ready(function(KEY))
        assert len(uses.twice()) == found


@pytest.mark.parametrize("name", [*CONTINUOUS, *ABSTRACT, "dream"])
def test_no_key_is_used_twice_in_an_iteration(name, uses, keyless, flat):
    config = TINY if name == "dream" else tiny(name, "catcher" if name in ABSTRACT else "pendulum")
    program, system = PROGRAM(config), config.system
    if name == "me-trpo":  # which judges its policy again and again with the same noise, on purpose
        system = replace(system, validate_every=system.policy_steps + 1)
    state = jax.jit(lambda key: system.init(program.collector, key))(KEY)
    assert uses.twice() == []
    iterate = jax.jit(lambda state, key: system.iterate(state, program.collector, key)[0])
    for i in range(60):  # long enough that it learns
        state = jax.block_until_ready(iterate(state, jax.random.key(i + 1)))
        if system.steps(state) >= 60:
            break
    assert uses.twice() == []
    assert sum(uses.drawn.values()) > 0
