"""Command line of the miniature studies, for maintainers: `python -m prmbench.studies.miniature`.

It makes the runs in leaderboards/results/miniature, miniature_rl and miniature_gain. Users have `prmbench demo`, which
trains fewer methods on fewer seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer

from prmbench.config import cli_options
from prmbench.config.option_field import option
from prmbench.core.progress import job_bars

app = typer.Typer(name="miniature", no_args_is_help=True, add_completion=False, help="The miniature studies.")
command = partial(cli_options.command, app)


@dataclass(frozen=True)
class TuneConfig:
    """Options of `tune` and `tune-rl`."""

    worlds: Path = option(Path("runs/tuning"), "Folder for worlds, models and the table; some 100 MB a seed.")


@dataclass(frozen=True)
class StudyConfig:
    """Options of `study`."""

    seeds: int = option(10, "Number of seeds.")
    first_seed: int = option(0, "The first seed.")
    worlds: Path = option(Path("runs/miniature"), "Folder for worlds and models, some 50 MB a seed.")
    results: Path = option(Path("leaderboards/results/miniature"), "Folder for the runs.")


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
    from prmbench.studies.miniature.recipes import STUDY_METHODS

    seeds = range(config.first_seed, config.first_seed + config.seeds)
    with job_bars(False) as progress:
        reward_model_study.run_study(seeds, STUDY_METHODS, config.worlds, config.results, progress)


@command(TuneConfig)
def tune(config: TuneConfig) -> None:
    """Train every setting of the grid on the validation seeds; tuning.json has the table, best first."""
    from prmbench.studies.miniature import reward_model_tuning

    with job_bars(False) as progress:
        reward_model_tuning.tune(config.worlds, progress)


@command(RLConfig)
def rl(config: RLConfig) -> None:
    """Train policies by every arm on every seed in both panels; continues where it was interrupted."""
    from prmbench.studies.miniature import rl_study, rl_tuning

    seeds = range(config.first_seed, config.first_seed + config.seeds)
    tuned = rl_tuning.chosen(config.tuning) if config.tuning else None
    with job_bars(False) as progress:
        rl_study.run_study(seeds, range(config.rl_seeds), config.worlds, config.results, progress, tuned=tuned)


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
    """Run every trial of the RL arms on the validation seeds; tuning_rl.json has all of them and the choice."""
    from prmbench.studies.miniature import rl_tuning

    with job_bars(False) as progress:
        rl_tuning.tune(config.worlds, progress)


if __name__ == "__main__":
    app()
