"""What every system promises, whatever it does: a table of systems and kinds of environments."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from metadyna.collect.host import HostCollector
from metadyna.envs import CONTROLS, MAZES
from metadyna.errors import UserError
from metadyna.runs import loop
from metadyna.systems import SYSTEMS
from tests.tiny import ABSTRACT, CONTINUOUS, TINY, compiled_once, sha256, tiny  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

TABLE = [
    *((name, "pendulum") for name in CONTINUOUS),
    ("sac", "half-cheetah"),
    ("pets", "inverted-pendulum"),
    ("mbpo", "inverted-pendulum"),
    ("maml", "inverted-pendulum"),
    ("e-maml", "inverted-pendulum"),
    ("promp", "inverted-pendulum"),
    ("mb-mpo", "inverted-pendulum"),
    ("ppo", "gym::Pendulum-v1"),
    ("rl2", "inverted-pendulum"),
    ("rl2", "city-5x5"),
    ("crar", "catcher"),
    ("gmas", "simple-maze"),
]

DIRECT = ["e-maml", "maml", "ppo", "promp", "rl2", "trpo"]
"""Systems whose policies see numbers or categories and act by either."""

COMPANY = [("sac", "pendulum"), ("crar", "catcher"), ("promp", "navigation"), ("mbpo", "inverted-pendulum")]
"""Seeds are taken in turn by the runner, whatever the system: one of each kind, on a device and on the host."""


def test_every_system_is_in_the_table():
    small = {**CONTINUOUS, **ABSTRACT}
    assert set(small) == {name for name, _ in TABLE} == set(SYSTEMS) - {"dream"}  # which has tests of its own
    assert all(type(small[name]) is SYSTEMS[name] for name in small)


@pytest.mark.parametrize(("name", "task"), TABLE)
def test_stopped_and_resumed_a_run_ends_as_in_one_go(name, task, tmp_path):
    """Training, evaluation, saving, loading and resuming, by one hash over every number."""
    config = tiny(name, task)
    straight = loop.run(config, tmp_path / "straight", progress=False)
    stopped = loop.run(replace(config, steps=config.steps // 2), tmp_path / "stopped", progress=False)
    assert sha256(stopped) != sha256(straight), "half of the steps took as many chunks: `ITERATION` needs a row"
    resumed = loop.resume(stopped.folder, config, progress=False)
    assert sha256(resumed) == sha256(straight)
    assert straight.steps == resumed.steps >= config.steps
    evaluated = [row for row in straight.metrics if "eval/return" in row]
    assert len(evaluated) >= 2
    assert all(np.isfinite(value) for row in straight.metrics for value in row.values() if value is not None)
    assert any(name.startswith(("train/", "fit/")) for row in straight.metrics for name in row)


@pytest.mark.parametrize(("name", "task"), COMPANY)
def test_in_company_a_seed_ends_as_alone(name, task, tmp_path):
    config = tiny(name, task)
    alone, together = (
        loop.run(replace(config, seeds=seeds), tmp_path / str(seeds), progress=False) for seeds in (1, 2)
    )
    hashes = loop.inspect(together.folder)["seed_sha256"]
    assert hashes[0] == loop.inspect(alone.folder)["seed_sha256"][0]
    assert hashes[1] != hashes[0]


@pytest.mark.parametrize(("name", "task"), [row for row in TABLE if row[1] in {**CONTROLS, **MAZES}])
def test_a_fresh_state_has_types_of_its_own(name, task):
    """Python's numbers leave arrays weakly typed, and what takes them is compiled once more for the next state."""
    program = loop.build(tiny(name, task))
    fresh = jax.eval_shape(program._init, jax.random.key(0))
    weak = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(fresh) if leaf.weak_type]
    assert weak == []


@pytest.mark.parametrize("name", ["sac", "mbpo"])
def test_only_what_was_lived_crosses_from_the_host_to_updates(name, tmp_path, monkeypatch):
    compute, crossed = HostCollector.compute, set()

    def watched(self, function, *arguments, **options):
        crossed.add(sum(np.asarray(x).nbytes for x in jax.tree.leaves(arguments) if not isinstance(x, jax.Array)))
        arguments = jax.device_put(arguments)
        with jax.transfer_guard_host_to_device("disallow"):
            return compute(self, function, *arguments, **options)

    monkeypatch.setattr(HostCollector, "compute", watched)
    loop.run(tiny(name, "inverted-pendulum"), tmp_path / "run", progress=False)
    # Observations of 4 before and after, an action, a reward and a discount in 32 bits, and whether it was the last.
    assert crossed - {0} == {(4 + 4 + 1 + 1 + 1) * 4 + 1}


# E-MAML and ProMP differ from MAML in their outer steps alone, and RL2 has a row in the table.
@pytest.mark.parametrize("name", sorted(set(DIRECT) - {"e-maml", "promp", "rl2"}))
def test_policies_that_are_learnt_directly_choose_among_actions_too(name, tmp_path):
    result = loop.run(tiny(name, "city-5x5", steps=1, eval_every=1), tmp_path / "run", progress=False)
    assert result.steps > 0
    assert np.isfinite(result.metrics[-1]["eval/return"])


@pytest.mark.parametrize("name", sorted(set(CONTINUOUS) - set(DIRECT)))
def test_grids_are_refused_in_one_line(name, tmp_path):
    with pytest.raises(UserError, match=r"vectors of floats|reward|box"):
        loop.run(tiny(name, "city-5x5"), tmp_path / "run", progress=False)


@pytest.mark.parametrize(("name", "task", "wanted"), [
    ("crar", "pendulum", "pictures"),
    ("gmas", "city-5x5", "pictures"),
    ("crar", "half-cheetah", "pictures"),
    ("dream", "labyrinth", "instruction"),
    ("sac", "labyrinth", "vectors of floats"),
])  # fmt: skip
def test_what_a_system_cannot_see_is_refused_in_one_line(name, task, wanted, tmp_path):
    config = TINY if name == "dream" else tiny(name)
    with pytest.raises(UserError, match=wanted):
        loop.run(replace(config, task=task), tmp_path / "run", progress=False)
