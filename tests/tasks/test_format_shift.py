"""Task format_shift: judged by hand and by a slow count, compared, reported, and from the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import report_runs
from conftest import save_model
from table_texts import texts
from typer.testing import CliRunner

from prmbench import report, tasks
from prmbench.backends import Facts, load_backend
from prmbench.backends.rendered import RenderedBackend
from prmbench.cli import app
from prmbench.config import EvalConfig, ModelConfig
from prmbench.core import result_files
from prmbench.core.records import (
    EvalProtocol,
    MetricRow,
    RunManifest,
    RunResult,
    ScoredTrace,
    ScoreKind,
    StepScores,
    Trace,
    UserError,
    join_scores,
)
from prmbench.data.renderings import render_traces
from prmbench.evaluation import evaluate_traces
from prmbench.metrics import first_error, floors, intervals
from prmbench.report.load import load as load_results
from prmbench.tasks import format_shift, steps
from prmbench.tasks import format_shift as shift
from prmbench.tasks.format_shift import NAMES, base_and_rendering
from prmbench.tasks.metric_rows import resampled

Rows = Mapping[tuple[str, str, str], MetricRow]


def manifest(scores: Sequence[ScoredTrace], **facts: Any) -> RunManifest:
    told = {"task": "format_shift", "benchmark": "format_shift", "replicates": 20, "calibrate_on": "gsm8k"}
    return report_runs.manifest(scores, b"", **told | facts)


def rows_of(about: RunManifest, scores: Sequence[ScoredTrace]) -> Rows:
    rows = tasks.judge(about, scores)
    actual = {(r.subset, r.protocol, r.metric): r for r in rows}
    assert len(actual) == len(rows)
    return actual


def value(rows: Rows, subset: str, metric: str, protocol: str = "as_is/fixed:0.5") -> float:
    actual = rows[subset, protocol, metric].value
    assert actual is not None
    return actual


# --- by hand -----------------------------------------------------------------------------------------------------

LABELS = {"p1": -1, "p2": 1, "p3": 0, "p4": -1, "p5": 2}
STEPS = {"p1": 3, "p2": 3, "p3": 3, "p4": 2, "p5": 3}
PLAIN = {"p1": (9, 9, 9), "p2": (9, 2, 9), "p3": (9, 1, 2), "p4": (8, 8), "p5": (9, 9, 2)}
"""Tenths. Below one half: never, 1, 1 (too late), never, 2. One half itself is not below."""
SHIFTED: dict[str, dict[str, tuple[int, ...]]] = {
    "headers": {"p1": (9, 4, 9), "p2": (1, 2, 9), "p3": (5, 1, 9), "p4": (8, 8), "p5": (9, 9, 2)},
    "markdown": PLAIN,
    "merged": {"p1": (9, 9), "p2": (9, 1), "p3": (1, 9), "p4": (9,), "p5": (9, 3)},
    "split": {**PLAIN, "p2": ()},
    "answerless": {"p1": (9, 9, 9), "p2": (9, 2, 9), "p3": (1, 9, 9), "p4": (8, 8)},
    "prefix": {"p1": (9, 9), "p2": (9, 2), "p3": (1, 9), "p4": (8,), "p5": (9, 3)},
}
BY_HAND = {
    "": (0.8, 0.8),  # errors found 2/3, right ones passed 2/2
    "headers": (0.4, 0.8),  # 1/3 and 1/2
    "markdown": (0.8, 0.8),
    "merged": (0.8, 1.0),  # 2/3 and 1; plain verdicts in pairs: p3's 1 is 0, all found
    "split": (0.5, 0.8),  # 1/3 and 1: p2 is unscored
    "answerless": (1.0, 2 / 3),  # p5 is left out: plain 1/2 and 1
    "prefix": (0.8, 2 / 3),  # p5 is right now: 1 and 2/3; plain 1/2 and 3/3
}


def by_hand() -> list[ScoredTrace]:
    traces = [
        Trace(name, f"problem {name}", ("s",) * STEPS[name], LABELS[name], outcome=0, subset="a") for name in LABELS
    ]
    tenths = {
        f"{name}@{r}" if r else name: s for r, actual in ({"": PLAIN} | SHIFTED).items() for name, s in actual.items()
    }
    judged = [t for t in render_traces(traces) if t.id in tenths]
    scores = {
        name: StepScores(name, tuple(v / 10 for v in s), unscored="" if s else "too long") for name, s in tenths.items()
    }
    return [join_scores(t, scores[t.id]) for t in judged]


def test_f1_and_drop_by_hand() -> None:
    scores = by_hand()
    rows = rows_of(manifest(scores, fixed=0.5), scores)
    for rendering, (f1, base) in BY_HAND.items():
        subset = f"a+{rendering}" if rendering else "a"
        assert value(rows, subset, "f1") == pytest.approx(f1), rendering
        assert value(rows, subset, "f1_base") == pytest.approx(base), rendering
        assert value(rows, subset, "f1_drop") == pytest.approx(base - f1), rendering
    sizes = {subset: row.n for (subset, _, metric), row in rows.items() if metric == "f1_drop"}
    assert (sizes["a"], sizes["a+answerless"]) == (5, 4)
    turned = manifest(scores, fixed=0.5)
    turned = replace(turned, subsets=turned.subsets[::-1])
    assert value(rows_of(turned, scores[::-1]), "a+merged", "f1_drop") == pytest.approx(0.2)
    assert rows["a+split", "as_is/fixed:0.5", "f1"].unscored == 1
    every = f"avg[{','.join(f'a+{name}' for name in SHIFTED)}]"
    drops = [base - f1 for name, (f1, base) in BY_HAND.items() if name]
    assert value(rows, every, "f1_drop") == pytest.approx(np.mean(drops))
    assert {s for s, _, _ in rows if s.startswith("avg[")} == {every}


def test_floors_are_those_of_the_renderings_own_labels() -> None:
    scores = by_hand()
    rows = rows_of(manifest(scores, fixed=0.5), scores)
    one = np.ones((1, 5))
    k, prefixes = np.array([2, 2, 2, 1, 2]), np.array([-1, 1, 0, -1, -1])
    assert value(rows, "a+prefix", "f1", "floor/random") == pytest.approx(floors.random_oracle(k, prefixes).mean())
    merged = np.array([-1, 0, 0, -1, 1])
    assert value(rows, "a+merged", "f1", "floor/position") == pytest.approx(floors.position_floor(merged, one)[0])
    assert rows["a+prefix", "floor/outcome_oracle", "f1"].note == "final answers are not labelled"
    assert value(rows, "a+prefix", "f1", "floor/random") > value(rows, "a", "f1", "floor/random")


VERDICTS = {"plain": (2, -1, None, 3, 5), "merged": (1, -1, None, 2, 2), "prefix": (-1, -1, None, 2, 2)}
"""The last two name steps that are not there, which must not become right."""


def test_plain_verdicts_in_a_renderings_own_steps() -> None:
    trace = Trace("t", "p", ("s",) * 3, 2, subset="a")
    for name in ("merged", "prefix"):
        shown = next(t for t in render_traces([trace]) if t.id == f"t@{name}")
        plain = join_scores(trace, StepScores("t", verdicts=VERDICTS["plain"]))
        told = format_shift._with_rendered_labels(
            plain, join_scores(shown, StepScores(shown.id, verdicts=(0,))), name, None
        )
        assert told.verdicts == VERDICTS[name]
        assert (told.label, told.steps) == (shown.first_error, len(shown.steps))


def test_a_trace_without_its_plain_one_is_refused() -> None:
    scores = by_hand()
    with pytest.raises(UserError, match=r"subset a\+headers: 1 of its traces have no plain one in a"):
        tasks.judge(manifest(scores, fixed=0.5), [s for s in scores if s.id != "p1"])
    shifted = [s for s in scores if s.subset == "a+headers"]
    with pytest.raises(UserError, match=r"subset a\+headers: the run has no subset a,"):
        tasks.judge(manifest(shifted, fixed=0.5), shifted)


# --- against a slow count ----------------------------------------------------------------------------------------


class Drawn:
    """Scores from a hash of what is read so far, so that a prefix is scored alike with and without the rest."""

    def __init__(self, kind: ScoreKind, skill: float = 0.8) -> None:
        self.facts = Facts(kind, "none")
        self.skill = skill

    def cost(self, trace: Trace) -> int:
        return 0

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        for trace in traces:
            values = [self._one(trace, k) for k in range(len(trace.steps))]
            yield StepScores(trace.id, tuple(values), tuple(1 + len(s) % 3 for s in trace.steps))

    def _one(self, trace: Trace, k: int) -> float:
        digest = hashlib.sha256("|".join((trace.prompt, *trace.steps[: k + 1])).encode()).digest()
        found = int.from_bytes(digest[:6]) / 2**48
        return found if "wrong" not in trace.steps[k] else found * (1 - self.skill)


def traces(n: int = 30, subsets: Sequence[str] = ("gsm8k", "math")) -> list[Trace]:
    collected = []
    for subset in subsets:
        for i in range(n):
            k, label = 2 + i % 4, -1 if i % 3 == 0 else i % (2 + i % 4)
            steps = tuple(f"We add. It is {'wrong' if j == label else 'fine'}: the answer is {i}." for j in range(k))
            collected.append(
                Trace(f"{subset}-{i}", f"{subset} {i // 2}", steps, label, outcome=int(label < 0), subset=subset)
            )
    return collected


def scores_of(kind: ScoreKind, skill: float = 0.8, plain: Sequence[Trace] = ()) -> list[ScoredTrace]:
    made = render_traces(plain or traces())
    return [join_scores(t, s) for t, s in zip(made, RenderedBackend(Drawn(kind, skill)).score(made), strict=True)]


def slow_f1(right: Sequence[float], labels: Sequence[int | None], weights: Sequence[float]) -> float:
    """Weighted F1 of traces that are judged right at these rates."""
    accuracy = []
    for wrong in (True, False):
        chosen = [
            (w, r)
            for r, label, w in zip(right, labels, weights, strict=True)
            if label is not None and (label >= 0) == wrong
        ]
        accuracy.append(sum(w * r for w, r in chosen) / sum(w for w, _ in chosen))
    a, b = accuracy
    return 2 * a * b / (a + b) if a + b else 0.0


def slow_drops(
    about: RunManifest, scores: Sequence[ScoredTrace], base: str, rendering: str, protocol: EvalProtocol
) -> list[float]:
    """Of every replicate: thresholds of the plain traces, plain verdicts mapped one by one, everything counted.

    A trace has an F1's share of being judged right in every split; thresholds stay where they are in replicates.
    """
    plain = {t.id: t for t in scores if t.subset == base}
    ids = sorted(plain)
    problem, draws = resampled(about, base, [plain[i].cluster for i in ids])
    shown = {t.id.removesuffix(f"@{rendering}"): t for t in scores if t.subset == f"{base}+{rendering}"}
    there = [i for i in ids if i in shown]
    right: list[list[float]] = [[0.0] * len(there), [0.0] * len(there)]
    splits = first_error.fold_splits([plain[i].cluster for i in ids])
    for split in splits:
        fold = dict(zip(ids, split, strict=True))
        threshold = {}
        for f in set(fold.values()):
            sample = first_error.sample([plain[i] for i in ids if fold[i] != f], protocol)
            threshold[f] = first_error.best_threshold(sample, np.ones((1, len(sample))))[0]
        for number, i in enumerate(there):
            before = verdict(plain[i], protocol, threshold[fold[i]])
            if rendering == "merged":
                before = before if before < 0 else before // 2
            if rendering == "prefix":
                before = before if before < shown[i].steps else -1
            right[0][number] += (before == shown[i].label) / len(splits)
            right[1][number] += (verdict(shown[i], protocol, threshold[fold[i]]) == shown[i].label) / len(splits)
    collected = []
    labels = [shown[i].label for i in there]
    of_trace = dict(zip(ids, problem, strict=True))
    for draw in draws:
        weights = [draw[of_trace[i]] for i in there]
        one, two = (slow_f1(side, labels, weights) for side in right)
        collected.append(one - two)
    return collected


def verdict(trace: ScoredTrace, protocol: EvalProtocol, threshold: float) -> int:
    read = first_error.readout(trace, protocol)
    assert read is not None
    return first_error.first_below(read, threshold)


@pytest.mark.parametrize("key", ["prefix_sum/cross_validated", "step_mean/cross_validated", "step_sum/calibrated:math"])
@pytest.mark.parametrize("rendering", ["headers", "merged", "answerless", "prefix"])
def test_tuned_drops_and_their_intervals_equal_a_slow_count(key: str, rendering: str) -> None:
    scores = scores_of("logratio")
    about = manifest(scores, kind="logratio", calibrate_on="math")
    protocol = EvalProtocol.parse(key)
    rows = rows_of(about, scores)
    observed, *replicates = slow_drops(about, scores, "math", rendering, protocol)  # math's own cell is out of fold
    row = rows[f"math+{rendering}", key, "f1_drop"]
    assert row.value == pytest.approx(observed)
    problems = len({t.cluster for t in scores if t.subset == f"math+{rendering}"})
    assert (row.lo, row.hi) == pytest.approx(intervals.interval("difference", observed, np.array(replicates), problems))
    p = rows[f"math+{rendering}", key, "p_value"].value
    assert p == pytest.approx(intervals.two_sided_p(observed, np.array(replicates), problems))
    assert row.note == ("out_of_fold" if protocol.on else "")


def test_a_calibrated_threshold_is_the_plain_one_of_its_subset() -> None:
    scores = scores_of("prob")
    rows = rows_of(manifest(scores), scores)
    plain = [t for t in scores if t.subset == "gsm8k"]
    protocol = EvalProtocol.parse("as_is/calibrated:gsm8k")
    tuned = float(first_error.best_threshold(first_error.sample(plain, protocol), np.ones((1, len(plain))))[0])
    fixed = rows_of(manifest(scores, extra_protocols=(f"as_is/fixed:{tuned!r}",)), scores)
    for rendering in NAMES:
        subset = format_shift.rendered_name("math", rendering)
        told = value(rows, subset, "f1", "as_is/calibrated:gsm8k")
        assert told == pytest.approx(value(fixed, subset, "f1", EvalProtocol("as_is", "fixed", at=tuned).key))
    in_sample = rows_of(manifest(scores, extra_protocols=("as_is/calibrated_in_sample:gsm8k",)), scores)
    assert value(in_sample, "gsm8k+headers", "f1", "as_is/calibrated_in_sample:gsm8k") == pytest.approx(
        value(fixed, "gsm8k+headers", "f1", EvalProtocol("as_is", "fixed", at=tuned).key)
    )


def test_an_oracle_is_tuned_in_each_format() -> None:
    scores = scores_of("prob")
    rows = rows_of(manifest(scores), scores)
    for rendering in ("headers", "prefix"):
        own = [replace(t, subset="math") for t in scores if t.subset == f"math+{rendering}"]
        alone = replace(manifest(own), task="steps", benchmark="processbench")
        best = {(r.subset, r.protocol, r.metric): r for r in tasks.judge(alone, own)}
        assert value(rows, f"math+{rendering}", "f1", "as_is/oracle") == value(best, "math", "f1", "as_is/oracle")


def test_plain_rows_are_those_of_step_f1() -> None:
    scores = scores_of("logratio")
    rows = rows_of(manifest(scores, kind="logratio"), scores)
    plain = [s for s in scores if "+" not in s.subset]
    about = replace(manifest(plain, kind="logratio"), task="steps", benchmark="processbench")
    known = [r for r in tasks.judge(about, plain) if r.metric in ("f1", "mdd") and "in_sample" not in r.protocol]
    known = [r for r in known if not r.protocol.startswith("floor/random_")]  # random scores know of no plain traces
    assert len(known) > 50
    for row in known:
        assert rows[row.subset, row.protocol, row.metric] == row
    keys = [p.key for p in steps.eval_protocols(about) if "in_sample" not in p.key]
    assert {value(rows, "math", "f1_drop", key) for key in keys} == {0.0}


@pytest.mark.parametrize("kind", ["logratio", "prob", "value"])
def test_what_reads_forwards_loses_nothing_to_a_missing_rest(kind: ScoreKind) -> None:
    scores = scores_of(kind)
    rows = rows_of(manifest(scores, kind=kind, fixed=0.3), scores)
    drops = {
        key: row
        for key, row in rows.items()
        if "+prefix" in key[0] and key[2] == "f1_drop" and "+headers" not in key[0]
    }
    assert len(drops) == 3 * len(tasks.protocol_keys(manifest(scores, kind=kind, fixed=0.3)))
    for row in drops.values():
        assert (row.value, row.lo, row.hi) == (0.0, 0.0, 0.0)
    assert any(row.value for key, row in rows.items() if "+headers" in key[0] and key[2] == "f1_drop")


def test_a_causal_model_that_closes_steps_with_a_tag_loses_nothing_either(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "classes", 5, "AutoModelForTokenClassification", num_labels=2)
    (folder / "prm.json").write_text(json.dumps({"backend": "token_cls", "tag": "<extra_0>"}))
    made = render_traces(traces(12), ("prefix", "headers"))
    backend = RenderedBackend(load_backend(ModelConfig(str(folder))))
    scores = [join_scores(t, next(backend.score([t]))) for t in made]
    rows = rows_of(manifest(scores, fixed=0.5), scores)
    plain, cut = ({s.id: s.values for s in scores if s.subset == name} for name in ("math", "math+prefix"))
    for name, values in plain.items():
        assert cut[f"{name}@prefix"] == pytest.approx(values[: len(cut[f"{name}@prefix"])], abs=1e-6)
    assert len(set(plain.values())) == 12
    drops = [r.value for (subset, _, metric), r in rows.items() if "+prefix" in subset and metric == "f1_drop"]
    assert drops.count(0.0) == len(drops) - 4  # the average with another format, one a rule
    assert any(r.value for (subset, _, metric), r in rows.items() if subset == "math+headers" and metric == "f1_drop")


def test_averages_are_over_base_subsets_and_over_formats() -> None:
    scores = scores_of("prob")
    rows = rows_of(manifest(scores), scores)
    for rendering in NAMES[1:]:
        pair = f"gsm8k+{rendering}", f"math+{rendering}"
        mean = np.mean([value(rows, s, "f1_drop", "as_is/oracle") for s in pair])
        assert value(rows, f"avg[{','.join(pair)}]", "f1_drop", "as_is/oracle") == pytest.approx(mean)
    shifted = [s for s in manifest(scores).subsets if "+" in s]
    every = value(rows, f"avg[{','.join(shifted)}]", "f1_drop", "as_is/oracle")
    assert every == pytest.approx(np.mean([value(rows, s, "f1_drop", "as_is/oracle") for s in shifted]))
    assert len({s for s, _, _ in rows if s.startswith("avg[")}) == 1 + 7 + 1


def test_no_subset_to_tune_on() -> None:
    scores = scores_of("prob", plain=traces(subsets=("math",)))
    rows = rows_of(manifest(scores), scores)
    row = rows["math+headers", "as_is/calibrated:gsm8k", "f1_drop"]
    assert (row.value, row.note) == (None, "needs subset gsm8k, which this run does not have")


# --- run against run ---------------------------------------------------------------------------------------------


def run(scores: Sequence[ScoredTrace], **facts: Any) -> tuple[RunResult, Sequence[ScoredTrace]]:
    about = manifest(scores, **facts)
    return RunResult(about, tasks.judge(about, scores)), scores


def test_two_models_are_compared_in_what_they_lose() -> None:
    a, b = run(scores_of("prob")), run(scores_of("prob", 0.3), seed=7)
    rows = {(r.subset, r.protocol, r.metric): r for r in tasks.compare(a, b, [("as_is/oracle", "as_is/oracle")])}
    one, two = ({(r.subset, r.protocol, r.metric): r for r in side[0].rows} for side in (a, b))
    for metric in ("f1", "f1_drop"):
        known = [value(side, "math+merged", metric, "as_is/oracle") for side in (one, two)]
        name = f"as_is/oracle {metric}"
        assert value(rows, "math+merged", f"{metric}_difference", name) == pytest.approx(known[1] - known[0])
    assert ("math+merged", "as_is/oracle f1_drop", "p_value") in rows
    fixed = tasks.compare(a, b, [("as_is/fixed:0.2", "as_is/fixed:0.2")])  # judged when it is asked for
    assert any(r.metric == "f1_drop_difference" and r.value for r in fixed)
    with pytest.raises(UserError, match="unlike threshold rules"):
        tasks.compare(a, b, [("as_is/oracle", "as_is/cross_validated")])
    fewer = [s for s in scores_of("prob") if base_and_rendering(s.subset)[1] in ("plain", "headers")]
    with pytest.raises(UserError, match="differ in subsets"):
        tasks.compare(a, run(fewer), [("as_is/oracle", "as_is/oracle")])
    shown = width_of(report.compare_table(tasks.compare(a, b, [("as_is/oracle", "as_is/oracle")])))
    assert "all formats" in shown
    assert "math+headers" not in shown


# --- tables ------------------------------------------------------------------------------------------------------


def width_of(table: Any) -> str:
    """The table as text, 80 columns at most."""
    from rich.console import Console

    console = Console(width=80, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115 - closed with the test
    console.print(table)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    return shown


def test_the_terminal_shows_one_protocol_whole_and_many_side_by_side() -> None:
    scores = scores_of("logratio")
    result, _ = run(scores, kind="logratio")
    many = width_of(report.run_table(result))
    heads = ("plain", "head", "mark", "sep", "merg", "split", "answ", "pref", "all")
    line = next(line for line in many.splitlines() if "plain" in line)
    assert all(head in line for head in heads)
    key = "step_sum/oracle"
    one = width_of(report.run_table(result, [r for r in result.rows if r.protocol == key]))
    assert all(name in one for name in (*NAMES, "all formats"))
    row = next(
        r
        for r in result.rows
        if (r.subset, r.protocol, r.metric) == (shift.rendered_subset("avg[gsm8k,math]", "merged"), key, "f1_drop")
    )
    assert row.value is not None
    assert row.lo is not None
    line = next(line for line in one.splitlines() if line.strip().startswith("merged"))
    assert f"{100 * row.value:+.1f} [{100 * row.lo:+.1f}," in line
    single = [s for s in scores if s.subset in ("math", "math+split")]
    width_of(report.run_table(run(single, kind="logratio", calibrate_on="math")[0]))


@pytest.mark.slow
def test_a_report_regenerates_and_agrees(tmp_path: Path) -> None:
    for name, kind in (("a", "prob"), ("b", "logratio")):
        facts = {"kind": kind, "replicates": 60, "benchmark": "format_shift", "task": "format_shift"}
        report_runs.write(tmp_path / "results", scores_of(kind), run_id=name * 12, model=f"org/{name}", **facts)  # type: ignore[arg-type]
    report_runs.write(
        tmp_path / "results",
        scores_of("prob", plain=traces(subsets=("math",))),
        run_id="c" * 12,
        **facts | {"kind": "prob"},
    )
    out = tmp_path / "out"
    report.report(tmp_path / "results", out, recompute=True, formats=("csv", "json"))
    assert report.report(tmp_path / "results", out, check=True, recompute=True) == report_runs.CLEAN
    table = pd.read_csv(out / "format_shift.csv")  # averages alone: parts are in the tables and the json
    assert len(table) > 0
    assert table["subset"].str.startswith("avg[").all()
    assert load_results(tmp_path / "results", recompute=True).differing == ()
    text = (out / "format_shift.md").read_text()
    assert "## Oracle (upper bound): drop in F1 by format" in text
    assert "| Traces | Model | Readout | F1, plain | headers |" in text
    assert "Average of gsm8k, math (n=60" in text  # the figure: two of the three runs
    assert "2 of 3 runs." in text
    assert "`floor/random`" in text
    assert (out / "figures" / "format_shift-drop.svg").stat().st_size > 5000
    check_drops((out / "format_shift.json").read_text(), text)


def check_drops(told: str, text: str) -> None:
    """Every cell of the tables of drops is the row it stands for, bold where p says so; both kinds occur."""
    values = {run["model"]: run["values"] for run in json.loads(told)["runs"]}
    bold = set()
    for rule in ("Oracle (upper bound)", "Cross-validated"):
        table = text.partition(f"## {rule}: drop in F1 by format")[2].partition("## ")[0]
        key = "oracle" if rule.startswith("O") else "cross_validated"
        for line in (line for line in table.splitlines() if "| math (n=30" in line and "| org/b |" in line):
            readout, _, *cells = line.split(" | ")[2:]
            for cell, name in zip(cells, NAMES[1:], strict=False):
                stem = f"math+{name} {readout.strip('`')}/{key}"
                (drop, _, _), (p, _, _) = (values["org/b"][f"{stem} {metric}"] for metric in ("f1_drop", "p_value"))
                shown = f"{round(100 * drop, 1) + 0.0:+.1f}"
                assert cell.startswith(f"**{shown}** [" if p < 0.05 else f"{shown} ["), (rule, name, line)
                bold.add(p < 0.05)
    assert bold == {True, False}


# --- from the command line ---------------------------------------------------------------------------------------


def command(*args: str) -> str:
    actual = CliRunner().invoke(app, ["eval", "--benchmark", "format_shift", *args], catch_exceptions=False)
    assert actual.exit_code == 0, actual.output
    return actual.output


def evaluated(folder: Path) -> result_files.Run:
    """The run in a folder: it reads back, and its rows follow from its scores."""
    (path,) = folder.glob("*.json")
    loaded = load_results(folder, recompute=True)
    assert (loaded.broken, loaded.differing) == ((), ())
    return tasks.read_run(path)


def test_a_backend_at_hand_reads_the_renderings_too(tmp_path: Path) -> None:
    read: list[str] = []

    class Noted(Drawn):
        def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
            read.extend(step for t in traces for step in t.steps if t.subset.endswith("+split"))
            return super().score(traces)

    config = EvalConfig("mine", out=tmp_path, calibrate_on="math")
    plain = traces(subsets=("math",))
    made = evaluate_traces(config, render_traces(plain, ("split",)), "mini", "format_shift", Noted("prob"))
    assert made is not None
    assert {step for step in read if "is" not in step} == {"We add."}  # the first halves
    assert all(len(s.values) == s.steps and not s.unscored for s in made.scores)


def test_the_best_model_stands_first(tmp_path: Path) -> None:
    """It is what the page's overview shows of a table in which nothing is bold."""
    facts = {"task": "format_shift", "benchmark": "format_shift", "replicates": 20, "kind": "value"}
    some = traces(subsets=("math",))
    for name, skill in (("a-poor", 0.0), ("best", 2.0)):
        report_runs.write(tmp_path, scores_of("value", skill, some), run_id=name, model=f"org/{name}", **facts)
    grid = next(g for g in shift.tables(tasks.read_runs(tmp_path)) if g.label == "format_shift-cross_validated-drop")
    (lines,) = texts(grid)
    assert [line[1] for line in lines if line[2] == "`as_is`"] == ["org/best", "org/a-poor"]


