"""The report: tables, figures, checks. The page itself is tried in a browser in test_browser.py."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import (
    CLEAN,
    completions,
    manifest,
    scores_of,
    task_scores,
    traces,
    write,
    write_four,
    write_task,
)
from rich.console import Console
from rich.table import Table
from table_texts import texts

from prmbench.core.records import EvalProtocol, MetricRow, RunResult, ScoredTrace, Trace, UserError
from prmbench.core.result_files import Run, scores_path
from prmbench.report import compare_table, latex_tables, report, run_table
from prmbench.report.board import Board, boards
from prmbench.report.board_tables import accuracy_table, front_table, published_tables, rule_table
from prmbench.report.build import build
from prmbench.report.figures import figures, position_shares
from prmbench.report.frame import slug
from prmbench.report.load import load
from prmbench.report.markdown import markdown
from prmbench.report.page import MAX_TRACES, embed, page
from prmbench.report.verdicts import predict, thresholds, verdict_kind
from prmbench.report.viewer import choose_traces
from prmbench.tasks import OUT_OF_FOLD, compare, differences, judge, read_run, read_runs
from prmbench.tasks.published import published
from prmbench.tasks.wording import RULES

# --- hand-made runs -------------------------------------------------------------------------------------


def row(subset: str, protocol: str, f1: float | None, note: str = "", n: int = 2) -> list[MetricRow]:
    """F1 with an interval of one point to each side, and its parts."""
    ends = (None, None) if f1 is None else (f1 - 0.01, f1 + 0.01)
    parts = {"error_accuracy": 0.5, "correct_accuracy": 0.25, "mdd": 0.125}
    found = [MetricRow(subset, protocol, "f1", f1, *ends, n, 0, note)]
    return found + [MetricRow(subset, protocol, name, value, None, None, n, 0, note) for name, value in parts.items()]


def plain(name: str, subset: str, label: int, *values: float) -> ScoredTrace:
    return ScoredTrace(name, subset, label, int(label < 0), name, len(values), values=values)


TWO = [plain("g1", "gsm8k", 0, 0.1, 0.9), plain("g2", "gsm8k", -1, 0.9, 0.9)]
FOUR = [*TWO, plain("m1", "math", 1, 0.9, 0.1), plain("m2", "math", -1, 0.9, 0.9)]
KEY = "as_is/calibrated:gsm8k"


def hand_made(run_id: str, scores: list[ScoredTrace], rows: list[MetricRow], **facts: object) -> Run:
    return Run(RunResult(manifest(scores, b"", run_id=run_id, **facts), tuple(rows)), tuple(scores), Path("x"))


def average(f1: float | None, protocol: str = KEY) -> list[MetricRow]:
    return row("avg[gsm8k,math]", protocol, f1, f"gsm8k {OUT_OF_FOLD}" if protocol == KEY else "", 4)


def hand_made_board() -> Board:
    """Better model second in the input; one run on gsm8k only; a baseline; a floor."""
    chance = "floor/random_calibrated"
    floor = [*row("gsm8k", chance, 0.2), *row("math", chance, 0.1), *average(0.15, chance)]
    low = [*row("gsm8k", KEY, 0.3, OUT_OF_FOLD), *row("math", KEY, 0.4), *average(0.35), *floor]
    high = [*row("gsm8k", KEY, 0.2, OUT_OF_FOLD), *row("math", KEY, 0.6), *average(0.4), *floor]
    part = row("gsm8k", KEY, 0.99, OUT_OF_FOLD)
    base = [*row("gsm8k", KEY, 1.0, OUT_OF_FOLD), *row("math", KEY, 1.0), *average(1.0)]
    (board,) = boards(
        [
            hand_made("run-low", FOUR, low, model="a|b<i>", trained_on=("MATH",)),
            hand_made("run-part", TWO, part, model="part"),
            hand_made("run-gold", FOUR, base, model="gold", backend="baseline", signal="none"),
            hand_made("run-high", FOUR, high, model="org/high", revision="1234567890", signal="outcome"),
        ]
    )
    return board


GOLDEN = """\
## Calibrated

The threshold is tuned on one subset (named in the protocol) and applied to the others, which alone are averaged. The \
tuning subset's own cell is judged out of fold. First-error F1 in percent with its 95% interval. Bold: the best of a \
column, and what a paired \
test over problems does not tell apart from it at 5% (unadjusted; the 10 next best are tested, and what \
cannot be paired is not marked).

