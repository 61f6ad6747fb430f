"""Model cards: the metadata says what the runs say, for every task; the command gives the run again; refusals."""

from __future__ import annotations

import html
import json
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_runs
import rl_runs
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from prmbench import tasks
from prmbench.cli import app
from prmbench.config import CardConfig, EvalConfig
from prmbench.core.records import RunResult, StepScores, UserError, join_scores
from prmbench.data.renderings import render_traces
from prmbench.evaluation import evaluate
from prmbench.report.model_card import card, command


def steps_run(root: Path, **facts: Any) -> Path:
    """A run of step F1."""
    return report_runs.write(root, report_runs.scores_of(report_runs.traces()), **{"replicates": 20, **facts})


def write_run(root: Path, task: str) -> Path:
    """A small run of the task, of model org/model where that is what is evaluated."""
    if task == "steps":
        return steps_run(root, native=0.5)
    if task == "distrl":
        return rl_runs.write_training(root, "org/model", [0.4, 0.5, 0.6], run_id="training")
    items = report_runs.completions() if task != "format_shift" else render_traces(report_runs.traces(6), ())
    if task in ("validity", "format_shift"):
        facts = {"benchmark": "prmbench_preview"} if task == "validity" else {"calibrate_on": "gsm8k"}
        items = [replace(t, step_labels=tuple(float(y > 0.4) for y in t.step_labels)) for t in items]
        scores = [join_scores(t, StepScores(t.id, tuple(0.3 + 0.2 * k for k in range(len(t.steps))))) for t in items]
        told: dict[str, Any] = {"kind": "prob", "fixed": 0.5, "backend": "token_cls", "beta": None, "replicates": 20}
        return report_runs.write_task(root, task, scores, **told | facts)
    scores = report_runs.task_scores(items)
    if task == "policy":
        scores = [replace(t, values=(), tokens=(9,)) for t in scores]
    return report_runs.write_task(root, task, scores, run_id=task, replicates=20)


def read(text: str) -> tuple[dict[tuple[str, str, str], Any], str]:
    """(results of the metadata by subset, protocol and metric, the text below it), as the hub reads them."""
    found = ModelCard(text)
    assert not found.data.to_dict().keys() - {"license", "tags", "model-index"}
    results = found.data.eval_results or []
    by = {(r.dataset_config, r.metric_args["protocol"], r.metric_type): r for r in results}
    assert len(by) == len(results)
    return by, found.text


def told(result: RunResult) -> dict[tuple[str, str, str], Any]:
    """The rows that the metadata has to have."""
    return {
        (r.subset, r.protocol, r.metric): r
        for r in result.rows
        if r.value is not None
        and not r.protocol.startswith("floor/")
        and "in_sample" not in r.protocol
        and "oracle" not in r.protocol
        and r.metric not in ("threshold", "mdd", "drop_mdd", "p_value")
        and not r.metric.startswith(("reliability", "ece_if_calibrated"))
    }


@pytest.mark.parametrize("task", [task.name for task in tasks.known_tasks()])
def test_every_number_of_a_run_of_any_task(tmp_path: Path, task: str) -> None:
    path = write_run(tmp_path, task)
    result = tasks.read_run(path).result
    text = card(CardConfig(all_protocols=True), [path])
    found, body = read(text)
    expected = told(result)
    assert expected
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        one = found[key]
        assert one.metric_value == pytest.approx(row.value, abs=1e-6)
        assert (one.metric_args.get("lo"), one.metric_args["n"]) == (pytest.approx(row.lo, abs=1e-6), row.n)
        assert (one.metric_args.get("unscored", 0), one.metric_args.get("note", "")) == (row.unscored, row.note)
        assert one.dataset_args == {"version": 1, "sha256": "0" * 64, "run": result.manifest.run_id}
    assert ModelCard(text).data.model_name == "org/model"
    kept = [r for r in result.rows if r.protocol.startswith("floor/") or not r.protocol.endswith("/oracle")]
    assert f"All {sum('in_sample' not in r.protocol for r in kept)} rows" in body
    assert "/oracle" not in text
    assert all(f"| {r.protocol} |" in body for r in result.rows if r.protocol.startswith("floor/"))
    assert "c" * 40 in body
    assert max(map(len, body.split("```")[1].splitlines())) <= 80


def test_floors_stand_beside_what_they_are_floors_of(tmp_path: Path) -> None:
    path = write_run(tmp_path, "steps")
    rows = {(r.subset, r.protocol, r.metric): r.value for r in tasks.read_run(path).result.rows}
    found, _ = read(card(CardConfig(all_protocols=True), [path]))
    floors = found["math", "as_is/native", "f1"].metric_args["floors"]
    assert floors == {
        key: pytest.approx(rows["math", key, "f1"], abs=1e-6)
        for key in ("floor/random_flags", "floor/position", "floor/outcome_oracle")
    }
    assert "floors" not in found["math", "as_is/native", "error_accuracy"].metric_args