def test_the_first_table_has_a_row_per_model_on_the_average_and_the_floors(tmp_path: Path) -> None:
    facts = {"task": "format_shift", "benchmark": "format_shift", "replicates": 20, "kind": "value"}
    for name, skill in (("a-poor", 0.0), ("best", 2.0)):
        report_runs.write(tmp_path, scores_of("value", skill, traces()), run_id=name, model=f"org/{name}", **facts)
    front, drops, *_ = shift.tables(tasks.read_runs(tmp_path))
    models, floors = texts(front)
    assert [line[:2] for line in models] == [(f"org/{name}", "`as_is/calibrated:gsm8k`") for name in ("best", "a-poor")]
    averages = {line[1]: line[3:] for line in texts(drops)[-1] if line[2] == "`as_is`"}
    assert {line[0]: line[2:] for line in models} == averages
    assert [line[1] for line in floors] == ["`floor/random`", "`floor/position`", "`floor/outcome_oracle`"]


@pytest.mark.slow
def test_baselines(benchmark_folder: Path, tmp_path: Path) -> None:
    gold = ("--data", str(benchmark_folder), "--out", str(tmp_path / "gold"), "--model", "gold")
    assert "vote/native" in command(*gold)
    actual = evaluated(tmp_path / "gold")
    drops = [r for r in actual.result.rows if r.metric == "f1_drop"]
    assert {r.value for r in drops} == {0.0}
    assert {r.value for r in actual.result.rows if r.metric == "f1" and r.protocol == "vote/native"} == {1.0}
    assert actual.result.manifest.n == len(actual.scores)
    assert {s.subset for s in actual.scores} == {
        format_shift.rendered_name(b, n) for b in ("gsm8k", "math") for n in NAMES
    }
    for model in ("random", "position-only"):
        command("--data", str(benchmark_folder), "--out", str(tmp_path / model), "--model", model, "--limit", "8")
        own = evaluated(tmp_path / model)
        assert {len([s for s in own.scores if s.subset == f"math{end}"]) for end in ("", "+headers", "+split")} == {8}
    some = ("--rendering", "prefix", "--subset", "math", "--protocol", "as_is/fixed:0.5", "--json")
    told = json.loads(
        command("--data", str(benchmark_folder), "--out", str(tmp_path / "s"), "--model", "random", *some)
    )
    assert told["manifest"]["subsets"] == ["math", "math+prefix"]
    assert {r["protocol"] for r in told["rows"] if not r["protocol"].startswith("floor/")} == {"as_is/fixed:0.5"}