| Model | Protocol | Input | Trained from | gsm8k (n=2) | math (n=2) | avg of gsm8k, math (n=4) | Min. difference | \
Unscored | Run |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| org/high@1234567 | `as_is/calibrated:gsm8k` | tagged | outcome | 20.0 [19.0, 21.0]† | **60.0** [59.0, 61.0] | \
**40.0** [39.0, 41.0]† | 12.5 | 0 | run-high |
| a\\|b&lt;i&gt;§ | `as_is/calibrated:gsm8k` | tagged | steps | 30.0 [29.0, 31.0]† | 40.0 [39.0, 41.0] | \
35.0 [34.0, 36.0]† | 12.5 | 0 | run-low |
| part | `as_is/calibrated:gsm8k` | tagged | steps | **99.0** [98.0, 100.0]† | – | – | 12.5 | 0 | run-part |
|  |  |  |  |  |  |  |  |  |  |
| gold | `as_is/calibrated:gsm8k` | tagged | none | 100.0 [99.0, 101.0]† | 100.0 [99.0, 101.0] | \
100.0 [99.0, 101.0]† | 12.5 | 0 | run-gold |
|  |  |  |  |  |  |  |  |  |  |
| chance: random scores, tuned on another subset | `floor/random_calibrated` |  |  | 20.0 [19.0, 21.0] | \
10.0 [9.0, 11.0] | 15.0 [14.0, 16.0] |  |  |  |

† the threshold was tuned on this subset, so its cell is judged out of fold (5 folds by problem, ten splits), \
and no average includes it.

