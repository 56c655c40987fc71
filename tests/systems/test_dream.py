"""DREAM: one contract for every variant, and who learns from what."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.adapt.context import EncoderDecoder, ProblemEncoder, Told
from metadyna.collect import replay
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import episode_lengths
from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.improve.ddqn import DDQN
from metadyna.improve.execution import FeedForward, Recurrent
from metadyna.improve.planned import Planned
from metadyna.systems.dream import DREAM

FAMILY = make("city-5x5")
COLLECTOR = DeviceCollector(FAMILY.env, FAMILY.train)
KEY = jax.random.key(0)
SMALL = DDQN(warmup=2, batch=4)
# Greedy and, without a bottleneck, noiseless; an update per step from the first trial on: all follows from the weights.
GREEDY = DDQN(warmup=0, batch=4, update_every=1, epsilon_start=0.0, epsilon_end=0.0)
PLAIN = EncoderDecoder(bottleneck=None, decoder_width=16)
EXACT = DREAM(PLAIN, FeedForward(), capacity=64, parallel=4, explore=GREEDY, execute=GREEDY)

# Each variant is compiled once for all tests of this file, so each differs from the others in many ways.
VARIANTS = {
    "published": DREAM(capacity=64, explore=SMALL, execute=replace(SMALL, warmup=3)),
    "feed-forward": replace(EXACT, explore=replace(GREEDY, warmup=12)),
    "random": replace(
        EXACT,
        exploration="random",
        context=replace(PLAIN, mixture="batch", target="encoder", encoder_hidden=16),
    ),
    "none": replace(EXACT, exploration="none", context=replace(PLAIN, target="online")),
    "planned": replace(EXACT, execution=Planned(depth=1, breadth=2), capacity=32),
    "oracle": DREAM(Told(width=8), Recurrent(), parallel=4, capacity=64, explore=SMALL, execute=SMALL),
}
ITERATIONS = 3


class Run(NamedTuple):
    """A short training: ITERATIONS + 1 states, their metrics, and the compiled `iterate` that made them."""

    settings: DREAM
    iterate: Callable
    states: list
    metrics: list
    traces: int


def train(iterate, state):
    states, metrics = [state], []
    for i in range(ITERATIONS):
        state, noted = iterate(states[-1], jax.random.fold_in(KEY, i))
        states.append(state)
        metrics.append(noted)
    return states, metrics


@functools.cache
def born(name):
    return VARIANTS[name].init(COLLECTOR, KEY)


@functools.cache
def run(name):
    settings, traces = VARIANTS[name], []

    @jax.jit
    def iterate(state, key):
        traces.append(key)
        return settings.iterate(state, COLLECTOR, key)

    states, metrics = train(iterate, born(name))
    return Run(settings, iterate, states, metrics, len(traces))


def explores(settings):
    return settings.exploration != "none" and settings.context.explores


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def differ(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


def stored_lengths(settings, state):
    """Lengths of all episodes in the replay, by kind, oldest first."""
    count = int(replay.size(state.attempts))
    assert count == int(state.attempts.added)  # nothing is overwritten yet

    def lengths(episodes):
        return 1 + np.argmax(np.asarray(episodes.last[:count]), axis=1)  # every city episode has a last step

    return lengths(state.attempts.items.explore), lengths(state.attempts.items.execute)


# --- the contract


@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_finite_compiles_once_and_repeats(name):
    trained = run(name)
    assert trained.traces == 1
    assert_same(train(trained.iterate, trained.states[0])[0][-1], trained.states[-1])
    for noted in trained.metrics:
        assert all(np.isfinite(average.total) and average.weight >= 0 for average in noted.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.states[-1]))


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_and_updates_are_counted_as_they_happen(name):
    settings, _, states, metrics, _ = run(name)
    explored, executed = stored_lengths(settings, states[-1])
    assert len(explored) == ITERATIONS * settings.parallel
    updates = {"explore": 0, "execute": 0}
    for n, (before, after) in enumerate(pairwise(states), start=1):
        trials = n * settings.parallel
        assert after.attempts.added == trials
        assert after.explore_steps == (explored[:trials].sum() if explores(settings) else 0)
        assert after.execute_steps == executed[:trials].sum()
        assert settings.steps(after) == after.explore_steps + after.execute_steps
        for kind, schedule in (("explore", settings.explore), ("execute", settings.execute)):
            was, now = (int(getattr(state, f"{kind}_steps")) for state in (before, after))
            learns = kind == "execute" or (explores(settings) and settings.exploration == "learned")
            due = now // schedule.update_every - was // schedule.update_every
            due = due if learns and trials >= schedule.warmup else 0
            updates[kind] += due
            assert getattr(after, kind).updates == updates[kind]
            assert metrics[n - 1][f"{kind}/td_loss"].weight == due
            # Exploring never moves f or g, though they make its reward; executing never moves the explorer.
            assert differ(getattr(after, kind).weights, getattr(before, kind).weights) == (due > 0)
    assert updates["execute"] > 0
    assert updates["explore"] > 0 or not explores(settings) or settings.exploration == "random"


@pytest.mark.parametrize(("name", "kind"), [("published", "explore"), ("feed-forward", "execute")])
def test_in_some_iteration_only_one_policy_learns(name, kind):
    """Else the check above that the other one stays put would be empty."""
    other = {"explore": "execute", "execute": "explore"}[kind]
    noted = [(m[f"{kind}/td_loss"].weight > 0, m[f"{other}/td_loss"].weight > 0) for m in run(name).metrics]
    assert (True, False) in noted


@pytest.mark.parametrize("name", VARIANTS)
def test_metrics_tell_of_the_new_trials(name):
    settings, _, states, metrics, _ = run(name)
    explored, executed = stored_lengths(settings, states[-1])
    rewards = np.asarray(states[-1].attempts.items.execute.reward)
    for n, noted in enumerate(metrics):
        new = range(n * settings.parallel, (n + 1) * settings.parallel)
        total = sum(rewards[slot, : executed[slot]].sum() for slot in new)
        assert noted["train/episode_return"].total == pytest.approx(total, rel=1e-5)
        assert noted["train/execution_length"].total == executed[list(new)].sum()
        assert noted["train/exploration_length"].total == (explored[list(new)].sum() if explores(settings) else 0)
        assert noted["train/episode_return"].weight == settings.parallel
        assert noted["execute/epsilon"].total == settings.execute.epsilon(states[n].execute_steps)


@pytest.mark.parametrize("name", VARIANTS)
def test_stored_trials_are_on_training_tasks(name):
    attempts = run(name).states[-1].attempts
    count = int(attempts.added)
    problem, instruction, obs = map(
        np.asarray, (attempts.items.problem, attempts.items.instruction, attempts.items.execute.obs)
    )
    assert {tuple(goal) for goal in instruction[:count].tolist()} <= set(FAMILY.env.goals)
    assert len(set(problem[:count].tolist())) > 1
    assert (problem[:count] < FAMILY.env.num_problems).all()
    assert (obs[:count, 0, :2] == np.array(FAMILY.env.start)).all()


def test_the_networks_that_learn_act_and_not_their_slow_copies():
    settings, _, states, _, _ = run("published")
    params, state = settings.params(states[-1]), states[-1]
    for acting, learner in ((params.explore, state.explore), (params.execute, state.execute)):
        assert acting is learner.weights
        assert differ(learner.weights, learner.target)


# --- who learns from what


def test_who_is_told_the_problem_needs_no_decoder():
    _, _, states, metrics, _ = run("oracle")
    assert isinstance(states[0].execute.weights.source, ProblemEncoder)
    assert differ(states[-1].execute.weights.source, states[0].execute.weights.source)
    assert "execute/decoder_loss" not in metrics[0]


PARTS = {
    "policy": lambda nets: nets.policy,
    "encoder": lambda nets: nets.source if isinstance(nets.source, ProblemEncoder) else nets.source.encoder,
    "decoder": lambda nets: nets.source.decoder,
}


def shaken(part, nets, seed=0):
    """Networks of which one part is disturbed, on a large scale."""
    leaves, structure = jax.tree.flatten(PARTS[part](nets))
    rng = np.random.default_rng(7 + seed)
    new = [jnp.asarray(np.asarray(x) + 3 * rng.normal(size=x.shape).astype(x.dtype)) for x in leaves]
    return eqx.tree_at(PARTS[part], nets, jax.tree.unflatten(structure, new))


@functools.partial(jax.jit, static_argnums=0)
def acted(settings, state, key):
    """Actions of the execution episodes stored after an iteration; the compiler drops the learning."""
    return settings.iterate(state, COLLECTOR, key)[0].attempts.items.execute.action


def depend(trained, parity, *parts):
    """Which of an iteration's episodes change, for some key, with each of some parts of the acting networks."""
    state, depends = trained.states[parity], {part: np.zeros(4, bool) for part in parts}
    new = slice(4 * parity, 4 * parity + 4)
    for seed in range(8):
        key = jax.random.key(seed)
        untouched = np.asarray(acted(trained.settings, state, key))[new]
        for part, changes in depends.items():
            weights = shaken(part, state.execute.weights, seed)
            shaken_state = state._replace(execute=state.execute._replace(weights=weights))
            changes |= (np.asarray(acted(trained.settings, shaken_state, key))[new] != untouched).any(axis=1)
    return [changes.tolist() for changes in depends.values()]


