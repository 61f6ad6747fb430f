"""The files beside a model card: `.eval_results/*.yaml` as the hub reads it, and Every Eval Ever records."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_calls
import pytest
import report_runs
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries
from test_model_card import steps_run, write_run

from prmbench import tasks
from prmbench.config import CardConfig
from prmbench.core.records import Notice, RunResult
from prmbench.report import model_card
from prmbench.report.headlines import headline

HUB = {
    "benchmark": "processbench",
    "data_source": "Qwen/ProcessBench",
    "data_revision": "d" * 40,
    "finished_at": 1_700_000_000,
}
"""What a run on the whole of a hub data set says of its data."""


def texts(*runs: Path, **options: Any) -> dict[str, str]:
    return model_card.result_texts(CardConfig(**options), model_card.read_results(runs))


def entries(text: str) -> list[EvalResultEntry]:
    return parse_eval_result_entries(yaml.safe_load(text))


def result_of(path: Path) -> RunResult:
    return tasks.read_run(path).result


# --- .eval_results --------------------------------------------------------------------------------------------


def test_an_entry_is_the_main_number_with_its_protocol_and_rule_in_the_notes(tmp_path: Path) -> None:
    path = steps_run(tmp_path, **HUB)
    ((entry),) = entries(texts(path)[".eval_results/processbench.yaml"])
    main = headline(result_of(path))
    assert main is not None
    assert entry.value == pytest.approx(main.value, abs=1e-6)
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision, entry.date) == (
        *("Qwen/ProcessBench", "processbench", "d" * 40),
        "2023-11-14T22:13:20+00:00",
    )
    notes = entry.notes or ""
    assert "\n" not in notes
    for part in (
        "f1 as a fraction",
        main.subset,
        main.protocol,
        "threshold rule calibrated",
        "floor/random",
        "run 0123",
    ):
        assert part in notes, part
    assert f"95% interval [{main.lo:.6f}".rstrip("0") in notes


@pytest.mark.parametrize("options", [{"protocol": ("as_is/cross_validated",)}, {"all_protocols": True}])
def test_there_is_one_value_a_task_whatever_the_card_shows(tmp_path: Path, options: dict[str, Any]) -> None:
    path = steps_run(tmp_path, **HUB)
    (entry,) = entries(texts(path, **options)[".eval_results/processbench.yaml"])
    assert (options.get("protocol") or ("as_is/calibrated:gsm8k",))[0] in (entry.notes or "")


def test_tasks_on_one_data_set_have_a_file_each(tmp_path: Path) -> None:
    steps, shift = steps_run(tmp_path, **HUB), tmp_path / "shift"
    items = report_runs.scores_of(report_runs.traces(6))
    shifted = report_runs.write(shift, items, **{**HUB, "benchmark": "step_validity", "run_id": "b" * 12})
    by_path = {name: entries(text) for name, text in texts(steps, shifted).items() if name.startswith(".eval_results")}
    assert {name: [entry.task_id for entry in found] for name, found in by_path.items()} == {
        ".eval_results/processbench.yaml": ["processbench"],
        ".eval_results/step_validity.yaml": ["step_validity"],
    }


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "a limit": ({"config": {"limit": 6}}, "it is on a part of the benchmark (--limit)"),
    "some subsets": ({"config": {"subset": ["math"]}}, "it is on a part of the benchmark (--subset)"),
    "oracle only": ({"rules": ("oracle",)}, "it has no number that could be reached in use"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_does_not_stand_for_the_benchmark_is_left_out_and_said(tmp_path: Path, case: str) -> None:
    facts, reason = LEFT_OUT[case]
    with pytest.warns(Notice, match="not in .eval_results") as notices:
        found = texts(steps_run(tmp_path, **HUB | facts))
    assert not any(name.startswith(".eval_results") for name in found)
    assert str(notices[0].message).endswith(reason)


@pytest.mark.parametrize("source", ["", "traces.jsonl", "../secret/traces", "a/b/c", "org /name", "https://x/y"])
def test_data_of_ones_own_have_no_place_on_a_leaderboard(tmp_path: Path, source: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = texts(steps_run(tmp_path, **HUB | {"data_source": source}))
    assert list(found) == ["every_eval_ever/0123456789ab.json"]
    (result,) = json.loads(found["every_eval_ever/0123456789ab.json"])["evaluation_results"]
    assert result["source_data"]["source_type"] == "other"


def test_the_first_of_two_runs_on_a_benchmark_gives_the_value(tmp_path: Path) -> None:
    runs = [steps_run(tmp_path, run_id=name, seed=seed, **HUB) for seed, name in enumerate(("one", "two"))]
    with pytest.warns(Notice, match=r"run two of processbench: .* holds one value of a task, and one comes first"):
        (entry,) = entries(texts(*runs)[".eval_results/processbench.yaml"])
    assert "run one" in (entry.notes or "")


# --- Every Eval Ever ------------------------------------------------------------------------------------------

REQUIRED = {
    "": ("schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info", "eval_library"),
    "source_metadata": ("source_type", "source_organization_name", "evaluator_relationship"),
    "eval_library": ("name", "version"),
    "model_info": ("name", "id", "additional_details"),
}
"""What version 0.3.0 of the schema requires of each object."""
PROPERTIES = {*REQUIRED[""], "evaluation_results", "evaluation_timestamp"}
"""Of the properties at the top, which may be no others, those that are used here."""


def check_record(record: dict[str, Any]) -> None:
    """The parts of the schema that a record could break."""
    assert record.keys() <= PROPERTIES
    for part, names in REQUIRED.items():
        fields = record[part] if part else record
        assert not {*names} - fields.keys(), part
    assert record["schema_version"] == "0.3.0"
    details = record["model_info"]["additional_details"]
    assert details["deployment_type"] in ("self_deployed", "externally_managed", "unknown")
    assert details["model_availability"] in ("open_weights", "closed_weights", "unknown")
    assert record["source_metadata"]["evaluator_relationship"] == "other"
    assert record["evaluation_results"]
    for result in record["evaluation_results"]:
        config, score = result["metric_config"], result["score_details"]["score"]
        assert config["score_type"] == "continuous"
        assert float(config["min_score"]) <= score <= float(config["max_score"])
        source = result["source_data"]
        assert source["dataset_name"]
        assert source["source_type"] == ("hf_dataset" if "hf_repo" in source else "other")
    for extra in additional_details(record):
        assert all(isinstance(value, str) for value in extra.values()), extra


def additional_details(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of further details, all of whose values have to be texts."""
    if isinstance(value, dict):
        yield from (part for name, part in value.items() if name in ("additional_details", "details"))
        for part in value.values():
            yield from additional_details(part)
    if isinstance(value, list):
        for part in value:
            yield from additional_details(part)


