"""`--help` of every command at 80 columns: panels, flags in full, real defaults; and what a shell completes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from cli_calls import call, fine
from typer.main import get_command
from typer.testing import CliRunner

from prmbench import config as options
from prmbench.backends import BASELINES, cards
from prmbench.cli import app
from prmbench.config import help_panels, presets
from prmbench.config.distrl_options import DistRLConfig
from prmbench.studies.miniature.__main__ import app as studies

COMMANDS: dict[str, Any] = getattr(get_command(app), "commands", {})
STUDIES: dict[str, Any] = getattr(get_command(studies), "commands", {})


def help_at_80(application: typer.Typer, name: str) -> str:
    return (
        CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}).invoke(application, [name, "--help"]).stdout
    )


def flags(command: Any, hidden: bool = False) -> Iterator[str]:
    """Every flag of a command that is shown, or that is hidden."""
    for parameter in command.params:
        if getattr(parameter, "hidden", False) == hidden:
            yield from (flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("-"))


def is_in(flag: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text) is not None


@pytest.mark.parametrize(
    ("application", "name"), [*((app, name) for name in COMMANDS), *((studies, name) for name in STUDIES)]
)
def test_help_shows_every_flag_and_type_in_full_at_80_columns(application: typer.Typer, name: str) -> None:
    text = help_at_80(application, name)
    command = (COMMANDS if application is app else STUDIES)[name]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert [flag for flag in flags(command) if not is_in(flag, text)] == []
    assert [flag for flag in flags(command, hidden=True) if f"│ {flag} " in text] == []  # a text may name it
    types = [p.metavar for p in command.params if p.metavar and not getattr(p, "hidden", False)]
    assert [metavar for metavar in types if metavar not in text] == []


@pytest.mark.parametrize(("name", "command"), [*COMMANDS.items(), *STUDIES.items()])
def test_every_option_has_a_panel(name: str, command: Any) -> None:
    """A new option needs an entry in prmbench/config/help_panels.py."""
    general = {"ctx", "config_file", "help"}
    panels = {p.name: getattr(p, "rich_help_panel", None) for p in command.params if p.name not in general}
    arguments = {p.name for p in command.params if not any(opt.startswith("-") for opt in p.opts)}
    assert [o for o, panel in panels.items() if o not in arguments and panel in (None, help_panels.OTHER)] == []


def test_a_field_stands_in_one_panel_only() -> None:
    names = [name for panel in help_panels.PANELS.values() for name in panel]
    assert len(names) == len(set(names))


def test_panels_come_in_their_order() -> None:
    text = help_at_80(app, "eval")
    titles = ["Model", "Data", "Hardware", "Critic", "Server", "Sampling (only --benchmark policy)", "Output"]
    places = [text.index(f"─ {title} ─") for title in titles]
    assert places == sorted(places)
    inherited = help_at_80(app, "rollout")
    assert "Sampling ─" in inherited
    assert "only --benchmark policy" not in inherited


def test_options_that_do_nothing_are_hidden_and_still_accepted() -> None:
    assert not is_in("--engine", help_at_80(app, "train-rm"))
    result = call("train-rm", "--engine", "hf", "--model", "missing/folder/x")
    assert "--data is missing" in result.stderr
    hidden = {(config, name) for config, names in help_panels.UNUSED.items() for name in names}
    assert ("RolloutConfig", "trust_remote_code") in hidden


@pytest.mark.parametrize(
    ("config", "name", "text"),
    [
        (options.TrainRMConfig, "learning_rate", "5e-07; loss step_bce, value_bce: 1e-05; preset miniature: 0.000677"),
        (options.TrainConfig, "learning_rate", "1e-05; preset miniature: 0.004"),
        (options.TrainConfig, "schedule", "cosine; preset miniature: constant"),
        (DistRLConfig, "p_min", "0.1"),
        (DistRLConfig, "group_size", "4; preset release: 16"),
        (DistRLConfig, "whiten", "on; arm spro, reinforce_q_rm: off; preset paper, miniature: off"),
        (options.TrainConfig, "limit", ""),
        (options.EvalConfig, "temperature", ""),
    ],
)
def test_defaults_are_those_of_the_presets(config: type[Any], name: str, text: str) -> None:
    assert help_panels.preset_default(config, name) == text


def test_defaults_follow_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {**presets.DEFAULT, "sft": presets.Values(0.125, 3, pairs="all")}
    monkeypatch.setitem(presets.PRESETS, "default", changed)  # type: ignore[misc]
    assert help_panels.preset_default(options.TrainConfig, "learning_rate").startswith("0.125; preset paper")


@pytest.mark.parametrize("command", ["train-sft", "train-rm", "train-distrl"])
def test_no_help_leaves_a_value_to_the_preset_without_naming_it(command: str) -> None:
    text = re.sub(r"[\s│]+", " ", help_at_80(app, command))
    assert "the preset's" not in text
    assert "default: (" in text


def complete(*words: str) -> list[str]:
    environment = {
        "_PRMBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    return CliRunner(env=environment).invoke(app, [], prog_name="prmbench").stdout.split()


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("eval", "--dtype", "b"), ["bfloat16", "bf16-products"]),
        (("train-distrl", "--credit", ""), ["gae", "rloo", "masked_step", "score"]),
        (("eval", "--benchmark", "prm"), ["prmbench_preview"]),
        (("eval", "--model", "ran"), ["random"]),
        (("eval", "--model", "launch/"), [name for name in cards.MODELS if name.startswith("launch/")]),
        (("score", "--backend", "tok"), ["token_cls"]),
        (("eval", "--rendering", "ans"), ["answerless"]),
        (("models", "GenPRM/GenPRM-7"), ["GenPRM/GenPRM-7B"]),
        (("train-",), ["train-sft", "train-rm", "train-distrl"]),
        (("eval", "--calib"), ["--calibrate-on"]),
    ],
)
def test_a_shell_completes_values(words: tuple[str, ...], values: list[str]) -> None:
    assert complete("prmbench", *words) == values


def test_a_shell_completes_baselines() -> None:
    assert set(BASELINES) <= set(complete("prmbench", "eval", "--model", ""))


def test_the_completion_script_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))  # under make it is sh
    assert "_PRMBENCH_COMPLETE" in fine("--show-completion")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from prmbench.cli import app\n"
        "try: app(['eval', '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'transformers', 'prmbench.backends'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