def test_floors_of_picking_are_of_the_same_size(tmp_path: Path) -> None:
    path = write_run(tmp_path, "best_of_n")
    rows = {(r.subset, r.protocol, r.metric): r.value for r in tasks.read_run(path).result.rows}
    found, _ = read(card(CardConfig(all_protocols=True), [path]))
    for metric in ("best_of@2", "weighted_vote@2"):
        assert found["easy", "prefix_sum/last", metric].metric_args["floors"] == {
            "floor/random": pytest.approx(rows["easy", "floor/random", "accuracy"], abs=1e-6),
            "floor/majority": pytest.approx(rows["easy", "floor/majority", "majority@2"], abs=1e-6),
            "floor/pass": pytest.approx(rows["easy", "floor/pass", "pass@2"], abs=1e-6),
        }
    assert "floors" not in found["easy", "prefix_sum/last", "gain@2"].metric_args


def test_several_runs_of_one_model(tmp_path: Path) -> None:
    paths = [
        steps_run(tmp_path, run_id=name, weights=weights, seed=seed)
        for name, weights, seed in (("a", "w" * 64, 0), ("b", None, 1))  # the same data twice: told apart by the split
    ]
    paths.append(write_run(tmp_path, "best_of_n"))
    found = ModelCard(card(CardConfig(name="me/mine", license="mit"), [*paths, paths[0]]))
    assert (found.data.license, found.data.model_name) == ("mit", "me/mine")
    assert {(r.dataset_type, r.dataset_split, r.task_name) for r in found.data.eval_results or []} == {
        ("mini", "a", "finding the first wrong step"),
        ("mini", "b", "finding the first wrong step"),
        ("best_of_n", None, "picking among completions"),
    }
    assert found.text.count("\n## ") == 3
    assert f"| SHA-256 of the weights | {'w' * 64} |" in found.text


def test_data_from_the_hub_has_its_id_and_revision(tmp_path: Path) -> None:
    facts = {"benchmark": "processbench", "data_source": "Qwen/ProcessBench", "data_revision": "d" * 40}
    found, _ = read(card(CardConfig(), [steps_run(tmp_path, **facts)]))
    assert {(r.dataset_type, r.dataset_name, r.dataset_revision) for r in found.values()} == {
        ("Qwen/ProcessBench", "processbench", "d" * 40)
    }


def test_protocols_asked_for(tmp_path: Path) -> None:
    path = write_run(tmp_path, "steps")
    found, body = read(card(CardConfig(protocol=("as_is/oracle",)), [path]))
    assert {key[1] for key in found} == {"as_is/oracle"}
    assert "| floor/random |" in body
    assert "cross_validated" not in body
    both = read(card(CardConfig(protocol=("as_is/oracle",)), [path, write_run(tmp_path, "best_of_n")]))[0]
    others = {key for key in both if key[1] != "as_is/oracle"}
    assert others == {("avg[easy,hard]", "prefix_sum/last", "best_of@4")}  # the other task's main number
    with pytest.raises(UserError, match=r"--protocol as_is/none: the runs have as_is/native, "):
        card(CardConfig(protocol=("as_is/none",)), [path])


def test_text_that_would_break_the_page(tmp_path: Path) -> None:
    facts = {"model": "a|b\n# c: [d", "hardware": "x\n---\ny"}
    path = steps_run(tmp_path, folder="m", **facts)
    found = ModelCard(card(CardConfig(), [path]))
    assert found.data.model_name == "a|b # c: [d"
    assert "| model | a&#124;b &#35; c: &#91;d |" in found.text
    assert "x --- y" in found.text


NASTY = (
    *("---\nlicense: evil\n---", "x\n\n---\n\n# Trusted", "```\n\n# Trusted\n", "````\n</details>\n", "~~~\n# Trusted"),
    *(
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</details><h1>Trusted</h1>",
        "<!-- hidden",
        "&lt;b&gt;",
    ),
    *(
        "[free](javascript:alert(1))",
        "![seen](http://127.0.0.1/x.png)",
        "<http://127.0.0.1>",
        "[a]: http://127.0.0.1 'b'",
    ),
    *(
        "a|b|c|d",
        "\\|",
        "a\\",
        "**bold** *more* __and__ _so_ ~~on~~",
        "`code`",
        "$x$ $$y$$",
        "a: b\n- c: d",
        "- [x] done",
    ),
    *(
        "# heading",
        "1. one",
        "> quoted",
        "{{ 7 * 7 }} {% raw %}",
        "'\"\\'",
        "!!python/object:os.system",
        "&anchor *anchor",
    ),
    *(
        "@someone a@example.org",
        "www.example.org",
        "a\u2028b\u2029c",
        "= = =\n===",
        "%TAG",
        "? x",
        "\ttab",
        "😀 é 日本",
    ),
)
"""Names that would like to be more than names, in Markdown, HTML, YAML or a template."""
FIELDS = ("model", "hardware", "input_format", "signal", "data_source", "benchmark", "ref_model", "backend", "device")


