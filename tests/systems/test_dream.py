"""DREAM: one contract for every variant, and who learns from what."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.envs import make
from metadyna.errors import UserError
from metadyna.improve.ddqn import DDQN
from metadyna.rollout import DeviceCollector, episode_lengths
from metadyna.systems.dream import DREAM

FAMILY = make("city-5x5")
COLLECTOR = DeviceCollector(FAMILY.env, FAMILY.train)
KEY = jax.random.key(0)
SMALL = DDQN(warmup=2, batch=4)
BASE = DREAM(memory=False, capacity=64, explore=SMALL, execute=SMALL)

VARIANTS = {
    "recurrent": replace(BASE, memory=True),
    "feed-forward, batch, encoder target": replace(BASE, parallel=4, mixture="batch", target_context="encoder"),
    "random, no bottleneck": replace(BASE, exploration="random", bottleneck=None, encoder_hidden=16),
    "none, online target": replace(BASE, exploration="none", target_context="online", parallel=4),
    "oracle, recurrent, batch": replace(BASE, memory=True, oracle=True, mixture="batch", parallel=4, context_width=8),
    "only exploration learns": replace(BASE, execute=replace(SMALL, warmup=10**6)),
    "only execution learns": replace(BASE, memory=True, explore=replace(SMALL, warmup=10**6)),
}
ITERATIONS = 3


def compiled(settings):
    """`iterate` as one program, and the list of its traces."""
    traces = []

    def iterate(state, key):
        traces.append(key)
        return settings.iterate(state, COLLECTOR, key)

    return jax.jit(iterate), traces


def start(settings, key=KEY):
    return jax.jit(lambda key: settings.init(COLLECTOR, key))(key)


@functools.cache
def run(name):
    """States and metrics of a short training, twice over, and how often it was traced."""
    settings = VARIANTS[name]
    iterate, traces = compiled(settings)
    runs = []
    for _ in range(2):
        states, metrics = [start(settings)], []
        for i in range(ITERATIONS):
            state, noted = iterate(states[-1], jax.random.fold_in(KEY, i))
            states.append(state)
            metrics.append(noted)
        runs.append((states, metrics))
    return runs, len(traces)


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def differ(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


def stored_lengths(settings, state):
    """Lengths of all episodes in the replay, by kind, oldest first."""
    count = int(state.trials.added)
    assert count <= settings.capacity

    def lengths(episodes):
        return 1 + np.argmax(np.asarray(episodes.last[:count]), axis=1)  # every city episode has a last step

    return lengths(state.trials.items.explore), lengths(state.trials.items.execute)


# --- the contract


@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_finite_compiles_once_and_repeats(name):
    runs, traces = run(name)
    (states, metrics), (again, _) = runs
    assert traces == 1
    assert_same(states[-1], again[-1])
    for noted in metrics:
        assert all(np.isfinite(average.total) and average.count >= 0 for average in noted.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[-1]))


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_and_updates_are_counted_as_they_happen(name):
    settings = VARIANTS[name]
    (states, metrics), _ = run(name)[0]
    explores = settings.exploration != "none" and not settings.oracle
    learns_to_explore = explores and settings.exploration == "learned"
    explored, executed = stored_lengths(settings, states[-1])
    assert len(explored) == ITERATIONS * settings.parallel
    updates = {"explore": 0, "execute": 0}
    for n, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True), start=1):
        trials = n * settings.parallel
        assert after.trials.added == trials
        assert after.explore_steps == (explored[:trials].sum() if explores else 0)
        assert after.execute_steps == executed[:trials].sum()
        assert settings.steps(after) == after.explore_steps + after.execute_steps
        for kind, schedule in (("explore", settings.explore), ("execute", settings.execute)):
            was, now = (int(getattr(state, f"{kind}_steps")) for state in (before, after))
            due = now // 4 - was // 4 if trials >= schedule.warmup else 0
            due = due if kind == "execute" or learns_to_explore else 0
            updates[kind] += due
            assert getattr(after, kind).updates == updates[kind]
            assert metrics[n - 1][f"{kind}/td_loss"].count == due
    assert updates["execute"] > 0 or settings.execute.warmup > 2
    assert updates["explore"] > 0 or not learns_to_explore or settings.explore.warmup > 2


@pytest.mark.parametrize("name", VARIANTS)
def test_metrics_tell_of_the_new_trials(name):
    settings = VARIANTS[name]
    (states, metrics), _ = run(name)[0]
    explored, executed = stored_lengths(settings, states[-1])
    rewards = np.asarray(states[-1].trials.items.execute.reward)
    for n, noted in enumerate(metrics):
        new = range(n * settings.parallel, (n + 1) * settings.parallel)
        total = sum(rewards[slot, : executed[slot]].sum() for slot in new)
        assert noted["train/episode_return"].total == pytest.approx(total, rel=1e-5)
        assert noted["train/execution_length"].total == executed[list(new)].sum()
        explores = settings.exploration != "none" and not settings.oracle
        assert noted["train/exploration_length"].total == (explored[list(new)].sum() if explores else 0)
        assert all(noted[f"train/{name}"].count == settings.parallel for name in ("episode_return", "execution_length"))
        assert 0 < noted["execute/epsilon"].total <= 1


@pytest.mark.parametrize("name", VARIANTS)
def test_stored_trials_are_on_training_tasks(name):
    settings = VARIANTS[name]
    trials = run(name)[0][0][0][-1].trials
    count = int(trials.added)
    instructions = {tuple(goal) for goal in trials.items.instruction[:count].tolist()}
    assert instructions <= set(FAMILY.env.goals)
    assert (trials.items.problem[:count] < FAMILY.env.num_problems).all()
    starts = np.asarray(trials.items.execute.obs[:count, 0, :2])
    assert (starts == np.array(FAMILY.env.start)).all()
    assert settings.capacity == trials.items.problem.shape[0]


# --- who learns from what


def test_exploring_moves_nothing_of_execution():
    (states, _), _ = run("only exploration learns")[0]
    assert differ(states[-1].explore.weights, states[0].explore.weights)
    assert_same(states[-1].execute, states[0].execute)  # f and g make the reward, and do not learn from it


def test_executing_moves_nothing_of_exploration():
    (states, _), _ = run("only execution learns")[0]
    assert_same(states[-1].explore, states[0].explore)
    for part in ("policy", "encoder", "decoder"):
        assert differ(getattr(states[-1].execute.weights, part), getattr(states[0].execute.weights, part))


@pytest.mark.parametrize("name", ["random, no bottleneck", "none, online target", "oracle, recurrent, batch"])
def test_a_policy_that_does_not_explore_does_not_learn(name):
    (states, _), _ = run(name)[0]
    assert_same(states[-1].explore, states[0].explore)


def test_the_oracle_needs_no_decoder():
    (states, metrics), _ = run("oracle, recurrent, batch")[0]
    assert_same(states[-1].execute.weights.decoder, states[0].execute.weights.decoder)
    assert differ(states[-1].execute.weights.encoder, states[0].execute.weights.encoder)
    assert "execute/decoder_loss" not in metrics[0]


def shaken(part, nets):
    """Networks of which one part is drawn anew, on a large scale."""
    tree = getattr(nets, part)
    leaves = jax.tree.leaves(tree)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    new = [x + 3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    moved = jax.tree.unflatten(jax.tree.structure(tree), new)
    return type(nets)(**{name: getattr(nets, name) for name in ("policy", "encoder", "decoder")} | {part: moved})


# Greedy, noiseless, an update per step from the first trial on: what happens is a function of the weights.
GREEDY = DDQN(warmup=0, batch=4, update_every=1, epsilon_start=0.0, epsilon_end=0.0)
EXACT = replace(BASE, bottleneck=None, explore=GREEDY, execute=GREEDY, parallel=4, exploration="learned")


@functools.cache
def exact(mixture, target_context):
    """Compiled `iterate`, and states before an even and an odd iteration, their optimiser fresh."""
    settings = replace(EXACT, mixture=mixture, target_context=target_context)
    iterate, _ = compiled(settings)
    even = start(settings)
    odd = iterate(even, KEY)[0]
    return iterate, (even, odd._replace(execute=settings.execute.init(odd.execute.weights)))


def depends_on(part, mixture, parity):
    """Which of the new execution episodes change with one part of the acting networks."""
    iterate, states = exact(mixture, "same")
    state = states[parity]
    changed = state._replace(execute=state.execute._replace(weights=shaken(part, state.execute.weights)))
    slots = slice(4 * parity, 4 * parity + 4)
    actions = [iterate(s, KEY)[0].trials.items.execute.action[slots] for s in (state, changed)]
    return (actions[0] != actions[1]).any(axis=1).tolist()


@pytest.mark.parametrize(
    ("mixture", "parity", "by_decoder"),
    [("trial", 0, [True] * 4), ("trial", 1, [False] * 4), ("batch", 0, [True, False] * 2), ("batch", 1, [True, False] * 2)],
)
def test_the_mixture_says_who_gives_the_context_when_acting(mixture, parity, by_decoder):
    assert depends_on("decoder", mixture, parity) == by_decoder
    assert depends_on("encoder", mixture, parity) == [not row for row in by_decoder]


def test_updates_use_the_context_of_their_iteration():
    """Without a bottleneck f learns from the Q loss alone: not at all on decoder iterations."""
    iterate, states = exact("trial", "same")
    for parity, state in enumerate(states):
        after = iterate(state, KEY)[0]
        assert after.execute.updates > 0
        assert differ(after.execute.weights.encoder, state.execute.weights.encoder) == (parity == 1)
        assert differ(after.execute.weights.decoder, state.execute.weights.decoder)


@pytest.mark.parametrize(
    ("target_context", "parity", "needs"),
    [
        ("same", 0, {"policy", "decoder"}),
        ("same", 1, {"policy", "encoder"}),
        ("encoder", 0, {"policy", "encoder"}),
        ("encoder", 1, {"policy", "encoder"}),
        ("online", 0, {"policy"}),
        ("online", 1, {"policy"}),
    ],
)
def test_the_target_reads_the_context_it_is_told_to(target_context, parity, needs):
    iterate, states = exact("trial", target_context)
    state = states[parity]
    learnt = iterate(state, KEY)[0].execute.weights.policy
    for part in ("policy", "encoder", "decoder"):
        changed = state._replace(execute=state.execute._replace(target=shaken(part, state.execute.target)))
        assert differ(iterate(changed, KEY)[0].execute.weights.policy, learnt) == (part in needs), part


# --- acting on new tasks


@functools.cache
def greedy_trials(settings):
    tasks = FAMILY.test.enumerate()
    return jax.jit(lambda params, key: settings.trial(params, COLLECTOR, tasks, key))


@pytest.mark.parametrize(
    ("settings", "source"),
    [(BASE, "decoder"), (replace(BASE, exploration="none"), "decoder"), (replace(BASE, oracle=True), "encoder")],
    ids=["learned", "none", "oracle"],
)
def test_the_context_of_new_tasks(settings, source):
    params = settings.params(start(settings))
    _, execute = greedy_trials(settings)(params, KEY)
    for part in ("encoder", "decoder"):
        _, other = greedy_trials(settings)(params._replace(execute=shaken(part, params.execute)), KEY)
        assert differ(execute, other) == (part == source)


def test_new_tasks_are_played_greedily_and_repeatably():
    params = BASE.params(start(BASE))
    assert_same(greedy_trials(BASE)(params, KEY)[1].obs[0], greedy_trials(BASE)(params, jax.random.key(1))[1].obs[0])
    explore, execute = greedy_trials(BASE)(params, KEY)
    tasks = FAMILY.test.enumerate()
    assert execute.action.shape == explore.action.shape == (FAMILY.env.horizon, len(tasks.problem))
    # A greedy explorer that has met only the same observations acts the same on every task.
    assert (explore.action[0] == explore.action[0, 0]).all()


@pytest.mark.parametrize(("exploration", "informed"), [("none", False), ("random", True)])
def test_without_exploration_execution_knows_nothing_of_it(exploration, informed):
    settings = replace(BASE, exploration=exploration)
    params = settings.params(start(settings))
    params = params._replace(execute=shaken("decoder", params.execute))
    one, two = (greedy_trials(settings)(params, jax.random.key(seed)) for seed in (1, 2))
    assert differ(one[0], two[0])
    assert differ(one[1], two[1]) == informed


@pytest.mark.parametrize("settings", [BASE, replace(BASE, oracle=True)], ids=["learned", "oracle"])
def test_names_match_the_episodes_of_a_trial(settings):
    episodes = greedy_trials(settings)(settings.params(start(settings)), KEY)
    assert len(episodes) == len(settings.episode_names)
    for episode in episodes:
        lengths = episode_lengths(episode.last)
        assert ((lengths >= 1) & (lengths <= FAMILY.env.horizon)).all()


# --- settings


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"noise": -0.1}, r"DREAM\.noise = -0\.1 .* \[0, inf\)"),
        ({"noise": float("inf")}, r"DREAM\.noise = inf .* \[0, inf\)"),
        ({"penalty": float("nan")}, r"DREAM\.penalty = nan .* \(-inf, inf\)"),
        ({"context_width": 0}, r"DREAM\.context_width = 0 .* \[1, 4096\]"),
        ({"parallel": 0}, r"DREAM\.parallel = 0 .* \[1, 65536\]"),
        ({"capacity": 0}, r"DREAM\.capacity = 0 .* \[1, inf\)"),
        ({"bottleneck": -1.0}, r"DREAM\.bottleneck = -1\.0 .* \[0, inf\)"),
        ({"encoder_hidden": 0}, r"DREAM\.encoder_hidden = 0 .* \[1, 4096\]"),
        ({"parallel": 8, "capacity": 7}, r"DREAM\.parallel = 8 exceeds DREAM\.capacity = 7"),
    ],
)
def test_impossible_settings_name_the_range(change, complaint):
    with pytest.raises(UserError, match=complaint):
        DREAM(**change)
