"""What the figures compare: configurations that differ in one thing each."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from metadyna.adapt.context import EncoderDecoder, Told
from metadyna.experiments import abstract, mbmpo
from metadyna.experiments.kinds import of_kind
from metadyna.experiments.plane import FaultyModels
from metadyna.experiments.presets import PRESETS
from metadyna.experiments.study import Arm
from metadyna.improve.meta import MetaTRPO
from metadyna.improve.ppo import PPO
from metadyna.improve.slopes import Distance
from metadyna.improve.trpo import TRPO
from metadyna.models.fit import Fit
from metadyna.planning.acting import TreeActing
from metadyna.planning.mpc import MPC
from metadyna.runs.config import Config
from metadyna.search.random import RandomShooting
from metadyna.systems import System
from metadyna.systems.crar import CRAR
from metadyna.systems.dream import DREAM
from metadyna.systems.gmas import GMAS
from metadyna.systems.maml import MAML
from metadyna.systems.mbmpo import MBMPO
from metadyna.systems.mbpo import MBPO
from metadyna.systems.metrpo import METRPO
from metadyna.systems.mpc import RandomShootingMPC
from metadyna.systems.ppo import ProximalPolicyOptimisation
from metadyna.systems.sac import SoftActorCritic
from metadyna.systems.trpo import TrustRegionPolicyOptimisation

Configs = Mapping[str, Config]

PENDULUM_MBPO = replace(PRESETS["mbpo"]["quick"], task="pendulum", steps=5_000, eval_every=500)
"""MBPO with small networks, as on the inverted pendulum."""

PENDULUM_PPO = replace(
    PRESETS["ppo"]["quick"],
    system=ProximalPolicyOptimisation(PPO(learning_rate=1e-3), parallel=4, collect=512, discount=0.9),
)
"""PPO on smaller batches than its preset, whose figure is older."""


def with_systems(base: Config, systems: Mapping[str, System]) -> Configs:
    """One configuration with the system of every arm."""
    return {arm: replace(base, system=system) for arm, system in systems.items()}


# ------------------------------------------------------------------------------------------------ the bus grid


def ablations(base: Config) -> Configs:
    """DREAM, without its parts, and told which task it is."""
    system = of_kind(base.system, DREAM)
    context = of_kind(system.context, EncoderDecoder)
    systems = {
        "DREAM": system,
        "no bottleneck": replace(system, context=replace(context, bottleneck=None)),
        "random exploration": replace(system, exploration="random"),
        "no exploration": replace(system, exploration="none"),
        "oracle ID": replace(system, context=Told(noise=context.noise, bottleneck=context.bottleneck)),
    }
    return with_systems(replace(base, stop_at=None), systems)


# ------------------------------------------------------------------------------------------- continuous control


def branch_lengths() -> Configs:
    """MBPO with as many imagined steps in short or long branches."""
    system = of_kind(PENDULUM_MBPO.system, MBPO)
    systems = {
        f"branches of {k}": replace(system, horizon_start=k, horizon_end=k, branches=100 // k) for k in (1, 5, 50)
    }
    return with_systems(PENDULUM_MBPO, systems)


def learners_of_the_pendulum() -> Configs:
    """With a model, from replay and on policy."""
    return {
        "PETS": PRESETS["pets"]["quick"],
        "MPC-RS": PRESETS["mpc-rs"]["quick"],
        "MBPO": PENDULUM_MBPO,
        "SAC": PRESETS["sac"]["quick"],
        "PPO": PENDULUM_PPO,
        "TRPO": PRESETS["trpo"]["quick"],
    }


def first_steps_of_the_half_cheetah() -> Configs:
    """MBPO, and SAC with one update per step or as many as MBPO."""
    base = replace(PRESETS["sac"]["paper"], steps=10_000, eval_every=1_000)
    sac = SoftActorCritic(warmup=1_000, capacity=20_000)
    mbpo = MBPO(warmup=1_000, fit=Fit(max_updates=1_000), capacity=20_000, retain=1)
    return {
        "MBPO, 20 updates per step": replace(base, system=mbpo, chunk=1),
        "SAC, 1 update per step": replace(base, system=sac, chunk=500),
        "SAC, 20 updates per step": replace(base, system=replace(sac, updates_per_step=20), chunk=500),
    }


# ----------------------------------------------------------------------------------------------- abstract states


def gradient_matching(steps: int, trained: Sequence[int], planned: tuple[int, ...]) -> Configs:
    """CRAR beside GMAS with both distances, each at some depths of training, on the same data and test mazes."""
    base, acting = replace(PRESETS["crar"]["fast"], steps=steps), TreeActing(depths=planned)
    gmas = of_kind(PRESETS["gmas"]["fast"].system, GMAS)
    arms: dict[str, System] = {abstract.BASELINE: replace(of_kind(base.system, CRAR), acting=acting)}
    distances: tuple[tuple[Distance, float], ...] = (("cosine", 0.05), ("l2", 1.0))
    for distance, alpha in distances:
        for depth in trained:
            system = replace(gmas, acting=acting, distance=distance, alpha=alpha, depth=depth)
            arms[f"{distance.replace('l2', 'L2')} {depth}"] = system
    return with_systems(base, arms)


def controls(base: Config) -> Configs:
    """CRAR with what should help and what should not."""
    crar = of_kind(base.system, CRAR)
    more = replace(crar.data, transitions=200_000)
    systems = {
        abstract.BASELINE: crar,
        "200,000 transitions": replace(crar, data=more),
        "200,000, beta 0.2": replace(crar, data=more, learning=replace(crar.learning, successive=0.2)),
        "rate 0.0005": replace(crar, learning=replace(crar.learning, learning_rate=5e-4)),
    }
    return with_systems(base, systems)


def one_by_one(base: Config) -> Configs:
    """CRAR with an optimiser for every loss, where users report that a small β fails (VinF/deer#78).

    The schedule is the authors'; step size and data are those of the other studies. Updates are slower than on the sum
    of the losses, and half as many: 3 % of the authors'.
    """
    crar = of_kind(base.system, CRAR)
    each = replace(crar, data=replace(crar.data, transitions=200_000), learning=replace(crar.learning, schedule="each"))
    systems = {
        "beta 1": each,
        "beta 0.2": replace(each, learning=replace(each.learning, successive=0.2)),
    }
    return with_systems(replace(base, steps=15_000, eval_every=5_000), systems)


def small_tasks() -> Configs:
    """CRAR where every state can be drawn."""
    return {"simple maze": PRESETS["crar"]["simple-maze"], "catcher": PRESETS["crar"]["catcher"]}


# ------------------------------------------------------------------------------------------------ adaptation


def navigators(steps: int) -> Configs:
    """MAML with exact and with first-order meta-gradients, its kin, and a policy that is trained without adapting."""
    base = PRESETS["maml"]["quick"]
    system = of_kind(base.system, MAML)
    inner = system.outer.inner
    arms = {
        "MAML": inner,
        "first order": replace(inner, first_order=True),
        "no adaptation in training": replace(inner, steps=0),
    }
    outers = {arm: replace(system.outer, inner=inner) for arm, inner in arms.items()}
    configs = with_systems(base, {arm: replace(system, outer=outer) for arm, outer in outers.items()})
    configs = {**configs, "E-MAML": PRESETS["e-maml"]["quick"], "ProMP": PRESETS["promp"]["quick"]}
    return {arm: replace(config, steps=steps, eval_every=steps) for arm, config in configs.items()}


def mbmpo_and_rivals() -> Configs:
    """MB-MPO and others on its half-cheetah.

    Rivals with models have the same networks, fits and real data kept; ME-TRPO as many imagined steps and policy steps
    per 1,000 real ones (but for the 5 % with which MB-MPO adapts the policies that it lives with), no validation, and
    MB-MPO's damping. Each begins as its authors have it: ME-TRPO with its own policy, the others at random.
    """
    base = PRESETS["mb-mpo"]["half-cheetah"]
    ours = of_kind(base.system, MBMPO)
    me_trpo = METRPO(
        trpo=TRPO(damping=of_kind(ours.outer, MetaTRPO).trust.damping),
        model=ours.model,
        fit=ours.fit,
        parallel=ours.tasks,
        collect=200,
        episodes=2 * ours.tasks * ours.episodes,
        horizon=ours.horizon,
        policy_steps=ours.meta_steps,
        validate_every=ours.meta_steps + 1,  # never
        capacity=ours.capacity,
    )
    mpc = RandomShootingMPC(
        model=replace(ours.model, elites=1),  # it plans in the best of the five
        fit=ours.fit,
        planner=MPC(search=RandomShooting(candidates=1_000), horizon=10),
        parallel=ours.tasks,
        warmup=ours.warmup,
        capacity=ours.capacity,
    )
    free = replace(base, steps=5_000_000, chunk=1, eval_every=250_000)
    return {
        mbmpo.METHOD: base,
        "ME-TRPO": replace(base, system=me_trpo),
        "MPC-RS": replace(base, system=mpc, eval_every=12_000),
        "TRPO": replace(free, system=TrustRegionPolicyOptimisation(parallel=50, collect=200)),
        "PPO": replace(free, system=ProximalPolicyOptimisation(parallel=50, collect=200)),
    }


def _with_rate(system: MBMPO, rate: float) -> MBMPO:
    """MB-MPO with another inner step."""
    return replace(system, outer=replace(system.outer, inner=replace(system.outer.inner, rate=rate)))


def mbmpo_variants() -> Configs:
    """MB-MPO, with other inner steps, and lived with its initial policy."""
    base = PRESETS["mb-mpo"]["half-cheetah"]
    system = of_kind(base.system, MBMPO)
    systems = {f"alpha {rate:g}": _with_rate(system, rate) for rate in (0.0, 0.01, 0.1)}
    initial = replace(system, adapted_collection=False)
    return with_systems(base, {mbmpo.METHOD: system, **systems, "initial policy collects": initial})


def _point_mass() -> Config:
    return replace(PRESETS["mb-mpo"]["point"], steps=50_000)


def disagreeing_models() -> Mapping[str, Arm]:
    """Models that are learnt; that disagree as they are made to; and, as a control, that never disagree."""
    base = _point_mass()
    system = replace(of_kind(base.system, MBMPO), warmup=1)
    return {
        "learnt models": base,
        "models of known error": FaultyModels(system, 50),
        "models that agree": FaultyModels(system, 50, bias=0.0),
    }


def tailored_data() -> Configs:
    """MB-MPO lived with policies that adapt, that adapt a lot, and that do not."""
    base = _point_mass()
    system = of_kind(base.system, MBMPO)
    systems = {
        "adapted policies collect": system,
        "adapted by alpha 0.1": _with_rate(system, 0.1),
        "initial policy collects": replace(system, adapted_collection=False),
    }
    return with_systems(base, systems)


def imagined_horizons() -> Configs:
    """As many imagined steps in short or long episodes, from anywhere, where real ones have 1,000."""
    base = replace(PRESETS["mb-mpo"]["half-cheetah"], task="half-cheetah-1000", steps=40_000, eval_every=10_000)
    system = replace(of_kind(base.system, MBMPO), capacity=40_000, starts="any")
    horizons = {f"imagined horizon {h:,}": replace(system, horizon=h, episodes=20_000 // h) for h in (50, 200, 1_000)}
    return with_systems(base, horizons)