def shown(text: str) -> tuple[Counter[str], list[str]]:
    """What a Markdown reader makes of a text: how often each kind of element occurs, and its headings as text."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = reader.parse(text)
    kinds = Counter(t.type for token in tokens for t in (token, *(token.children or ())) if t.type != "text")
    for kind in ("softbreak", "text_special"):
        kinds.pop(kind, None)
    heads = [reader.renderInline(tokens[i + 1].content) for i, t in enumerate(tokens) if t.type == "heading_open"]
    return kinds, heads


def card_of(root: Path, text: str) -> str:
    """The card of a run that says this wherever a run may say something."""
    told: dict[str, Any] = dict.fromkeys(FIELDS, text) | {
        "trained_on": (text,),
        "packages": {"prmbench": "1", "x": text},
    }
    told["config"] = {"model": text, "benchmark": text, "template": text, "subset": [text]}
    scores = report_runs.scores_of(report_runs.traces(3, ("gsm8k",)))
    path = report_runs.write(root, scores, folder="m", native=0.5, rules=("native",), replicates=2, **told)
    return card(CardConfig(), [path])


@pytest.mark.parametrize("nasty", NASTY)
def test_a_foreign_name_adds_no_markup_and_no_metadata(tmp_path: Path, nasty: str) -> None:
    """The card has the elements that a card of harmless names has; every name is there, as text."""
    text, harmless = card_of(tmp_path / "nasty", nasty), card_of(tmp_path / "harmless", "name")
    flat = " ".join(nasty.split())
    head, _, body = text.partition("\n---\n")
    assert set(yaml.safe_load(head.removeprefix("---\n"))) == {"tags", "model-index"}
    known = ModelCard(text)
    assert known.data.to_dict().keys() == {"tags", "model-index"}
    assert known.text.strip() == body.strip()
    assert known.data.model_name == flat
    kinds, heads = shown(body)
    assert kinds == shown(harmless.partition("\n---\n")[2])[0]
    assert html.unescape(heads[0]) == f"{flat}: evaluation"


def test_a_row_that_does_not_follow_from_its_scores_is_on_no_card(tmp_path: Path) -> None:
    path = steps_run(tmp_path)
    told = json.loads(path.read_text())
    at = next(i for i, row in enumerate(told["rows"]) if row["metric"] == "f1" and "oracle" not in row["protocol"])
    told["rows"][at]["value"] = 0.97531
    path.write_text(json.dumps(told))
    done = CliRunner().invoke(app, ["card", str(path), "--out", str(tmp_path / "README.md")])
    assert done.exit_code == 2
    assert "value 0.97531 is recomputed as" in done.stderr
    assert not (tmp_path / "README.md").exists()


def test_two_results_under_one_id_are_not_one(tmp_path: Path) -> None:
    paths = [steps_run(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1))]
    with pytest.raises(UserError, match="2 unlike results are run 0123456789ab of mini; keep one"):
        card(CardConfig(), paths)


# --- one number a run -----------------------------------------------------------------------------------------


MAIN = {
    "steps": ("avg[math,omnimath]", "as_is/calibrated:gsm8k", "f1"),
    "validity": ("micro[easy,hard]", "as_is/cross_validated", "prmscore"),
    "best_of_n": ("avg[easy,hard]", "prefix_sum/last", "best_of@4"),
    "policy": ("avg[easy,hard]", "sampled/t0.6,p0.95,n4", "avg@4"),
    "calibration": ("avg[easy,hard]", "prefix_sum/sigmoid", "auc"),
    "distrl": ("validation", "policy/step:10", "avg@8"),
}
"""Task -> subset, protocol and metric of the number of a card; format_shift's has a long name and a test of its own."""


@pytest.mark.parametrize("task", [task.name for task in tasks.known_tasks()])
def test_a_card_has_one_number_of_a_run_with_its_protocol_and_floors_alone(tmp_path: Path, task: str) -> None:
    path = write_run(tmp_path, task)
    result = tasks.read_run(path).result
    found, body = read(card(CardConfig(), [path]))
    ((key, number),) = found.items()
    if task == "format_shift":
        assert key[1:] == ("as_is/calibrated:gsm8k", "f1_drop")
        assert len(key[0].split(",")) == 3 * 7  # every subset in every format but the plain one
    else:
        assert key == MAIN[task]
    (row,) = (r for r in result.rows if (r.subset, r.protocol, r.metric) == key)
    assert number.metric_value == pytest.approx(row.value, abs=1e-6)
    others = {r.protocol for r in result.rows if not r.protocol.startswith("floor/")} - {key[1]}
    assert not any(f"{name}\n" in body for name in others)
    assert "<details>" not in body
    left_out = len(result.rows) - 1
    assert f"The result file has {left_out} more numbers" in body