def test_a_model(benchmark_folder: Path, tmp_path: Path, policy: Path, reference: Path) -> None:
    args = ("--data", str(benchmark_folder), "--out", str(tmp_path / "out"), "--model", str(policy), "--limit", "6")
    shown = command(*args, "--ref-model", str(reference), "--backend", "implicit")
    assert max(map(len, shown.replace(str(tmp_path), "").splitlines())) <= 80
    actual = evaluated(tmp_path / "out")
    split = [s for s in actual.scores if s.subset == "math+split"]
    assert all(len(s.values) == s.steps and not s.unscored for s in split)
    by_id = {s.id: s for s in actual.scores}
    assert by_id["math-0@headers"].values != by_id["math-0"].values


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--rendering", "bold"), "--rendering bold: choose from plain, headers, markdown"),
        (("--subset", "math+headers"), "--subset math+headers: bench has gsm8k, math"),
        (("--protocol", "step_sum/oracle"), "protocol step_sum/oracle: random has prob scores, readouts as_is"),
    ],
)
def test_mistakes_in_one_line(benchmark_folder: Path, tmp_path: Path, args: tuple[str, ...], line: str) -> None:
    full = ["eval", "--benchmark", "format_shift", "--model", "random", "--data", str(benchmark_folder), *args]
    actual = CliRunner().invoke(app, [*full, "--out", str(tmp_path / "out")])
    assert actual.exit_code == 2
    assert line in " ".join(actual.output.split())