@pytest.mark.parametrize("all_protocols", [False, True])
@pytest.mark.parametrize("task", [task.name for task in tasks.known_tasks()])
def test_a_record_has_the_numbers_of_the_card(tmp_path: Path, task: str, all_protocols: bool) -> None:
    path = write_run(tmp_path, task)
    result = result_of(path)
    (text,) = texts(path, all_protocols=all_protocols).values()
    record = json.loads(text)
    check_record(record)
    rows = {f"{result.manifest.run_id}/{r.subset}/{r.protocol}/{r.metric}": r for r in result.rows}
    found = record["evaluation_results"]
    assert (len(found) > 1) == all_protocols
    for one in found:
        row = rows[one["evaluation_result_id"]]
        score = one["score_details"]
        assert score["score"] == pytest.approx(row.value, abs=1e-6)
        if row.lo is not None:
            interval = score["uncertainty"]["confidence_interval"]
            assert (interval["lower"], interval["upper"]) == pytest.approx((row.lo, row.hi), abs=1e-6)
        assert one["metric_config"]["additional_details"]["protocol"] == row.protocol
        lowest = row.metric in ("f1_drop", "brier", "ece", "truncated", "unverified")
        assert one["metric_config"]["lower_is_better"] == lowest, row.metric


def test_times_and_data_of_a_record_are_those_of_the_run(tmp_path: Path) -> None:
    path = steps_run(tmp_path, **HUB | {"packages": {"prmbench": "1.2", "transformers": "5.1"}, "engine": "hf"})
    record = json.loads(texts(path, name="me/mine")["every_eval_ever/0123456789ab.json"])
    assert record["retrieved_timestamp"] == record["evaluation_timestamp"] == "1700000000"
    assert record["evaluation_id"] == "processbench/me/mine/1700000000/0123456789ab"
    assert record["eval_library"]["version"] == "1.2"
    assert record["model_info"]["developer"] == "me"
    assert record["model_info"]["inference_engine"] == {"name": "transformers", "version": "5.1"}
    (result,) = record["evaluation_results"]
    assert result["source_data"]["hf_repo"] == "Qwen/ProcessBench"
    assert result["source_data"]["additional_details"]["revision"] == "d" * 40
    assert set(json.loads(result["metric_config"]["additional_details"]["floors"])) == {
        *("floor/random_calibrated", "floor/position", "floor/outcome_oracle")
    }


def test_an_old_run_has_the_time_of_its_file(tmp_path: Path) -> None:
    path = steps_run(tmp_path)
    record = json.loads(texts(path)["every_eval_ever/0123456789ab.json"])
    assert record["retrieved_timestamp"] == str(int(path.stat().st_mtime))
    assert "evaluation_timestamp" not in record  # nobody knows when it was evaluated


# --- the command ----------------------------------------------------------------------------------------------


def test_card_writes_the_files_beside_the_card_and_the_same_again(tmp_path: Path) -> None:
    path, out = steps_run(tmp_path, **HUB), tmp_path / "repo" / "README.md"
    assert cli_calls.fine("card", path, "--out", out).splitlines() == [
        f"card: {out}",
        f"results: {out.parent}/.eval_results/processbench.yaml",
        f"results: {out.parent}/every_eval_ever/0123456789ab.json",
    ]
    before = {file: file.read_bytes() for file in out.parent.rglob("*") if file.is_file()}
    assert len(before) == 3
    cli_calls.fine("card", path, "--out", out, "--force")
    assert {file: file.read_bytes() for file in out.parent.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("there", ["README.md", ".eval_results/processbench.yaml", "every_eval_ever/0123456789ab.json"])
def test_card_replaces_none_of_its_files_without_force(tmp_path: Path, there: str) -> None:
    path, folder = steps_run(tmp_path, **HUB), tmp_path / "repo"
    (folder / there).parent.mkdir(parents=True)
    (folder / there).write_text("mine")
    line = cli_calls.refused("card", path, "--out", folder / "README.md")
    assert f"{there}: exists; name another file, or pass --force" in line
    assert [file.read_text() for file in folder.rglob("*") if file.is_file()] == ["mine"]


def test_card_alone(tmp_path: Path) -> None:
    path, out = steps_run(tmp_path, **HUB), tmp_path / "repo" / "README.md"
    cli_calls.fine("card", path, "--out", out, "--card-only")
    assert list(out.parent.iterdir()) == [out]
    assert cli_calls.fine("card", path).strip() == out.read_text().strip()
