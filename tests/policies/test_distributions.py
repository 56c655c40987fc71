"""Distributions: densities against quadrature and published numbers, classes by hand, and bounds that let go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.policies.distributions import Categorical, Distribution, Normal, OneHot, TanhNormal, bend

KEY = jax.random.key(0)
SHAPES = [(0.0, 0.0), (1.0, -1.0), (-0.5, 0.4), (0.3, -3.0)]  # mean, log standard deviation


def vector(*numbers):
    return jnp.array(numbers, jnp.float32)


def grid(mean, log_std):
    """Points that reach 12 standard deviations from the mean."""
    return mean + np.exp(log_std) * np.linspace(-12, 12, 4001)


def squashed(mean, log_std):
    return TanhNormal(Normal(mean, log_std))


def along(kind, points, mean, log_std, name="log_prob"):
    """A log-density in one dimension at many points, in float64."""
    mean, log_std = (jnp.full((len(points), 1), x, jnp.float32) for x in (mean, log_std))
    return np.asarray(getattr(kind(mean, log_std), name)(jnp.asarray(points[:, None], jnp.float32)), np.float64)


def along_before(points, mean, log_std):
    """The squashed log-density at tanh of the points."""
    return along(squashed, points, mean, log_std, "log_prob_before")


def test_the_published_densities():
    """Cards of M3PO (T3) and MB-MPO (O4)."""
    standard = Normal(vector(0), vector(0))
    assert standard.log_prob(vector(0.5)) == pytest.approx(-1.043939, abs=1e-6)
    assert TanhNormal(standard).log_prob_before(vector(0.5)) == pytest.approx(-0.8037095193, abs=2e-7)
    assert TanhNormal(standard).log_prob(jnp.tanh(vector(0.5))) == pytest.approx(-0.8037095193, abs=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), SHAPES)
def test_a_normal_density_has_its_mass_mean_and_spread(mean, log_std):
    x = grid(mean, log_std)
    density = np.exp(along(Normal, x, mean, log_std))
    assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-4)
    assert np.trapezoid(density * x, x) == pytest.approx(mean, abs=1e-4)
    assert np.trapezoid(density * (x - mean) ** 2, x) == pytest.approx(np.exp(2 * log_std), rel=1e-3)


@pytest.mark.parametrize(("mean", "log_std"), SHAPES)
def test_a_squashed_density_has_the_mass_of_what_was_squashed(mean, log_std):
    """Over actions, all of it and every part: the mass below tanh(u) is that of the Gaussian below u."""
    u = grid(mean, log_std)
    action = np.tanh(u)
    density = np.exp(along_before(u, mean, log_std))
    gaussian = np.exp(-0.5 * ((u - mean) / np.exp(log_std)) ** 2) / np.sqrt(2 * np.pi) / np.exp(log_std)
    for cut in (1000, 2000, 2300, 4001):
        mass = np.trapezoid(gaussian[:cut], u[:cut])
        assert np.trapezoid(density[:cut], action[:cut]) == pytest.approx(mass, abs=2e-3)


@pytest.mark.parametrize("u", [-30.0, -5.0, 0.0, 5.0, 30.0])
def test_a_squashed_density_stays_finite_where_tanh_saturates(u):
    value, slope = jax.value_and_grad(squashed(vector(0), vector(0)).log_prob_before)(vector(u))
    assert jnp.isfinite(value)
    # log p(u) - log(1 - tanh² u) tends to -u²/2 + 2|u| + constants.
    assert slope[0] == pytest.approx(-u + 2 * np.tanh(u), abs=1e-4)
    if abs(u) == 30:
        assert value == pytest.approx(-450 - 0.5 * np.log(2 * np.pi) + 60 - 2 * np.log(2), abs=1e-3)


def test_squashed_draws_follow_their_density():
    """The mean of the draws is that of the density, and the log-density that comes with a draw is its own."""
    mean, log_std = 0.4, -0.5
    u = grid(mean, log_std)
    density = np.exp(along_before(u, mean, log_std))
    expected = np.trapezoid(density * np.tanh(u), np.tanh(u))
    drawn = squashed(jnp.full((20_000, 1), mean), jnp.full((20_000, 1), log_std))
    action, log_prob = drawn.sample_with_log_prob(KEY)
    assert jnp.all(jnp.abs(action) < 1)
    assert action.mean() == pytest.approx(expected, abs=0.02)
    again = along_before(np.arctanh(np.asarray(action[:100, 0], np.float64)), mean, log_std)
    np.testing.assert_allclose(log_prob[:100], again, atol=1e-3)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0), (1, np.log(2)), 0.443147),
        ((1, np.log(2)), (0, 0), 1.306853),
        ((0, 0), (0.1, 0), 0.005),
        ((0.3, -1), (0.3, -1), 0),
    ],
)
def test_divergences(first, second, expected):
    one, other = (Normal(*map(vector, shape)) for shape in (first, second))
    assert one.kl(other) == pytest.approx(expected, abs=1e-6)
    assert TanhNormal(one).kl(TanhNormal(other)) == one.kl(other)  # both are squashed alike
    p, q = (along(Normal, grid(*first), *shape) for shape in (first, second))
    assert np.trapezoid(np.exp(p) * (p - q), grid(*first)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("mean", "log_std"), SHAPES)
def test_entropy(mean, log_std):
    u = grid(mean, log_std)
    p = along(Normal, u, mean, log_std)
    normal = Normal(vector(mean), vector(log_std))
    assert normal.entropy() == pytest.approx(-np.trapezoid(np.exp(p) * p, u), abs=1e-3)
    expected = -np.trapezoid(np.exp(p) * along_before(u, mean, log_std), u)
    assert TanhNormal(normal).entropy() == pytest.approx(expected, abs=1e-3)


def test_the_last_axis_is_summed_and_the_others_kept():
    rng = np.random.default_rng(0)
    x, mean, log_std, other, other_log_std = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(5))
    for function, arguments in [
        (lambda x, mean, log_std: Normal(mean, log_std).log_prob(x), (x, mean, log_std)),
        (lambda x, mean, log_std: squashed(mean, log_std).log_prob_before(x), (x, mean, log_std)),
        (lambda x, mean, log_std: squashed(mean, log_std).log_prob(x), (jnp.tanh(x), mean, log_std)),
        (lambda *shapes: Normal(*shapes[:2]).kl(Normal(*shapes[2:])), (mean, log_std, other, other_log_std)),
        (lambda *shape: Normal(*shape).entropy(), (mean, log_std)),
        (lambda *shape: squashed(*shape).entropy(), (mean, log_std)),
    ]:
        alone = sum(function(*(a[:, d : d + 1] for a in arguments)) for d in range(3))
        np.testing.assert_allclose(function(*arguments), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.5, -1.0), (-0.3, -0.3)])
def test_a_squashed_density_of_actions_has_mass_one_and_is_that_of_a_change_of_variables(mean, log_std):
    """log p(a) = log N(artanh a) − log(1 − a²), integrated over the actions themselves."""
    action = np.tanh(np.linspace(-7, 7, 20_001))
    log_prob = along(squashed, action, mean, log_std)
    assert np.trapezoid(np.exp(log_prob), action) == pytest.approx(1, abs=1e-4)
    inner = np.abs(action) < 0.999  # beyond, float32 resolves 1 − a² badly
    u = np.arctanh(action[inner])
    normal = -0.5 * ((u - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_prob[inner], normal - np.log(1 - action[inner] ** 2), atol=2e-3)


def test_a_squashed_density_is_finite_at_the_bounds():
    edges = jnp.array([[-1.0], [1.0]])
    value, slope = jax.value_and_grad(lambda mean: jnp.sum(squashed(mean, mean * 0).log_prob(edges)))(0 * edges + 0.3)
    assert jnp.isfinite(value)
    assert jnp.isfinite(slope).all()


def test_modes_are_means_and_the_likeliest_classes():
    mean, log_std = vector(0.3, -2.0), vector(0.0, 1.0)
    np.testing.assert_array_equal(Normal(mean, log_std).mode(), mean)
    np.testing.assert_array_equal(squashed(mean, log_std).mode(), jnp.tanh(mean))
    logits = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]]))
    np.testing.assert_array_equal(Categorical(logits).mode(), [1, 0])
    np.testing.assert_array_equal(OneHot(logits).mode(), np.eye(3)[[1, 0]])


# --- classes


P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.6, 0.3])
"""Entropy of P: 1.0296530; KL(P || Q): 0.5156833."""


def shifted(probs):
    """Logits of which only the differences mean anything."""
    return jnp.asarray(np.log(probs) + 3, jnp.float32)


@pytest.mark.parametrize("kind", [Categorical, OneHot])
def test_three_classes_by_hand(kind):
    p, q = kind(shifted(P)), kind(shifted(Q))
    assert p.entropy() == pytest.approx(1.0296530, abs=1e-6)
    assert p.kl(q) == pytest.approx(0.5 * np.log(5) + 0.3 * np.log(0.5) + 0.2 * np.log(2 / 3), abs=1e-6)
    assert p.kl(p) == pytest.approx(0, abs=1e-6)
    for x in range(3):
        named = jnp.int32(x) if kind is Categorical else jnp.eye(3)[x]
        assert p.log_prob(named) == pytest.approx(np.log(P[x]), abs=1e-6)


@pytest.mark.parametrize("kind", [Categorical, OneHot])
def test_classes_are_drawn_in_their_shares(kind):
    drawn, log_prob = kind(jnp.broadcast_to(shifted(P), (9000, 3))).sample_with_log_prob(KEY)
    numbers = drawn if kind is Categorical else jnp.argmax(drawn, axis=-1)
    np.testing.assert_allclose(np.bincount(numbers) / 9000, P, atol=0.02)
    np.testing.assert_allclose(log_prob, np.log(P)[numbers], atol=1e-5)


@pytest.mark.parametrize("kind", [Categorical, OneHot])
def test_an_impossible_class_costs_nothing_and_never_comes(kind):
    p, q = (kind(jnp.array([0.0, second, -jnp.inf])) for second in (0.0, 1.0))
    assert p.entropy() == pytest.approx(np.log(2), abs=1e-6)
    assert p.kl(q) == pytest.approx(np.log(1 + np.e) - np.log(2) - 0.5, abs=1e-6)
    slope = jax.grad(lambda first: kind(jnp.stack([first, 0.0 * first, -jnp.inf])).entropy())(jnp.float32(0.7))
    assert jnp.isfinite(slope)


def test_gradients_pass_straight_through_a_one_hot_draw():
    """What is drawn is 0 or 1, and its derivative is that of the probabilities."""
    logits, weigh = shifted(P), jnp.array([1.0, -2.0, 0.5])
    drawn = OneHot(logits).sample(KEY)
    np.testing.assert_allclose(jnp.sort(drawn), [0, 0, 1], atol=1e-6)
    slope = jax.grad(lambda logits: OneHot(logits).sample(KEY) @ weigh)(logits)
    np.testing.assert_allclose(slope, P * (np.asarray(weigh) - P @ np.asarray(weigh)), atol=1e-6)


@pytest.mark.parametrize(
    "made", [Normal(vector(0), vector(0)), squashed(vector(0), vector(0)), Categorical(vector(0)), OneHot(vector(0))]
)
def test_distributions_are_values_of_one_protocol(made):
    assert isinstance(made, Distribution)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(made))


# --- bounds of a parameter


LOW, HIGH = -5.0, 2.0


def test_a_bent_parameter_stays_in_its_range_and_is_itself_between_the_ends():
    x = jnp.linspace(-40.0, 40.0, 161)
    bent = bend(x, LOW, HIGH)
    assert (bent >= LOW).all()
    assert (bent <= HIGH + 1e-6).all()
    assert (jnp.diff(bent) >= 0).all()
    inner = jnp.linspace(LOW + 1, HIGH - 1, 51)
    np.testing.assert_allclose(bend(inner, LOW, HIGH), inner, atol=1e-4)


@pytest.mark.parametrize("start", [LOW - 1.5, LOW, HIGH, HIGH + 1.5])
def test_a_parameter_beyond_its_range_comes_back(start):
    """Its slope is small there but not 0, as that of a clipped one is; an adaptive step size makes up for the rest."""

    def miss(x):
        return (bend(x, LOW, HIGH) + 1) ** 2

    def step(state, _):
        x, square = state
        slope = jax.grad(miss)(x)
        square = 0.9 * square + 0.1 * slope**2
        return (x - 0.05 * slope / jnp.sqrt(square), square), slope

    (end, _), slopes = jax.lax.scan(step, (jnp.float32(start), jnp.float32(0)), None, length=200)
    assert (slopes[:5] != 0).all()
    assert bend(end, LOW, HIGH) == pytest.approx(-1, abs=0.2)