@pytest.mark.parametrize(
    ("name", "parity", "by_decoder"),
    [
        ("feed-forward", 0, [True] * 4),
        ("feed-forward", 1, [False] * 4),
        ("random", 0, [True, False] * 2),
        ("random", 1, [True, False] * 2),
    ],
)
def test_the_mixture_says_who_gives_the_context_when_acting(name, parity, by_decoder):
    decoder, encoder = depend(run(name), parity, "decoder", "encoder")
    assert decoder == by_decoder
    assert encoder == [not row for row in by_decoder]


@pytest.mark.parametrize("parity", [0, 1])
def test_updates_use_the_context_of_their_iteration(parity):
    """Without a bottleneck f learns from the Q loss alone: not at all on decoder iterations."""
    settings, iterate, states, _, _ = run("feed-forward")
    state = states[parity]
    state = state._replace(execute=settings.execute.start(state.execute.weights))  # no momentum from before
    after = iterate(state, KEY)[0]
    assert after.execute.updates > 0
    now, was = after.execute.weights.source, state.execute.weights.source
    assert differ(now.encoder, was.encoder) == (parity == 1)
    assert differ(now.decoder, was.decoder)


@pytest.mark.parametrize(
    ("name", "parity", "needs"),
    [
        ("feed-forward", 0, {"policy", "decoder"}),  # target_context "same"
        ("feed-forward", 1, {"policy", "encoder"}),
        ("random", 0, {"policy", "encoder"}),  # "encoder"
        ("random", 1, {"policy", "encoder"}),
        ("none", 0, {"policy"}),  # "online"
        ("none", 1, {"policy"}),
    ],
)
def test_the_target_reads_the_context_it_is_told_to(name, parity, needs):
    _, iterate, states, _, _ = run(name)
    state = states[2 - parity]  # at the very first, all stored episodes may end at once, with nothing to bootstrap
    learnt = iterate(state, KEY)[0].execute.weights.policy
    for part in ("policy", "encoder", "decoder"):
        changed = state._replace(execute=state.execute._replace(target=shaken(part, state.execute.target)))
        assert differ(iterate(changed, KEY)[0].execute.weights.policy, learnt) == (part in needs)


