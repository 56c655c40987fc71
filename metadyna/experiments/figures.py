"""Experiments that end in a figure: arms of configurations, or of measurements, run, compared and drawn."""

import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metadyna import envs
from metadyna.errors import UserError, unknown
from metadyna.experiments import abstract, mbmpo, meta
from metadyna.experiments.presets import PRESETS
from metadyna.experiments.records import Study, kept
from metadyna.experiments.swing import Compounding, Exploitation, FewData, Planners, Trials
from metadyna.improve.slopes import Distance
from metadyna.improve.trpo import TRPO
from metadyna.models.fit import Fit
from metadyna.pictures import plots
from metadyna.planning.act import TreeActing
from metadyna.planning.mpc import MPC
from metadyna.provenance import machine
from metadyna.runs import loop, stats
from metadyna.runs.config import Config, to_dict
from metadyna.search.random import RandomShooting
from metadyna.systems.mbpo import MBPO
from metadyna.systems.metrpo import METRPO
from metadyna.systems.mpc import RandomShootingMPC
from metadyna.systems.ppo import ProximalPolicyOptimisation
from metadyna.systems.sac import SoftActorCritic
from metadyna.systems.trpo import TrustRegionPolicyOptimisation


@dataclass(frozen=True)
class Experiment:
    """Arms that share a task, compared by their evaluation return; the seeds of an arm run in company."""

    name: str
    title: str
    arms: Mapping[str, Config]
    seeds: int
    log_steps: bool = False
    """Whether the curves are drawn over the logarithm of steps."""


@dataclass(frozen=True)
class Measurement:
    """Numbers by arm as a function of a seed: along a line where `x` is given, else of episodes, drawn as bars."""

    name: str
    title: str
    measure: Callable[[int], dict[str, list[float]]]
    seeds: int
    ylabel: str
    x: Sequence[int] | None = None
    xlabel: str = ""
    log: bool = False
    """Whether the values' axis is logarithmic."""


@dataclass(frozen=True)
class Figure:
    """A named figure and its experiment at each budget."""

    title: str
    budgets: Mapping[str, Experiment | Measurement | Study]


def find(name: str, budget: str) -> Experiment | Measurement | Study:
    """Look an experiment up."""
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    if budget not in FIGURES[name].budgets:
        raise unknown("budget", budget, FIGURES[name].budgets)
    return FIGURES[name].budgets[budget]


def reproduce(
    experiment: Experiment | Measurement | Study,
    out: Path,
    seeds: int | None = None,
    only: str | None = None,
    first_seed: int = 0,
) -> list[Path]:
    """Run what is missing, then draw, tabulate and record it; returns the paths of what was written.

    With `only`, the name of an arm of a `Study`, just that arm's seeds from the first on are run, and nothing is drawn.
    """
    count, out = experiment.seeds if seeds is None else seeds, Path(out)
    if only is not None:
        if not isinstance(experiment, Study):
            raise UserError(f"the arms of {experiment.name} run together; --only is for figures whose seeds run alone")
        for seed in range(first_seed, first_seed + count):
            experiment.conduct(out, only, seed)
        return [experiment.record(out, only, seed) for seed in range(first_seed, first_seed + count)]
    if first_seed:
        raise UserError("a figure is drawn of seeds 0, 1, …; --first-seed goes with --only")
    least = min(2, experiment.seeds)
    if count < least:
        reason = "gives no interval" if least == 2 else "runs nothing"
        raise UserError(f"seeds = {count} {reason}; reproduce needs at least {least}")
    folder = out / experiment.name
    if isinstance(experiment, Measurement):
        return _measure(experiment, folder, count)
    if isinstance(experiment, Study):
        records = {arm: [experiment.conduct(out, arm, seed) for seed in range(count)] for arm in experiment.arms}
        folder.mkdir(parents=True, exist_ok=True)
        return experiment.report(records, folder, experiment.name)
    results, started = {}, time.monotonic()
    for arm, config in experiment.arms.items():
        place = folder / arm.replace(" ", "-")
        print(f"{arm}: {place}")
        config = replace(config, seeds=count)
        begun = (place / "config.json").exists()
        results[arm] = loop.resume(place, config) if begun else loop.run(config, place)
        if results[arm].interrupted:
            print(f"interrupted during '{arm}'; the same command goes on from there")
            raise KeyboardInterrupt
    return write(experiment, results, folder, (time.monotonic() - started) / 60)


