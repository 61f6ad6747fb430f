"""PRMBench from files to report: rows read by its rules, what is refused and where, the real samples, the commands."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from report_runs import CLEAN
from rich.console import Console
from table_texts import texts
from typer.testing import CliRunner

from prmbench import data, evaluation, tasks
from prmbench.backends import Facts
from prmbench.cli import app
from prmbench.config import EvalConfig
from prmbench.core import result_files
from prmbench.core.records import StepScores, Trace, UserError
from prmbench.data import prmbench_preview
from prmbench.report import report, run_table
from prmbench.report.load import load as load_results
from prmbench.report.page import page
from prmbench.report.sheets import sheets
from prmbench.tasks.published import published
from prmbench.tasks.validity import COLUMNS, short_subset_name, subset_by_column

ROW = {
    "idx": "prm_test_p1_0",
    "question": "What is $1+1$?",
    "original_question": "What is 1+1?",
    "modified_question": "What is one and one?",
    "original_process": ["1. We add.", "2. It is 2."],
    "modified_process": ["1. We add.", "Step 2: It is 3.", "step 3. 0.5 of 6 is 3.", "4. So 3."],
    "error_steps": [4, 2],
    "classification": "circular",
}


def save(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def read(tmp_path: Path, **changed: Any) -> list[Trace]:
    return prmbench_preview.from_files(save(tmp_path / "data", [{**ROW, **changed}]))


# --- rows -----------------------------------------------------------------------------------------------------


def test_a_row_by_hand(tmp_path: Path) -> None:
    (trace,) = read(tmp_path)
    assert trace.id == "circular_prm_test_p1_0"
    assert trace.prompt == "What is one and one?"
    assert trace.steps == ("We add.", "It is 3.", "0.5 of 6 is 3.", "So 3.")
    assert trace.step_labels == (1.0, 0.0, 1.0, 0.0)
    assert (trace.first_error, trace.subset) == (1, "circular")


@pytest.mark.parametrize(
    ("step", "plain"),
    [
        ("12. So", "So"),
        ("  Step 3:  So ", "So"),
        ("STEP 3.\nSo", "So"),
        ("0.5 of it", "0.5 of it"),
        ("3.14", "3.14"),
        ("Step 2 is wrong", "Step 2 is wrong"),
        ("So 3. is", "So 3. is"),
        ("1. 2. So", "2. So"),
    ],
)
def test_numbers_before_steps_go_and_numbers_in_them_stay(tmp_path: Path, step: str, plain: str) -> None:
    (trace,) = read(tmp_path, modified_process=[step], error_steps=[])
    assert trace.steps == (plain,)
    assert trace.first_error == -1


def test_a_redundency_row_has_a_twin_that_is_all_right(tmp_path: Path) -> None:
    row, twin = read(tmp_path, classification="redundency")
    assert (row.id, row.subset, row.first_error) == ("redundency_prm_test_p1_0", "redundency", 1)
    assert (twin.id, twin.subset, twin.first_error) == ("correct_prm_test_p1_0", "correct", -1)
    assert (twin.prompt, twin.steps, twin.step_labels) == ("What is 1+1?", ("We add.", "It is 2."), (1.0, 1.0))
    assert row.group == twin.group


def test_a_problem_is_known_by_its_question_however_a_category_spells_it(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "classification": "deception", "original_question": "What is 1 + 1?"}]
    one, two = prmbench_preview.from_files(save(tmp_path / "data", rows))
    assert one.group == two.group
    bare = [{k: v for k, v in row.items() if k != "question"} for row in rows]
    one, two = prmbench_preview.from_files(save(tmp_path / "data", bare))
    assert one.group != two.group


def test_the_files_name_tells_the_category_where_the_row_does_not(tmp_path: Path) -> None:
    row = {k: v for k, v in ROW.items() if k != "classification"}
    folder = save(tmp_path / "data", [row], "prm800k_test_p1_4o_deception.jsonl")
    assert prmbench_preview.from_files(folder)[0].subset == "deception"


def test_what_cannot_be_used_is_left_out_and_told(tmp_path: Path) -> None:
    """A label of a fifth step of four, blank steps with their labels, a row that is there already."""
    steps = ["1. a", " ", "b", "Step 3:"]
    rows = [
        {**ROW, "idx": "prm_test_p1_1", "error_steps": [5]},
        {**ROW, "idx": "prm_test_p1_2", "modified_process": steps, "error_steps": [3, 4]},
        {**ROW, "idx": "prm_test_p1_2"},
    ]
    with pytest.warns(UserWarning, match="left out") as told:
        one, two = prmbench_preview.from_files(save(tmp_path / "data", rows))
    assert (one.step_labels, one.first_error) == ((1.0,) * 4, -1)
    assert (two.steps, two.step_labels, two.first_error) == (("a", "b"), (1.0, 0.0), 1)
    (line,) = [str(w.message) for w in told]
    wanted = "2 x a blank step, 1 x a label of a step that is not there, 1 x a row that is there already"
    assert line.startswith(f"data: left out: {wanted}; the first is in ")
    assert line.endswith("rows.jsonl line 1")


@pytest.mark.parametrize(
    ("written", "step"),
    [
        *((alone, alone) for alone in ("30.", "30", "(3)", "1)", "1.", "3:", "30 .", "-30.", "0.5", "٣.", "3.\u2028")),
        ("2. 30.", "30."),
        ("Step 2: 30", "30"),
        ("step2. 30", "30"),
        (" 30.\n", "30."),
        ("0.5 of them", "0.5 of them"),
        ("Step 2 of the plan", "Step 2 of the plan"),
    ],
)
def test_a_number_alone_is_a_step_with_its_label(
    tmp_path: Path, written: str, step: str, recwarn: pytest.WarningsRecorder
) -> None:
    (trace,) = read(tmp_path, modified_process=["1. a", written, "3. b"], error_steps=[2])
    assert (trace.steps, trace.step_labels) == (("a", step.strip(), "b"), (1.0, 0.0, 1.0))
    assert not recwarn.list


@pytest.mark.parametrize("heading", ["Step 2:", "step 2.", "STEP 2", "Step2)", " Step 2: \n"])
def test_a_heading_alone_is_blank(tmp_path: Path, heading: str) -> None:
    with pytest.warns(UserWarning, match="left out: 1 x a blank step"):
        (trace,) = read(tmp_path, modified_process=["1. a", heading, "3. b"], error_steps=[2])
    assert (trace.steps, trace.step_labels) == (("a", "b"), (1.0, 1.0))


def test_the_version_says_that_steps_came_back(tmp_path: Path) -> None:
    folder = save(tmp_path / "data", [ROW])
    assert data.load("prmbench_preview", folder).version == 2


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"classification": "weird"}, "field 'classification' is 'weird'; expected one of redundency, circular"),
        ({"classification": "correct"}, "field 'classification' is 'correct'"),
        ({"classification": None}, "no field 'classification', and no category ends its file's name"),
        ({"modified_process": []}, "field 'modified_process' has no step that says anything"),
        ({"modified_process": ["Step 1:", "  "]}, "field 'modified_process' has no step that says anything"),
        ({"modified_process": "1. We"}, "field 'modified_process' is 1. We; expected a list of texts"),
        ({"modified_process": ["a", 2]}, "field 'modified_process' is ['a', 2]; expected a list of texts"),
        ({"error_steps": [1.0]}, "field 'error_steps' is [1.0]; expected a list of step numbers from 1"),
        ({"error_steps": [True]}, "field 'error_steps' is [True]"),
        ({"error_steps": [0]}, "field 'error_steps' is [0]"),
        ({"error_steps": None}, "field 'error_steps' is None"),
        ({"idx": ""}, "field 'idx' is ''"),
        ({"modified_question": 3}, "field 'modified_question' is 3"),
        ({"classification": "redundency", "original_process": []}, "field 'original_process' has no step"),
    ],
)
def test_bad_rows_are_refused_with_their_place(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    folder = save(tmp_path / "data", [ROW, {**ROW, "idx": "prm_test_p1_1", **changed}])
    with pytest.raises(UserError) as error:
        prmbench_preview.from_files(folder)
    assert str(error.value).startswith(f"{folder / 'rows.jsonl'} line 2: {told}")


def test_the_hub_is_read_like_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder in the hub's place; categories that were not asked for are left out."""
    rows = [{**ROW, "classification": name} for name in ("circular", "redundency", "deception")]
    folder = save(tmp_path / "hub", rows)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(prmbench_preview, "HUB_ID", str(folder))
    found, revision = prmbench_preview.from_hub(("circular", "correct"), None)
    assert [t.id for t in found] == ["circular_prm_test_p1_0", "correct_prm_test_p1_0"]
    assert revision is None
    monkeypatch.setattr(prmbench_preview, "HUB_ID", "hitsmy/PRMBench_Preview")
    with pytest.raises(UserError, match=r"hitsmy/PRMBench_Preview: cannot be loaded from the hub .*--data"):
        prmbench_preview.from_hub(("circular",), None)


