"""Every figure: the studies that it is drawn from, by budget, and how they are run, drawn and tabulated."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from metadyna.errors import UserError, unknown
from metadyna.experiments import abstract, arms, mbmpo, meta, plane, reports
from metadyna.experiments.presets import PRESETS
from metadyna.experiments.study import Study
from metadyna.experiments.swing import Compounding, Exploitation, FewData, Planners, Trials


@dataclass(frozen=True)
class Figure:
    """A named figure and its study at each budget."""

    title: str
    budgets: Mapping[str, Study]


def find(name: str, budget: str) -> Study:
    """Look a study up."""
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    if budget not in FIGURES[name].budgets:
        raise unknown("budget", budget, FIGURES[name].budgets)
    return FIGURES[name].budgets[budget]


def reproduce(
    study: Study, out: Path, seeds: int | None = None, only: str | None = None, first_seed: int = 0
) -> list[Path]:
    """Run what is missing, then draw and tabulate it; returns the paths of what was written.

    With `only`, the name of an arm, just that arm's seeds from the first on are run, and nothing is drawn.
    """
    count, out = study.seeds if seeds is None else seeds, Path(out)
    if only is not None:
        chosen = range(first_seed, first_seed + count)
        study.conduct(out, only, chosen)
        return [study.record(out, only, seed) for seed in chosen]
    if first_seed:
        raise UserError("a figure is drawn of seeds 0, 1, …; --first-seed goes with --only")
    least = min(2, study.seeds)
    if count < least:
        reason = "gives no interval" if least == 2 else "runs nothing"
        raise UserError(f"seeds = {count} {reason}; reproduce needs at least {least}")
    records = {arm: study.conduct(out, arm, range(count)) for arm in study.arms}
    folder = out / study.name
    folder.mkdir(parents=True, exist_ok=True)
    return study.report(records, folder, study.name)


# --------------------------------------------------------------------------------------------------- studies


def _tenfold(quick: Study) -> Mapping[str, Study]:
    """The full budget has ten times the seeds."""
    return {"quick": quick, "full": replace(quick, name=f"{quick.name}-full", seeds=10 * quick.seeds)}


def _ten(quick: Study) -> Mapping[str, Study]:
    """The full budget has ten seeds."""
    return {"quick": quick, "full": replace(quick, name=f"{quick.name}-full", seeds=10)}


def _dream_bus(name: str, preset: str) -> Study:
    base = PRESETS["dream"][preset]
    title = f"DREAM on {base.task}: return on all test tasks"
    report = partial(reports.learning, title=title, task=base.task)
    return Study(name, arms.ablations(base), 3, report, company=True)


PETS_TRIALS = Study(
    "pets-trials",
    {"pendulum": Trials()},
    seeds=3,
    report=partial(
        reports.lines,
        title="PETS on the pendulum after one random episode",
        x=range(1, 1 + Trials().episodes),
        xlabel="planned episode",
        ylabel="return",
    ),
)

PLANNERS = Study(
    "planners",
    {"pendulum": Planners()},
    seeds=3,
    report=partial(reports.bars, title="Planning in one model of the pendulum", ylabel="return of an episode"),
)

COMPOUNDING = Study(
    "compounding-error",
    {"pendulum": Compounding()},
    seeds=3,
    report=partial(
        reports.lines,
        title="Predicting the pendulum without looking",
        x=range(1, 1 + Compounding().horizon),
        xlabel="steps",
        ylabel="root mean squared error",
        log=True,
    ),
)

EXPLOITATION = Study(
    "exploitation-gap",
    {"pendulum": Exploitation()},
    seeds=3,
    report=partial(
        reports.bars,
        title="A model that has seen a quarter of the torque, planned with all of it",
        ylabel="promised - kept return of 25 steps",
    ),
)

FEW_DATA = Study(
    "few-data",
    {"ensemble of 5": FewData(), "single network": FewData(members=1, bootstrap=False)},
    seeds=20,
    report=partial(
        reports.pairs,
        title="Planning in a model of few transitions of the pendulum",
        unit="data set",
    ),
)

ROLLOUT_LENGTH = Study(
    "rollout-length",
    arms.branch_lengths(),
    seeds=3,
    report=partial(
        reports.learning,
        title="MBPO on the pendulum: as many imagined steps in short or long branches",
        task="pendulum",
    ),
    company=True,
)

HALF_CHEETAH = Study(
    "half-cheetah-10k",
    arms.first_steps_of_the_half_cheetah(),
    seeds=3,
    report=partial(reports.learning, title="HalfCheetah-v5: the first 10,000 steps", task="half-cheetah"),
    company=True,
)

SAMPLE_EFFICIENCY = Study(
    "sample-efficiency",
    arms.learners_of_the_pendulum(),
    seeds=3,
    report=partial(reports.learning, title="Pendulum: return by environment steps", task="pendulum", log_steps=True),
    company=True,
)

_MAZES = arms.gradient_matching(30_000, trained=(1, 3), planned=(0, 1, 3))

LABYRINTHS = Study(
    "gmas-fig1",
    _MAZES,
    seeds=5,
    measure=abstract.measure,
    report=abstract.panels,
)
LABYRINTHS_FULL = Study(
    "gmas-fig1-full",
    arms.gradient_matching(50_000, trained=(0, 1, 2, 3, 5), planned=abstract.DEPTHS),
    seeds=10,
    measure=abstract.measure,
    report=abstract.panels,
)
"""CRAR and GMAS, whose runs other figures draw too."""


def _slopes_of(runs: Study, name: str) -> Study:
    """What the models of another study know."""
    return replace(runs, name=name, report=abstract.slopes, runs_of=runs.name)


CONTROLS = replace(
    LABYRINTHS,
    name="crar-controls",
    arms=arms.controls(_MAZES[abstract.BASELINE]),
    report=abstract.controls,
    runs_of=LABYRINTHS.name,
)

ONE_BY_ONE = replace(
    LABYRINTHS,
    name="crar-one-by-one",
    arms=arms.one_by_one(_MAZES[abstract.BASELINE]),
    seeds=3,
    report=abstract.controls,
)

PORTRAITS = Study("crar-abstract", arms.small_tasks(), seeds=1, measure=abstract.portray, report=abstract.portraits)


def _navigation(name: str, seeds: int, steps: int) -> Study:
    return Study(name, arms.navigators(steps), seeds, measure=meta.measure, report=meta.navigation)


RIVALS = Study("mbmpo-curves", arms.mbmpo_and_rivals(), seeds=3, measure=mbmpo.measure, report=mbmpo.rivals)

VARIANTS = replace(RIVALS, name="mbmpo-alpha", arms=arms.mbmpo_variants(), report=mbmpo.variants, runs_of=RIVALS.name)

REGULARISATION = Study(
    "mbmpo-regularisation",
    arms.disagreeing_models(),
    seeds=3,
    measure=plane.survey_run,
    report=plane.regularisation,
)

TAILORED = Study("mbmpo-tailored", arms.tailored_data(), seeds=3, measure=plane.survey_run, report=plane.tailored)

LONG_HORIZONS = Study(
    "mbmpo-long-horizon",
    arms.imagined_horizons(),
    seeds=2,
    measure=mbmpo.measure_open_loop,
    report=mbmpo.long_horizons,
)

FIGURES: Mapping[str, Figure] = {
    "dream-bus": Figure(
        "DREAM and its ablations on the distracting bus grid",
        {"quick": _dream_bus("dream-bus", "quick"), "full": _dream_bus("dream-bus-full", "paper")},
    ),
    "pets-trials": Figure(
        "PETS on the pendulum, episode by episode, beside planning on the true dynamics", _tenfold(PETS_TRIALS)
    ),
    "planners": Figure(
        "CEM, random shooting and a short horizon on one learnt model of the pendulum", _tenfold(PLANNERS)
    ),
    "compounding-error": Figure("Open-loop error of a learnt model by horizon", _tenfold(COMPOUNDING)),
    "exploitation-gap": Figure(
        "What a model promises minus what is kept, for random and for planned sequences", _tenfold(EXPLOITATION)
    ),
    "few-data": Figure(
        "An ensemble and a single network on the same few transitions, planned from the same starts",
        _tenfold(FEW_DATA),
    ),
    "rollout-length": Figure("Short against long imagined branches of MBPO on the pendulum", _ten(ROLLOUT_LENGTH)),
    "half-cheetah-10k": Figure("MBPO and SAC on the half-cheetah at 10,000 steps", _ten(HALF_CHEETAH)),
    "sample-efficiency": Figure(
        "Model-based and model-free learning of the pendulum by environment steps", _ten(SAMPLE_EFFICIENCY)
    ),
    "gmas-fig1": Figure(
        "CRAR and GMAS on mazes never seen, by distance, depth of training and depth of planning",
        {"quick": LABYRINTHS, "full": LABYRINTHS_FULL},
    ),
    "crar-controls": Figure(
        "CRAR with more data, with states less driven apart, and with smaller steps", {"quick": CONTROLS}
    ),
    "crar-one-by-one": Figure(
        "CRAR with an optimiser for every loss, with states driven apart as much as by default, and less",
        {"quick": ONE_BY_ONE},
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
        {"quick": RIVALS},
    ),
    "mbmpo-alpha": Figure(
        "MB-MPO with larger, smaller and no inner steps, and lived with its initial policy", {"quick": VARIANTS}
    ),
    "mbmpo-regularisation": Figure(
        "Where MB-MPO's models disagree, and where its policy gives way to an inner step", {"quick": REGULARISATION}
    ),
    "mbmpo-tailored": Figure(
        "Where MB-MPO's data lie and its models are wrong, lived with adapted policies or not", {"quick": TAILORED}
    ),
    "mbmpo-long-horizon": Figure(
        "MB-MPO on episodes of 1,000 steps: return and open-loop error by the imagined horizon",
        {"quick": LONG_HORIZONS},
    ),
    "crar-abstract": Figure(
        "The simple maze and catcher in abstract spaces of two and three dimensions", {"quick": PORTRAITS}
    ),
}
"""Every figure by name."""
