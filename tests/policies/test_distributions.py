"""Distributions: densities against quadrature and published numbers, classes by hand, and bounds that let go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.policies.distributions import Categorical, Distribution, Normal, OneHot, TanhNormal, bend

KEY = jax.random.key(0)
SHAPES = [(0.0, 0.0), (1.0, -1.0), (-0.5, 0.4), (0.3, -3.0)]  # mean, log standard deviation


def vector(*numbers):
    return jnp.asarray(np.float32(numbers))


def ask(distribution, method, *arguments):
    """What a compiled method of a distribution answers."""
    return jax.jit(getattr(type(distribution), method))(distribution, *arguments)


def grid(mean, log_std):
    """Points that reach 12 standard deviations from the mean."""
    return mean + np.exp(log_std) * np.linspace(-12, 12, 4001)


def squashed(mean, log_std):
    return TanhNormal(Normal(mean, log_std))


def along(kind, points, mean, log_std, name="log_prob"):
    """A log-density in one dimension at many points, in float64."""
    mean, log_std = (jnp.asarray(np.full((len(points), 1), x, np.float32)) for x in (mean, log_std))
    return np.float64(ask(kind(mean, log_std), name, np.float32(points[:, None])))


def along_before(points, mean, log_std):
    """The squashed log-density at tanh of the points."""
    return along(squashed, points, mean, log_std, "log_prob_before")


def test_the_published_densities():
    """Cards of M3PO (T3) and MB-MPO (O4)."""
    standard = Normal(vector(0), vector(0))
    assert ask(standard, "log_prob", vector(0.5)) == pytest.approx(-1.043939, abs=1e-6)
    bounded = TanhNormal(standard)
    assert ask(bounded, "log_prob_before", vector(0.5)) == pytest.approx(-0.8037095193, abs=2e-7)
    assert ask(bounded, "log_prob", vector(np.tanh(0.5))) == pytest.approx(-0.8037095193, abs=1e-6)


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


density_and_slope = jax.jit(jax.value_and_grad(TanhNormal.log_prob_before, 1))


@pytest.mark.parametrize("u", [-30.0, -5.0, 0.0, 5.0, 30.0])
def test_a_squashed_density_stays_finite_where_tanh_saturates(u):
    value, slope = density_and_slope(squashed(vector(0), vector(0)), vector(u))
    assert np.isfinite(value)
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
    drawn = squashed(*(jnp.asarray(np.full((20_000, 1), x, np.float32)) for x in (mean, log_std)))
    action, log_prob = map(np.float64, ask(drawn, "sample_with_log_prob", KEY))
    assert np.all(np.abs(action) < 1)
    assert action.mean() == pytest.approx(expected, abs=0.02)
    again = along_before(np.arctanh(action[:100, 0]), mean, log_std)
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
    told = float(ask(one, "kl", other))
    assert told == pytest.approx(expected, abs=1e-6)
    assert float(ask(TanhNormal(one), "kl", TanhNormal(other))) == told  # both are squashed alike
    p, q = (along(Normal, grid(*first), *shape) for shape in (first, second))
    assert np.trapezoid(np.exp(p) * (p - q), grid(*first)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("mean", "log_std"), SHAPES)
def test_entropy(mean, log_std):
    u = grid(mean, log_std)
    p = along(Normal, u, mean, log_std)
    normal = Normal(vector(mean), vector(log_std))
    assert ask(normal, "entropy") == pytest.approx(-np.trapezoid(np.exp(p) * p, u), abs=1e-3)
    expected = -np.trapezoid(np.exp(p) * along_before(u, mean, log_std), u)
    assert ask(TanhNormal(normal), "entropy") == pytest.approx(expected, abs=1e-3)


def test_the_last_axis_is_summed_and_the_others_kept():
    rng = np.random.default_rng(0)
    x, mean, log_std, other, other_log_std = (np.float32(rng.normal(size=(4, 3))) for _ in range(5))
    cases = [
        (lambda x, mean, log_std: Normal(mean, log_std).log_prob(x), (x, mean, log_std)),
        (lambda x, mean, log_std: squashed(mean, log_std).log_prob_before(x), (x, mean, log_std)),
        (lambda x, mean, log_std: squashed(mean, log_std).log_prob(x), (np.tanh(x), mean, log_std)),
        (lambda *shapes: Normal(*shapes[:2]).kl(Normal(*shapes[2:])), (mean, log_std, other, other_log_std)),
        (lambda *shape: Normal(*shape).entropy(), (mean, log_std)),
        (lambda *shape: squashed(*shape).entropy(), (mean, log_std)),
    ]
    functions, inputs = zip(*cases, strict=True)

    @jax.jit
    def told(inputs):
        return [function(*arguments) for function, arguments in zip(functions, inputs, strict=True)]

    parts = [told(jax.tree.map(lambda a, d=d: a[:, d : d + 1], inputs)) for d in range(3)]
    for whole, *alone in zip(told(inputs), *parts, strict=True):
        np.testing.assert_allclose(whole, np.sum(alone, axis=0), rtol=1e-4, atol=1e-5)


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
    edges = jnp.asarray(np.float32([[-1.0], [1.0]]))

    @jax.jit
    @jax.value_and_grad
    def density_and_slope(mean):
        return jnp.sum(squashed(mean, mean * 0).log_prob(edges))

    value, slope = density_and_slope(np.full((2, 1), 0.3, np.float32))
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))


def test_modes_are_means_and_the_likeliest_classes():
    mean, log_std = vector(0.3, -2.0), vector(0.0, 1.0)
    np.testing.assert_array_equal(Normal(mean, log_std).mode(), mean)
    np.testing.assert_array_equal(ask(squashed(mean, log_std), "mode"), jnp.tanh(mean))
    logits = vector(*np.log([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]]))
    np.testing.assert_array_equal(ask(Categorical(logits), "mode"), [1, 0])
    np.testing.assert_array_equal(ask(OneHot(logits), "mode"), np.eye(3)[[1, 0]])


# --- classes


P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.6, 0.3])
"""Entropy of P: 1.0296530; KL(P || Q): 0.5156833."""


def shifted(probs):
    """Logits of which only the differences mean anything."""
    return jnp.asarray(np.log(probs) + 3, jnp.float32)


@pytest.mark.parametrize("kind", [Categorical, OneHot])
def test_three_classes_by_hand(kind):
    p, q = kind(shifted(P)), kind(shifted(Q))
    assert ask(p, "entropy") == pytest.approx(1.0296530, abs=1e-6)
    assert ask(p, "kl", q) == pytest.approx(0.5 * np.log(5) + 0.3 * np.log(0.5) + 0.2 * np.log(2 / 3), abs=1e-6)
    assert ask(p, "kl", p) == pytest.approx(0, abs=1e-6)
    for x in range(3):
        named = np.int32(x) if kind is Categorical else np.eye(3, dtype=np.float32)[x]
        assert ask(p, "log_prob", named) == pytest.approx(np.log(P[x]), abs=1e-6)


@pytest.mark.parametrize("kind", [Categorical, OneHot])
def test_classes_are_drawn_in_their_shares(kind):
    logits = jnp.asarray(np.broadcast_to(shifted(P), (9000, 3)))
    drawn, log_prob = map(np.asarray, ask(kind(logits), "sample_with_log_prob", KEY))
    numbers = drawn if kind is Categorical else np.argmax(drawn, axis=-1)
    np.testing.assert_allclose(np.bincount(numbers) / 9000, P, atol=0.02)
    np.testing.assert_allclose(log_prob, np.log(P)[numbers], atol=1e-5)


@pytest.mark.parametrize("kind", [Categorical, OneHot])
def test_an_impossible_class_costs_nothing_and_never_comes(kind):
    p, q = (kind(vector(0.0, second, -np.inf)) for second in (0.0, 1.0))
    assert ask(p, "entropy") == pytest.approx(np.log(2), abs=1e-6)
    assert ask(p, "kl", q) == pytest.approx(np.log(1 + np.e) - np.log(2) - 0.5, abs=1e-6)
    slope = jax.jit(jax.grad(lambda first: kind(jnp.stack([first, 0.0 * first, -jnp.inf])).entropy()))(0.7)
    assert np.isfinite(slope)


def test_gradients_pass_straight_through_a_one_hot_draw():
    """What is drawn is 0 or 1, and its derivative is that of the probabilities."""
    logits, weigh = shifted(P), np.float32([1.0, -2.0, 0.5])
    drawn = ask(OneHot(logits), "sample", KEY)
    np.testing.assert_allclose(np.sort(drawn), [0, 0, 1], atol=1e-6)
    slope = jax.jit(jax.grad(lambda logits: OneHot(logits).sample(KEY) @ weigh))(logits)
    np.testing.assert_allclose(slope, P * (weigh - P @ weigh), atol=1e-6)


@pytest.mark.parametrize(
    "made", [Normal(vector(0), vector(0)), squashed(vector(0), vector(0)), Categorical(vector(0)), OneHot(vector(0))]
)
def test_distributions_are_values_of_one_protocol(made):
    assert isinstance(made, Distribution)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(made))


# --- bounds of a parameter


LOW, HIGH = -5.0, 2.0


def test_a_bent_parameter_stays_in_its_range_and_is_itself_between_the_ends():
    bent_in = jax.jit(lambda x: bend(x, LOW, HIGH))
    bent = np.asarray(bent_in(np.linspace(-40, 40, 161, dtype=np.float32)))
    assert (bent >= LOW).all()
    assert (bent <= HIGH + 1e-6).all()
    assert (np.diff(bent) >= 0).all()
    inner = np.linspace(LOW + 1, HIGH - 1, 51, dtype=np.float32)
    np.testing.assert_allclose(bent_in(inner), inner, atol=1e-4)


@jax.jit
def descended(start):
    """Where an adaptive step size leads that moves a bent parameter to -1: the slopes, and what it ends at, bent."""

    def miss(x):
        return (bend(x, LOW, HIGH) + 1) ** 2

    def step(state, _):
        x, square = state
        slope = jax.grad(miss)(x)
        square = 0.9 * square + 0.1 * slope**2
        return (x - 0.05 * slope / jnp.sqrt(square), square), slope

    (end, _), slopes = jax.lax.scan(step, (start, jnp.float32(0)), None, length=200)
    return slopes, bend(end, LOW, HIGH)


@pytest.mark.parametrize("start", [LOW - 1.5, LOW, HIGH, HIGH + 1.5])
def test_a_parameter_beyond_its_range_comes_back(start):
    """Its slope is small there but not 0, as that of a clipped one is; an adaptive step size makes up for the rest."""
    slopes, end = descended(np.float32(start))
    assert (np.asarray(slopes)[:5] != 0).all()
    assert end == pytest.approx(-1, abs=0.2)
