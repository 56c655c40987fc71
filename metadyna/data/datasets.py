"""Data sets: transitions of our tasks under random actions, written and read in Minari's format.

A data set is known by its id, such as `metadyna/labyrinth-random-v0`, and lies in the folder that the environment
variable MINARI_DATASETS_PATH names, by default `~/.minari/datasets`. Nothing is ever downloaded. Minari is an extra
(`pip install "metadyna[data]"`) and takes a while to load, so only the functions that need it do so.
"""

import dataclasses
import difflib
import importlib
import io
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

import metadyna
from metadyna import envs
from metadyna.collect.device import DeviceCollector
from metadyna.errors import UserError
from metadyna.provenance.hashes import state_sha256
from metadyna.provenance.machine import environment_record
from metadyna.types import Box, Discrete, Env, EnvSpec, HostEnv, Space, TaskDistribution, TimeStep, Transition

ALGORITHM = "uniformly random actions"
NO_LIMIT = 2_000_000_000
"""Horizon that no episode reaches; time is counted in 32 bits on the device."""

_DIGEST = "metadyna_sha256"
_OFFERED = 5  # ids that an error message lists


def collect(
    task: str, name: str | None = None, steps: int = 100_000, seed: int = 0, time_limit: int | None = None
) -> dict[str, Any]:
    """Write a data set of random actions on the training tasks of a pure task family; id, folder, counts, mean reward.

    The default name is `metadyna/<task>-random-v0`. `seed` lies in [0, 2³²). Everything else as in
    `random_transitions` and `write`.
    """
    name = name or f"metadyna/{task}-random-v0"
    family = envs.make(task)
    if isinstance(family.env, HostEnv):
        pure = ", ".join(name for name in envs.TASKS if name not in envs.HOSTED)
        raise UserError(f"{task} runs on the host and cannot be collected; tasks that can: {pure}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must lie in [0, {2**32 - 1}]")
    _refuse_existing(name)  # before the work, too

    sample = jax.jit(lambda key: random_transitions(family.env, family.train, steps, key, time_limit))
    try:
        transitions = jax.device_get(sample(jax.random.key(seed)))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"{steps} transitions do not fit into the memory of the device; ask for fewer") from error
    write(name, task, transitions, seed=seed, time_limit=time_limit)
    return {
        "id": name,
        "folder": str(_folder(name)),
        "episodes": int(_ended(transitions).last.sum()),
        "transitions": steps,
        "mean_reward": float(transitions.reward.mean()),
    }


def random_transitions(
    env: Env, tasks: TaskDistribution, steps: int, key: PRNGKeyArray, time_limit: int | None = None
) -> Transition:
    """Uniformly random actions through one episode after another, each on a task drawn from `tasks`: [steps, ...].

    `time_limit` in [1, 2 · 10⁹] replaces the horizon of `env`; without it only the end of the MDP ends an episode.
    Where rewards depend on the horizon, as the price of quitting a city does, they depend on the limit. The last
    episode stops where the steps are used up, which `last` does not mark. Raises `UserError` for an environment whose
    horizon cannot be replaced and for an action space without a uniform distribution.
    """
    if not 1 <= steps <= NO_LIMIT:
        raise UserError(f"steps is {steps}; it must lie in [1, {NO_LIMIT}]")
    collector = DeviceCollector(_limited(env, time_limit), tasks)
    action_space = env.spec.action

    def act(params: None, carry: Any, timestep: TimeStep, key: PRNGKeyArray) -> tuple[Array, Any, tuple[()]]:
        del params, timestep
        return _random_action(action_space, key), carry, ()

    k_begin, k_steps = jax.random.split(key)
    _, transitions = collector.collect(act, None, collector.begin((), 1, k_begin), k_steps, steps)
    return jax.tree.map(lambda x: x[:, 0], transitions)


