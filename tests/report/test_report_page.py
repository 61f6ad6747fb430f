"""What the page says beside the numbers: a protocol's words, a column's, and a benchmark's best honest number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import completions, manifest, scores_of, task_scores, traces
from table_texts import texts

from prmbench.core.records import EvalProtocol, MetricRow, RunManifest, RunResult
from prmbench.core.result_files import Run
from prmbench.report import explain, overview
from prmbench.report.board import boards
from prmbench.report.markdown import cell_text
from prmbench.report.sheets import Sheet, sheets
from prmbench.report.viewer import trace_view
from prmbench.studies.reporting.sections import headline
from prmbench.tasks import judge, known_tasks, protocol_keys
from prmbench.tasks.table import Code, Table, Value

SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "group_size": 4}


def about(task: str, kind: str) -> RunManifest:
    scores = scores_of(traces(2), "verdict" if kind == "verdict" else "prob")
    return manifest(scores, b"", task=task, kind=kind, series=("decay",), native=0.5, fixed=0.5, config=SAMPLING)


# --- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logratio", "value", "prob", "verdict"])
@pytest.mark.parametrize("task", [task.name for task in known_tasks() if task.name != "distrl"])
def test_every_protocol_of_every_task_has_words(task: str, kind: str) -> None:
    names = protocol_keys(about(task, kind))
    assert all(explain.protocol(name) for name in names), [name for name in names if not explain.protocol(name)]
    assert names or kind == "verdict"


def test_floors_of_every_task_have_words() -> None:
    prefixes = task_scores(completions())
    for task, items in (("steps", scores_of(traces())), ("best_of_n", prefixes), ("calibration", prefixes)):
        kind = "prob" if task == "steps" else "logratio"
        rows = judge(manifest(items, b"", task=task, kind=kind, beta=1.0), items)
        floors = {row.protocol for row in rows if row.protocol.startswith("floor/")}
        assert floors, task
        assert floors <= set(explain.FLOOR_WORDS)


def test_words_say_what_the_key_says() -> None:
    assert explain.protocol("decay.prefix_mean/calibrated:gsm8k@release").split("\n") == [
        explain.READOUTS["prefix_mean"],
        explain.SERIES["decay"],
        "The threshold is tuned on gsm8k and applied to the others; gsm8k itself is judged out of fold.",
        explain.BOUNDARIES["release"],
    ]
    assert (
        explain.protocol("as_is/fixed:-0.5") == f"{explain.READOUTS['as_is']}\n{explain.RULES['fixed'].format('-0.5')}"
    )
    assert explain.protocol("step_sum") == explain.READOUTS["step_sum"]
    assert explain.protocol("sampled/t0.6,p0.95,n8,k20") == (
        "8 completions a problem, drawn at temperature 0.6, top-p 0.95, top-k 20."
    )
    assert explain.protocol("policy/step:20") == "The policy after 20 updates."
    assert [explain.protocol(odd) for odd in ("", "Qwen", "step_sum/unheard", "odd/oracle", "step_sum/oracle@odd")] == [
        ""
    ] * 5


def test_series_unknown_here_are_named() -> None:
    key = EvalProtocol("as_is", "oracle", series="later").key
    assert "Series later" in explain.protocol(key)


def test_columns() -> None:
    assert explain.column("best_of@8") == "Accuracy of the completion that scores highest among 8."
    assert explain.column("headers (n=150)") == "150 traces of headers."
    assert explain.column("avg[a,b]") == "Mean over a, b, each with the same weight."
    assert explain.column("Trained from") == explain.COLUMNS["trained from"]
    assert explain.column("anything else") == ""


# --- the overview -----------------------------------------------------------------------------------------------


def test_a_boards_card_is_the_best_of_its_column_and_names_the_bound() -> None:
    scores = scores_of(traces(12, ("math",)))
    runs = []
    for seed, (model, backend) in enumerate((("low", "token_cls"), ("high", "token_cls"), ("gold", "baseline"))):
        own = scores if model == "low" else scores_of(traces(12, ("math",)), skill=4.0)
        about = manifest(own, b"", model=model, run_id=model, backend=backend, seed=seed)
        runs.append(Run(RunResult(about, judge(about, own)), tuple(own), Path(model)))
    (board,) = boards(runs)
    column = overview.board_column(board)
    card = overview.board_card(board, column)
    facts = dict(card.facts)
    assert column is not None
    assert list(column.standings) == ["high", "low"]
    row = column.standings["high"].row
    assert row is not None
    assert cell_text(card.number) == cell_text(Value(row.value, "percent", row.lo, row.hi))
    assert (facts["F1"], facts["Model"], facts["Rule"]) == ("math", "high", "Cross-validated")
    assert facts["Protocol"] == Code("as_is/cross_validated")
    assert str(facts["Baseline"]).endswith("knows the final answer only")
    assert str(facts["Difference"]).startswith(("+", "-"))
    assert str(facts["Difference"]).endswith("]")
    assert overview.board_card(board, None).number == ""


def sheet(*tables: Table, runs: tuple[Run, ...] = ()) -> Sheet:
    return Sheet("s", "words", tables, (), runs, "none", {}, "", "")


def named(model: str, backend: str, per_subset: int = 2) -> Run:
    """A run of that model."""
    scores = tuple(scores_of(traces(per_subset)))
    return Run(RunResult(manifest(scores, b"", model=model, backend=backend), ()), scores, Path("run.json"))


def test_a_studys_number_counts_its_answers() -> None:
    rows = tuple(
        (name, *(Value(n, "count") for n in counts)) for name, counts in (("a", (1, 2, 1, 3)), ("b", (4, 0, 2, 10)))
    )
    grid = Table("x", "Asked?", "", ("Claim", "Yes", "No", "Equivalent", "Unclear"), (rows[:1], rows[1:]))
    card = overview.sheet_card(replace(sheet(grid), headline=headline([grid])))
    assert card.number == "5 yes, 2 no, 3 equivalent, 13 unclear"
    assert card.facts == (("Asked", "Asked? 23 comparisons."),)


def test_a_sheets_number_is_the_best_of_its_leading_column() -> None:
    header = ("Model", "Readout", "best_of@2", "best_of@8", "gain@8")
    rows = (
        ("low", Code("x"), Value(0.09, best=True), Value(0.61, "percent", 0.60, 0.62), Value(0.01, "points")),
        ("high", Code("x"), Value(0.08), Value(0.63, "percent", 0.62, 0.64, True, "†"), Value(0.03, "points")),
        ("ceiling", Code("floor/pass"), Value(0.09), Value(0.99), ""),
    )
    lead = "best_of@8"
    upper_bound = Table("a-oracle", "o", "", header, (rows[:1],), lead=lead)
    told = overview.sheet_card(sheet(upper_bound, Table("b", "t", "", header, (rows,), lead=lead)))
    assert cell_text(told.number) == "**63.0** [62.0, 64.0]"
    assert told.facts == (("Number", "best_of@8"), ("Model", "high"), ("Readout", Code("x")))
    one = overview.sheet_card(sheet(Table("b", "t", "", header, (rows[:1],), lead=lead)))
    assert cell_text(one.number) == "61.0 [60.0, 62.0]"
    without_lead = Table("b", "t", "", ("Model", "odd"), ((("m", Value(0.1)),),), text_columns=1)
    assert overview.sheet_card(sheet(without_lead)).number == ""
    assert overview.sheet_card(sheet()).number == ""


def picks(run_id: str, model: str, last: dict[str, float], how: str = "last", **facts: Any) -> Run:
    """A best-of-N run of two sets of completions; `last` is best_of@4 by readout, other aggregations pick better."""
    items = task_scores(completions(2, 2))
    rows = []
    for subset, shift in (("easy", 0.0), ("hard", 0.1), ("avg[easy,hard]", 0.05)):
        told = [("floor/random", "accuracy", 0.4), ("floor/majority", "majority@4", 0.5), ("floor/pass", "pass@4", 0.8)]
        told += [("floor/majority", "majority@2", 0.45)]
        told += [(f"{read}/{how}", "best_of@4", value) for read, value in last.items()]
        told += [(f"{read}/{how}", "best_of@2", value + 0.2) for read, value in last.items()]
        told += [(f"{read}/min", "best_of@4", value + 0.3) for read, value in last.items() if how == "last"]
        rows += [MetricRow(subset, key, metric, v + shift, v, v + 0.2, 4, 0, "noted") for key, metric, v in told]
    facts = {"benchmark": "best_of_n", "task": "best_of_n", "kind": "logratio", **facts}
    about = manifest(items, b"", run_id=run_id, model=model, **facts)
    return Run(RunResult(about, tuple(rows)), tuple(items), Path(run_id))


def test_the_card_of_best_of_n_is_one_line_of_the_table() -> None:
    """Number, aggregation and floors are of the same protocol, completions and N, whatever another aggregation says."""
    runs = (
        picks("a", "low", {"prefix_sum": 0.55, "prefix_mean": 0.5}),
        picks("b", "random", {"prefix_sum": 0.6, "prefix_mean": 0.62}),
        picks("c", "coin", {"prefix_sum": 0.99}, backend="baseline"),
        picks("d", "critic", {"vote": 0.61}, "mean", kind="verdict"),
    )
    (told,) = sheets(runs)
    (without_critics,) = sheets(runs[:3])
    card = overview.sheet_card(without_critics, overview.sheet_column(without_critics))
    assert cell_text(card.number) == "65.0 [60.0, 80.0]"
    facts = dict(card.facts)  # prefix_mean is higher, and not the recommended readout
    assert (facts["best_of@4"], facts["Model"]) == ("average of easy, hard", "random")
    assert (facts["Protocol"], facts["Rule"]) == (
        Code("prefix_sum/last"),
        "N = 4, by the last step; critics by the mean of their votes",
    )
    assert facts["Baseline"] == "104.0 coin, a baseline"
    assert facts["Other baselines"] == "55.0 the majority vote, 45.0 a random completion"
    lines = next(texts(grid)[-1] for grid in told.tables if grid.label == "best_of_n-last")
    assert [line[1:3] for line in lines[:2]] == [("coin", "`prefix_sum`"), ("random", "`prefix_mean`")]
    (only,) = sheets(runs[2:3])
    assert dict(overview.sheet_card(only).facts)["Model"] == "coin"  # better than nothing


def test_a_baseline_is_not_the_best_and_an_average_goes_before_its_parts() -> None:
    header = ("Traces", "Model", "overall")
    only = Table(
        "fixed", "t", "", header, ((("a (n=4)", "coin", Value(0.7, best=True)),),), text_columns=2, lead="overall"
    )
    part = (("a (n=4)", "coin", Value(0.7, best=True)), ("a (n=4)", "model", Value(0.6)))
    where = "average of a, b (n=9)"
    mean = ((where, "coin", Value(0.68, best=True)), (where, "model", Value(0.61)))
    both = Table("tuned", "t", "", header, (part, mean), text_columns=2, lead="overall")
    runs = (named("coin", "baseline"), named("model", "token_cls"))
    told = overview.sheet_card(sheet(only, both, runs=runs))
    assert (cell_text(told.number), dict(told.facts)["Traces"]) == ("61.0", where)
    assert cell_text(overview.sheet_card(sheet(only, runs=runs)).number) == "**70.0**"  # better than nothing


def test_the_viewer_opens_with_the_model_that_says_most() -> None:
    runs = (named("all-right", "baseline", 6), named("critic", "critic", 2), named("prm", "token_cls", 4))
    assert [run["model"] for run in trace_view(runs, 100)["runs"]] == ["prm", "critic", "all-right"]