def write(experiment: Experiment, results: Mapping[str, loop.Result], folder: Path, minutes: float) -> list[Path]:
    """Draw and tabulate finished arms."""
    first = next(iter(experiment.arms.values()))
    references = envs.make(first.task).references()
    curves, bars = folder / f"{experiment.name}.png", folder / f"{experiment.name}-final.png"
    plots.learning_curves(
        {arm: [result.folder] for arm, result in results.items()},
        curves,
        references=references,
        title=experiment.title,
        log_steps=experiment.log_steps,
    )
    scores = {arm: np.asarray(r.evaluate().returns)[:, -1].mean(axis=-1).tolist() for arm, r in results.items()}
    plots.bars(scores, bars, references, experiment.title)
    table = folder / f"{experiment.name}.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "seeds", "steps", "mean_return", "low_95", "high_95", "returns"])
        for arm, values in scores.items():
            low, high = stats.bootstrap_interval(np.array(values), stats.mean)
            each = " ".join(f"{value:.4f}" for value in values)
            rows.writerow(
                [arm, len(values), results[arm].steps, f"{np.mean(values):.4f}", f"{low:.4f}", f"{high:.4f}", each]
            )
    record = folder / f"{experiment.name}.json"
    found = {
        "figure": experiment.name,
        "minutes_of_this_call": round(minutes, 1),
        "references": references,
        "environment": machine.environment_record(),
        "arms": {arm: to_dict(result.config) for arm, result in results.items()},
    }
    record.write_text(json.dumps(found, indent=2) + "\n")
    return [curves, bars, table, record]


def _measure(experiment: Measurement, folder: Path, seeds: int) -> list[Path]:
    """Measure every seed that has no file yet, then draw and tabulate all."""
    each = [_measured(experiment, folder / f"seed-{seed}.json", seed) for seed in range(seeds)]
    arms = {arm: np.array([one["measured"][arm] for one in each]) for arm in each[0]["measured"]}
    picture, table, record = (folder / f"{experiment.name}.{kind}" for kind in ("png", "csv", "json"))
    if experiment.x is None:
        means = {arm: values.mean(axis=1) for arm, values in arms.items()}
        plots.bars(means, picture, {}, experiment.title, experiment.ylabel)
    else:
        labels = experiment.title, experiment.xlabel, experiment.ylabel
        plots.lines(arms, experiment.x, picture, *labels, log=experiment.log)
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "x", "seeds", "mean", "low_95", "high_95", "values"])
        for arm, values in arms.items():
            columns = [("", values.mean(axis=1))] if experiment.x is None else zip(experiment.x, values.T, strict=True)
            for x, column in columns:
                low, high = stats.bootstrap_interval(column, stats.mean)
                listed = " ".join(f"{value:.5g}" for value in column)
                rows.writerow([arm, x, len(column), f"{np.mean(column):.5g}", f"{low:.5g}", f"{high:.5g}", listed])
    record.write_text(json.dumps({"figure": experiment.name, "seeds": each}, indent=2) + "\n")
    return [picture, table, record]


def _measured(experiment: Measurement, place: Path, seed: int) -> dict[str, Any]:
    """What was found for a seed, from its file if there is one."""

    def find() -> Mapping[str, Any]:
        print(f"seed {seed}: {place}")
        return experiment.measure(seed)

    return kept(place, seed, repr(experiment.measure), find)