§ declares that it was trained on this benchmark or a part of it.
"""


def test_golden_markdown_of_a_hand_made_board() -> None:
    board = hand_made_board()
    assert markdown(rule_table(board, board.tables[0])) == GOLDEN


def test_accuracies_keep_their_order() -> None:
    board = hand_made_board()
    grid = accuracy_table(board, board.tables[0])
    assert texts(grid)[0][0][2:] == ("50.0 / 25.0†", "50.0 / 25.0", "50.0 / 25.0†")


def test_run_on_other_traces_is_marked_and_not_ranked() -> None:
    other = [plain("g1", "gsm8k", 1, 0.1, 0.9), *FOUR[1:]]  # the label of g1 differs
    rows = [*row("gsm8k", KEY, 0.9, OUT_OF_FOLD), *row("math", KEY, 0.1), *average(0.5)]
    low = [*row("gsm8k", KEY, 0.3, OUT_OF_FOLD), *row("math", KEY, 0.4), *average(0.35)]
    runs = [hand_made("a", FOUR, low), hand_made("b", other, rows, model="other"), hand_made("c", FOUR, low, model="z")]
    (table,) = boards(runs)[0].tables
    assert [line.model for line in table.rows] == ["org/model", "z", "other"]
    marks = {name: cell.marks for name, cell in table.rows[2].cells.items()}
    assert marks == {"gsm8k": "†‡", "math": "", "avg[gsm8k,math]": "†‡"}
    assert table.best("gsm8k") == 0.3
    assert table.best("math") == 0.4


@pytest.mark.parametrize(("floor", "best"), [(0.39, 0.4), (0.4, None), (0.9, None)])
def test_no_model_is_the_best_where_a_floor_is_as_high(floor: float, best: float | None) -> None:
    floors = row("gsm8k", "floor/random_calibrated", floor)
    low, high = (row("gsm8k", KEY, f1, OUT_OF_FOLD) + floors for f1 in (0.3, 0.4))
    (table,) = boards([hand_made("a", TWO, low), hand_made("b", TWO, high, model="z")])[0].tables
    assert table.best("gsm8k") == best
    bold = [
        cell for group in texts(rule_table(hand_made_board(), table)) for line in group for cell in line if "**" in cell
    ]
    assert len(bold) == (best is not None)


def test_an_average_of_fewer_subsets_has_its_own_column() -> None:
    three = [*FOUR, plain("o1", "omnimath", 0, 0.1, 0.2)]
    wide = [*row("gsm8k", KEY, 0.2), *row("avg[gsm8k,math,omnimath]", KEY, 0.1)]
    narrow = [*row("gsm8k", KEY, 0.2), *average(0.9)]
    (board,) = boards([hand_made("a", three, wide, model="wide"), hand_made("b", FOUR, narrow, model="narrow")])
    table = board.tables[0]
    assert table.columns == ("gsm8k", "avg[gsm8k,math,omnimath]", "avg[gsm8k,math]")
    assert [line.model for line in table.rows] == ["wide", "narrow"]  # 0.1 over three stands above 0.9 over two
    assert "avg[gsm8k,math,omnimath]" not in table.rows[1].cells


def test_each_threshold_rule_has_its_own_table() -> None:
    keys = ["as_is/oracle", "as_is/fixed:0.5", "as_is/native", "as_is/cross_validated", KEY]
    rows = [r for i, key in enumerate(keys) for r in row("gsm8k", key, 0.1 * i)]
    (board,) = boards([hand_made("a", TWO, rows)])
    assert [t.rule for t in board.tables] == ["calibrated", "cross_validated", "native", "fixed", "oracle"]
    assert [t.rows[0].protocol for t in board.tables] == [keys[i] for i in (4, 3, 2, 1, 0)]


def test_missing_number_shows_its_reason() -> None:
    (board,) = boards([hand_made("a", TWO, row("gsm8k", KEY, None, "no trace without an error"))])
    grid = rule_table(board, board.tables[0])
    assert texts(grid)[0][0][4] == "–"
    assert "– in gsm8k: no trace without an error." in grid.notes


# --- the whole report, built once ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write_four(root)
    return root


@pytest.fixture(scope="module")
def built(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("board")
    changed = report(results, out, formats=("csv", "tex", "json")).changed
    assert str(out / "mini.md") in changed
    return out


def write_small(root: Path) -> None:
    """One run whose report takes a second."""
    write(root, scores_of(traces(4, ("gsm8k",))), native=0.5, rules=("native",), replicates=20)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_kind_of_file_is_there(built: Path) -> None:
    names = set(contents(built))
    assert {"README.md", "report.html", "figures/mini-positions.png"} <= names
    assert {f"mini.{kind}" for kind in ("md", "csv", "tex", "json")} <= names
    assert {f"figures/mini-{name}.svg" for name in ("f1-calibrated", "f1-oracle", "accuracies", "positions")} <= names


def test_check_passes_on_what_was_just_built(results: Path, built: Path) -> None:
    assert report(results, built, check=True, recompute=True, formats=("csv", "tex", "json")) == CLEAN


def test_order_of_input_does_not_matter(results: Path, built: Path, tmp_path: Path) -> None:
    """Same runs in folders that sort the other way round, with their rows and manifest keys reversed."""
    for i, run in enumerate(reversed(read_runs(results))):
        data = json.loads(run.path.read_text())
        shuffled = {"rows": data["rows"][::-1], "manifest": dict(reversed(data["manifest"].items()))}
        target = tmp_path / "in" / f"{i}" / run.path.name
        target.parent.mkdir(parents=True)
        target.write_text(json.dumps(shuffled))
        shutil.copy(scores_path(run.path), scores_path(target))
    report(tmp_path / "in", tmp_path / "out", formats=("csv", "tex", "json"))
    assert contents(tmp_path / "out") == contents(built)


def test_check_names_changed_missing_and_left_over_files(results: Path, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(built, out)
    (out / "mini.csv").write_text((out / "mini.csv").read_text().replace("calibrated", "Calibrated", 1))
    (out / "figures" / "mini-positions.svg").unlink()
    (out / "figures" / "gone.svg").write_text("<svg/>")
    (out / "report.html").write_text("pages and PNGs are not compared")
    found = report(results, out, check=True, formats=("csv", "tex", "json")).changed
    assert [Path(line.split(": ")[0]).name for line in found] == ["mini-positions.svg", "mini.csv", "gone.svg"]


@pytest.mark.usefixtures("blank_figures")
def test_readme_keeps_its_prose(results: Path, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(built, out)
    readme = out / "README.md"
    fixed = (
        readme.read_text().replace("* First version.", "* Scoring version 7: a note of ours.").replace("| 4 |", "| 9 |")
    )
    readme.write_text(fixed)
    fresh = build(load(results), out)[0]["README.md"].decode()
    assert "Scoring version 7: a note of ours." in fresh
    assert "| [mini](mini.md) | 4 |" in fresh
    readme.write_text("no marks")
    with pytest.raises(UserError, match="marks of its generated part"):
        report(results, out)


def test_svg_has_no_clock_and_text_that_any_viewer_has_a_font_for(built: Path) -> None:
    for path in sorted((built / "figures").glob("*.svg")):
        text = path.read_text()
        assert "<dc:date>" not in text
        fonts = re.findall(r"<text [^>]*font[^;>]*sans-serif", text)
        assert len(fonts) == text.count("<text ")
        assert fonts


def test_csv_holds_every_row(results: Path, built: Path) -> None:
    lines = list(csv.DictReader(io.StringIO((built / "mini.csv").read_text())))
    committed = {
        (run.result.manifest.run_id, r.subset, r.protocol, r.metric): r.value
        for run in read_runs(results)
        for r in run.result.rows
    }
    assert len(lines) == len(committed)
    for line in lines:
        value = committed[line["run_id"], line["subset"], line["protocol"], line["metric"]]
        assert (value is None) == (line["value"] == "")
        assert value is None or float(line["value"]) == pytest.approx(value, abs=1e-6)


ALIKE = (
    "a/b",
    "a b",
    "a_b",
    "a-b",
    "A-B",
    "a:b",
    "..",
    ".a-b",
    "readme",
    "README",
    "x" * 150,
    "x" * 149,
    "日本",
    "中国",
)


def test_names_that_would_be_one_file_are_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where letters of either case are one; and a board that is called like a sheet."""
    monkeypatch.setattr("prmbench.report.build.figures", lambda *_: ())  # they begin with the same names
    assert len({slug(name).lower() for name in (*ALIKE, slug("a/b"))}) == len(ALIKE) + 1
    assert {slug(name) for name in ("processbench", "miniature_rl", "gym-policy")} == {
        *("processbench", "miniature_rl", "gym-policy")
    }
    items = scores_of(traces(2, ("gsm8k",)))
    for i, name in enumerate((*ALIKE, "gym-policy", "joined")):
        write(
            tmp_path, items, run_id=f"r{i}", folder=f"{i}", benchmark=name, native=0.5, rules=("native",), replicates=2
        )
    drawn = [replace(s, values=(), tokens=(7,)) for s in task_scores(completions(2, 2))]
    write_task(tmp_path, "policy", drawn, benchmark="gym", run_id="policy", replicates=2)
    files, shown, others = build(load(tmp_path), tmp_path / "out")
    pages = [name for name in files if name.endswith(".md") and name != "README.md"]
    assert len({name.lower() for name in pages}) == len(ALIKE) + 2 + 1 + 1  # the last: published numbers only
    assert all("/" not in name and len(name) < 120 for name in pages)
    assert files["gym-policy.md"].startswith(b"# gym-policy\n\nHow often a model's own completions are right")
    index = files["README.md"].decode()
    assert all(f"({name})" in index for name in pages)
    names = [section["name"] for section in embedded(page(shown, others, ()))["benchmarks"]]
    assert len(set(names)) == len(names)
    assert "gym-policy (steps)" in names