def test_a_run_whose_thresholds_were_all_tuned_on_itself_has_no_main_number(tmp_path: Path) -> None:
    path = steps_run(tmp_path, rules=("oracle",))
    found, body = read(card(CardConfig(), [path]))
    assert found == {}
    assert "as_is/oracle" not in body


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_gives_the_run_again(tmp_path: Path, benchmark_folder: Path) -> None:
    config = EvalConfig(
        model="random",
        data=benchmark_folder,
        limit=6,
        seed=3,
        subset=("gsm8k", "math"),
        calibrate_on="math",
        out=tmp_path,
    )
    run = evaluate(config)
    assert run is not None
    line = shlex.split(command(run.result.manifest))
    assert line[:2] == ["prmbench", "eval"]
    assert line.count("--subset") == 2
    line[line.index("--data") + 1] = str(benchmark_folder)
    done = CliRunner().invoke(app, [*line[1:], "--out", str(tmp_path / "again"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["manifest"]["run_id"] == run.result.manifest.run_id


def test_what_the_command_tells_and_what_not(tmp_path: Path) -> None:
    def of(**facts: Any) -> str:
        return command(tasks.read_run(steps_run(tmp_path, **facts)).result.manifest)

    config = {"model": "org/model", "benchmark": "processbench", "out": "runs", "dtype": "bfloat16", "unheard_of": 1}
    known = {"benchmark": "processbench", "revision": "e" * 40}
    assert shlex.split(of(config=config, **known)) == [
        *("prmbench", "eval", "--model", "org/model", "--revision", "e" * 40, "--dtype", "bfloat16")
    ]
    server = {**config, "base_url": "http://10.0.0.1/v1", "engine": "openai"}
    assert "--base-url URL" in of(config=server, **known)
    assert of(config=config, benchmark="miniature") == ""  # traces that the caller brought
    assert of(config={**config, "dtype": "float7"}, **known) == ""  # of another version
    assert of() == ""


def test_the_command_of_training(tmp_path: Path) -> None:
    study = tasks.read_run(rl_runs.write_training(tmp_path, "prime", [0.4, 0.5])).result.manifest
    assert command(study) == ""  # its record has no model
    told = {"model": "pi", "arm": "prime", "alpha": 0.5, "whiten": False, "server": ["http://x"], "steps": 100}
    assert shlex.split(command(replace(study, config={**study.config, **told}))) == [
        *("prmbench", "train-distrl", "--model", "PATH/pi", "--arm", "prime", "--alpha", "0.5", "--no-whiten")
    ]


# --- files, and what is refused -------------------------------------------------------------------------------


def test_a_card_is_written_over_nothing_without_force(tmp_path: Path) -> None:
    path = write_run(tmp_path, "steps")
    out = tmp_path / "README.md"
    text = card(CardConfig(out=out), [path])
    assert out.read_text() == text
    out.write_text("# My model\n")
    with pytest.raises(UserError, match=r"README\.md: exists; name another file, or pass --force"):
        card(CardConfig(out=out), [path])
    assert out.read_text() == "# My model\n"
    assert card(CardConfig(out=out, force=True), [path]) == out.read_text() == text


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"model": "org/other"}, r"differ in model \(org/model and org/other\); a card is about one model"),
        ({"weights": "b" * 64}, "differ in weights"),
        ({"revision": "b" * 40}, "differ in revision"),
        ({"ref_model": "org/ref2"}, "differ in ref model"),
    ],
)
def test_runs_of_two_models(tmp_path: Path, facts: dict[str, str], message: str) -> None:
    same = {"weights": "a" * 64, "revision": "a" * 40, "ref_model": "org/ref"}
    paths = [steps_run(tmp_path, run_id=f"{k}", **same | more) for k, more in enumerate(({}, facts))]
    with pytest.raises(UserError, match=message):
        card(CardConfig(), paths)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one run"):
        card(CardConfig(), [])
    with pytest.raises(UserError, match=r"absent\.json: cannot be read"):
        card(CardConfig(), [tmp_path / "absent.json"])


def test_a_card_says_how_a_step_at_the_threshold_is_judged(tmp_path: Path) -> None:
    for tie in ("right", "wrong"):
        _, body = read(card(CardConfig(), [steps_run(tmp_path / tie, native=0.5, tie=tie)]))
        assert f"| a step whose score equals the threshold | {tie} |" in body
    _, body = read(card(CardConfig(), [write_run(tmp_path, "calibration")]))
    assert "equals the threshold" not in body
