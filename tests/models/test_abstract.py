"""Abstract models: published sizes, the card's numbers for the losses, and whom each loss teaches."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.errors import UserError
from metadyna.models.abstract import (
    Abstract,
    Spatial,
    Vector,
    discount_loss,
    range_loss,
    reward_loss,
    spread_loss,
    transition_loss,
    unrelated,
    with_action,
)
from metadyna.nets.convolutions import ConvNet
from metadyna.nets.layers import MLP, Linear, num_parameters
from metadyna.nets.pictures import Encoder

KEY = jax.random.key(0)
PARTS = ("encoder", "change", "reward", "discount", "value")


def dense(*widths):
    return sum((i + 1) * o for i, o in pairwise(widths))


# --- sizes


def draws(form, picture, actions):
    """The sizes of the networks that a form draws, and the shapes of e(s), of a step and of Q(x)."""
    model = jax.eval_shape(lambda: form.create(picture, actions, KEY))
    x = jax.eval_shape(lambda model: model.encoder(jnp.zeros(picture)), model)
    step = jax.eval_shape(lambda model: model.step(jnp.zeros(x.shape), jnp.int32(0)), model)
    value = jax.eval_shape(lambda model: model.value(jnp.zeros(x.shape)), model)
    return [num_parameters(getattr(model, part)) for part in PARTS], [each.shape for each in (x, *step, value)]


def test_the_labyrinths_networks_are_the_published_ones():  # O10, card 3.1
    sizes, shapes = draws(Spatial(), (48, 48), 4)
    assert sizes == [5_307, 29_507, 31_327, 31_327, 31_134]
    assert sum(sizes) == 128_602
    assert shapes == [(8, 8, 3), (8, 8, 3), (), (), (4,)]


@pytest.mark.parametrize(("side", "actions", "width"), [(48, 4, 2), (36, 2, 3)], ids=["simple maze", "catcher"])
def test_a_vectors_networks_are_the_published_ones(side, actions, width):  # card 3.1
    sizes, shapes = draws(Vector(width), (side, side), actions)
    convolutions, sites = 5_307 - 33 * 3, (side // 6) ** 2  # those of the map but for its last
    assert sizes == [
        convolutions + dense(32 * sites, 200, 100, 50, 10, width),
        dense(width + actions, 10, 30, 30, 10, width),
        dense(width + actions, 10, 50, 20, 1),
        dense(width + actions, 10, 50, 20, 1),
        dense(width, 20, 50, 20, actions),
    ]
    assert shapes == [(width,), (width,), (), (), (actions,)]


@pytest.mark.parametrize(
    ("form", "picture"),
    [
        (Spatial(), (48,)),
        (Spatial(), (48, 48, 1)),
        (Spatial(), (42, 48)),
        (Spatial(), (48, 42)),
        (Spatial(), (0, 48)),
        (Vector(), (7, 6)),
        (Vector(), (6, 8)),
        (Vector(), (0, 0)),
        (Vector(), ()),
    ],
)
def test_other_pictures_are_refused_in_one_line(form, picture):
    with pytest.raises(UserError, match=r"multiples of (6|12), not of") as refused:
        form.create(picture, 4, KEY)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("make", [partial(Spatial, channels=0), partial(Vector, width=0), partial(Vector, width=5000)])
def test_impossible_settings_are_refused_in_one_line(make):
    with pytest.raises(UserError, match="out of range") as refused:
        make()
    assert "\n" not in str(refused.value)


# --- what they compute


@partial(jax.jit, static_argnums=(0, 1, 2))
def draw(form, picture, actions, key):
    return form.create(picture, actions, key)


@pytest.fixture(scope="module", params=[Spatial(2), Vector(3)], ids=["map", "vector"])
def drawn(request):
    """A model with biases, and two pictures that it may be shown."""
    model, rng = draw(request.param, (12, 12), 4, KEY), np.random.default_rng(0)
    model = jax.tree.map(lambda w: np.asarray(w) + rng.normal(0, 0.1, w.shape).astype(np.float32), model)
    return model, rng.normal(size=(2, 12, 12)).astype(np.float32)


def test_a_model_is_drawn_by_the_key_with_no_biases():
    models = (draw(Vector(), (6, 6), 2, jax.random.key(seed)) for seed in (0, 0, 1))
    one, same, other = (jax.tree.map(np.asarray, model) for model in models)
    for x, y, z in zip(*map(jax.tree.leaves, (one, same, other)), strict=True):
        np.testing.assert_array_equal(x, y)
        assert not np.any(x) if x.ndim == 1 else not np.allclose(x, z)
    assert not np.allclose(one.reward.layers[0].weight, one.discount.layers[0].weight)


@pytest.mark.parametrize("shape", [(3,), (8, 8, 3), (2, 4, 1)])
def test_the_action_is_one_hot_in_front_and_the_same_at_every_site(shape):  # P2, card 3.1
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    join = jax.jit(with_action, static_argnums=2)
    for action in range(4):
        joined = np.asarray(join(x, np.int32(action), 4))
        assert joined.shape == (*shape[:-1], 4 + shape[-1])
        np.testing.assert_array_equal(joined[..., 4:], x)
        for channel in range(4):
            np.testing.assert_array_equal(joined[..., channel], np.full(shape[:-1], float(channel == action)))


def test_a_step_adds_the_change_and_reads_the_other_networks(drawn):
    model, pictures = drawn

    @jax.jit
    def both(model, picture, action):
        x = model.encoder(picture)
        joined = with_action(x, action, 4)
        return model.step(x, action), (x + model.change(joined), model.reward(joined)[0], model.discount(joined)[0])

    told = [both(model, pictures[0], np.int32(action)) for action in range(4)]
    for ours, expected in told:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, expected)
    for one, other in pairwise(told):  # the action matters to each of the three
        assert all(not np.allclose(a, b, atol=1e-4) for a, b in zip(one[0], other[0], strict=True))


def test_a_site_of_a_map_sees_its_own_cell_and_those_around():
    """48 x 48 pixels keep their layout: a change of one cell changes the sites around it, its own most of all."""
    pictures = np.stack([np.random.default_rng(0).normal(size=(48, 48)).astype(np.float32)] * 2)
    pictures[1, 18:24, 30:36] += 1
    encode = jax.jit(lambda key, pictures: jax.vmap(Spatial().create((48, 48), 4, key).encoder)(pictures))
    before, after = np.asarray(encode(KEY, pictures))
    changed = np.abs(after - before).max(-1)
    assert np.unravel_index(changed.argmax(), (8, 8)) == (3, 5)
    np.testing.assert_array_equal(np.argwhere(changed > 1e-6).min(0), (2, 4))
    np.testing.assert_array_equal(np.argwhere(changed > 1e-6).max(0), (4, 6))


# --- losses by hand


def affine(weight, bias):
    return MLP((Linear(jnp.asarray(np.float32(weight)), jnp.asarray(np.float32(bias))),), jnp.tanh)


def constant(*numbers):
    """A network that tells the same whatever it is asked, of [action, x] with 2 actions and 2 numbers."""
    return affine(np.zeros((4, len(numbers))), np.array(numbers))


NO_TRUNK = ConvNet((), (), jnp.tanh, False)
SIMPLE = Abstract(
    Encoder(NO_TRUNK, constant(0.0, 0.0)),
    change=affine(np.eye(4)[:, :2], np.zeros(2)),  # one along the axis of the action
    reward=constant(0.5),
    discount=constant(0.7),
    value=constant(0.0),
    actions=2,
)
X = np.float32([[0, 0], [1, -1], [2, 3]])
NEXT_X = np.float32([[1, 0.5], [0, 0], [9, 9]])
ACTION = jnp.asarray(np.int32([0, 1, 1]))


@jax.jit
def transition_slopes(x, next_x, alive):
    loss = lambda x, next_x: transition_loss(SIMPLE, x, ACTION, next_x, alive)  # noqa: E731
    return jax.value_and_grad(loss, (0, 1))(x, next_x)


spread_slope = jax.jit(jax.value_and_grad(spread_loss))
range_slope = jax.jit(jax.value_and_grad(range_loss))


def test_prediction_errors_by_hand():  # card 3.2
    reward, discount = (jax.jit(partial(loss, SIMPLE)) for loss in (reward_loss, discount_loss))
    assert reward(X, ACTION, np.float32([0.5, -0.1, 1.0])) == pytest.approx((0 + 0.36 + 0.25) / 3)
    assert discount(X, ACTION, np.float32([0.9, 0.9, 0.0])) == pytest.approx((0.04 + 0.04 + 0.49) / 3)
    # predicted: (1, 0), (1, 0), (2, 4)
    value, _ = transition_slopes(X, NEXT_X, np.ones(3, np.float32))
    assert value == pytest.approx((0.25 + 1 + 49 + 25) / 6)


def test_where_the_mdp_ended_nothing_is_predicted_but_the_row_counts():  # card 3.2
    value, slopes = transition_slopes(X, NEXT_X, np.float32([1, 1, 0]))
    assert value == pytest.approx(1.25 / 6)
    error = np.array([[0, -0.5], [1, 0], [0, 0]])
    np.testing.assert_allclose(slopes[0], 2 * error / 6, atol=1e-6)  # both ends move, the ended row's do not
    np.testing.assert_allclose(slopes[1], -2 * error / 6, atol=1e-6)


def far(norm, *shape):
    """Two states of a shape that lie `norm` apart."""
    x, apart = np.random.default_rng(0).normal(size=(2, 1, *shape)).astype(np.float32)
    return x, x + np.float32(norm) * apart / np.linalg.norm(apart)


@pytest.mark.parametrize("shape", [(2,), (8, 8, 3)])
@pytest.mark.parametrize(("norm", "expected"), [(0.2, 0.367879), (0.0, 0.995012), (5.0, 1.3589e-7)])
def test_how_states_are_driven_apart(shape, norm, expected):  # O6
    value, slope = map(np.asarray, spread_slope(*far(norm, *shape)))
    assert value == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(slope).all()
    assert slope.any() == (norm == 0.2)
    if norm == 0.2:
        assert np.linalg.norm(slope) == pytest.approx(5 * expected, rel=1e-4)


def test_rows_that_do_not_count_drive_nothing_but_stay_in_the_mean():  # P7
    x, other = (np.concatenate([far(0.2, 3)[i], far(0.2, 3)[i], far(0.0, 3)[i]]) for i in (0, 1))
    value, slope = map(np.asarray, spread_slope(x, other, np.float32([1, 0, 1])))
    assert value == pytest.approx((0.367879 + 0.995012) / 3, rel=1e-5)
    assert slope[0].any()
    assert not slope[1:].any()


def test_partners_are_the_rows_before_in_a_circle():
    np.testing.assert_array_equal(unrelated(jnp.asarray(np.arange(6.0).reshape(3, 2))), [[4, 5], [0, 1], [2, 3]])


def test_what_leaves_the_unit_ball_is_called_back():  # O7
    spatial = np.zeros((1, 8, 8, 3), np.float32)
    spatial[0, 4, 2] = 0.5, -1.5, 0.0
    value, slope = map(np.asarray, range_slope(spatial))
    assert value == pytest.approx(0.01953125)
    np.testing.assert_allclose(slope[0, 4, 2], [0, -3 / 64, 0], atol=1e-7)
    assert np.count_nonzero(slope) == 1
    loss = jax.jit(range_loss)
    assert loss(spatial.reshape(1, -1)) == pytest.approx(1.25)  # of a vector, one largest number
    assert loss(np.concatenate([spatial, spatial * 0])) == pytest.approx(0.01953125 / 2)
    assert loss(np.ones((1, 8, 8, 3), np.float32)).item() == 0
    assert loss(np.float32([[30, 0]])).item() == 100  # as far as it is clipped


# --- whom each loss teaches

LOSSES = {
    "transition": (
        lambda model, x, next_x: transition_loss(model, x, ACTION[:2], next_x, jnp.ones(2)),
        ("encoder", "change"),
    ),
    "reward": (lambda model, x, next_x: reward_loss(model, x, ACTION[:2], jnp.ones(2)), ("encoder", "reward")),
    "discount": (lambda model, x, next_x: discount_loss(model, x, ACTION[:2], jnp.ones(2)), ("encoder", "discount")),
    "range": (lambda model, x, next_x: range_loss(3 * x), ("encoder",)),
    "spread": (lambda model, x, next_x: spread_loss(x, next_x), ("encoder",)),
}


@pytest.fixture(scope="module")
def taught():
    """The gradient of every loss, through the encodings of both observations."""
    widths = {"encoder": (3, 2), "change": (4, 2), "reward": (4, 1), "discount": (4, 1), "value": (2, 2)}
    obs, next_obs = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)

    def losses(model):
        x, next_x = (jax.vmap(model.encoder.head)(each) for each in (obs, next_obs))
        return {name: loss(model, x, next_x) for name, (loss, _) in LOSSES.items()}

    @jax.jit
    def slopes(key):
        networks = {name: MLP.create(widths[name], key) for name in PARTS}
        return jax.jacrev(losses)(Abstract(Encoder(NO_TRUNK, networks.pop("encoder")), **networks, actions=2))

    return slopes(KEY)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_teaches_its_own_network_and_the_encoder(taught, name):
    for part in PARTS:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(getattr(taught[name], part))]
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert any(leaf.any() for leaf in leaves) == (part in LOSSES[name][1])
