"""Damaged and random input in every reader ends in one line; benchmarks/fuzz.py has the long run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT

from prmbench import data
from prmbench.core import reading
from prmbench.core.records import UserError
from prmbench.data import converters, prompts, rollouts
from prmbench.verification.answer_region import answer_region, boxes
from prmbench.verification.extraction import extract_answers, extract_gold_answers
from prmbench.verification.latex import plain_latex
from prmbench.verification.verifiers import Claim, Verifier

pytestmark = pytest.mark.filterwarnings("ignore::prmbench.core.records.Notice")

FIELDS = [
    *(
        "id",
        "problem",
        "prompt",
        "question",
        "steps",
        "label",
        "labels",
        "completion",
        "completions",
        "answer",
        "input",
    ),
    *("task", "outcome", "group", "subset", "gold", "verifier", "metadata", "reward_model", "source_dataset", "finish"),
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(FIELDS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8), min_size=1, max_size=3)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

READERS: dict[str, Callable[[Path], Any]] = {
    "traces": lambda path: data.load("processbench", path),
    "prmbench": lambda path: data.load("prmbench_preview", path),
    "prompts": prompts.load,
    "rollouts": rollouts.read,
    "imports": converters.read,
}


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    path = ROOT / "benchmarks" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("reader", READERS)
@QUICK
@given(rows=ROWS)
def test_random_rows_are_read_or_refused_in_one_line(
    reader: str, rows: Sequence[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    _read_or_refused(READERS[reader], path)


@pytest.mark.parametrize("reader", READERS)
@QUICK
@given(content=st.binary(max_size=60))
def test_random_bytes_are_read_or_refused_in_one_line(reader: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    _read_or_refused(READERS[reader], path)
    _read_or_refused(reading.read_toml, path)


def _read_or_refused(read: Callable[[Path], Any], path: Path) -> None:
    with contextlib.suppress(UserError):
        read(path)


PIECES = st.sampled_from(
    [*"\\{}()[]$,.;=<>%^_ 019xye\n", "\\boxed{", "<think>", "</think>", "<answer>", "\\frac", "answer is "]
)


@settings(max_examples=300, deadline=None)
@given(text=st.lists(PIECES, max_size=40).map("".join))
def test_any_text_has_an_answer_or_none(text: str) -> None:
    region = answer_region(text)
    if region is not None:
        assert region in text
        assert all(box.start < box.end <= len(region) for box in boxes(region))
        extract_answers(region)
    extract_gold_answers(text)
    plain_latex(text)


def test_a_benchmark_of_mutations_finds_no_traceback(fuzz: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["--mutations", "75", "--seed", "11"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1] == "tracebacks: 0"


def test_a_benchmark_of_mutations_counts_what_it_finds(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fuzz, "targets", lambda _folder: {"one": fuzz.Target(b"[1]", ".json", fail)})
    assert fuzz.fuzz(4, 0, report=lambda _line: None) == 4


def test_workers_survive_odd_answers(fuzz: ModuleType) -> None:
    import random

    rng = random.Random(5)
    texts = ["\\boxed{" + "".join(rng.choices(fuzz.ANSWER_PIECES, k=8)) + "}" for _ in range(60)]
    with Verifier(workers=2, limit=2.0) as verifier:
        verdicts = verifier.check([Claim(text, "the moon") for text in texts])
    assert not any(verdict.outcome for verdict in verdicts)