# --- the real samples -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:prmbench_preview")
def test_the_real_samples(shared_data: Path) -> None:
    found = data.load("prmbench_preview", shared_data / "prmbench_preview")
    assert found.subsets == tuple(s for s in prmbench_preview.SUBSETS if s != "multi_solutions")
    sizes = Counter(t.subset for t in found.traces)
    assert sizes == {**dict.fromkeys(found.subsets, 90), "deception": 88}
    assert len({t.group for t in found.traces}) == 90  # one problem, eight kinds of error
    first = next(t for t in found.traces if t.id == "circular_prm_test_p1_0")
    assert first.steps[1] == "We have $3p+e=1.24$ and $5p+e=1.82$."
    assert first.step_labels == (1, 1, 0, 0, 0, 1, 1)
    for t in found.traces:
        assert len(t.step_labels) == len(t.steps)
        assert t.first_error == (t.step_labels.index(0.0) if 0.0 in t.step_labels else -1)
        assert not any(step.lower().startswith(("1. ", "step 1.")) for step in t.steps)
    clean = [t.id for t in found.traces if t.first_error == -1 and t.subset != "correct"]
    assert sorted(clean) == ["missing_condition_prm_test_p1_24", "missing_condition_prm_test_p1_47"]


@pytest.mark.filterwarnings("ignore:prmbench_preview")
def test_labels_beyond_the_steps_of_the_real_samples_are_counted(shared_data: Path) -> None:
    with pytest.warns(UserWarning, match=r"left out: 1 x a blank step, 26 x a label of a step that is not there"):
        prmbench_preview.from_files(shared_data / "prmbench_preview")


