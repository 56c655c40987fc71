"""Named configurations of every system, as plain values."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metadyna.adapt.context import EncoderDecoder
from metadyna.adapt.gradient import GradientSteps
from metadyna.data.source import Gathering
from metadyna.errors import UserError, unknown
from metadyna.improve.abstract import AbstractLearning
from metadyna.improve.ddqn import DDQN
from metadyna.improve.execution import FeedForward
from metadyna.improve.meta import MetaPPO, MetaTRPO
from metadyna.improve.ppo import PPO
from metadyna.models.abstract import Vector
from metadyna.models.fit import Fit
from metadyna.models.gaussian import GaussianEnsemble
from metadyna.planning.acting import TreeActing
from metadyna.planning.mpc import MPC
from metadyna.policies.squashed import ActorCritic
from metadyna.runs.config import Config
from metadyna.search.cem import CEM
from metadyna.systems import SYSTEMS
from metadyna.systems.crar import CRAR
from metadyna.systems.dream import DREAM
from metadyna.systems.gmas import GMAS, FarDiscount, ModelError
from metadyna.systems.maml import EMAML, MAML, ProMP
from metadyna.systems.mbmpo import MBMPO
from metadyna.systems.mbpo import MBPO
from metadyna.systems.metrpo import METRPO
from metadyna.systems.mpc import PETS, RandomShootingMPC
from metadyna.systems.ppo import ProximalPolicyOptimisation
from metadyna.systems.rl2 import RL2
from metadyna.systems.sac import SoftActorCritic
from metadyna.systems.trpo import TrustRegionPolicyOptimisation

CODE = Config(system=DREAM(), task="city-distraction", steps=1_000_000, chunk=100, eval_every=50_000)
"""The published code (ezliu/dream): all defaults of `DREAM`."""

PAPER = replace(CODE, system=DREAM(EncoderDecoder(noise=0.1**0.5, encoder_hidden=256), penalty=0.01))
"""The published text where it differs from the code: ρ² = 0.1, c = 0.01, a two-layer encoder."""

CODE_FF = replace(CODE, system=DREAM(execution=FeedForward(), explore=DDQN(warmup=8_000), execute=DDQN(warmup=60)))
"""The code's first release: feed-forward execution on single steps; its 500 steps of warm-up are about 60 episodes."""

_BRISK = DDQN(
    learning_rate=7e-4,
    update_every=16,
    warmup=500,
    target_period=1_600,
    epsilon_steps=80_000,
    epsilon_end=0.1,
)

FAST = Config(
    system=DREAM(
        EncoderDecoder(noise=0.35, mixture="batch", target="online"),
        penalty=0.0,
        parallel=16,
        explore=replace(_BRISK, learning_rate=1e-3, warmup=1_000, epsilon_steps=100_000),
        execute=_BRISK,
    ),
    task="city-distraction",
    steps=1_500_000,
    chunk=50,
    eval_every=50_000,
    stop_at=0.75,
)
"""Our settings for time to solution: a quarter of the updates per step with larger step sizes, trials in parallel,
both kinds of context in every batch, quick targets, no price on exploring, and strong noise, without which the encoding
keeps what tells training problems apart and the decoder does not generalise. Ends at a test return of 0.75."""

QUICK = replace(FAST, steps=400_000, stop_at=None)
"""Minutes: far enough to see exploration begin to pay."""

_SMALL = DDQN(
    learning_rate=1e-3,
    update_every=8,
    warmup=100,
    target_period=800,
    epsilon_steps=20_000,
    epsilon_end=0.1,
)

DEMO = Config(
    system=DREAM(
        EncoderDecoder(mixture="batch", target="online"),
        parallel=8,
        penalty=0.01,
        explore=replace(_SMALL, warmup=300),
        execute=_SMALL,
    ),
    task="city-5x5",
    steps=250_000,
    chunk=50,
    eval_every=10_000,
    stop_at=0.65,
)
"""Two minutes on the small city: ends once the mean return on all tasks is 0.65 of the optimal 0.7."""

SMOKE = replace(DEMO, steps=30_000, eval_every=5_000)
"""Seconds of learning: shows that everything works, not how well."""

SAC_QUICK = Config(
    system=SoftActorCritic(capacity=100_000),
    task="pendulum",
    steps=10_000,
    chunk=500,
    eval_every=1_000,
)
"""Swing a pendulum up."""

SAC_PAPER = replace(
    SAC_QUICK,
    system=SoftActorCritic(warmup=10_000),
    task="half-cheetah",
    steps=1_000_000,
    chunk=1_000,
    eval_every=10_000,
)
"""The paper's networks and step sizes on a Gymnasium robot, after 10,000 random steps as in the authors' code."""

PETS_QUICK = Config(system=PETS(), task="pendulum", steps=2_000, chunk=1, eval_every=400)
"""Ten episodes of swinging up a pendulum, the first of them random."""

PETS_SWINGUP = replace(
    PETS_QUICK,
    system=PETS(
        model=GaussianEnsemble(members=5, elites=5, widths=(128, 128), weight_decay=(1e-4, 1e-4, 1e-4)),
        planner=MPC(search=CEM(population=200, elites=20, iterations=5), horizon=25),
    ),
    task="cartpole-swingup",
    eval_every=2_000,
)
"""Swing a pole up on a cart, with wider networks and a longer search."""

