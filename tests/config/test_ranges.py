"""Ranges of options: every bound, the same for flags, TOML and callers in Python; misspelled choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from cli_calls import call, fine

from prmbench import config as options
from prmbench.backends import load_backend
from prmbench.config import (
    ContaminationConfig,
    ConvertConfig,
    DemoConfig,
    EvalConfig,
    ModelConfig,
    RolloutConfig,
    ScoreConfig,
    TrainConfig,
)
from prmbench.config.option_field import option
from prmbench.core.option_values import LARGEST_FLOAT, Range
from prmbench.core.records import UserError
from prmbench.data import converters, problems
from prmbench.sampling import rollout
from prmbench.studies import demo


@dataclass(frozen=True)
class Toy:
    """An option of every kind of range."""

    count: int | None = option(None, "A count.", min=1)
    share: float = option(0.5, "A share.", above=0, max=1)
    held_out: float = option(0.0, "A share.", min=0, below=1)
    clip: float = option(0.0, "A bound.", above=1, off=0)
    price: float = option(0.0, "A price.", min=0, max=1e6)
    weight: float = option(0.0, "A weight.")
    kind: Literal["alpha", "beta"] | None = option(None, "A choice.")


@pytest.mark.parametrize(
    ("name", "allowed", "refused", "words"),
    [
        ("count", [None, 1, 10**9], [0, -1], "at least 1"),
        ("share", [1e-9, 1, 1.0], [0.0, 1.0000001, -1.0], "above 0, at most 1"),
        ("held_out", [0, 0.999], [-0.001, 1.0], "at least 0, below 1"),
        ("clip", [0.0, 1.0001, 3], [1.0, 0.5, -1.0], "0, or above 1"),
        ("price", [0, 1e6], [-1e-9, 1e6 + 1], "0 to 1e+06"),
        ("weight", [-5.0, LARGEST_FLOAT], [math.nan, math.inf, 1e39, -1e39], ""),
    ],
)
def test_bounds(name: str, allowed: list[Any], refused: list[float], words: str) -> None:
    for value in allowed:
        assert getattr(options.validate(Toy(**{name: value})), name) == value
    for value in refused:
        with pytest.raises(UserError) as caught:
            options.validate(Toy(**{name: value}))
        assert str(caught.value).startswith(f"--{name.replace('_', '-')} is {value}; expected {words}")


def test_nan_is_in_no_range() -> None:
    for value in (math.nan, -math.nan):
        assert value not in Range(min=0)
        assert value not in Range(above=0, off=0)


def test_flags_toml_and_python_are_refused_alike(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("votes = 0\n")
    assert call("eval", "--votes", 0).stderr == "error: --votes is 0; expected at least 1\n"
    assert call("eval", "--config", file).stderr == f"error: {file}: votes is 0; expected at least 1\n"
    with pytest.raises(UserError, match=r"^--votes is 0; expected at least 1$"):
        options.validate(EvalConfig(votes=0))


def test_a_flag_beside_a_file_is_named_as_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 3\n")
    assert call("eval", "--config", file, "--votes", 0).stderr.startswith("error: --votes is 0;")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: load_backend(ModelConfig(model="random", seed=-1)), "--seed is -1"),
        (lambda: converters.convert(ConvertConfig(limit=0), Path("absent")), "--limit is 0"),
        (lambda: problems.report_contamination(ContaminationConfig(ngram=0)), "--ngram is 0"),
        (lambda: demo.demo(DemoConfig(seeds=0)), "--seeds is 0"),
        (lambda: rollout.run_rollout(RolloutConfig(top_p=0.0)), "--top-p is 0"),
    ],
)
def test_functions_for_callers_in_python_check_their_options(run: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; expected at least 0"),
        ({"top_p": 1.5}, "top_p is 1.5; expected above 0, at most 1"),
        ({"top_k": -1}, "top_k is -1; expected at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
        ({"max_cost": -1.0}, "max_cost is -1.0; expected at least 0"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
    ],
)
def test_ranges_of_sampling_and_cost(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        options.from_mapping(EvalConfig, values, "run.toml")
    assert str(caught.value) == f"run.toml: {message}"


def test_a_subclass_narrows_a_range() -> None:
    assert options.validate(ScoreConfig(seed=2**32)).seed == 2**32
    with pytest.raises(UserError, match="--seed is 4294967296; expected 0 to 4294967295"):
        options.validate(TrainConfig(seed=2**32))


def test_help_shows_a_range_that_nobody_would_guess() -> None:
    text = " ".join(fine("train-distrl", "--help").replace("│", " ").split())
    assert "0.01 to 1." in text
    assert "At least 0" not in text


def test_a_misspelled_choice_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^--kind is 'betta'; the nearest is 'beta', choose from alpha, beta$"):
        options.validate(Toy(kind="betta"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^--kind is 'x'; choose from alpha, beta$"):
        options.validate(Toy(kind="x"))  # type: ignore[arg-type]
    line = call("train-distrl", "--arm", "distrl_ipvrn").stderr
    assert line.startswith("error: --arm is 'distrl_ipvrn'; the nearest is 'distrl_ipvrm', choose from grpo,")
    assert "<drop|mask|keep>" in fine("train-distrl", "--help")