def write(name: str, task: str, transitions: Transition, *, seed: int, time_limit: int | None) -> None:
    """Store consecutive transitions [N, ...] of random actions as a new data set.

    Spaces are those of the task's Gymnasium environment; `seed` and `time_limit` are recorded. Episodes end at
    `last`, the unfinished one at the end is stored as truncated. All or nothing: the data set appears once it is
    complete. Raises `UserError` if there is one of this name, if the disk refuses, and for transitions that are not
    consecutive or not of this task.
    """
    _refuse_existing(name)
    spec = envs.make(task).env.spec
    transitions = _checked(jax.tree.map(np.asarray, transitions), spec, "the transitions")
    _refuse_incoherent(transitions)
    transitions, folder = _ended(transitions), _folder(name)
    try:
        with tempfile.TemporaryDirectory(prefix=".metadyna-", dir=_root()) as partial:  # Minari ignores hidden folders
            complete = Path(partial) / "complete"
            complete.mkdir()
            _store(complete / "data", task, transitions, _record(name, task, transitions, seed, time_limit))
            _make_namespace(name)
            complete.rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {_reason(error)}; free some space or name another folder in MINARI_DATASETS_PATH"
        ) from error


def read(name: str, spec: EnvSpec, env: Env | None = None) -> Transition:
    """Every transition of a local data set, episode after episode, as numpy arrays [N, ...].

    Observations have the type of `spec` (int32 where it is discrete), a single discrete action is an int32 number,
    `discount` is 0 where the MDP terminated, and `last` marks the end of each episode. Raises `UserError` if there is
    no such data set, if it is of other spaces than `spec`, if `write` made it of a task of another kind than `env`, and
    if it is damaged as far as that can be noticed: in those that `write` made, every changed bit of a transition can.
    """
    dataset, episodes = _load(name)
    _refuse_other_spaces(name, dataset, spec)
    _refuse_other_kind(name, dataset, env)
    checked = [
        _checked(_transitions(episode, f"{name}, episode {number}"), spec, f"{name}, episode {number}")
        for number, episode in enumerate(episodes)
    ]
    transitions = jax.tree.map(lambda *parts: np.concatenate(parts), *checked)
    digest = dataset.storage.metadata.get(_DIGEST)
    if digest is not None and digest != state_sha256(transitions):
        raise UserError(
            f"{name} is not as it was written: it was damaged or changed since; delete {_folder(name)} and make it anew"
        )
    return transitions


def describe(name: str) -> dict[str, Any]:
    """What a person wants to know of a local data set: id, folder, counts, mean reward and return, and where from.

    `mean_return` is over all episodes, truncated ones included; `mean_reward` is per step. What is not recorded is
    None. Raises `UserError` if there is no such data set or if it cannot be read.
    """
    dataset, episodes = _load(name)
    rewards = [_values(each.rewards, Box(()), (len(each),), f"{name}: rewards") for each in episodes]
    returns = [float(each.sum(dtype=np.float64)) for each in rewards]
    metadata = dataset.storage.metadata
    return {
        "id": name,
        "folder": str(_folder(name)),
        "episodes": len(episodes),
        "transitions": dataset.total_steps,
        "mean_return": sum(returns) / len(returns),
        "mean_reward": sum(returns) / dataset.total_steps,
        "algorithm": metadata.get("algorithm_name"),
        "description": metadata.get("description"),
    }


# ------------------------------------------------------------------------------------------- collecting


def _limited(env: Env, time_limit: int | None) -> Env:
    """The environment with another horizon. One without that setting has no time limit and stays as it is."""
    if time_limit is not None and not 1 <= time_limit <= NO_LIMIT:
        raise UserError(f"time_limit is {time_limit}; it must lie in [1, {NO_LIMIT}]")
    if isinstance(env, HostEnv) or not dataclasses.is_dataclass(env):
        raise UserError(f"{type(env).__name__} is no pure environment; random actions need a frozen dataclass")
    settings: Any = env
    if any(field.name == "horizon" for field in dataclasses.fields(settings)):
        return dataclasses.replace(settings, horizon=time_limit or NO_LIMIT)
    if time_limit is not None:
        raise UserError(f"{type(env).__name__} has no horizon that a time limit could replace; leave time_limit out")
    return env


