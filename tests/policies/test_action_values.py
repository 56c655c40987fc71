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


@functools.cache
def random_episodes(batch):
    def act(params, carry, timestep, key):
        return jax.random.randint(key, (), 0, SPEC.action.sizes[0]), carry, ()

    k_tasks, k_play = jax.random.split(jax.random.key(batch))
    tasks = jax.vmap(FAMILY.train.sample)(jax.random.split(k_tasks, batch))
    collector = DeviceCollector(FAMILY.env, FAMILY.train)
    episodes = collector.episodes(act, (), jnp.zeros(batch), tasks, k_play).episodes
    assert len(set(episode_lengths(episodes.last).tolist())) > 1  # some padding, of unequal amounts
    return tasks, episodes


def test_the_batches_take_both_paths():
    assert (SPEC.horizon + 1) * BATCHES[0] < len(DISTINCT.rows) <= (SPEC.horizon + 1) * BATCHES[1]


@pytest.mark.parametrize("batch", BATCHES)
def test_explore_policy(batch):
    policy = ExplorePolicy.create(SPEC, jax.random.key(0))
    _, episodes = random_episodes(batch)
    obs, actions = all_observations(episodes), previous_actions(episodes.action)
    unrolled = jax.jit(lambda: policy.unroll(obs, actions, DISTINCT))()
    memory = policy.lstm.initial((batch,))
    step = jax.jit(jax.vmap(policy.step))
    for t in range(len(obs)):
        values, memory = step(memory, obs[t], actions[t])
        np.testing.assert_allclose(unrolled[t], values, atol=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", [RecurrentPolicy, FeedForwardPolicy])
def test_execution_policies(kind, batch):
    policy = kind.create(SPEC, FAMILY.env.instruction_space, CONTEXT, jax.random.key(0))
    tasks, episodes = random_episodes(batch)
    obs, context = all_observations(episodes), jax.random.normal(jax.random.key(1), (batch, CONTEXT))
    unrolled = jax.jit(lambda: policy.unroll(obs, tasks.goal, context, DISTINCT))()
    memory = policy.initial((batch,))
    step = jax.jit(jax.vmap(policy.step))
    for t in range(len(obs)):
        values, memory = step(memory, obs[t], tasks.goal, context)
        np.testing.assert_allclose(unrolled[t], values, atol=1e-5)


@pytest.mark.parametrize("kind", [RecurrentPolicy, FeedForwardPolicy])
def test_execution_values_depend_on_every_input(kind):
    policy = kind.create(SPEC, FAMILY.env.instruction_space, CONTEXT, jax.random.key(0))
    inputs = {"obs": jnp.array([2, 2, 0, 0]), "instruction": jnp.array([0, 0]), "context": jnp.zeros(CONTEXT)}
    changes = {"obs": jnp.array([1, 2, 0, 0]), "instruction": jnp.array([4, 4]), "context": jnp.ones(CONTEXT)}
    step = jax.jit(lambda inputs: policy.step(policy.initial(()), **inputs)[0])
    for name, other in changes.items():
        assert np.abs(step({**inputs, name: other}) - step(inputs)).max() > 1e-4


def embed_prefix(decoder, episodes, b, length):
    """g of the first `length` transitions of episode b, written out for one prefix."""
    state = decoder.lstm.initial()
    for t in range(length):
        before, after = decoder.state(episodes.obs[t, b]), decoder.state(episodes.next_obs[t, b])
        step = decoder.transition(jnp.concatenate([before, after, decoder.action(episodes.action[t, b])]))
        state = decoder.lstm.step(state, decoder.lstm.project(step))
    return decoder.output(state[0])


@pytest.mark.parametrize("batch", BATCHES)
def test_decoder_prefixes(batch):
    decoder = TrajectoryDecoder.create(SPEC.observation.sizes, SPEC.action.sizes[0], CONTEXT, jax.random.key(0))
    _, episodes = random_episodes(batch)
    prefixes = decoder.prefixes(episodes, DISTINCT)
    assert prefixes.shape == (SPEC.horizon + 1, batch, CONTEXT)
    for b in range(batch):
        length = int(episode_lengths(episodes.last)[b])
        for prefix in {0, 1, length}:
            expected = embed_prefix(decoder, episodes, b, prefix)
            np.testing.assert_allclose(prefixes[prefix, b], expected, atol=1e-5)


def test_padding_does_not_reach_the_prefixes_of_the_episode():
    decoder = TrajectoryDecoder.create(SPEC.observation.sizes, SPEC.action.sizes[0], CONTEXT, jax.random.key(0))
    _, episodes = random_episodes(6)
    lengths = np.asarray(episode_lengths(episodes.last))
    padded = np.arange(SPEC.horizon)[:, None] >= lengths
    other = episodes._replace(
        action=jnp.where(padded, 0, episodes.action),
        next_obs=jnp.where(padded[..., None], jnp.int32(0), episodes.next_obs),
    )
    one, two = decoder.prefixes(episodes, DISTINCT), decoder.prefixes(other, DISTINCT)
    assert not np.allclose(one, two)
    for b, length in enumerate(lengths):
        np.testing.assert_array_equal(one[: length + 1, b], two[: length + 1, b])