# --- what a check refuses --------------------------------------------------------------------------------


def test_clean_run_has_no_problem(tmp_path: Path) -> None:
    write(tmp_path, scores_of(traces(6)))
    assert load(tmp_path, recompute=True).problems == ()


def test_tampered_scores_are_named_and_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, scores_of(traces(6)))
    scores = scores_path(path)
    scores.write_bytes(gzip.compress(gzip.decompress(scores.read_bytes()).replace(b'"label": 1', b'"label": 0', 1)))
    (problem,) = load(tmp_path).problems
    assert str(scores) in problem
    assert "SHA-256" in problem
    done = report(tmp_path, tmp_path / "out")
    assert done.faults == (problem,)
    assert done.left_out == "none of the runs is listed: 1 cannot be trusted"
    assert str(tmp_path / "out" / "report.html") in done.changed


def test_result_without_scores_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, scores_of(traces(6)))
    scores_path(path).unlink()
    assert "cannot be read" in load(tmp_path).problems[0]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"dirty": True}, "scored from a dirty tree"),
        ({"dirty": None}, "not known whether the tree was clean"),
        ({"commit": None}, "no commit recorded"),
        ({"packages": {}}, "no package versions recorded"),
    ],
)
def test_run_without_provenance_is_not_listed(tmp_path: Path, facts: dict[str, object], reason: str) -> None:
    write(tmp_path, scores_of(traces(6)), **facts)
    loaded = load(tmp_path)
    assert loaded.listed == ()
    assert reason in loaded.problems[0]
    out = tmp_path / "out"
    report(tmp_path, out)
    assert f"* org/model (mini, run 0123456789ab): {reason}" in (out / "README.md").read_text()
    assert not (out / "mini.md").exists()
    shown = embedded((out / "report.html").read_text())["benchmarks"]
    assert [(b["name"], b["unlisted"]) for b in shown if b["runs"]] == [("mini", reason)]