MPC_RS_QUICK = replace(PETS_QUICK, system=RandomShootingMPC())
"""The same with one deterministic network and random shooting."""

PPO_QUICK = Config(
    system=ProximalPolicyOptimisation(PPO(minibatches=64), normalise=False, parallel=4, collect=1_024, discount=0.9),
    task="pendulum",
    steps=200_000,
    chunk=5,
    eval_every=20_000,
)
"""Swing a pendulum up and hold it, on short-sighted returns and observations as they are."""

TRPO_QUICK = Config(system=TrustRegionPolicyOptimisation(), task="pendulum", steps=500_000, chunk=5, eval_every=50_000)
"""Swing a pendulum up, on batches of 10,000 steps."""

METRPO_QUICK = Config(system=METRPO(horizon=200), task="pendulum", steps=10_000, chunk=1, eval_every=1_000)
"""Swing a pendulum up in the model."""

MBPO_QUICK = Config(
    system=MBPO(
        model=GaussianEnsemble(members=5, elites=5, widths=(64, 64), weight_decay=(1e-4, 1e-4, 1e-4)),
        networks=ActorCritic(widths=(128, 128)),
        fit=Fit(max_updates=1_000),
        branches=100,
        updates=10,
        warmup=500,
        capacity=20_000,
    ),
    task="inverted-pendulum",
    steps=5_000,
    chunk=1,
    eval_every=500,
)
"""Balance a pole on MuJoCo's cart, with small networks."""

MBPO_PAPER = Config(system=MBPO(updates=40), task="half-cheetah", steps=400_000, chunk=4, eval_every=5_000)
"""The authors' settings for the half-cheetah: 7 networks of 4 x 200, branches of one step, 40 updates per step."""

CRAR_PAPER = Config(system=CRAR(), task="labyrinth", steps=500_000, chunk=10, eval_every=10_000)
"""The authors' code: an optimiser for every loss, 200,000 transitions; steps are updates."""

_JOINT = AbstractLearning(learning_rate=1e-3, schedule="joint")
_FEW = Gathering(transitions=100_000)
_DEPTHS = TreeActing(depths=(0, 1, 3))

CRAR_FAST = replace(
    CRAR_PAPER,
    system=CRAR(learning=_JOINT, data=_FEW, acting=_DEPTHS),
    steps=50_000,
)
"""One step on the sum of all losses, on 100,000 transitions."""

CRAR_QUICK = replace(CRAR_FAST, steps=20_000, eval_every=5_000)
"""Minutes: far enough to see plans begin to pay, which they do not in the first 10,000."""

_SLOWING = replace(_JOINT, successive=0.2, rate_decay=0.9, decay_period=3_000)

CRAR_SIMPLE_MAZE = replace(
    CRAR_FAST,
    system=CRAR(form=Vector(2), learning=_SLOWING, data=Gathering(5_000, time_limit=500), acting=TreeActing((0,))),
    task="simple-maze",
    steps=30_000,
    eval_every=30_000,
)
"""Two rooms as points in a plane, from ten random walks: to be looked at, since nothing there pays."""

CRAR_CATCHER = replace(
    CRAR_SIMPLE_MAZE,
    system=CRAR(form=Vector(3), learning=_SLOWING, data=Gathering(20_000)),
    task="catcher",
    eval_every=10_000,
)
"""A falling block and a paddle as points in space."""

GMAS_PAPER = replace(CRAR_PAPER, system=GMAS())
"""The text's step size, α and data, and CRAR's schedule."""

GMAS_FAST = replace(CRAR_FAST, system=GMAS(learning=_JOINT, data=_FEW, acting=_DEPTHS))
"""One step on the sum of all losses, the matching among them."""

GMAS_QUICK = replace(GMAS_FAST, steps=20_000, eval_every=5_000)
"""Minutes."""

GMAS_FAR_DISCOUNT = replace(GMAS_FAST, system=replace(GMAS_FAST.system, weighting=FarDiscount()))
"""Slopes of deep plans count less."""

GMAS_MODEL_ERROR = replace(GMAS_FAST, system=replace(GMAS_FAST.system, weighting=ModelError()))
"""Slopes of deep plans count less where the model has been wrong."""

GMAS_CATCHER = replace(CRAR_CATCHER, system=GMAS(form=Vector(3), learning=_SLOWING, data=Gathering(20_000)))
"""The same small task as CRAR's."""

_NAVIGATION = GradientSteps(rate=0.5)

_AS_MAML: Any = {"widths": (100, 100), "activation": "relu", "tasks": 20}
"""The policy's network as in MAML's code, and tasks per iteration as in its stored navigation."""

MAML_NAVIGATION = Config(
    system=MAML(MetaTRPO(_NAVIGATION), **_AS_MAML),
    task="navigation",
    steps=8_000_000,
    chunk=5,
    eval_every=800_000,
)
"""100 iterations of the published navigation: step size 0.5, 20 tasks, 20 episodes before and after the step."""