def _random_action(space: Space, key: PRNGKeyArray) -> Array:
    """Draw one action uniformly."""
    if isinstance(space, Discrete) and len(space.sizes) == 1:
        return jax.random.randint(key, (), 0, space.sizes[0])
    if isinstance(space, Box) and space.dtype == "float32" and np.isfinite([space.low, space.high]).all():
        return jax.random.uniform(key, space.shape, minval=space.low, maxval=space.high)
    raise UserError(f"random actions need one discrete action or a bounded box of floats; the environment has {space}")


# ---------------------------------------------------------------------------------------------- writing


def _refuse_existing(name: str) -> None:
    if os.path.lexists(_folder(name)):
        raise UserError(f"there is a data set {name} already, in {_folder(name)}; choose another name or delete it")


def _refuse_incoherent(transitions: Transition) -> None:
    """Only the last transition of an episode may terminate, and each other leads to where the next begins."""
    last, discount = transitions.last, transitions.discount
    possible = (discount == 1) | ((discount == 0) & last)
    if not possible.all():
        where = int(np.argmin(possible))
        raise UserError(f"transition {where}: discount {discount[where]} and last {last[where]} do not go together")
    same = transitions.obs[1:] == transitions.next_obs[:-1]
    follows = last[:-1] | same.reshape(len(same), -1).all(axis=1)
    if not follows.all():
        gap = int(np.argmin(follows))
        raise UserError(f"transition {gap + 1} does not begin where {gap} ended; a data set needs consecutive ones")


def _record(
    name: str, task: str, transitions: Transition, seed: int, time_limit: int | None
) -> dict[str, str | int | None]:
    """Metadata of a data set: what Minari knows and what it does not."""
    import minari

    steps = len(transitions.reward)
    git = environment_record()["git"]
    commit = git["commit"] + (" with changes" if git["dirty"] else "") if git else "unknown"
    limit = "no time limit" if time_limit is None else f"time limit {time_limit}"
    return {
        "dataset_id": name,
        "minari_version": minari.__version__,
        "total_episodes": int(transitions.last.sum()),
        "total_steps": steps,
        "algorithm_name": ALGORITHM,
        "description": f"{steps} transitions of {ALGORITHM} on the training tasks of {task}, {limit}, seed {seed}; "
        f"made by MetaDyna {metadyna.__version__}, commit {commit}",
        "metadyna_version": metadyna.__version__,
        "metadyna_commit": commit,
        "task": task,
        "seed": seed,
        "time_limit": time_limit,
        _DIGEST: state_sha256(transitions),
    }


def _ended(transitions: Transition) -> Transition:
    """The same with the last episode ended; it was not terminated, so it counts as truncated."""
    last = transitions.last.copy()
    last[-1] = True
    return transitions._replace(last=last)


def _store(data: Path, task: str, transitions: Transition, record: dict[str, Any]) -> None:
    """Write a data set into a new folder."""
    import gymnasium
    from minari.dataset.minari_storage import MinariStorage

    from metadyna.envs import registration

    env = registration.TaskEnv(task)
    env_spec = gymnasium.registry.get(f"{registration.PREFIX}{task}-v0")
    # Minari would take boards of 32 x 32 and more for JPEG, which does not give back what was written.
    storage = MinariStorage.new(data, env.observation_space, env.action_space, env_spec, jpeg_encoding=False)
    # In memory first: where the disk is full, HDF5 prints a traceback per object and crashes the process.
    image = _hdf5(transitions, env.observation_space.dtype, env.action_space.dtype)
    (data / "main_data.hdf5").write_bytes(image)
    storage.update_metadata({**record, "dataset_size": storage.get_size()})