# --- runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _every_row_is_official() -> Iterator[None]:
    """The made-up rows below have ids of the benchmark and none of its texts."""
    row = data.BENCHMARKS["prmbench_preview"]
    with mock.patch.dict(data.BENCHMARKS, prmbench_preview=replace(row, is_official=lambda _: True)):
        yield


def bench(tmp_path: Path) -> Path:
    """Three categories of six problems, and the twins."""
    rows = [
        {
            **ROW,
            "idx": f"prm_test_p1_{i}",
            "question": f"q{i}",
            "classification": name,
            "modified_process": [f"{k}. step {k}" for k in range(1, 3 + i % 3)],
            "error_steps": [] if name == "multi_solutions" else [1 + i % 2],
        }
        for name in ("redundency", "deception", "multi_solutions")
        for i in range(6)
    ]
    return save(tmp_path / "bench", rows)


class Gold:
    """A backend that knows the labels, and has no score for one trace."""

    facts = Facts("prob", "none", fixed=0.5, native=0.5, signal="none", engine="none", backend="baseline")

    def cost(self, trace: Trace) -> int:
        return 0

    def score(self, traces: Sequence[Trace]) -> list[StepScores]:
        return [
            StepScores(t.id, unscored="too long")
            if t.id == "deception_prm_test_p1_3"
            else StepScores(t.id, tuple(0.2 + 0.6 * label for label in t.step_labels), (1,) * len(t.steps))
            for t in traces
        ]


