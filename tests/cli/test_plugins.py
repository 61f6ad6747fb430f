"""Broken plug-ins through the command line: one line with the file and the line of the plug-in, and exit code 2."""

from __future__ import annotations

import importlib.metadata
import signal
import sys
from pathlib import Path

import pytest
from cli_calls import call, refused

from prmbench.core import plugins
from prmbench.core.records import UserError

BACKEND = """\
from prmbench.backends import Facts
from prmbench.core.records import StepScores

class Whole:
    def __init__(self, config):
        self.facts = Facts("prob", "none")
    def cost(self, trace):
        return 1
    def score(self, traces):
        for trace in traces:
            yield StepScores(trace.id, tuple(0.5 for _ in trace.steps))

class Mine(Whole):
"""
BENCHMARK = """\
from dataclasses import replace
from prmbench.data.benchmarks import BENCHMARKS, Reader
from prmbench.tasks import find_task

def read(path, split):
    raise KeyError("answer")

def judge(manifest):
    return None

ROW = replace(BENCHMARKS["processbench"], name="mine")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module `plugin_of_a_test`, which is imported anew in every test."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_imported", set())
    for name in ("plugin_of_a_test", "helper_of_a_test"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "plugin_of_a_test.py"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\ndef f(:\n", "line 2: invalid syntax"),
        ("\nimport not_there_at_all\n", "line 2: ModuleNotFoundError"),
        ("from prmbench.backends import Nothing\n", "line 1: ImportError"),
        ("x = 1\n\n1 / 0\n", "line 3: ZeroDivisionError"),
        ("import sys\nsys.exit(0)\n", "line 2: ends the program (SystemExit (0)) on import"),
        ("raise SystemExit\n", "line 1: ends the program (SystemExit) on import; put that below if __name__"),
        ("\nraise KeyboardInterrupt\n", "line 2: KeyboardInterrupt; repair it"),
        ("class End(BaseException):\n    pass\nraise End('x')\n", "line 3: End (x); repair it"),
        (f"{BACKEND}    def cost(self, trace):\n        raise SystemExit(0)\n", "line 15: SystemExit (0)"),
        (f"{BACKEND}    def score(self, traces):\n        raise KeyboardInterrupt\n", "line 15: KeyboardInterrupt"),
        ("x = 1\n", "has no Mine"),
        ("Mine = 3\n", "is a int; name a class"),
        (f"{BACKEND}    def __init__(self):\n        pass\n", "line 14: Mine.__init__ must take (config): too many"),
        (f"{BACKEND}    def __init__(self, config):\n        config.nothing\n", "line 15: AttributeError"),
        (f"{BACKEND}    def __init__(self, config):\n        pass\n", "has no facts"),
        (f"{BACKEND}    def __init__(self, config):\n        self.facts = {{}}\n", "facts is a dict"),
        (f"{BACKEND}    x = 1\ndel Whole.cost\n", "has no cost"),
        (f"{BACKEND}    def cost(self, trace):\n        return trace.length\n", "line 15: AttributeError"),
        (f"{BACKEND}    def cost(self, trace):\n        return 'x'\n", "cost() gives a str"),
        (f"{BACKEND}    def score(self):\n        return []\n", "line 14: Mine.score must take (traces): too many"),
        (f"{BACKEND}    def cost(self):\n        return 1\n", "line 14: Mine.cost must take (trace): too many"),
        ("class Mine:\n    pass\n", "--backend plugin_of_a_test:Mine: object.__init__ must take (config)"),
        (f"{BACKEND}    def score(self, traces):\n        yield {{}}['k']\n", "line 15: KeyError ('k')"),
        (f"{BACKEND}    def score(self, traces):\n        return [1.0 for _ in traces]\n", "gives a float"),
        (f"{BACKEND}    def score(self, traces):\n        return None\n", "gives a NoneType"),
        (f"{BACKEND}    def score(self, traces):\n        return []\n", "one entry for each trace"),
    ],
)
def test_a_broken_backend_is_one_line(
    module: Path, benchmark_folder: Path, tmp_path: Path, source: str, says: str
) -> None:
    module.write_text(source)
    out = tmp_path / "out"
    common = ("--model", "m", "--backend", "plugin_of_a_test:Mine", "--data", benchmark_folder)
    line = refused("eval", *common, "--out", out)
    assert says in line
    assert ", line " not in says or f"{module}, {says[:6]}" in line
    assert not list(out.glob("*.json"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("ROW = replace(ROW, reader=Reader(read))\n", "line 6: KeyError ('answer')"),
        ("ROW = replace(ROW, reader=Reader(lambda path, split: None))\n", "must give a list of prmbench.Trace"),
        ("ROW = replace(ROW, reader=Reader(lambda path: []))\n", "line 12: <lambda> must take (path, split)"),
        (
            "ROW = replace(ROW, task=replace(find_task('steps'), name='t', judge=judge))\n",
            "line 8: judge must take (manifest, scores): too many",
        ),
        ("ROW = replace(ROW, task=replace(find_task('steps'), name='u', judge=lambda m, s: 1))\n", "gives a int"),
        (
            "ROW = replace(ROW, task=replace(find_task('steps'), name='v', check_data=lambda traces: None))\n",
            "line 12: <lambda> must take (traces, source)",
        ),
        (
            "ROW = replace(ROW, reader=Reader(read, takes_fields=True))\n",
            "line 5: read must take (path, split, fields)",
        ),
        ("ROW = replace(ROW, nothing=1)\n", "line 12: TypeError"),
        ("ROW = 'processbench'\n", "is a str, not a prmbench.data.benchmarks.Benchmark"),
    ],
)
def test_a_broken_benchmark_is_one_line(
    module: Path, benchmark_folder: Path, tmp_path: Path, source: str, says: str
) -> None:
    module.write_text(BENCHMARK + source)
    common = ("--model", "random", "--benchmark", "plugin_of_a_test:ROW", "--data", benchmark_folder)
    line = refused("eval", *common, "--out", tmp_path / "out")
    assert says in line
    assert not says.startswith("line") or f"{module}, {says}" in line


def test_an_error_in_a_helper_names_the_helper(module: Path, benchmark_folder: Path, tmp_path: Path) -> None:
    module.write_text("import helper_of_a_test\n")
    (tmp_path / "helper_of_a_test.py").write_text("\n\n[][0]\n")
    line = refused("eval", "--model", "m", "--backend", "plugin_of_a_test:Mine", "--data", benchmark_folder)
    assert f"{tmp_path / 'helper_of_a_test.py'}, line 3: IndexError" in line


def test_a_module_that_is_not_there_asks_for_its_folder(module: Path, benchmark_folder: Path) -> None:
    line = refused("eval", "--model", "m", "--backend", "plugin_of_a_test:Mine", "--data", benchmark_folder)
    assert "cannot be imported" in line
    assert "is its folder on PYTHONPATH?" in line


@pytest.mark.parametrize("source", ["1 / 0\n", "x = 1\n", "raise SystemExit(0)\n"])
def test_a_broken_entry_point_is_named(module: Path, source: str) -> None:
    module.write_text(source)
    entry = importlib.metadata.EntryPoint("mine", "plugin_of_a_test:ROW", "prmbench.benchmarks")
    with pytest.raises(UserError, match=r"entry point mine \(prmbench.benchmarks\): .*plugin_of_a_test"):
        plugins.load_entry_point(entry, "prmbench.benchmarks")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_plugin_runs_is_the_users(
    module: Path, benchmark_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    module.write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    common = ("--model", "m", "--backend", "plugin_of_a_test:Mine", "--data", benchmark_folder, "--out", tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
    try:
        result = call("eval", *common)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 143
    assert "stopped; what was finished is kept" in result.stderr


def test_the_traceback_can_be_asked_for(
    module: Path, benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.write_text(f"{BACKEND}    def cost(self, trace):\n        return 1 / 0\n")
    common = ("--model", "m", "--backend", "plugin_of_a_test:Mine", "--data", benchmark_folder, "--out", tmp_path)
    monkeypatch.setenv("PRMBENCH_TRACEBACK", "1")
    result = call("eval", *common)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_an_error_of_this_package_is_no_plugin_fault(module: Path) -> None:
    module.write_text("x = 1\n")
    plugins.import_named("plugin_of_a_test:x", "--backend")
    assert plugins.plugin_fault(ValueError("x")) == ""
    assert plugins.plugin_fault(TypeError("import_named() takes 2 positional arguments but 3 were given")) == ""
