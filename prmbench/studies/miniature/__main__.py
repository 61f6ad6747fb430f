"""Command line of the miniature studies, for maintainers: `python -m prmbench.studies.miniature`.

It makes the runs in leaderboards/results/miniature, miniature_rl and miniature_gain. Users have `prmbench demo`, which
trains fewer methods on fewer seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import typer

from prmbench.config import cli_options
from prmbench.config.option_field import option
from prmbench.core import writing
from prmbench.core.progress import job_bars
from prmbench.core.records import UserError

app = typer.Typer(name="miniature", no_args_is_help=True, add_completion=False, help="The miniature studies.")
command = partial(cli_options.command, app)


@dataclass(frozen=True)
class TuneConfig:
    """Options of `tune-rl`."""

    worlds: Path = option(Path("runs/tuning"), "Folder for worlds, models and the table; some 100 MB a seed.")
    arm: tuple[str, ...] = option((), "Arm to tune now, repeatable (default: all that have a space).")


@dataclass(frozen=True)
class TuneRewardModelsConfig:
    """Options of `tune`."""

    worlds: Path = option(Path("runs/tuning"), "Folder for worlds, trials and the table; some 20 MB a seed.")
    seeds: int = option(4, "Number of validation seeds, from 1000 on.", min=1)
    trials: int = option(16, "Trials of every loss in the first round.", min=1)
    further_trials: int = option(8, "Trials of every loss in each later round.", min=1)
    max_trials: int = option(48, "Most trials of every loss.", min=1)
    earlier: Path | None = option(None, "A table of tuning whose settings are listed as earlier ones.")


@dataclass(frozen=True)
class StudyConfig:
    """Options of `study`."""

    seeds: int = option(10, "Number of seeds.")
    first_seed: int = option(0, "The first seed.")
    worlds: Path = option(Path("runs/miniature"), "Folder for worlds and models, some 50 MB a seed.")
    results: Path = option(Path("leaderboards/results/miniature"), "Folder for the runs.")
    tuning: Path = option(
        Path("leaderboards/results/miniature/tuning.json"), "The table of tuning that the recipes are read from."
    )


@dataclass(frozen=True)
class RLConfig:
    """Options of `rl`."""

    seeds: int = option(8, "Number of seeds of policies and reward models.")
    first_seed: int = option(0, "The first seed.")
    rl_seeds: int = option(5, "Number of RL seeds of every arm on each of them.")
    worlds: Path = option(
        Path("runs/miniature_rl"), "Folder for worlds and models, some 200 MB a seed; not that of `study`."
    )
    results: Path = option(Path("leaderboards/results/miniature_rl"), "Folder for the runs.")
    tuning: Path | None = option(None, "Table of `tune-rl` with the options of each arm (default: the preset's).")
    part: tuple[str, ...] = option((), "Part of the study, repeatable: methods, marker or variants (default: all).")


@dataclass(frozen=True)
class AblationConfig:
    """Options of `ablations`."""

    seeds: int = option(3, "Number of seeds.")
    first_seed: int = option(0, "The first seed.")
    worlds: Path = option(Path("runs/miniature"), "Folder for worlds and models: that of `study`.")
    results: Path = option(Path("leaderboards/results/miniature_rl"), "Folder for the runs.")


@dataclass(frozen=True)
class GainConfig:
    """Options of `gain`."""

    seeds: int = option(10, "Number of seeds of the reward model study.")
    first_seed: int = option(0, "The first seed.")
    rl_seeds: int = option(5, "Number of RL seeds of every arm on each of them; with one, no reliability is known.")
    worlds: Path = option(
        Path("runs/miniature"), "Folder for worlds and models: that of `study`, whose models are used."
    )
    results: Path = option(Path("leaderboards/results/miniature_gain"), "Folder for the runs.")
    tuning: Path | None = option(None, "Table of `tune-rl` with the options of each arm (default: the preset's).")


@command(StudyConfig)
def study(config: StudyConfig) -> None:
    """Train and judge every method of the study on every seed; continues where it was interrupted."""
    from prmbench.studies.miniature import reward_model_study
    from prmbench.studies.miniature.recipes import chosen_recipes, study_methods

    seeds = range(config.first_seed, config.first_seed + config.seeds)
    methods = study_methods(chosen_recipes(config.tuning))
    table = config.results / "tuning.json"
    if table.resolve() != config.tuning.resolve():
        writing.write_atomic(table, config.tuning.read_bytes())  # the report shows it beside the runs
    with job_bars(False) as progress:
        reward_model_study.run_study(seeds, methods, config.worlds, config.results, progress)


@command(TuneRewardModelsConfig)
def tune(config: TuneRewardModelsConfig) -> None:
    """Search the constants of every loss at random on the validation seeds; tuning.json has all trials.

    Every loss gets the same number of trials. Continues where it was interrupted.
    """
    from prmbench.studies.miniature import reward_model_tuning

    search = replace(
        reward_model_tuning.SEARCH, first=config.trials, further=config.further_trials, limit=config.max_trials
    )
    seeds = [reward_model_tuning.VALIDATION_SEEDS[0] + i for i in range(config.seeds)]
    earlier = reward_model_tuning.read_earlier(config.earlier) if config.earlier else {}
    with job_bars(False) as progress:
        reward_model_tuning.tune(config.worlds, seeds, search, progress, earlier=earlier)


@command(RLConfig)
def rl(config: RLConfig) -> None:
    """Train policies by every arm on every seed in both panels; continues where it was interrupted.

    Runs that the folder of results has already, packed or loose, are not made again.
    """
    from prmbench.studies.miniature import rl_study, rl_tuning

    if unknown := [part for part in config.part if part not in rl_study.PARTS]:
        raise UserError(f"--part {unknown[0]}: there is none; the parts are {', '.join(rl_study.PARTS)}")
    parts = [part for part in rl_study.PARTS if not config.part or part in config.part]
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    tuned = rl_tuning.chosen(config.tuning) if config.tuning else None
    options = (range(config.rl_seeds), config.worlds, config.results)
    with job_bars(False) as progress:
        rl_study.run_study(seeds, *options, progress, tuned=tuned, parts=parts)


@command(AblationConfig)
def ablations(config: AblationConfig) -> None:
    """Train reward models on altered data and judge them: what does a method's F1 rest on?

    Continues where it was interrupted.
    """
    from prmbench.studies.miniature import rl_study

    seeds = range(config.first_seed, config.first_seed + config.seeds)
    with job_bars(False) as progress:
        rl_study.run_ablations(seeds, config.worlds, config.results, progress)


@command(GainConfig)
def gain(config: GainConfig) -> None:
    """Train a policy with every reward model of the study: does a model's F1 predict what the policy gains?

    Continues where it was interrupted.
    """
    from prmbench.studies.miniature import gain_study, rl_tuning

    seeds = range(config.first_seed, config.first_seed + config.seeds)
    tuned = rl_tuning.chosen(config.tuning) if config.tuning else None
    with job_bars(False) as progress:
        gain_study.run_study(seeds, range(config.rl_seeds), config.worlds, config.results, progress, tuned=tuned)


@command(TuneConfig)
def tune_rl(config: TuneConfig) -> None:
    """Run every trial of the RL arms on the validation seeds; tuning_rl.json has all of them and the choice.

    Trials that a table in the folder of worlds has already are not run again.
    """
    from prmbench.studies.miniature import rl_tuning

    if unknown := [arm for arm in config.arm if arm not in rl_tuning.SPACE]:
        raise UserError(f"--arm {unknown[0]}: has no space; those with one are {', '.join(rl_tuning.SPACE)}")
    with job_bars(False) as progress:
        rl_tuning.tune(config.worlds, progress, arms=config.arm)


if __name__ == "__main__":
    app()
