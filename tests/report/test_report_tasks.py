"""Best-of-N, policy and calibration in the report: tables, figures, files and the terminal."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from report_runs import (
    CLEAN,
    completions,
    manifest,
    scores_of,
    task_scores,
    traces,
    write_study,
    write_task,
)
from rich.console import Console
from rich.table import Table
from table_texts import texts

from prmbench.core.records import MetricRow, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.data.renderings import render_traces
from prmbench.report import (
    compare_table,
    figures,
    overview,
    report,
    run_table,
)
from prmbench.report.board import boards
from prmbench.report.format_shift_figures import plans as shift_plans
from prmbench.report.latex_tables import latex_document
from prmbench.report.markdown import cell_text, markdown
from prmbench.report.page import page
from prmbench.report.sheets import sheets
from prmbench.report.task_figures import FLOOR_LOOKS, reliability_bin
from prmbench.report.task_figures import best_of_n as best_of_n_plans
from prmbench.report.validity_figures import plans as validity_plans
from prmbench.studies.reporting.reward_model_claims import claims
from prmbench.studies.reporting.reward_model_runs import gather_study
from prmbench.studies.reporting.reward_model_tables import grids
from prmbench.studies.reporting.sections import SECTIONS
from prmbench.tasks import best_of_n, calibration, judge, policy, read_runs, validity
from prmbench.tasks.blocks import blocks, completion_identity, prefix_identity, problem_identity
from prmbench.tasks.table import POINTS, cell_of, notes_of


def row(subset: str, protocol: str, metric: str, value: float | None, note: str = "") -> MetricRow:
    ends = (None, None) if value is None else (value - 0.01, value + 0.01)
    return MetricRow(subset, protocol, metric, value, *ends, 4, 0, note)


def made(task: str, rows: Sequence[MetricRow], name: str = "org/model", scores: Sequence[ScoredTrace] = ()) -> Run:
    found = list(scores) or task_scores(completions(2, 2, ("easy",)))
    about = manifest(found, b"", task=task, benchmark=task, kind="logratio", model=name, run_id=name[-4:])
    return Run(RunResult(about, tuple(rows)), tuple(found), Path(name))


def bon(best: float, note: str = "") -> list[MetricRow]:
    """One subset, N = 2 and 4, two aggregations."""
    found = [row("easy", "floor/random", "accuracy", 0.4)]
    for n in (2, 4):
        found += [row("easy", "floor/majority", f"majority@{n}", 0.5), row("easy", "floor/pass", f"pass@{n}", 0.75)]
        for how, value in (("last", best), ("min", best - 0.3)):
            found.append(row("easy", f"prefix_sum/{how}", f"best_of@{n}", value + 0.01 * n, note))
            found.append(row("easy", f"prefix_sum/{how}", f"weighted_vote@{n}", 0.5 + 0.01 * n))
            found.append(row("easy", f"prefix_sum/{how}", f"gain@{n}", value + 0.01 * n - 0.4))
    return found


# --- tables -----------------------------------------------------------------------------------------------------

BON = """\
## Aggregation: last

| Completions | Model | Readout | best_of@2 | best_of@4 | weighted_vote@2 | weighted_vote@4 | gain@2 | gain@4 |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| easy (n=4) | org/high | `prefix_sum` | **62.0** [61.0, 63.0] | **64.0** [63.0, 65.0] | **52.0** [51.0, 53.0] \
| **54.0** [53.0, 55.0] | **+22.0** [+21.0, +23.0] | **+24.0** [+23.0, +25.0] |
| easy (n=4) | org/low | `prefix_sum` | 32.0 [31.0, 33.0]† | 34.0 [33.0, 35.0]† | **52.0** [51.0, 53.0] \
| **54.0** [53.0, 55.0] | -8.0 [-9.0, -7.0] | -6.0 [-7.0, -5.0] |
| easy (n=4) | random: mean accuracy | `floor/random` | 40.0 [39.0, 41.0] | 40.0 [39.0, 41.0] |  |  |  |  |
| easy (n=4) | majority vote, no model | `floor/majority` | 50.0 [49.0, 51.0] | 50.0 [49.0, 51.0] |  |  |  |  |
| easy (n=4) | ceiling: any of N is right | `floor/pass` | 75.0 [74.0, 76.0] | 75.0 [74.0, 76.0] |  |  |  |  |