def _hdf5(transitions: Transition, observed: Any, acted: Any) -> bytes:
    """The file of all episodes as Minari lays it out; observations and actions in the types of Gymnasium's spaces."""
    import h5py

    file = io.BytesIO()
    ends = np.flatnonzero(transitions.last) + 1
    with h5py.File(file, "w", track_order=True) as hdf5:
        for number, (start, end) in enumerate(itertools.pairwise([0, *ends.tolist()])):
            steps, discount = slice(start, end), transitions.discount[start:end]
            observations = np.concatenate([transitions.obs[steps], transitions.next_obs[end - 1 : end]])
            group = hdf5.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": end - start})
            group["observations"] = observations.astype(observed)
            group["actions"] = transitions.action[steps].astype(acted)
            group["rewards"] = transitions.reward[steps]
            group["terminations"] = discount == 0
            group["truncations"] = transitions.last[steps] & (discount == 1)
    return file.getvalue()


def _make_namespace(name: str) -> None:
    """Tell Minari of the part of an id before its last slash."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = parse_dataset_id(name)[0]
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)


# ---------------------------------------------------------------------------------------------- reading


def _load(name: str) -> tuple[Any, list[Any]]:
    """A local data set and its episodes, as many and as long as its metadata says."""
    folder = _folder(name)
    if not (folder / "data").is_dir():
        raise _no_such(name)
    import minari

    try:
        dataset = minari.load_dataset(name)
        episodes = list(dataset.iterate_episodes())
        total = dataset.total_steps
    except Exception as error:  # Minari and HDF5 tell of damage by exceptions of every kind, assertions included
        raise UserError(f"data set {name} cannot be read: {_reason(error)}; {_make_anew(name)}") from error
    steps = sum(len(episode) for episode in episodes)
    if steps != total or not steps:
        raise UserError(f"data set {name} holds {steps} transitions and says {total}; {_make_anew(name)}")
    return dataset, episodes


def _refuse_other_spaces(name: str, dataset: Any, spec: EnvSpec) -> None:
    """The declared spaces must be those of `spec`, up to the bounds of a box that is observed."""
    from gymnasium import spaces

    def same(space: spaces.Space, wanted: Space, bounds: bool) -> bool:
        if isinstance(wanted, Discrete):
            return _sizes(space) == wanted.sizes
        if not isinstance(space, spaces.Box) or (space.shape, space.dtype) != (wanted.shape, np.dtype(wanted.dtype)):
            return False
        return not bounds or bool((space.low == wanted.low).all() and (space.high == wanted.high).all())

    for what, space, wanted in (
        ("observations", dataset.observation_space, spec.observation),
        ("actions", dataset.action_space, spec.action),
    ):
        if not same(space, wanted, bounds=what == "actions"):
            declared = " ".join(str(space).split())  # numpy breaks lines
            raise UserError(f"the {what} of {name} are {declared}, but this task's are {wanted}; choose another set")


def _refuse_other_kind(name: str, dataset: Any, env: Env | None) -> None:
    """Two tasks may look alike and differ in what they pay and where actions lead."""
    task = dataset.storage.metadata.get("task")
    if env is None or not isinstance(task, str) or task not in envs.TASKS:
        return
    made, wanted = type(envs.make(task).env), type(env)
    if made is not wanted:
        raise UserError(f"{name} was made of {task} ({made.__name__}), not of a {wanted.__name__}; choose another set")


def _sizes(space: Any) -> tuple[int, ...] | None:
    """Sizes of the components of a discrete Gymnasium space that counts from 0, else None."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete) and space.start == 0:
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete) and not space.start.any():
        return tuple(space.nvec.tolist())
    return None


def _transitions(episode: Any, what: str) -> Transition:
    """One of Minari's episodes of T steps, in the types found on the disk."""
    observations, actions = np.asarray(episode.observations), np.asarray(episode.actions)
    terminated, truncated, steps = episode.terminations, episode.truncations, len(episode)
    lengths = {observations.shape[:1], (steps + 1,)}, {actions.shape[:1], terminated.shape, truncated.shape, (steps,)}
    if any(len(each) > 1 for each in lengths) or steps == 0:
        raise UserError(f"{what}: observations, actions, rewards and ends do not fit together; it is damaged")
    if terminated.dtype != bool or truncated.dtype != bool:
        raise UserError(f"{what}: its ends are {terminated.dtype} and {truncated.dtype} instead of bool")
    last = terminated | truncated
    if last[:-1].any() or not last[-1]:
        raise UserError(f"{what}: it should be terminated or truncated at its last step and nowhere else")
    return Transition(observations[:-1], actions, episode.rewards, 1.0 - terminated, observations[1:], last)


