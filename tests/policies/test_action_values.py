"""The fast paths over whole episodes give what acting step by step gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metadyna.adapt.context import TrajectoryDecoder
from metadyna.collect.device import DeviceCollector
from metadyna.collect.episodes import all_observations, episode_lengths, previous_actions
from metadyna.envs import make
from metadyna.nets.distinct import Distinct
from metadyna.policies.action_values import ExplorePolicy, FeedForwardPolicy, RecurrentPolicy

FAMILY = make("city-5x5")
SPEC = FAMILY.env.spec
DISTINCT = Distinct.create(FAMILY.env.observations, SPEC.observation.sizes)
CONTEXT = 8
# 11 observations an episode against 48 distinct ones: a batch of 2 is embedded itself, a batch of 6 by look-up.
BATCHES = (2, 6)


GIVEN = {
    ExplorePolicy: (SPEC,),
    RecurrentPolicy: (SPEC, FAMILY.env.instruction_space, CONTEXT),
    FeedForwardPolicy: (SPEC, FAMILY.env.instruction_space, CONTEXT),
    TrajectoryDecoder: (SPEC.observation.sizes, SPEC.action.sizes[0], CONTEXT),
}


@functools.cache
def fresh(kind):
    """A network with random weights, all of a size that matters."""
    shapes = jax.eval_shape(functools.partial(kind.create, *GIVEN[kind]), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape) / x.shape[0] ** 0.5), shapes)


@functools.cache
def six_episodes():
    """Random ones: their tasks, the steps, and lengths."""

    def act(params, carry, timestep, key):
        return jax.random.randint(key, (), 0, SPEC.action.sizes[0]), carry, ()

    @jax.jit
    def play(k_tasks, k_play):
        tasks = jax.vmap(FAMILY.train.sample)(jax.random.split(k_tasks, 6))
        collector = DeviceCollector(FAMILY.env, FAMILY.train)
        episodes = collector.episodes(act, (), jnp.zeros(6), tasks, k_play).episodes
        return tasks, episodes, episode_lengths(episodes.last)

    return jax.tree.map(np.asarray, play(*map(jax.random.key, (0, 1))))


def random_episodes(batch):
    """The first of them."""
    tasks, episodes, lengths = six_episodes()
    assert len(set(lengths[:batch].tolist())) > 1  # some padding, of unequal amounts
    return jax.tree.map(lambda x: x[:batch], tasks), jax.tree.map(lambda x: x[:, :batch], episodes), lengths[:batch]


def test_the_batches_take_both_paths():
    assert (SPEC.horizon + 1) * BATCHES[0] < len(DISTINCT.rows) <= (SPEC.horizon + 1) * BATCHES[1]


def step_by_step(policy, memory, *inputs):
    """The values of every step, with the memory of the one before."""

    def step(memory, inputs):
        values, memory = jax.vmap(policy.step)(memory, *inputs)
        return memory, values

    return jax.lax.scan(step, memory, inputs)[1]


@pytest.mark.parametrize("batch", BATCHES)
def test_explore_policy(batch):
    @jax.jit
    def both(policy, episodes):
        obs, actions = all_observations(episodes), previous_actions(episodes.action)
        stepped = step_by_step(policy, policy.lstm.initial((batch,)), obs, actions)
        return policy.unroll(obs, actions, DISTINCT), stepped

    _, episodes, _ = random_episodes(batch)
    unrolled, stepped = both(fresh(ExplorePolicy), episodes)
    assert len(stepped) == SPEC.horizon + 1
    np.testing.assert_allclose(unrolled, stepped, atol=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", [RecurrentPolicy, FeedForwardPolicy])
def test_execution_policies(kind, batch):
    @jax.jit
    def both(policy, episodes, goal, context):
        obs = all_observations(episodes)
        always = (jnp.broadcast_to(x, (len(obs), *x.shape)) for x in (goal, context))
        stepped = step_by_step(policy, policy.initial((batch,)), obs, *always)
        return policy.unroll(obs, goal, context, DISTINCT), stepped

    tasks, episodes, _ = random_episodes(batch)
    context = np.random.default_rng(1).normal(size=(batch, CONTEXT)).astype(np.float32)
    unrolled, stepped = both(fresh(kind), episodes, tasks.goal, context)
    assert len(stepped) == SPEC.horizon + 1
    np.testing.assert_allclose(unrolled, stepped, atol=1e-5)


@pytest.mark.parametrize("kind", [RecurrentPolicy, FeedForwardPolicy])
def test_execution_values_depend_on_every_input(kind):
    nothing, ones = np.zeros(CONTEXT, np.float32), np.ones(CONTEXT, np.float32)
    inputs = {"obs": np.int32([2, 2, 0, 0]), "instruction": np.int32([0, 0]), "context": nothing}
    changes = {"obs": np.int32([1, 2, 0, 0]), "instruction": np.int32([4, 4]), "context": ones}
    step = jax.jit(lambda policy, inputs: policy.step(policy.initial(()), **inputs)[0])
    values = np.asarray(step(fresh(kind), inputs))
    for name, other in changes.items():
        assert np.abs(step(fresh(kind), {**inputs, name: other}) - values).max() > 1e-4


embed_start = jax.jit(lambda decoder: decoder.lstm.initial())
embed_end = jax.jit(lambda decoder, state: decoder.output(state[0]))


@jax.jit
def embed_step(decoder, state, obs, action, next_obs):
    before, after = decoder.state(obs), decoder.state(next_obs)
    step = decoder.transition(jnp.concatenate([before, after, decoder.action(action)]))
    return decoder.lstm.step(state, decoder.lstm.project(step))


def embed_prefix(decoder, episodes, b, length):
    """g of the first `length` transitions of episode b, written out for one prefix."""
    state = embed_start(decoder)
    for t in range(length):
        state = embed_step(decoder, state, episodes.obs[t, b], episodes.action[t, b], episodes.next_obs[t, b])
    return embed_end(decoder, state)


prefixes_of = jax.jit(lambda decoder, episodes: decoder.prefixes(episodes, DISTINCT))


@pytest.mark.parametrize("batch", BATCHES)
def test_decoder_prefixes(batch):
    decoder, (_, episodes, lengths) = fresh(TrajectoryDecoder), random_episodes(batch)
    prefixes = np.asarray(prefixes_of(decoder, episodes))
    assert prefixes.shape == (SPEC.horizon + 1, batch, CONTEXT)
    for b, length in enumerate(lengths.tolist()):
        for prefix in {0, 1, length}:
            expected = embed_prefix(decoder, episodes, b, prefix)
            np.testing.assert_allclose(prefixes[prefix, b], expected, atol=1e-5)


def test_padding_does_not_reach_the_prefixes_of_the_episode():
    decoder, (_, episodes, lengths) = fresh(TrajectoryDecoder), random_episodes(6)
    padded = np.arange(SPEC.horizon)[:, None] >= lengths
    other = episodes._replace(
        action=np.where(padded, np.int32(0), episodes.action),
        next_obs=np.where(padded[..., None], np.int32(0), episodes.next_obs),
    )
    one, two = (np.asarray(prefixes_of(decoder, each)) for each in (episodes, other))
    assert not np.allclose(one, two)
    for b, length in enumerate(lengths):
        np.testing.assert_array_equal(one[: length + 1, b], two[: length + 1, b])
