"""The studies' part of a report: which runs belong to the studies, and the sheets made from them.

The command line passes SECTIONS to the report, so that the library does not depend on the studies.
"""

from __future__ import annotations

from collections.abc import Sequence

from prmbench.core.records import RunManifest
from prmbench.core.result_files import Run, canonical_json
from prmbench.metrics.equivalence import VERDICTS
from prmbench.report.figures import render_figures
from prmbench.report.sheets import Section, Sheet, sheet_name, sizes_of_subsets
from prmbench.studies.reporting import (
    policy_claims,
    policy_figures,
    policy_tables,
    policy_tuning,
    probe_models,
    reward_model_figures,
    reward_model_tables,
    tuning_tables,
)
from prmbench.studies.reporting.checkpoint_tables import joined
from prmbench.studies.reporting.column_words import COLUMN_WORDS
from prmbench.studies.reporting.policy_runs import RL_BENCHMARK, arm_of, gather_rl_study, panel_of, seeds_of
from prmbench.studies.reporting.reward_model_claims import claims
from prmbench.studies.reporting.reward_model_runs import BENCHMARK, gather_study, seed_of
from prmbench.tasks.table import Headline, Table, Value

RL_GAIN_STUDY = "miniature_gain"
"""The benchmark whose runs train a policy with every reward model of the miniature."""
GRADE_SCHOOL = ("grade_school", "bd7f6e7e0c67f020c29ca09bc98dd98d040fecd297fc1dcce25aef03b6f8c674")
"""Name and hash of the problems of leaderboards/studies/grade_school.py; other benchmarks may have the same name."""
ANSWERS = tuple(verdict.capitalize() for verdict in VERDICTS)
STUDY_WORDS = (
    "Reward models trained with equal budgets in a small world with an exact oracle, over several seeds. "
    "Results hold for this world only."
)
RL_WORDS = (
    "Policies trained by reinforcement learning on the same prompts, from the same start and with the same number of "
    "steps unless an arm's name says otherwise; the options of every arm are in a table."
)
RL_STUDY_WORDS = f"{RL_WORDS} In a small world with an exact oracle; results hold for this world only."


def is_study_run(manifest: RunManifest) -> bool:
    """Whether a run belongs to a study of this project, on which the paper's claims are tested."""
    if manifest.benchmark in (BENCHMARK, RL_BENCHMARK):
        return True
    is_known = manifest.benchmark == RL_GAIN_STUDY or (manifest.benchmark, manifest.benchmark_hash) == GRADE_SCHOOL
    return is_known and manifest.task == "distrl"


def study_sheets(runs: Sequence[Run], png: bool = False) -> tuple[Sheet, ...]:
    """Returns the sheet of reward models, and a sheet of policies for every study of them."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        if is_study_run(run.result.manifest):
            by_name.setdefault(_sheet_name(run.result.manifest), []).append(run)
    reward_models = by_name.pop(BENCHMARK, [])
    sheets = [_reward_models(reward_models, png)] if reward_models else []
    for name, policies in by_name.items():
        sheets.append(_policies(name, policies, reward_models if name == RL_BENCHMARK else (), png))
    return tuple(sheets)


def place(manifest: RunManifest) -> str:
    """Returns a description of the cell that a run fills in a study's tables; two runs of one cell are a conflict."""
    if not is_study_run(manifest):
        return ""
    if manifest.benchmark == BENCHMARK:
        return f"{BENCHMARK}: method {manifest.model}, seed {seed_of(manifest)}, task {manifest.task}"
    if manifest.task != "distrl":
        return ""
    sft, rl = seeds_of(manifest)
    panel = panel_of(manifest) or "none"
    return f"{manifest.benchmark}: arm {arm_of(manifest)} of panel {panel}, SFT seed {sft}, RL seed {rl}"


