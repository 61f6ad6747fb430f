"""Figures that only the page has, and training curves: what they draw is what the scores and the metrics say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_calls import call
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report_runs import completions, manifest, scores_of, task_scores, traces, write

from prmbench.core.records import EvalProtocol, RunResult, ScoredTrace, UserError
from prmbench.core.result_files import Run
from prmbench.metrics import first_error
from prmbench.report import score_figures, task_figures, training_logs
from prmbench.report.board import boards
from prmbench.report.training_logs import read_logs
from prmbench.tasks import judge

PROB = EvalProtocol("as_is", "oracle")


def run(name: str, scores: list[ScoredTrace], **facts: object) -> Run:
    about = manifest(scores, b"", model=name, run_id=name, **facts)
    return Run(RunResult(about, judge(about, scores)), tuple(scores), Path(name))


def drawn(*runs: Run) -> dict[str, tuple[str, Figure]]:
    (board,) = boards(runs)
    return {name.removeprefix("mini-"): (caption, figure) for name, _, caption, figure in score_figures.plans(board)}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_steps_count_up_to_the_first_error() -> None:
    base = scores_of(traces(2, ("a",)))[0]
    three = replace(base, steps=3, values=(0.1, 0.2, 0.3), tokens=())
    right, second = replace(three, label=-1), replace(three, label=1, id="b")
    unscored = replace(three, label=0, values=(), unscored="too long", id="c")
    two = replace(three, label=0, steps=2, values=(0.7, 0.8), id="d")
    scores, wrong, index = first_error.steps_to_first_error([right, second, unscored, two], PROB)
    triples = sorted(zip(index.tolist(), scores.tolist(), wrong.tolist(), strict=True))
    assert triples == [
        (0, 0.1, False),
        (0, 0.2, False),
        (0, 0.3, False),
        (1, 0.1, False),
        (1, 0.2, True),
        (3, 0.7, True),
    ]
    assert [len(part) for part in first_error.steps_to_first_error([], PROB)] == [0, 0, 0]


def test_f1_at_the_marked_threshold_is_the_curve_there() -> None:
    """The curve is F1 by counting, at many thresholds; the dot stands at the threshold of the rows."""
    prm = run("prm", scores_of(traces(24, ("gsm8k", "math"))), rules=("calibrated",))
    _, figure = drawn(prm)["threshold"]
    (axis,) = [axis for axis in figure.axes if axis.lines]
    key = "as_is/calibrated:gsm8k"
    chosen = {r.subset: r.value for r in prm.result.rows if (r.protocol, r.metric) == (key, "threshold")}
    for name in ("gsm8k", "math"):
        subset = [t for t in prm.scores if t.subset == name]
        (curve,) = [line for line in axis.lines if line.get_label() == name]
        x, y = (np.asarray(values, dtype=float) for values in curve.get_data())
        for at, f1 in list(zip(x, y, strict=True))[:: max(1, len(x) // 7)]:
            assert f1 == pytest.approx(100 * counted_f1(subset, at))
        dots = [line for line in axis.lines if line.get_marker() == "o" and line.get_color() == curve.get_color()]
        ((at,), (f1,)) = dots[0].get_data()
        assert at == chosen[name]
        assert f1 == pytest.approx(100 * counted_f1(subset, at))
    assert legend(figure) == ["gsm8k", "math", "chosen threshold"]


def counted_f1(traces: list[ScoredTrace], threshold: float) -> float:
    def hit(trace: ScoredTrace) -> bool:
        below = [k for k, value in enumerate(trace.values) if value < threshold]
        return not trace.unscored and (below[0] if below else -1) == trace.label

    rates = [np.mean([hit(t) for t in traces if (t.label == -1) == right]) for right in (True, False)]
    return float(2 * rates[0] * rates[1] / sum(rates)) if sum(rates) else 0.0


def test_areas_are_the_chance_that_a_wrong_step_scores_lower() -> None:
    prm = run("prm", scores_of(traces(24, ("gsm8k",))))
    caption, figure = drawn(prm)["step-curves"]
    scores, wrong, _ = first_error.steps_to_first_error(prm.scores, PROB)
    pairs = scores[~wrong][None] - scores[wrong][:, None]
    auc = float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert auc > 0.6, "the sign would show"
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert f"AUROC {100 * auc:.1f}" in texts
    areas = {
        row.metric: row.value for row in prm.result.rows if (row.protocol, row.subset) == ("as_is/ranking", "gsm8k")
    }
    assert {f"AUROC {100 * areas['auroc']:.1f}", f"AUPRC {100 * areas['auprc']:.1f}"} <= set(texts)  # type: ignore[operator]
    assert legend(figure) == ["prm  as_is/calibrated:gsm8k", "chance"]
    assert all(word in caption for word in ("ROC", "AUROC", "recall", "AUPRC", "Dashed"))


def test_histograms_add_up_and_right_steps_score_higher() -> None:
    prm = run("prm", scores_of(traces(40, ("gsm8k",)), "logratio", skill=4.0), kind="logratio", backend="implicit")
    _, figure = drawn(prm)["step-scores"]
    (axis,) = [axis for axis in figure.axes if axis.patches]
    assert legend(figure) == ["right steps", "first wrong steps", "chosen threshold"]
    outlines = {patch.get_label(): patch.get_data() for patch in axis.patches if not patch.get_label().startswith("_")}
    means = {}
    for label, (values, edges, _) in outlines.items():
        assert 95 < values.sum() <= 100 + 1e-9
        means[label] = float((values * (edges[1:] + edges[:-1]) / 2).sum() / values.sum())
    assert means["right steps"] > means["first wrong steps"] + 2


def test_reliability_of_steps_has_the_mean_prediction_and_the_share_of_right_steps() -> None:
    prm = run("prm", scores_of(traces(40, ("gsm8k",))))
    _, figure = drawn(prm)["step-reliability"]
    (axis,) = [axis for axis in figure.axes if axis.lines]
    assert legend(figure) == ["perfect", "as read", "Platt"]
    scores, wrong, _ = first_error.steps_to_first_error(prm.scores, PROB)
    (line,) = [line for line in axis.lines if line.get_label() == "as read"]
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    assert len(x) == 10
    order = np.argsort(scores)[: len(scores) // 10]
    assert x[0] == pytest.approx(scores[order].mean(), abs=0.02)
    assert y[0] == pytest.approx((~wrong)[order].mean(), abs=0.05)


def test_a_critic_has_none_and_the_caption_says_who_is_left_out() -> None:
    items = traces(24, ("gsm8k", "math"))
    critic = run("critic", scores_of(items, "verdict"), kind="verdict", backend="critic")
    assert drawn(critic) == {}
    figures = drawn(critic, run("prm", scores_of(items)))
    assert set(figures) == {"threshold", "step-curves", "step-scores", "step-reliability"}
    assert all("1 of 2 runs" in caption for caption, _ in figures.values())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_or_constant_scores_draw_what_they_can(count: int) -> None:
    constant = [replace(t, values=(0.5,) * t.steps) for t in scores_of(traces(count, ("gsm8k",)))]
    drawn(run("constant", constant))
    drawn(run("few", scores_of(traces(count, ("gsm8k",)))))


# --- accuracy against N ------------------------------------------------------------------------------------------


def test_accuracy_against_n_has_votes_and_bounds_with_their_names() -> None:
    items = completions(8, 12)
    about = {"benchmark": "best_of_n", "task": "best_of_n", "kind": "logratio", "beta": 1.0}
    model = run("m", task_scores(items), **about)
    (_, _, caption, figure), (_, _, _, histogram) = task_figures.best_of_n("best_of_n", [model])
    rows = {(r.subset, r.protocol, r.metric): 100 * r.value for r in model.result.rows if r.value is not None}
    axis = figure.axes[0]
    votes = [rows["easy", "prefix_sum/last", f"weighted_vote@{n}"] for n in (2, 4, 8)]
    picks = [rows["easy", "prefix_sum/last", f"best_of@{n}"] for n in (2, 4, 8)]
    majority = [rows["easy", "floor/majority", f"majority@{n}"] for n in (2, 4, 8)]
    assert np.allclose(line_of(axis, "m  prefix_sum/last"), picks)
    assert np.allclose(line_of(axis, "majority vote, no model"), majority)
    assert any(np.shape(y) == (3,) and np.allclose(y, votes) for y in (line.get_ydata() for line in axis.lines))
    floors = {label for _, _, label in task_figures.FLOOR_LOOKS.values()}
    assert set(legend(figure)) == {"m  prefix_sum/last", "highest score", "weighted vote", *floors}
    assert "Dashed" in caption
    assert legend(histogram) == ["right completions", "wrong completions"]


def line_of(axis: Axes, label: str) -> np.ndarray:
    (line,) = [line for line in axis.lines if line.get_label() == label]
    return np.asarray(line.get_ydata(), dtype=float)


# --- training curves ------------------------------------------------------------------------------------------------


def write_log(folder: Path, lines: list[object], finished: bool = True, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps({"identity": {}, "config": config, "finished": finished}))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


UPDATES = [{"update": u, "loss": 1.0 / u, "accuracy": 0.5 + u / 100, "lr": 1e-4, "seconds": u} for u in range(1, 31)]
VALIDATED = [{"update": 30, "validation_loss": 0.25, "validation_accuracy": 0.75}]


def test_training_runs_are_a_table_and_curves(tmp_path: Path) -> None:
    write_log(tmp_path / "a" / "rm", [*UPDATES, *VALIDATED], loss="ipvrm", model="org/base", seed=0)
    write_log(tmp_path / "b", UPDATES[:3], finished=False, model="org/base")
    write_log(tmp_path / "rl", [{"step": 1, "reward": 0.5}], loss="ipvrm")  # train-distrl has its own page
    logs, broken = read_logs(tmp_path)
    assert not broken
    (sheet,) = training_logs.sheets(logs)
    (rows,) = sheet.tables[0].groups
    assert [row[:4] for row in rows] == [
        ("a/rm", "ipvrm", "org/base", "finished"),
        ("b", "sft", "org/base", "not finished"),
    ]
    numbers = [cell.value for cell in rows[0][4:]]  # type: ignore[union-attr]
    assert numbers == pytest.approx([30, np.mean([1 / 28, 1 / 29, 1 / 30]), 0.79, 0.25, 0.75, 30])
    assert [cell.value for cell in rows[1][6:9]] == [pytest.approx(0.53), None, None]  # type: ignore[union-attr]
    (figure,) = sheet.figures
    assert b"held-out prompts" in figure.svg
    assert b"a/rm" in figure.svg


def test_a_curve_is_the_mean_over_equal_stretches_of_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path / "rm", [*UPDATES, {"update": 31, "loss": float("nan")}], loss="ipvrm")
    monkeypatch.setattr(training_logs, "MAX_POINTS", 3)
    logs, _ = read_logs(tmp_path)
    ((_, _, _, figure),) = training_logs._plans(logs)
    assert [axis.get_title() for axis in figure.axes if axis.lines][:2] == ["loss", "right decisions, percent"]
    assert np.allclose(line_of(figure.axes[1], "rm"), [100 * (0.5 + u / 100) for u in (5.5, 15.5, 25.5)])


@pytest.mark.parametrize(
    ("lines", "record", "message"),
    [
        ('{"update": 1}\n[1]\n', "{}", "it has no `config`"),
        ('{"update": 1}\n[1]\n{"update": 2}\n', '{"config": {}}', "line 2: not a JSON object"),
        ('{"update": 1}\n{"upd\n{"update": 2}\n', '{"config": {}}', "line 2: not valid JSON"),
        ('{"update": 1}\n', "[]", "it has no `config`"),
    ],
)
def test_a_damaged_training_record_is_named_and_left_out(tmp_path: Path, lines: str, record: str, message: str) -> None:
    write_log(tmp_path / "good", UPDATES, loss="ipvrm")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.json").write_text(record)
    (tmp_path / "bad" / "metrics.jsonl").write_text(lines)
    logs, broken = read_logs(tmp_path)
    assert [log.name for log in logs] == ["good"]
    assert len(broken) == 1
    assert message in broken[0]
    assert str(tmp_path / "bad") in broken[0]


def test_a_run_in_progress_may_be_in_the_middle_of_a_line(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "rm", UPDATES, finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"update": 31, "lo')
    logs, broken = read_logs(tmp_path)
    assert not broken
    assert len(logs[0].lines) == 30


def test_the_report_of_two_runs_and_a_training_has_every_figure(tmp_path: Path) -> None:
    """Through the command line; the figures that only the page has leave no file behind."""
    items = traces(12, ("gsm8k", "math"))
    write(tmp_path / "in", scores_of(items), run_id="a" * 12)
    write(tmp_path / "in", scores_of(items, "logratio", 1), run_id="b" * 12, model="org/two", kind="logratio", beta=1.0)
    write_log(tmp_path / "in" / "rm", [*UPDATES, *VALIDATED], loss="ipvrm", model="<b>base</b>")
    result = call("report", "--results", tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "training-runs" in (tmp_path / "out" / "README.md").read_text()
    assert "&lt;b&gt;base" in (tmp_path / "out" / "training-runs.md").read_text()
    names = {path.stem for path in (tmp_path / "out" / "figures").glob("*.svg")}
    assert "training-runs-curves" in names
    assert not {name for name in names if "step-" in name or "threshold" in name}
    check = call("report", "--results", tmp_path / "in", "--out", tmp_path / "out", "--check")
    assert (check.exit_code, check.stdout) == (0, "")
    (tmp_path / "in" / "rm" / "train.json").write_text("{")
    damaged = call("report", "--results", tmp_path / "in", "--out", tmp_path / "out")
    assert damaged.exit_code == 1
    assert "train.json" in damaged.stderr


def test_no_training_run_has_no_sheet(tmp_path: Path) -> None:
    assert training_logs.sheets(read_logs(tmp_path)[0]) == ()
    with pytest.raises(UserError):
        training_logs._read_log(tmp_path / "train.json", "x")