def test_missing_and_doubled_ids_are_named(tmp_path: Path) -> None:
    scores = scores_of(traces(6))
    rows = judge(manifest(scores, b""), scores)
    write(tmp_path / "missing", scores[1:], rows, n=len(scores))
    write(tmp_path / "doubled", [*scores[1:], scores[1]], rows, n=len(scores))
    missing, doubled = load(tmp_path / "missing").problems, load(tmp_path / "doubled").problems
    assert "manifest.n is 18, and there are 17 traces in the scores" in missing[0]
    assert "1 ids twice, the first is 'gsm8k-1'" in doubled[0]
    write(tmp_path / "less", scores, [replace(r, n=5) for r in rows if r.subset == "gsm8k"])
    (less,) = load(tmp_path / "less").problems
    assert "row gsm8k/as_is/calibrated:gsm8k/correct_accuracy: n 5 is recomputed as 6" in less


def test_same_run_twice_is_named(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path, scores_of(traces(6)), folder=folder)
    (problem,) = load(tmp_path).problems
    assert all(str(tmp_path / folder / "0123456789ab.json") in problem for folder in ("one", "two"))
    assert "run 0123456789ab of mini lies in 2 places" in problem
    assert load(tmp_path).listed == ()  # nobody can say which of them to show


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    write(tmp_path, scores_of(traces(6)), schema_version=99)
    assert "schema version 99" in load(tmp_path).problems[0]


@pytest.mark.parametrize(("shift", "found"), [(1e-6, 1), (1e-12, 0)])
def test_recompute_finds_rows_that_were_edited(tmp_path: Path, shift: float, found: int) -> None:
    scores = scores_of(traces(6))
    path = write(tmp_path, scores)
    rows = list(read_run(path).result.rows)
    at = next(i for i, r in enumerate(rows) if r.metric == "error_accuracy" and r.protocol == "as_is/oracle")
    rows[at] = replace(rows[at], value=rows[at].value + shift)
    write(tmp_path, scores, rows)
    for recompute in (True, False):
        loaded = load(tmp_path, recompute)
        assert len(loaded.problems) == found
        assert all("as_is/oracle/error_accuracy: value" in p for p in loaded.problems)
        assert bool(loaded.listed) == (recompute or not found)  # shown as recomputed, or not at all


def test_differences_of_rows() -> None:
    one, two = row("gsm8k", KEY, 0.5)[:1], row("math", KEY, 0.5)[:1]
    assert differences(one, one) == []
    assert differences(one, []) == [f"row gsm8k/{KEY}/f1 cannot be derived from the scores"]
    assert differences([], two) == [f"row math/{KEY}/f1 is missing"]
    assert differences(row("gsm8k", KEY, None)[:1], one)[0].endswith("value None is recomputed as 0.5")


def test_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        report(tmp_path / "nothing", tmp_path)


# --- verdicts -----------------------------------------------------------------------------------------------


def test_counting_verdicts_gives_the_accuracies_of_every_row(results: Path) -> None:
    """Where folds have thresholds of their own, the viewer has the median over splits, and comes close."""
    seen = Counter()
    for run in read_runs(results):
        label = {t.id: t for t in run.scores}
        for r in run.result.rows:
            if r.metric not in ("error_accuracy", "correct_accuracy") or r.subset.startswith("avg["):
                continue
            protocol = EvalProtocol.parse(r.protocol)
            limits = thresholds(run, protocol)
            group = [t for t in label.values() if t.subset == r.subset and (t.label >= 0) == (r.metric[0] == "e")]
            hits = sum(predict(t, protocol, limits[t.id]) == t.label for t in group)
            out_of_fold = protocol.threshold == "cross_validated" or r.note == OUT_OF_FOLD
            assert hits / len(group) == pytest.approx(r.value, abs=0.25 if out_of_fold else 1e-12), r
            seen[protocol.threshold] += 1
    assert set(seen) == {"calibrated", "calibrated_in_sample", "cross_validated", "native", "oracle"}