# --- acting on new tasks


def explored(lived):
    """The first round's episodes [T, N]."""
    return jax.tree.map(lambda x: x[:, :, 0, 0], lived.episodes)


def executed(lived):
    """The second round's episodes [T, N]."""
    return jax.tree.map(lambda x: x[:, :, 1, 0], lived.episodes)


@functools.cache
def greedy_trials(name):
    """Weights, and the compiled trial on every test task."""
    settings, tasks = VARIANTS[name], FAMILY.test.enumerate()
    return settings.params(born(name)), jax.jit(lambda params, key: settings.trial(params, COLLECTOR, tasks, key))


@pytest.mark.parametrize(("name", "source"), [("feed-forward", "decoder"), ("none", "decoder"), ("oracle", "encoder")])
def test_the_context_of_new_tasks(name, source):
    params, trial = greedy_trials(name)
    execute = executed(trial(params, KEY))
    for part in ("encoder", "decoder") if name != "oracle" else ("encoder",):
        others = [trial(params._replace(execute=shaken(part, params.execute, i)), KEY) for i in range(4)]
        assert any(differ(execute, executed(other)) for other in others) == (part == source)


@pytest.mark.parametrize(("name", "informed"), [("none", False), ("random", True)])
def test_without_exploration_execution_knows_nothing_of_it(name, informed):
    params, trial = greedy_trials(name)
    params = params._replace(execute=shaken("decoder", params.execute))
    one, two = (trial(params, jax.random.key(seed)) for seed in (1, 2))
    assert differ(explored(one), explored(two))
    assert differ(executed(one), executed(two)) == informed