† 3 of 4 problems.
"""


def test_a_baseline_is_never_the_best_of_n() -> None:
    models = [made("best_of_n", bon(0.3), "org/low"), made("best_of_n", bon(0.6), "org/high")]
    lucky = made("best_of_n", bon(0.9), "random")
    lucky = replace(lucky, result=replace(lucky.result, manifest=replace(lucky.result.manifest, backend="baseline")))
    (group,) = texts(best_of_n.tables([*models, lucky])[0])
    bold = {line[1] for line in group for cell in line if "**" in cell}
    assert "org/high" in bold
    assert "random" not in bold


def test_golden_best_of_n() -> None:
    first, second = best_of_n.tables(
        [made("best_of_n", bon(0.3, "3 of 4 problems"), "org/low"), made("best_of_n", bon(0.6), "org/high")]
    )
    assert markdown(replace(first, caption="")).replace("\n\n\n", "\n") == BON
    assert second.title == "Aggregation: min"
    assert [line[3] for line in texts(second)[0][:2]] == ["**32.0** [31.0, 33.0]", "2.0 [1.0, 3.0]†"]


def test_runs_on_other_completions_stand_apart() -> None:
    scores = task_scores(completions(2, 2, ("easy",)))
    other = [replace(scores[0], outcome=1 - (scores[0].outcome or 0)), *scores[1:]]
    runs = [
        made("best_of_n", bon(0.5), "a", scores),
        made("best_of_n", bon(0.6), "b", other),
        made("best_of_n", bon(0.4), "c", scores),
    ]
    found = blocks(runs, completion_identity)
    assert [[run.result.manifest.model for run in block.runs] for block in found] == [["a", "c"], ["b"]]
    assert found[0].name.startswith("easy (n=4, set ")
    assert found[0].traces != found[1].traces
    (block,) = blocks(runs, problem_identity)  # the same problems: two policies may be compared
    assert block.name == "easy (n=4)"
    assert len(blocks(runs, prefix_identity)) == 2


def test_blocks_order_subsets_then_averages_then_pooled() -> None:
    names = ("micro[easy,hard]", "avg[easy,hard]", "hard", "easy")
    rows = [row(name, "sampled/t0.6,p0.95,n2", "avg@2", 0.5) for name in names]
    scores = task_scores(completions(2, 2))
    found = blocks([made("policy", rows, scores=scores)], problem_identity)
    assert [block.name for block in found] == [
        *("easy (n=4)", "hard (n=4)", "average of easy, hard (n=4)", "pooled over easy, hard (n=4)")
    ]


def test_policy_table_has_a_group_per_metric_and_a_table_per_way_of_sampling() -> None:
    key = "sampled/t0.6,p0.95,n4"
    names = ("truncated", "pass@4", "avg@4", "pass@1", "unverified", "majority@4", "pass@2")
    first = [row("easy", key, name, 0.1 * i) for i, name in enumerate(names)]
    greedy = [row("easy", "greedy", "avg@1", 0.5)]
    found = policy.tables([made("policy", first, "a"), made("policy", [*first[1:], *greedy], "b")])
    assert [grid.title for grid in found] == ["Policies, greedy", f"Policies, {key}"]
    sampled = found[1]
    assert [group[0][0] for group in texts(sampled)] == [
        *("avg@4", "pass@1", "pass@2", "pass@4", "majority@4", "truncated", "unverified")
    ]
    assert [line[1:] for line in texts(sampled)[-2]] == [("a", "0.0 [-1.0, 1.0]"), ("b", "")]


def test_calibration_table_splits_by_scaling_and_knows_that_low_is_good() -> None:
    def rows(level: float) -> list[MetricRow]:
        keys = ("prefix_sum/sigmoid", "prefix_sum/platt")
        found = [row("easy", key, name, level) for key in keys for name in ("ece", "brier", "auc", "auc_q1")]
        return [*found, row("easy", "floor/constant", "brier", 0.25), row("easy", "floor/constant", "ece", 0.0)]

    as_read, platt = calibration.tables([made("calibration", rows(0.2), "a"), made("calibration", rows(0.3), "b")])
    assert (as_read.title, platt.title) == ("As read", "Platt-scaled")
    lines = {line[1]: line for line in texts(as_read)[0]}
    columns = [as_read.header.index(name) for name in ("ECE", "Brier", "AUC", "AUC, quarter 1")]
    shown = {name: tuple(line[at] for at in columns) for name, line in lines.items()}
    assert shown["a"] == ("**0.200** [0.190, 0.210]",) * 2 + ("0.200 [0.190, 0.210]", "0.200")
    assert shown["b"][2:] == ("**0.300** [0.290, 0.310]", "**0.300**")
    floor = texts(as_read)[0][-1]
    assert (floor[2], *(floor[at] for at in columns[:2])) == (
        *("`floor/constant`", "0.000 [-0.010, 0.010]", "0.250 [0.240, 0.260]"),
    )


def test_notes_are_gathered_and_the_largest_error_is_told() -> None:
    notes = ["standard error 0.001", "standard error 0.004", "standard error 0.002", "other"]
    rows = [row("easy", "x", "m", 0.5, note) for note in notes] + [row("easy", "x", "m", None, "no answers")]
    assert notes_of(rows) == ("– no answers.", "† other.", "† standard error 0.004.")
    counts = [row("easy", "x", "m", 0.5, f"left out: {n}") for n in (9, 10, 8)]
    assert notes_of(counts) == ("† left out: 10.",)


def test_cell_text() -> None:
    assert cell_of(None) == ""
    assert cell_text(cell_of(row("s", "p", "m", None, "why"))) == "–"
    assert cell_text(cell_of(row("s", "p", "m", 0.5, "noted"), best=True)) == "**50.0** [49.0, 51.0]†"
    assert cell_text(cell_of(row("s", "p", "m", -0.0001), POINTS, interval=False)) == "+0.0"


def test_reliability_bins_are_read_by_number() -> None:
    rows = {
        ("as_is/identity", f"reliability_{what}_{i}"): row("s", "as_is/identity", "", value + i)
        for i in (0, 3)
        for what, value in (("mean", 0.1), ("rate", 0.2), ("n", 10.0))
    }
    assert reliability_bin(rows, "as_is/identity", 3) == (3.1, 3.2, 13.0)
    assert reliability_bin(rows, "as_is/identity", 1) is None
    assert reliability_bin(rows, "as_is/platt", 3) is None


def legend(figure: Figure) -> list[str]:
    """What the legends of a figure and of its panels say."""
    boxes = [*figure.legends, *(box for axis in figure.axes if (box := axis.get_legend()) is not None)]
    return [text.get_text() for box in boxes for text in box.get_texts()]


def test_a_model_named_like_a_floor_keeps_its_row_and_its_legend_entry() -> None:
    names = ("random", "majority", "pass", "floor/random", "_hidden", "`floor/pass`", "chance", "position")
    runs = [made("best_of_n", bon(0.1 * i), name) for i, name in enumerate(names)]
    runs = [replace(run, path=Path(str(i))) for i, run in enumerate(runs)]
    again = replace(runs[3].result.manifest, run_id="again")
    runs[3] = replace(runs[3], result=replace(runs[3].result, manifest=again))
    (_, _, _, figure), _ = best_of_n_plans("best_of_n", runs)
    said = legend(figure)
    assert said[:3] == [f"{name}  prefix_sum/last" for name in ("random (ndom)", "majority (rity)", "pass (pass)")]
    others = ("floor/random", " _hidden", "'floor/pass'", "chance", "position")
    floors = {label for _, _, label in FLOOR_LOOKS.values()}
    styles = {"highest score", "weighted vote"}
    assert set(said) == {*said[:3], *(f"{name}  prefix_sum/last" for name in others), *floors, *styles}
    assert len(said) == len(names) + len(FLOOR_LOOKS) + len(styles)
    (group,) = texts(best_of_n.tables(runs)[0])
    assert len(group) == len(names) + len(FLOOR_LOOKS)
    assert [line[2][:7] for line in group].count("`floor/") == len(FLOOR_LOOKS)
    assert not any(line[1].startswith("`") for line in group)
    assert dict(overview.sheet_card(sheets(runs)[0]).facts)["Model"] == "position"


def test_two_runs_of_one_model_are_two_lines_of_a_figure() -> None:
    runs = [replace(made("best_of_n", bon(0.1 * i), "org/model"), path=Path(str(i))) for i in range(2)]
    runs[1] = replace(
        runs[1], result=replace(runs[1].result, manifest=replace(runs[1].result.manifest, run_id="again"))
    )
    (_, _, _, figure), _ = best_of_n_plans("best_of_n", runs)
    assert legend(figure)[:2] == ["org/model (odel)  prefix_sum/last", "org/model (again)  prefix_sum/last"]
    colors = {line.get_color() for line in figure.axes[0].get_lines() if line.get_label().startswith("org/model")}
    assert len(colors) == 2


@pytest.mark.filterwarnings("error")
def test_names_that_begin_with_an_underscore_are_in_every_legend() -> None:
    """matplotlib leaves such a label out of a legend, with a warning or without one."""
    items = scores_of(traces(6, ("gsm8k",)))
    about = manifest(items, b"", model="_hidden", native=0.5)
    (board,) = boards([Run(RunResult(about, judge(about, items)), tuple(items), Path("x"))])
    drawn: dict[str, Figure] = {name: figure for name, _, _, figure in figures._plans(board)}
    assert legend(drawn["mini-accuracies"]) == [" _hidden  as_is/calibrated:gsm8k"]
    shifted = [t for t in render_traces(traces(6, ("gsm8k",)), ("headers",))]
    scored = scores_of(shifted)
    about = manifest(scored, b"", model="_hidden", task="format_shift", benchmark="format_shift", fixed=0.5)
    run = Run(RunResult(about, judge(about, scored)), tuple(scored), Path("x"))
    ((_, _, _, figure),) = shift_plans("format_shift", [run])
    assert [text.partition("  ")[0] for text in legend(figure)] == [" _hidden"]
    labelled = [replace(t, step_labels=tuple(float(k != t.first_error) for k in range(4))) for t in traces(8)]
    judged = [replace(s, subset="redundency") for s in scores_of(labelled)]
    about = manifest(judged, b"", model="_hidden", task="validity", benchmark="prmbench_preview", fixed=0.5)
    run = Run(RunResult(about, judge(about, judged)), tuple(judged), Path("x"))
    ((_, _, _, figure),) = validity_plans("prmbench_preview-validity", [run])
    assert " _hidden  as_is/cross_validated" in legend(figure)
    assert set(validity.FLOORS.values()) < set(legend(figure))


# --- files --------------------------------------------------------------------------------------------------------


def write_tasks(root: Path, items: int = 8) -> None:
    """Two models under each task."""
    traces = completions(problems=items)
    for i, skill in enumerate((2.0, 0.0)):
        scores = task_scores(traces, i, skill)
        drawn = [replace(s, values=(), tokens=(7,), steps=1, step_labels=()) for s in scores]
        for task in ("best_of_n", "policy", "calibration"):
            found = drawn if task == "policy" else scores
            write_task(root, task, found, run_id=f"{task}{i}", model=f"org/m{i}")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    write_tasks(root)
    return root


def test_files_of_every_task(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path, sections=SECTIONS, formats=("csv", "tex", "json"))
    assert report(results, tmp_path, sections=SECTIONS, check=True, recompute=True) == CLEAN
    for task in ("best_of_n", "policy", "calibration"):
        assert all((tmp_path / f"{task}.{kind}").is_file() for kind in ("md", "csv", "tex", "json"))
        lines = list(csv.DictReader(io.StringIO((tmp_path / f"{task}.csv").read_text())))
        runs = [run for run in read_runs(results) if run.result.manifest.task == task]
        assert len(lines) == sum(len(run.result.rows) for run in runs)
    names = {path.name for path in (tmp_path / "figures").glob("*.svg")}
    assert names == {"best_of_n-accuracy.svg", "best_of_n-scores.svg", "calibration-reliability.svg"}
    assert "| [policy](policy.md) | 2 | none | easy 32, hard 32 |" in (tmp_path / "README.md").read_text()


def test_order_of_runs_does_not_matter(results: Path) -> None:
    runs = read_runs(results)
    assert sheets(runs, sections=SECTIONS) == sheets(runs[::-1], sections=SECTIONS)


def test_a_benchmark_of_another_name_has_its_own_sheet(results: Path) -> None:
    run = next(r for r in read_runs(results) if r.result.manifest.task == "policy")
    other = replace(run, result=replace(run.result, manifest=replace(run.result.manifest, benchmark="gym")))
    assert [sheet.name for sheet in sheets([run, other])] == ["gym-policy", "policy"]


def test_page_holds_every_sheet_and_stays_small(results: Path) -> None:
    runs = read_runs(results)
    html = page((), sheets(runs[:-2]), [(run, "scored from a dirty tree") for run in runs[-2:]])
    assert html.count('"rule_tables":') == 3
    assert html.count('"unlisted":"scored from a dirty tree"') == 1
    assert len(html.encode()) < 1_000_000


@pytest.mark.slow
def test_latex_of_the_new_tables_compiles(results: Path, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is missing; on Debian: apt-get install texlive-latex-base texlive-latex-recommended")
    write_study(tmp_path / "study", {"ipvrm": [0.5, 0.6], "q_rm": [0.2, 0.4]}, ("steps", "best_of_n", "calibration"))
    found = gather_study(read_runs(tmp_path / "study"))
    every = [
        *grids(found, claims(found)),
        *(grid for sheet in sheets(read_runs(results), sections=SECTIONS) for grid in sheet.tables),
    ]
    (tmp_path / "board.tex").write_text(latex_document(every))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "board.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


# --- terminal -----------------------------------------------------------------------------------------------------


def printed(table: Table) -> list[str]:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", ["best_of_n", "policy", "calibration"])
def test_terminal_fits_eighty_columns_with_floors_beneath(results: Path, task: str) -> None:
    run = next(r for r in read_runs(results) if r.result.manifest.task == task)
    lines = printed(run_table(run.result))
    assert max(map(len, lines)) <= 80
    starts = [line.split()[0] for line in lines if line.strip().startswith(("floor/", "prefix_"))]
    assert starts == sorted(starts, key=lambda s: s.startswith("floor/"))
    assert bool(starts) == (task != "policy")


def test_terminal_numbers_of_best_of_n_and_its_filter() -> None:
    rows = bon(0.6)
    lines = printed(run_table(made("best_of_n", rows).result, [r for r in rows if r.protocol == "prefix_sum/last"]))
    shown = [line.split() for line in lines if "/" in line and "org" not in line]
    assert shown == [
        ["prefix_sum/last", "62.0", "64.0", "54.0", "+24.0", "[+23.0,", "+25.0]"],
        ["floor/random", "40.0", "40.0"],
        ["floor/majority", "50.0", "50.0"],
        ["floor/pass", "75.0", "75.0"],
    ]


def test_comparison_of_another_metric() -> None:
    key = "prefix_sum/last best_of@4"
    values = {"best_of@4_a": 0.5, "best_of@4_b": 0.75, "best_of@4_difference": 0.25, "p_value": 0.004, "mdd": 0.1}
    lines = printed(compare_table([row("easy", key, name, value) for name, value in values.items()]))
    assert "F1" not in lines[0]
    assert next(line.split() for line in lines if line.strip().startswith("easy")) == [
        *("easy", "50.0", "75.0", "+25.0", "[+24.0,", "+26.0]", "0.004", "10.0")
    ]