@pytest.mark.parametrize(
    ("predicted", "label", "expected"),
    [
        (2, 2, "exact"),
        (1, 2, "early"),
        (3, 2, "late"),
        (-1, 2, "missed"),
        (-1, -1, "passed"),
        (0, -1, "false alarm"),
        (None, -1, "unscored"),
        (None, 2, "unscored"),
    ],
)
def test_kinds(predicted: int | None, label: int, expected: str) -> None:
    assert verdict_kind(predicted, label) == expected


def test_error_by_position_by_hand() -> None:
    """Threshold 0.5: g1 errs at step 0, which scores 0.1 (exact); long errs at step 9, found at step 0 (early)."""
    long = plain("long", "gsm8k", 9, *[0.2] * 10)
    scores = [*TWO, long, plain("late", "gsm8k", 0, 0.9, 0.1)]
    rows = [MetricRow("gsm8k", "as_is/fixed:0.5", "threshold", 0.5, None, None, 4, 0)]
    run = hand_made("a", scores, rows)
    found = position_shares(run, EvalProtocol("as_is", "fixed", 0.5), "gsm8k")
    assert found == {"1": {"exact": 1, "late": 1}, "none": {"passed": 1}, "9+": {"early": 1}}


# --- the page -----------------------------------------------------------------------------------------------


def embedded(html: str) -> dict[str, Any]:
    """The page's data, each benchmark with its traces and runs."""
    data, bulk = (html.partition(f'id="{name}">')[2].partition("</script>")[0] for name in ("data", "bulk"))
    packed = json.loads(gzip.decompress(base64.b64decode(bulk)))
    found = json.loads(data)
    return found | {"benchmarks": [a | b for a, b in zip(found["benchmarks"], packed, strict=True)]}


def test_embedded_json_cannot_leave_its_element() -> None:
    nasty = {"a": "</script><script>alert(1)</script><!-- & \u2028 é"}
    text = embed(nasty)
    assert "<" not in text
    assert json.loads(text) == nasty


def test_page_stays_under_five_megabytes_and_says_what_is_left_out() -> None:
    noise = random.Random(0)
    items = [
        Trace(f"gsm8k-{i}", noise.randbytes(5000).hex(), ("s",) * 4, first_error=-(i % 2), subset="gsm8k")
        for i in range(MAX_TRACES + 50)
    ]  # hex digits shrink to half and base64 adds a third: 6.7 MB
    run = hand_made("a", scores_of(items), row("gsm8k", "as_is/fixed:0.5", 0.5))
    (board,) = boards([run])
    html = page([(board, ())], (), (), {t.id: t for t in items})
    section = embedded(html)["benchmarks"][0]
    assert 4_000_000 < len(html.encode()) < 5_000_000
    assert section["total"] == MAX_TRACES + 50
    assert 500 < len(section["traces"]) < MAX_TRACES
    assert len(section["runs"][0]["protocols"][0]["predicted"]) == len(section["traces"])


def test_traces_are_chosen_evenly_and_whatever_their_order() -> None:
    facts = [plain(f"{s}-{i}", s, 0, 0.1) for s, n in (("gsm8k", 40), ("math", 160)) for i in range(n)]
    kept = choose_traces(facts, 50)
    assert Counter(t.subset for t in kept) == {"gsm8k": 10, "math": 40}
    assert {t.id for t in choose_traces(facts[::-1], 50)} == {t.id for t in kept}
    assert choose_traces(facts, 200) == facts


# --- LaTeX --------------------------------------------------------------------------------------------------


def need(program: str, packages: str) -> None:
    """Skips by name, or fails where nothing may be skipped."""
    if shutil.which(program) is None:
        message = f"{program} is missing; on Debian: apt-get install {packages}"
        if os.environ.get("PRMBENCH_NO_SKIP"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "included"])
def test_latex_compiles(tmp_path: Path, alone: bool) -> None:
    need("pdflatex", "texlive-latex-base texlive-latex-recommended")
    names = [r"50%_off & #1 {x} ~^\input{/etc/passwd} $a$", '[x] <b> "q" | 模型 é', "plain"]
    rows = [*row("gsm8k", KEY, 0.5, OUT_OF_FOLD), *row("math", KEY, None, "no trace"), *average(0.5)]
    (board,) = boards([hand_made(f"run{i}", FOUR, rows, model=name) for i, name in enumerate(names)])
    grids = [rule_table(board, t) for t in board.tables] + list(published_tables(published("processbench")))
    (tmp_path / "board.tex").write_text(latex_tables.latex_document(grids))
    main = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{board}Then more.\end{document}"
    (tmp_path / "main.tex").write_text(main)
    target = "board.tex" if alone else "main.tex"
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", target]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / target).with_suffix(".pdf").stat().st_size > 10_000