EMAML_NAVIGATION = replace(
    MAML_NAVIGATION,
    system=EMAML(MetaTRPO(_NAVIGATION, credit=True), **_AS_MAML),
)
PROMP_NAVIGATION = replace(MAML_NAVIGATION, system=ProMP(MetaPPO(_NAVIGATION), **_AS_MAML))

MBMPO_QUICK = Config(
    system=MBMPO(
        model=replace(MBMPO().model, widths=(64, 64)), fit=Fit(batch=256, max_epochs=50), horizon=200, capacity=25_000
    ),
    task="pendulum",
    steps=24_000,
    chunk=1,
    eval_every=2_000,
)
"""The pendulum, with small networks."""

MBMPO_PPO = replace(MBMPO_QUICK, system=replace(MBMPO_QUICK.system, outer=MetaPPO(GradientSteps(rate=1e-3))))
"""The same with the outer step of ProMP."""

_ALL_ROWS = Fit(batch=256, max_epochs=50, patience=20, bootstrap=False)

MBMPO_POINT = Config(
    system=MBMPO(
        model=replace(MBMPO().model, widths=(64, 64)),
        fit=_ALL_ROWS,
        episodes=50,
        horizon=30,
        collect=10,
        warmup=2_000,
        capacity=25_000,
    ),
    task="point-mass",
    steps=20_000,
    chunk=1,
    eval_every=1_500,
)
"""The plane of the authors' studies: seconds per iteration."""

MBMPO_CHEETAH = Config(
    system=MBMPO(
        model=replace(MBMPO().model, widths=(200, 200)), fit=_ALL_ROWS, episodes=50, horizon=200, capacity=25_000
    ),
    task="half-cheetah-200",
    steps=24_000,
    chunk=1,
    eval_every=4_000,
)
"""The paper's half-cheetah with 5 tasks instead of 20, 10 meta-steps instead of 30, 1,000 real steps per iteration
instead of 4,000, and networks of 2 x 200 units instead of 2 x 512."""

MAML_CHEETAH = replace(
    MAML_NAVIGATION,
    system=MAML(MetaTRPO(GradientSteps(rate=0.1)), **_AS_MAML),
    task="half-cheetah-direction",
    steps=16_000_000,
    chunk=1,
    eval_every=1_600_000,
)
"""Run forward or backward, whichever pays: 100 iterations of the paper's step size and networks."""

RL2_QUICK = Config(
    system=RL2(
        PPO(learning_rate=1e-3, epochs=4, minibatches=4, entropy_weight=0.01), width=64, episodes=10, gae_decay=0.3
    ),
    task="bandit-5x10",
    steps=1_480_000,
    chunk=10,
    eval_every=150_000,
)
"""Learn to learn which of five arms pays, in ten pulls."""

PRESETS: Mapping[str, Mapping[str, Config]] = {
    "crar": {
        "quick": CRAR_QUICK,
        "fast": CRAR_FAST,
        "paper": CRAR_PAPER,
        "simple-maze": CRAR_SIMPLE_MAZE,
        "catcher": CRAR_CATCHER,
    },
    "dream": {
        "smoke": SMOKE,
        "demo": DEMO,
        "quick": QUICK,
        "fast": FAST,
        "paper": PAPER,
        "code": CODE,
        "code-ff": CODE_FF,
    },
    "e-maml": {"quick": EMAML_NAVIGATION},
    "maml": {"quick": MAML_NAVIGATION, "half-cheetah": MAML_CHEETAH},
    "mb-mpo": {"quick": MBMPO_QUICK, "ppo": MBMPO_PPO, "point": MBMPO_POINT, "half-cheetah": MBMPO_CHEETAH},
    "promp": {"quick": PROMP_NAVIGATION},
    "gmas": {
        "quick": GMAS_QUICK,
        "fast": GMAS_FAST,
        "paper": GMAS_PAPER,
        "far-discount": GMAS_FAR_DISCOUNT,
        "model-error": GMAS_MODEL_ERROR,
        "catcher": GMAS_CATCHER,
    },
    "rl2": {"quick": RL2_QUICK},
    "sac": {"quick": SAC_QUICK, "paper": SAC_PAPER},
    "pets": {"quick": PETS_QUICK, "swingup": PETS_SWINGUP},
    "mpc-rs": {"quick": MPC_RS_QUICK},
    "ppo": {"quick": PPO_QUICK},
    "trpo": {"quick": TRPO_QUICK},
    "mbpo": {"quick": MBPO_QUICK, "paper": MBPO_PAPER},
    "me-trpo": {"quick": METRPO_QUICK},
}
"""Every preset by system; the task may be replaced."""


def preset(system: str, name: str) -> Config:
    """Look a preset up."""
    if system not in SYSTEMS:
        raise unknown("system", system, SYSTEMS)
    if system not in PRESETS:
        raise UserError(f"system '{system}' has no presets; add one to `experiments.presets.PRESETS`")
    if name not in PRESETS[system]:
        raise unknown("preset", name, PRESETS[system])
    return PRESETS[system][name]