SECTIONS = (
    Section(owns_run=is_study_run, sheets=study_sheets, place=place),
    Section(owns_run=lambda _: False, sheets=joined),
)
"""The studies, and the sheet with a row per checkpoint, which takes no run from any other sheet."""


def _sheet_name(manifest: RunManifest) -> str:
    if manifest.benchmark == RL_BENCHMARK or (manifest.benchmark == BENCHMARK and probe_models.is_probe(manifest)):
        return RL_BENCHMARK
    return BENCHMARK if manifest.benchmark == BENCHMARK else sheet_name(manifest)


def _reward_models(runs: Sequence[Run], png: bool) -> Sheet:
    reward_models = gather_study(runs)
    tested = claims(reward_models)
    tuning = tuning_tables.read_tuning(runs)
    grids = (
        *reward_model_tables.grids(reward_models, tested, tuning_tables.withdrawn(tuning)),
        *tuning_tables.grids(tuning),
    )
    return Sheet(
        name=BENCHMARK,
        description=STUDY_WORDS,
        tables=grids,
        figures=render_figures(
            lambda: [*reward_model_figures.plans(reward_models, tested), *tuning_tables.plans(tuning)], png
        ),
        runs=reward_models.runs,
        rules=", ".join(reward_model_tables.RULE_WORDS),
        sizes=reward_models.sizes(),
        csv=reward_model_tables.csv(reward_models),
        json=canonical_json(
            {
                "benchmark": BENCHMARK,
                **reward_model_tables.numbers(reward_models, tested),
                "tuning": tuning_tables.numbers(tuning),
            }
        ),
        column_descriptions=COLUMN_WORDS,
        headline=headline(grids),
    )


def _policies(name: str, runs: Sequence[Run], reward_models: Sequence[Run], png: bool) -> Sheet:
    """Returns the sheet of an RL study and its probes; `reward_models`: runs that these are compared with."""
    ordered = tuple(sorted(runs, key=lambda r: (r.result.manifest.model, r.result.manifest.run_id)))
    trained = [run for run in ordered if run.result.manifest.task == "distrl"]
    policies = gather_rl_study(trained)
    probes = [run for run in ordered if run.result.manifest.task != "distrl"]
    models = gather_study([*reward_models, *probes])
    answered = policy_claims.answer_questions(policies, probe_models.questions(models))
    candidates = (
        *policy_tables.grids(policies, answered),
        probe_models.probe_grid(models),
        policy_tables.options_grid(policies),
        *policy_tuning.grids(policy_tuning.read_policy_tuning(runs)),
    )
    grids = tuple(grid for grid in candidates if any(grid.groups))
    return Sheet(
        name=name,
        description=RL_STUDY_WORDS if name == RL_BENCHMARK else RL_WORDS,
        tables=grids,
        figures=render_figures(lambda: policy_figures.plans(name, policies), png),
        runs=ordered,
        rules="none",
        sizes=sizes_of_subsets(trained),
        csv=policy_tables.csv(policies, gather_study(probes)),
        json=canonical_json({"benchmark": name, **policy_tables.numbers(policies, answered)}),
        column_descriptions=COLUMN_WORDS,
        headline=headline(grids),
    )


def headline(tables: Sequence[Table]) -> Headline | None:
    """Returns the numbers of comparisons with each verdict; None for a study without verdicts."""
    if not tables or not set(ANSWERS) <= set(tables[0].header):
        return None
    columns = [(name, tables[0].header.index(name)) for name in ANSWERS]
    cells = [(name, row[at]) for group in tables[0].groups for row in group for name, at in columns]
    counts = dict.fromkeys(ANSWERS, 0)
    for name, cell in cells:
        if isinstance(cell, Value) and cell.value is not None:
            counts[name] += int(cell.value)
    number = ", ".join(f"{count} {name.lower()}" for name, count in counts.items())
    return Headline(number, (("Asked", f"{tables[0].title} {sum(counts.values())} comparisons."),))