def test_latex_escapes() -> None:
    assert latex_tables.escaped(r"a_b\c[é]") == r"a\_b\textbackslash{}c{[}\texttt{U+00E9}{]}"


# --- published numbers -----------------------------------------------------------------------------------------

MISPRINTS = {("RLHFlow-PRM-Deepseek-8B", "omnimath"), ("Skywork-PRM-7B", "math")}
"""Cells whose printed F1 and accuracies disagree in the source; their notes say so."""


def test_published_cells_agree_with_each_other() -> None:
    books = published("processbench")
    assert sum(len(book.rows) for book in books) == 59
    disagree = set()
    for book in books:
        assert book.source
        for line in book.rows:
            assert line.rule in RULES
            assert sum(c["f1"] for c in line.cells.values()) / 4 == pytest.approx(line.average, abs=0.1)
            for subset, cell in line.cells.items():
                if "error_accuracy" in cell:
                    a, b = cell["error_accuracy"], cell["correct_accuracy"]
                    if abs(2 * a * b / (a + b) - cell["f1"]) > 0.11:
                        disagree.add((line.model, subset))
                        assert "as printed" in line.note
    assert disagree == MISPRINTS


def test_published_numbers_stand_apart_by_rule() -> None:
    grids = {grid.title: grid for grid in published_tables(published("processbench"))}
    oracle = grids["Published: oracle (upper bound)"]
    assert [r[3:8] for r in texts(oracle)[0] if r[0].startswith("IPVRM (Qwen3-0.6B-Base")][-1] == (
        *("52.8", "42.1", "30.0", "31.3"),
        "39.1",
    )
    assert all("none was published" in grid.caption for grid in grids.values())
    native = [r[0] for r in grids["Published: native"].groups[0]]
    assert "Math-Shepherd-PRM-7B" in native
    assert "IPVRM" not in " ".join(native)


# --- terminal -----------------------------------------------------------------------------------------------------


def printed(table: Table) -> list[str]:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_terminal_table_fits_eighty_columns_and_shows_every_part() -> None:
    scores = scores_of(traces(12, ("gsm8k", "math", "olympiadbench", "omnimath")), "logratio")
    about = manifest(scores, b"", kind="logratio", backend="implicit", input_format="chat")
    lines = printed(run_table(RunResult(about, judge(about, scores))))
    assert max(len(line) for line in lines) <= 80
    starts = [line.split()[0] for line in lines if "/" in line]
    assert starts[1:] == sorted(starts[1:], key=lambda s: s.startswith("floor/"))  # floors beneath
    shown = next(line for line in lines if "step_sum/calibrated:gsm8k" in line)
    assert shown.count("†") == 2  # the subset's own cell, and the average that holds it
    assert any("unscored, counted as wrong: 1 of 48" in line for line in lines)


def test_terminal_table_numbers_and_filter() -> None:
    rows = [*row("gsm8k", KEY, 0.345, OUT_OF_FOLD), *row("math", KEY, 0.5), *average(0.4225)]
    rows += [r for name in ("gsm8k", "math", "avg[gsm8k,math]") for r in row(name, "as_is/oracle", 0.75)]
    lines = printed(run_table(hand_made("a", FOUR, rows).result, [r for r in rows if r.protocol == KEY]))
    assert [line.split() for line in lines if "as_is" in line] == [[KEY, "34.5†", "50.0", "42.2", "[41.2,", "43.2]†"]]


def test_terminal_table_keeps_the_floors_of_a_filtered_run() -> None:
    scores = scores_of(traces(12))
    about = manifest(scores, b"", native=0.5)
    rows = judge(about, scores)
    lines = printed(run_table(RunResult(about, rows), [r for r in rows if r.protocol == "as_is/native"]))
    assert [line.split()[0] for line in lines[1:] if "/" in line] == [
        "as_is/native",
        *("floor/random_flags", "floor/position", "floor/outcome_oracle"),
    ]