Runs = tuple[result_files.Run, result_files.Run]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A random run and one that knows the labels, in one folder."""
    folder = tmp_path_factory.mktemp("validity")
    config = EvalConfig("random", benchmark="prmbench_preview", data=bench(folder), out=folder / "runs")
    one = evaluation.evaluate(config)
    traces = data.load("prmbench_preview", config.data).traces
    gold = replace(config, model="org/gold")
    two = evaluation.evaluate_traces(
        gold, traces, "prmbench_preview", "validity", Gold(), manifest_fields={"model": "org/gold"}
    )
    assert one is not None
    assert two is not None
    return one, two


def test_knowing_the_labels_scores_one_but_for_the_unscored(runs: Runs) -> None:
    _, gold = runs
    rows = {(r.subset, r.protocol, r.metric): r for r in gold.result.rows}
    assert rows["redundency", "as_is/native", "prmscore"].value == 1.0
    assert rows["multi_solutions", "as_is/native", "prmscore"].value == 1.0
    assert rows["correct", "as_is/native", "step_accuracy"].value == 1.0
    found = rows["deception", "as_is/native", "prmscore"]
    assert found.unscored == 1
    # of 6 x 1 invalid and 12 valid steps, those of the trace with two steps are judged wrongly: one of each
    assert found.value == pytest.approx((2 * 11 / (2 * 11 + 1 + 1) + 2 * 5 / (2 * 5 + 1 + 1)) / 2)
    assert tasks.protocol_keys(gold.result.manifest)[:2] == ("as_is/native", "as_is/fixed:0.5")


def test_results_read_back_and_are_recomputed_alike(runs: Runs) -> None:
    for run in runs:
        assert tasks.read_run(run.path).result.rows == run.result.rows
    loaded = load_results(runs[0].path.parent, recompute=True)
    assert (loaded.broken, loaded.differing) == ((), ())


def test_report_writes_every_file_and_agrees_with_itself(runs: Runs, tmp_path: Path) -> None:
    """The runs are listed as if they had been scored from a clean commit."""
    results, out = tmp_path / "runs", tmp_path / "board"
    shutil.copytree(runs[0].path.parent, results)
    for path in results.glob("*.json"):
        kept = json.loads(path.read_text())
        kept["manifest"] |= {"commit": "c" * 40, "dirty": False}
        path.write_text(json.dumps(kept))
    report(results, out, formats=("csv", "tex", "json"))
    assert report(results, out, check=True, recompute=True) == CLEAN
    name = "prmbench_preview-validity"
    assert all((out / f"{name}.{kind}").is_file() for kind in ("md", "csv", "tex", "json"))
    assert (out / "figures" / f"{name}-prmscore.svg").is_file()
    index = (out / "README.md").read_text()
    assert f"| [{name}]({name}.md) | 2 | cross_validated, native, fixed, oracle |" in index
    assert "nan" not in (out / f"{name}.json").read_text()


def test_tables_rank_models_above_the_floors(runs: Runs) -> None:
    (sheet,) = sheets(runs)
    titles = [grid.title for grid in sheet.tables]
    assert titles[:2] == ["Native", "Native: behind the overall PRMScore"]
    assert titles[-1] == "Published"
    fixed = sheet.tables[titles.index("Fixed")]
    columns = ("overall", "simplicity", "redundency", "sensitivity", "deception", "multi_solutions")
    assert fixed.header == ("Model", "Protocol", *columns)
    (first, second), floors = texts(fixed)
    assert (first[0].split(" (")[0], second[0].split(" (")[0]) == ("org/gold", "random")  # a dirty checkout has a badge
    assert first[2].startswith("**") and not second[2].startswith("**")  # noqa: PT018
    assert first[2].endswith("†")  # neither soundness nor circular nor missing_condition is there
    assert [row[1] for row in floors] == ["`floor/random`", "`floor/all_valid`"]
    assert floors[0][2].startswith("50.0 ")
    assert "† sensitivity without missing_condition." in fixed.notes
    behind = sheet.tables[titles.index("Fixed: behind the overall PRMScore")]
    assert dict(zip(behind.header, texts(behind)[0][0], strict=True))["Unscored"] == "1"
    assert dict(zip(behind.header, texts(behind)[0][0], strict=True))["Twins"] == "100.0"
    assert '"nan"' not in page((), [sheet], [])


def test_published_numbers_are_on_file() -> None:
    (book,) = published("prmbench_preview")
    assert {row.name: row.average for row in book.rows}["Qwen2.5-Math-PRM-7B"] == 65.5
    groups = {"simplicity": 2, "soundness": 4, "sensitivity": 3}
    thresholds = {row.name: (row.rule, row.readout, row.threshold) for row in book.rows}
    assert thresholds["Skywork-PRM-7B"] == ("fixed", "step_diff", "-0.05 on step differences")
    assert thresholds["Qwen2.5-Math-PRM-7B"] == ("fixed", "as_is", "0.5")
    assert thresholds["Pure-PRM-7B"][2].startswith("0 on P(right) - P(wrong)")
    assert thresholds["GPT-4o (prompted as a critic)"][2] == "0 on scores from -1 to 1"
    for row in book.rows:
        assert row.threshold
        assert set(row.cells) == {*COLUMNS} - {"overall"}
        for group, size in groups.items():
            at = COLUMNS.index(group)
            mean = sum(row.cells[name]["prmscore"] for name in COLUMNS[at + 1 : at + 1 + size]) / size
            assert row.cells[group]["prmscore"] == pytest.approx(mean, abs=0.11), (row.name, group)


def test_columns_and_short_names() -> None:
    assert short_subset_name("micro[circular,deception]") == "pooled"
    assert short_subset_name("avg[redundency,circular]") == "simplicity"
    assert short_subset_name("avg[missing_condition,deception]") == "sensitivity (2 of 3)"
    assert (short_subset_name("avg[gsm8k,math]"), short_subset_name("circular")) == ("", "")


def test_places_of_a_run(runs: Runs) -> None:
    run, _ = runs
    found = subset_by_column(run.result)
    assert found["sensitivity"] == "avg[deception,multi_solutions]"
    assert found["overall"] == "micro[redundency,deception,multi_solutions]"
    assert found["correct"] == "correct"
    assert "soundness" not in found


def test_terminal_fits_eighty_columns(runs: Runs) -> None:
    run, _ = runs
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(run_table(run.result))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["prmscore,", "percent", "overall", "simplicity", "sensitivity"]
    starts = [line.split()[0] for line in lines if "/" in line]
    assert starts == [
        *("as_is/fixed:0.5", "as_is/cross_validated", "as_is/oracle"),
        *("floor/random", "floor/all_valid"),
    ]


def test_through_the_command_line(tmp_path: Path) -> None:
    runner = CliRunner()
    folder, out = bench(tmp_path), tmp_path / "cli"
    base = ["eval", "--model", "random", "--benchmark", "prmbench_preview", "--data", str(folder), "--out", str(out)]
    done = runner.invoke(app, [*base, "--protocol", "as_is/fixed:0.25", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["manifest"]["task"] == "validity"
    assert told["manifest"]["subsets"] == ["redundency", "deception", "multi_solutions", "correct"]
    assert {r["protocol"] for r in told["rows"]} == {"as_is/fixed:0.25", "floor/random", "floor/all_valid"}
    path = told["path"]
    done = runner.invoke(app, ["compare", path, path, "--protocol", "as_is/oracle"])
    assert done.exit_code == 0, done.output
    assert "sensitivity (2" in done.stdout  # the rest, of 3), may be on a line of its own
    done = runner.invoke(app, ["compare", path, path, "--protocol", "as_is/oracle", "--against", "as_is/fixed:0.5"])
    assert (done.exit_code, "unlike threshold rules" in done.stderr) == (2, True)
    gold = [*base[:2], "gold", *base[3:]]
    done = runner.invoke(app, gold)
    assert (done.exit_code, "gold gives verdicts" in done.stderr) == (2, True)
    done = runner.invoke(app, [*base, "--subset", "multi_solution"])
    assert (done.exit_code, "--subset multi_solution" in done.stderr) == (2, True)