# --------------------------------------------------------------------------------------------- checking


def _checked(transitions: Transition, spec: EnvSpec, what: str) -> Transition:
    """The same in the types that systems learn from, if every value is one that the task can produce."""
    steps = len(transitions.reward)
    one_action = isinstance(spec.action, Discrete) and len(spec.action.sizes) == 1
    observed = (steps, *spec.observation.shape)
    acted = (steps,) if one_action else (steps, *spec.action.shape)
    return Transition(
        obs=_values(transitions.obs, spec.observation, observed, f"{what}: observations"),
        action=_values(transitions.action, spec.action, acted, f"{what}: actions"),
        reward=_values(transitions.reward, Box(()), (steps,), f"{what}: rewards"),
        discount=_values(transitions.discount, Box((), 0.0, 1.0), (steps,), f"{what}: discounts"),
        next_obs=_values(transitions.next_obs, spec.observation, observed, f"{what}: observations"),
        last=transitions.last,
    )


def _values(values: np.ndarray, space: Space, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Elements of a space in its own type; int32 where it is discrete."""
    if isinstance(space, Discrete):
        low, high, dtype = 0, np.array(space.sizes) - 1, np.dtype(np.int32)
    else:
        low, high, dtype = space.low, space.high, np.dtype(space.dtype)
    if values.shape != shape or values.dtype.kind not in ("fiu" if dtype.kind == "f" else "iu"):
        raise UserError(f"{what} are {values.dtype}{list(values.shape)} instead of {dtype}{list(shape)}")
    with np.errstate(over="ignore"):  # becomes infinite, which is reported
        typed = values.astype(dtype, copy=False)
    if not np.isfinite(typed).all():
        raise UserError(f"{what} are not all finite")
    if not ((low <= values) & (values <= high)).all():  # not `typed`, which may have wrapped around
        raise UserError(f"{what} are not all in {space}")
    return typed


# ----------------------------------------------------------------------------------------------- places


def _folder(name: str) -> Path:
    """Where a data set lies, or would."""
    root = _root()
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(name)
    except (TypeError, ValueError):  # the former where there is no version
        raise UserError(f"'{name}' is no id of a data set; it should look like metadyna/pendulum-random-v0") from None
    return root / name


def _root() -> Path:
    """The folder of all data sets; Minari makes it."""
    try:
        importlib.import_module("h5py")
        from minari.storage import get_dataset_path
    except ImportError:
        raise UserError('data sets need Minari; install it with: pip install "metadyna[data]"') from None
    try:
        return get_dataset_path().absolute()
    except OSError as error:
        folder = os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")
        raise UserError(
            f"cannot keep data sets in '{folder}': {_reason(error)}; name another folder in MINARI_DATASETS_PATH"
        ) from None


def _no_such(name: str) -> UserError:
    """Build the error for an id that does not exist, offering the nearest ones."""
    root = _root()
    folders = (path.parent.parent.relative_to(root) for path in root.glob("**/data/metadata.json"))
    ids = [folder.as_posix() for folder in folders if not folder.parts[0].startswith(".")]
    near = difflib.get_close_matches(name, ids, n=_OFFERED, cutoff=0.0)
    more = f" and {len(ids) - _OFFERED} more" if len(ids) > _OFFERED else ""
    there = f"there are: {', '.join(near)}{more}" if ids else "there is none yet; `metadyna collect TASK` makes one"
    return UserError(f"no data set '{name}' in {root}; {there}")


def _make_anew(name: str) -> str:
    """What to do about a damaged data set."""
    return f"if it is damaged, delete {_folder(name)} and make it anew"


def _reason(error: Exception) -> str:
    """What went wrong in one line; HDF5 adds the time and its pointers to what the system says."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else " ".join(f"{type(error).__name__}: {error}".split())[:200]
