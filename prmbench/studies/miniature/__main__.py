"""The studies behind leaderboards/results/miniature and miniature_rl, for maintainers.

Started by `python -m prmbench.studies.miniature`.
Only options and bars; users have `prmbench demo`, which trains fewer methods on fewer seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer

from prmbench.config import cli_options
from prmbench.config.option_field import option
from prmbench.core.progress import bars

app = typer.Typer(name="miniature", no_args_is_help=True, add_completion=False, help="The miniature studies.")
command = partial(cli_options.command, app)


@dataclass(frozen=True)
class TuneConfig:
    """`tune`."""

    worlds: Path = option(Path("runs/tuning"), "Folder for worlds, models and the table; some 100 MB a seed.")


@dataclass(frozen=True)
class StudyConfig:
    """`study`."""

    seeds: int = option(10, "How many seeds.")
    first_seed: int = option(0, "The first one.")
    worlds: Path = option(Path("runs/miniature"), "Folder for worlds and models, some 50 MB a seed.")
    results: Path = option(Path("leaderboards/results/miniature"), "Folder for the runs.")


@dataclass(frozen=True)
class RLConfig:
    """`rl`."""

    seeds: int = option(3, "How many seeds of policies and reward models.")
    first_seed: int = option(0, "The first one.")
    rl_seeds: int = option(3, "How many seeds of every arm on each of them.")
    worlds: Path = option(Path("runs/miniature"), "Folder for worlds and models, some 200 MB a seed.")
    results: Path = option(Path("leaderboards/results/miniature_rl"), "Folder for the runs.")


@dataclass(frozen=True)
class GainConfig:
    """`gain`."""

    seeds: int = option(10, "How many seeds of the study of reward models.")
    first_seed: int = option(0, "The first one.")
    rl_seeds: int = option(2, "How many seeds of every arm on each of them.")
    worlds: Path = option(Path("runs/miniature"), "Folder for worlds and models: the study's, whose models are taken.")
    results: Path = option(Path("leaderboards/results/miniature_gain"), "Folder for the runs.")


@command(StudyConfig)
def study(config: StudyConfig) -> None:
    """Train and judge every method of the study on every seed; goes on where it was interrupted."""
    from prmbench.studies.miniature import seeds
    from prmbench.studies.miniature.recipes import STUDIED

    wanted = range(config.first_seed, config.first_seed + config.seeds)
    with bars(False) as tell:
        seeds.run(wanted, STUDIED, config.worlds, config.results, tell)


@command(TuneConfig)
def tune(config: TuneConfig) -> None:
    """Train every setting of the grid on the validation seeds; tuning.json has the table, best first."""
    from prmbench.studies.miniature import tuning

    with bars(False) as tell:
        tuning.tune(config.worlds, tell)


@command(RLConfig)
def rl(config: RLConfig) -> None:
    """Train policies by every arm on every seed, in both panels, and the experiments on reward models; resumes."""
    from prmbench.studies.miniature import rl as arms

    seeds = range(config.first_seed, config.first_seed + config.seeds)
    with bars(False) as tell:
        arms.study_runs(seeds, range(config.rl_seeds), config.worlds, config.results, tell)


@command(GainConfig)
def gain(config: GainConfig) -> None:
    """Train a policy from every reward model of the study: does its F1 predict what the policy gains? Resumes."""
    from prmbench.studies.miniature import gain as arms

    seeds = range(config.first_seed, config.first_seed + config.seeds)
    with bars(False) as tell:
        arms.gain_runs(seeds, range(config.rl_seeds), config.worlds, config.results, tell)


@command(TuneConfig)
def tune_rl(config: TuneConfig) -> None:
    """Run every setting of the arms' grid on the validation seeds; tuning_rl.json has the table, best first."""
    from prmbench.studies.miniature import tuning_rl

    with bars(False) as tell:
        tuning_rl.tune(config.worlds, tell)


if __name__ == "__main__":
    app()