@pytest.mark.parametrize("name", ["feed-forward", "oracle"])
def test_a_trial_is_its_named_episodes_on_the_given_tasks(name):
    params, trial = greedy_trials(name)
    lived, tasks = trial(params, KEY), FAMILY.test.enumerate()
    assert lived.names == ("exploration", "execution")
    assert lived.score == "last"
    for episode in (explored(lived), executed(lived)):
        lengths = episode_lengths(episode.last)
        assert lengths.shape == tasks.problem.shape
        assert ((lengths >= 1) & (lengths <= FAMILY.env.horizon)).all()
    # Before it sees anything of the problem, a greedy explorer does the same everywhere.
    assert name == "oracle" or len(set(explored(lived).action[0].tolist())) == 1


@dataclass(frozen=True)
class Watching(DeviceCollector):
    """A collector that remembers who played what, with which memory."""

    seen: list = field(default_factory=list, compare=False)

    def episodes(self, act, params, carry, tasks, key, before=None):
        self.seen.append((carry, tasks))
        return super().episodes(act, params, carry, tasks, key, before)


@functools.partial(jax.jit, static_argnums=0)
def watched(settings, params, tasks, key):
    """Memories and tasks of both episodes of a trial."""
    collector = Watching(FAMILY.env, FAMILY.train)
    settings.trial(params, collector, tasks, key)
    return collector.seen


def test_an_exploration_ends_at_a_goal_of_its_own():
    settings, tasks = VARIANTS["feed-forward"], FAMILY.test.enumerate()
    (_, hidden), (_, shown) = watched(settings, settings.params(born("feed-forward")), tasks, KEY)
    assert_same(shown, tasks)
    np.testing.assert_array_equal(hidden.problem, tasks.problem)
    goals = [tuple(goal) for goal in hidden.goal.tolist()]
    assert set(goals) <= set(FAMILY.env.goals)
    same = np.mean((np.asarray(hidden.goal) == np.asarray(tasks.goal)).all(axis=1))
    assert same == pytest.approx(1 / len(FAMILY.env.goals), abs=0.15)


def test_contexts_of_new_tasks_have_no_noise():
    loud = replace(VARIANTS["oracle"], context=Told(width=8, noise=100.0))
    params, tasks = loud.params(born("oracle")), FAMILY.test.enumerate()
    contexts = [watched(loud, params, tasks, jax.random.key(i))[1][0][2] for i in range(2)]
    np.testing.assert_array_equal(*contexts)
    assert np.abs(contexts[0]).max() < 50


# --- settings


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: EncoderDecoder(noise=-0.1), r"EncoderDecoder\.noise = -0\.1 .* \[0, 1000\]"),
        (lambda: EncoderDecoder(noise=float("inf")), r"EncoderDecoder\.noise = inf .* \[0, 1000\]"),
        (lambda: EncoderDecoder(width=0), r"EncoderDecoder\.width = 0 .* \[1, 4096\]"),
        (lambda: EncoderDecoder(bottleneck=-1.0), r"EncoderDecoder\.bottleneck = -1\.0 .* \[0, 1000000\]"),
        (lambda: Told(encoder_hidden=0), r"Told\.encoder_hidden = 0 .* \[1, 4096\]"),
        (lambda: DREAM(penalty=float("nan")), r"DREAM\.penalty = nan .* \["),
        (lambda: DREAM(parallel=0), r"DREAM\.parallel = 0 .* \[1, 65536\]"),
        (lambda: DREAM(capacity=0), r"DREAM\.capacity = 0 .* \[1, "),
        (lambda: DREAM(parallel=8, capacity=7), r"DREAM\.parallel = 8 exceeds DREAM\.capacity = 7"),
    ],
)
def test_impossible_settings_name_the_range(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()