def _dream_bus(name: str, base: Config, seeds: int) -> Experiment:
    system = base.system
    arms = {
        "DREAM": system,
        "no bottleneck": replace(system, bottleneck=None),
        "random exploration": replace(system, exploration="random"),
        "no exploration": replace(system, exploration="none"),
        "oracle ID": replace(system, oracle=True),
    }
    title = f"DREAM on {base.task}: return on all test tasks"
    return Experiment(name, title, {arm: replace(base, system=s, stop_at=None) for arm, s in arms.items()}, seeds)


def _both(quick: Measurement) -> Mapping[str, Measurement]:
    """The full budget has ten times the seeds."""
    return {"quick": quick, "full": replace(quick, name=f"{quick.name}-full", seeds=10 * quick.seeds)}


def _rollout_length(name: str, seeds: int) -> Experiment:
    base, system = PENDULUM_MBPO, PENDULUM_MBPO.system
    arms = {
        f"branches of {k}": replace(base, system=replace(system, horizon_start=k, horizon_end=k, branches=100 // k))
        for k in (1, 5, 50)
    }
    return Experiment(name, "MBPO on the pendulum: as many imagined steps in short or long branches", arms, seeds)


def _sample_efficiency(name: str, seeds: int) -> Experiment:
    arms = {
        "PETS": PRESETS["pets"]["quick"],
        "MPC-RS": PRESETS["mpc-rs"]["quick"],
        "MBPO": PENDULUM_MBPO,
        "SAC": PRESETS["sac"]["quick"],
        "PPO": PRESETS["ppo"]["quick"],
        "TRPO": PRESETS["trpo"]["quick"],
    }
    return Experiment(name, "Pendulum: return by environment steps", arms, seeds, log_steps=True)


def _half_cheetah(name: str, seeds: int) -> Experiment:
    base = replace(PRESETS["sac"]["paper"], steps=10_000, eval_every=1_000)
    sac = SoftActorCritic(warmup=1_000, capacity=20_000)
    mbpo = MBPO(warmup=1_000, fit=Fit(max_updates=1_000), capacity=20_000, retain=1)
    arms = {
        "MBPO, 20 updates per step": replace(base, system=mbpo, chunk=1),
        "SAC, 1 update per step": replace(base, system=sac, chunk=500),
        "SAC, 20 updates per step": replace(base, system=replace(sac, updates_per_step=20), chunk=500),
    }
    return Experiment(name, "HalfCheetah-v5: the first 10,000 steps", arms, seeds)


def _gradient_matching(name: str, seeds: int, steps: int, trained: tuple[int, ...], planned: tuple[int, ...]) -> Study:
    """CRAR beside GMAS with both distances, each at some depths of training, on the same data and test mazes."""
    base, acting = replace(PRESETS["crar"]["fast"], steps=steps), TreeActing(depths=planned)
    crar: Any = base.system
    gmas: Any = PRESETS["gmas"]["fast"].system
    arms = {abstract.BASELINE: replace(crar, acting=acting)}
    distances: tuple[tuple[Distance, float], ...] = (("cosine", 0.05), ("l2", 1.0))
    for distance, alpha in distances:
        for depth in trained:
            system = replace(gmas, acting=acting, distance=distance, alpha=alpha, depth=depth)
            arms[f"{distance.replace('l2', 'L2')} {depth}"] = system
    title = "CRAR and GMAS on the labyrinths"
    configs = {arm: replace(base, system=system) for arm, system in arms.items()}
    return Study(name, title, configs, seeds, abstract.measure, abstract.panels)


def _slopes_of(runs: Study, name: str) -> Study:
    """What the models of another study know."""
    return replace(runs, name=name, report=abstract.slopes, runs_of=runs.name)


def _controls_of(runs: Study, name: str) -> Study:
    """CRAR with what should help and what should not, beside the baseline of another study."""
    base: Any = runs.arms[abstract.BASELINE]
    crar: Any = base.system
    more = replace(crar.data, transitions=200_000)
    arms = {
        abstract.BASELINE: crar,
        "200,000 transitions": replace(crar, data=more),
        "200,000, beta 0.2": replace(crar, data=more, learning=replace(crar.learning, successive=0.2)),
        "rate 0.0005": replace(crar, learning=replace(crar.learning, learning_rate=5e-4)),
    }
    configs = {arm: replace(base, system=system) for arm, system in arms.items()}
    return Study(name, "Controls of CRAR", configs, runs.seeds, abstract.measure, abstract.controls, runs_of=runs.name)


def _one_by_one(runs: Study, name: str, seeds: int) -> Study:
    """CRAR with an optimiser for every loss, where users report that a small β fails (VinF/deer#78).

    The schedule is the authors'; step size and data are those of the other study and its controls. Updates are slower
    than on the sum of the losses, and half as many: 3 % of the authors'.
    """
    base: Any = runs.arms[abstract.BASELINE]
    crar: Any = base.system
    each = replace(crar, data=replace(crar.data, transitions=200_000), learning=replace(crar.learning, schedule="each"))
    arms = {
        "beta 1": each,
        "beta 0.2": replace(each, learning=replace(each.learning, successive=0.2)),
    }
    configs = {arm: replace(base, system=system, steps=15_000, eval_every=5_000) for arm, system in arms.items()}
    return Study(name, "CRAR with an optimiser for every loss", configs, seeds, abstract.measure, abstract.controls)


def _portraits(name: str) -> Study:
    arms = {"simple maze": PRESETS["crar"]["simple-maze"], "catcher": PRESETS["crar"]["catcher"]}
    return Study(name, "Abstract spaces of CRAR", arms, 1, abstract.portray, abstract.portraits)


def _navigation(name: str, seeds: int, steps: int) -> Study:
    """MAML with exact and with first-order meta-gradients, its kin, and a policy that is trained without adapting."""
    base = PRESETS["maml"]["quick"]
    system: Any = base.system
    inner = system.learner.inner
    arms = {
        "MAML": inner,
        "first order": replace(inner, first_order=True),
        "no adaptation in training": replace(inner, steps=0),
    }
    learners = {arm: replace(system.learner, inner=inner) for arm, inner in arms.items()}
    configs = {arm: replace(base, system=replace(system, learner=learner)) for arm, learner in learners.items()}
    configs |= {"E-MAML": PRESETS["e-maml"]["quick"], "ProMP": PRESETS["promp"]["quick"]}
    configs = {arm: replace(config, steps=steps, eval_every=steps) for arm, config in configs.items()}
    return Study(name, "MAML on 2-D navigation", configs, seeds, meta.measure, meta.navigation)


def _mbmpo_rivals(name: str, seeds: int) -> Study:
    """MB-MPO and others on its half-cheetah.

    Rivals with models have the same networks, fits and real data kept; ME-TRPO as many imagined steps and policy steps
    per 1,000 real ones (but for the 5 % with which MB-MPO adapts the policies that it lives with), no validation, and
    MB-MPO's damping. Each begins as its authors have it: ME-TRPO with its own policy, the others at random.
    """
    base = PRESETS["mb-mpo"]["half-cheetah"]
    ours: Any = base.system
    me_trpo = METRPO(
        learner=TRPO(damping=ours.learner.trust.damping),
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
    arms = {
        mbmpo.METHOD: base,
        "ME-TRPO": replace(base, system=me_trpo),
        "MPC-RS": replace(base, system=mpc, eval_every=12_000),
        "TRPO": replace(free, system=TrustRegionPolicyOptimisation(parallel=50, collect=200)),
        "PPO": replace(free, system=ProximalPolicyOptimisation(parallel=50, collect=200)),
    }
    return Study(name, "MB-MPO beside rivals on the half-cheetah", arms, seeds, mbmpo.measure, mbmpo.rivals)


def _mbmpo_variants(runs: Study, name: str) -> Study:
    """MB-MPO with other inner steps, or lived with its initial policy, beside the runs of another study."""
    base: Any = runs.arms[mbmpo.METHOD]
    learner = base.system.learner
    systems = {
        f"alpha {rate:g}": replace(base.system, learner=replace(learner, inner=replace(learner.inner, rate=rate)))
        for rate in (0.0, 0.01, 0.1)
    }
    systems["initial policy collects"] = replace(base.system, adapted_collection=False)
    arms = {mbmpo.METHOD: base, **{arm: replace(base, system=system) for arm, system in systems.items()}}
    title = "MB-MPO by the step size of adaptation"
    return Study(name, title, arms, runs.seeds, mbmpo.measure, mbmpo.variants, runs_of=runs.name)


def _point_mass() -> Config:
    return replace(PRESETS["mb-mpo"]["point"], steps=50_000)


def _mbmpo_regularisation(name: str, seeds: int) -> Study:
    """Models that are learnt; that disagree as they are made to; and, as a control, that never disagree."""
    base = _point_mass()
    system: Any = replace(base.system, warmup=1)
    arms = {
        "learnt models": base,
        "models of known error": mbmpo.FaultyModels(system, 50),
        "models that agree": mbmpo.FaultyModels(system, 50, bias=0.0),
    }
    title = "MB-MPO's policy where models disagree"
    return Study(name, title, arms, seeds, mbmpo.survey_run, mbmpo.regularisation)


def _mbmpo_tailored(name: str, seeds: int) -> Study:
    base = _point_mass()
    system: Any = base.system
    far = replace(system, learner=replace(system.learner, inner=replace(system.learner.inner, rate=0.1)))
    arms = {
        "adapted policies collect": base,
        "adapted by alpha 0.1": replace(base, system=far),
        "initial policy collects": replace(base, system=replace(system, adapted_collection=False)),
    }
    return Study(name, "The data of MB-MPO", arms, seeds, mbmpo.survey_run, mbmpo.tailored)


def _mbmpo_long(name: str, seeds: int) -> Study:
    """As many imagined steps in short or long episodes, from anywhere, where real ones have 1,000."""
    base = replace(PRESETS["mb-mpo"]["half-cheetah"], task="half-cheetah-1000", steps=40_000, eval_every=10_000)
    system: Any = replace(base.system, capacity=40_000, starts="any")
    arms = {
        f"imagined horizon {h:,}": replace(base, system=replace(system, horizon=h, episodes=20_000 // h))
        for h in (50, 200, 1_000)
    }
    return Study(name, "MB-MPO by the imagined horizon", arms, seeds, mbmpo.measure_open_loop, mbmpo.long_horizons)


MBMPO_RIVALS = _mbmpo_rivals("mbmpo-curves", 3)

LABYRINTHS = _gradient_matching("gmas-fig1", 5, 30_000, (1, 3), (0, 1, 3))
LABYRINTHS_FULL = _gradient_matching("gmas-fig1-full", 10, 50_000, (0, 1, 2, 3, 5), abstract.DEPTHS)
"""CRAR and GMAS, whose runs other figures draw too."""

PENDULUM_MBPO = replace(PRESETS["mbpo"]["quick"], task="pendulum", steps=5_000, eval_every=500)
"""MBPO with small networks, as on the inverted pendulum."""

FIGURES: Mapping[str, Figure] = {
    "dream-bus": Figure(
        "DREAM and its ablations on the distracting bus grid",
        {
            "quick": _dream_bus("dream-bus", PRESETS["dream"]["quick"], 3),
            "full": _dream_bus("dream-bus-full", PRESETS["dream"]["paper"], 3),
        },
    ),
    "pets-trials": Figure(
        "PETS on the pendulum, episode by episode, beside planning on the true dynamics",
        _both(
            Measurement(
                "pets-trials",
                "PETS on the pendulum after one random episode",
                Trials(),
                3,
                "return",
                range(1, 10),
                "planned episode",
            )
        ),
    ),
    "planners": Figure(
        "CEM, random shooting and a short horizon on one learnt model of the pendulum",
        _both(Measurement("planners", "Planning in one model of the pendulum", Planners(), 3, "return of an episode")),
    ),
    "compounding-error": Figure(
        "Open-loop error of a learnt model by horizon",
        _both(
            Measurement(
                "compounding-error",
                "Predicting the pendulum without looking",
                Compounding(),
                3,
                "root mean squared error",
                range(1, 51),
                "steps",
                log=True,
            )
        ),
    ),
    "exploitation-gap": Figure(
        "What a model promises minus what is kept, for random and for planned sequences",
        _both(
            Measurement(
                "exploitation-gap",
                "A model that has seen a quarter of the torque, planned with all of it",
                Exploitation(),
                3,
                "promised - kept return of 25 steps",
            )
        ),
    ),
    "few-data": Figure(
        "An ensemble and a single network where data are few",
        _both(
            Measurement(
                "few-data",
                "Planning in a model of few random transitions of the pendulum",
                FewData(),
                8,
                "return of an episode",
                FewData().transitions,
                "transitions",
            )
        ),
    ),
    "rollout-length": Figure(
        "Short against long imagined branches of MBPO on the pendulum",
        {"quick": _rollout_length("rollout-length", 3), "full": _rollout_length("rollout-length-full", 10)},
    ),
    "half-cheetah-10k": Figure(
        "MBPO and SAC on the half-cheetah at 10,000 steps",
        {"quick": _half_cheetah("half-cheetah-10k", 3), "full": _half_cheetah("half-cheetah-10k-full", 10)},
    ),
    "sample-efficiency": Figure(
        "Model-based and model-free learning of the pendulum by environment steps",
        {"quick": _sample_efficiency("sample-efficiency", 3), "full": _sample_efficiency("sample-efficiency-full", 10)},
    ),
    "gmas-fig1": Figure(
        "CRAR and GMAS on mazes never seen, by distance, depth of training and depth of planning",
        {"quick": LABYRINTHS, "full": LABYRINTHS_FULL},
    ),
    "crar-controls": Figure(
        "CRAR with more data, with states less driven apart, and with smaller steps",
        {"quick": _controls_of(LABYRINTHS, "crar-controls")},
    ),
    "crar-one-by-one": Figure(
        "CRAR with an optimiser for every loss, with states driven apart as much as by default, and less",
        {"quick": _one_by_one(LABYRINTHS, "crar-one-by-one", 3)},
    ),
    "crar-dream-cosine": Figure(
        "Slopes, model error and plan against Q, by depth, of the runs of gmas-fig1",
        {
            "quick": _slopes_of(LABYRINTHS, "crar-dream-cosine"),
            "full": _slopes_of(LABYRINTHS_FULL, "crar-dream-cosine-full"),
        },
    ),
    "maml-navigation": Figure(
        "MAML, E-MAML and ProMP on 2-D navigation: return after 0 to 3 gradient steps, and the paths",
        {
            "quick": _navigation("maml-navigation", 3, 8_000_000),
            "full": _navigation("maml-navigation-full", 10, 40_000_000),
        },
    ),
    "mbmpo-curves": Figure(
        "MB-MPO, ME-TRPO, MPC-RS, TRPO and PPO on the half-cheetah by real steps, beside the published points",
        {"quick": MBMPO_RIVALS},
    ),
    "mbmpo-alpha": Figure(
        "MB-MPO with larger, smaller and no inner steps, and lived with its initial policy",
        {"quick": _mbmpo_variants(MBMPO_RIVALS, "mbmpo-alpha")},
    ),
    "mbmpo-regularisation": Figure(
        "Where MB-MPO's models disagree, and where its policy gives way to an inner step",
        {"quick": _mbmpo_regularisation("mbmpo-regularisation", 3)},
    ),
    "mbmpo-tailored": Figure(
        "Where MB-MPO's data lie and its models are wrong, lived with adapted policies or not",
        {"quick": _mbmpo_tailored("mbmpo-tailored", 3)},
    ),
    "mbmpo-long-horizon": Figure(
        "MB-MPO on episodes of 1,000 steps: return and open-loop error by the imagined horizon",
        {"quick": _mbmpo_long("mbmpo-long-horizon", 2)},
    ),
    "crar-abstract": Figure(
        "The simple maze and catcher in abstract spaces of two and three dimensions",
        {"quick": _portraits("crar-abstract")},
    ),
}
"""Every figure by name."""