def test_comparison_shows_both_runs_and_the_sign_of_the_difference() -> None:
    items = traces(30)
    sides = []
    for seed, skill in ((0, 0.0), (1, 4.0)):
        scores = scores_of(items, seed=seed, skill=skill)
        sides.append((RunResult(manifest(scores, b"", native=0.5), ()), scores))
    protocol = EvalProtocol("as_is", "calibrated", on="gsm8k")
    rows = compare(sides[0], sides[1], [(protocol, protocol)])
    lines = printed(compare_table(rows))
    assert max(len(line) for line in lines) <= 80
    cells = next(line.split() for line in lines if line.strip().startswith("math"))
    value = {r.metric: r.value for r in rows if r.subset == "math"}
    assert value["f1_b"] > value["f1_a"] > 0
    assert cells[1:3] == [f"{100 * value['f1_a']:.1f}", f"{100 * value['f1_b']:.1f}"]
    assert cells[3] == f"{100 * value['f1_difference']:+.1f}"
    assert cells[3].startswith("+")
    assert cells[6:] == [f"{value['p_value']:.3f}", f"{100 * value['mdd']:.1f}"]


def test_figures_of_a_board_without_runs() -> None:
    (board,) = boards([hand_made("a", TWO, row("gsm8k", KEY, None, "no trace"))])
    assert [figure.name for figure in figures(board)] == ["mini-f1-calibrated"]


def test_the_page_opens_with_a_row_per_model_under_one_protocol(results: Path) -> None:
    (board,) = boards(load(results).listed)
    grid = front_table(board)
    assert grid is not None
    assert grid.title == "First-error F1 under `as_is/calibrated:gsm8k` or `step_sum/calibrated:gsm8k`"
    models, baselines, floors = texts(grid)
    assert [row[0] for row in models] == sorted({row[0] for row in models}, key=[row[0] for row in models].index)
    assert {row[0] for row in models} == {"org/model", "org/implicit"}
    assert [row[0] for row in baselines] == ["random"]
    assert floors
    whole = rule_table(board, next(table for table in board.tables if table.rule == "calibrated"))
    cells = {row[:-1] for group in texts(whole) for row in group}
    plain = {tuple(text.replace("**", "") for text in row) for row in cells}
    assert {tuple(text.replace("**", "") for text in row) for group in texts(grid) for row in group} <= plain


def test_formats_are_asked_for_and_a_page_folds_all_but_its_first_table(
    results: Path, built: Path, tmp_path: Path
) -> None:
    write_small(tmp_path / "in")
    report(tmp_path / "in", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix in (".csv", ".tex", ".json")]
    text = (built / "mini.md").read_text()
    before, _, after = text.partition("<details>")
    assert before.count("| Model |") == 1
    assert after.count("| Model |") == after.count("</details>")
    with pytest.raises(UserError, match="--formats xls: choose from csv, tex, json"):
        report(results, tmp_path, formats=("xls",))


@pytest.mark.usefixtures("blank_figures")
def test_an_unchanged_report_is_recognised_and_a_changed_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading is what a recognised report spares; whatever is altered, results, output or stamp, it loads again."""
    loads: list[bool] = []
    monkeypatch.setenv("PRMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "prmbench.report.build.load",
        lambda *args, **_: loads.append(args[1]) or load(args[0], args[1]),  # type: ignore[func-returns-value]
    )
    runs, out = tmp_path / "in", tmp_path / "out"
    write_small(runs)

    def loaded(**how: bool) -> bool:
        loads.clear()
        report(runs, out, quick=True, **how)
        return bool(loads)

    assert loaded()
    assert not loaded()
    assert not loaded(check=True)
    assert loaded(check=True, recompute=True)
    (out / "mini.md").write_text("altered")
    assert loaded(check=True)
    assert loaded()
    assert not loaded()
    for path in (tmp_path / "cache" / "reports").iterdir():
        if path.name != "key":
            path.write_bytes(b"0" * 64)
    assert loaded(check=True)
    assert not loaded(check=True)
    (tmp_path / "cache" / "reports" / "key").chmod(0o644)
    assert loaded(check=True)
    (tmp_path / "cache" / "reports" / "key").chmod(0o600)
    path = next(iter(runs.rglob("*.json")))
    path.write_text(path.read_text().replace('"value": 0.', '"value": 0.1', 1))
    assert report(runs, out, quick=True, check=True).faults
    assert loaded(check=True)


def test_runs_judged_in_parallel_are_those_judged_alone(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prmbench.tasks.parallel.FEWEST", 1)
    assert load(results, recompute=True, processes=2) == load(results, recompute=True)
