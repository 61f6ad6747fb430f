"""Data that are not the published ones have a name and a board of their own, whatever they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from cli_calls import call, fine, refused

from prmbench import data, tasks
from prmbench.core.records import Notice
from prmbench.data import benchmarks, processbench
from prmbench.report import model_card

EVAL = ("eval", "--model", "step-length", "--json")


def rows(name: str = "x", count: int = 8) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{name}-{n}",
            "problem": f"What is {n} + {n}?",
            "steps": [f"We add {n}.", f"It is {2 * n}."],
            "label": n % 3 - 1,
            "final_answer_correct": n % 3 == 0,
        }
        for n in range(count)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def evaluated(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(fine(*EVAL, "--out", tmp_path / "runs", *arguments))["manifest"]
    return manifest


@pytest.mark.parametrize(
    ("file", "benchmark"),
    [
        ("my.jsonl", "my"),
        ("gsm8k.jsonl", "gsm8k"),
        ("omnimath.jsonl", "omnimath"),
        ("processbench.jsonl", "own-processbench"),
        ("ProcessBench.jsonl", "own-ProcessBench"),
        ("policy.jsonl", "own-policy"),
    ],
)
def test_a_file_gives_its_traces_a_benchmark_of_its_name(tmp_path: Path, file: str, benchmark: str) -> None:
    """Ids like those of ProcessBench do not make them its traces."""
    path = write(tmp_path / file, rows(path_stem := Path(file).stem))
    for name in ("processbench", "format_shift"):
        loaded = data.load(name, path)
        assert (loaded.benchmark, loaded.family) == (benchmark, name)
        assert loaded.traces[0].subset.split("+")[0] == path_stem


def test_a_folder_gives_its_name_and_odd_characters_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "my data (2)" / "a.jsonl", rows()).parent
    assert data.load("processbench", folder).benchmark == "my-data-2"
    monkeypatch.chdir(folder)
    assert data.load("processbench", Path()).benchmark == "my-data-2"


@pytest.mark.parametrize("subset", ["gsm8k", "math", "olympiadbench"])
def test_published_traces_are_known_as_a_whole_and_in_part(subset: str, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "processbench" / f"{subset}.json"
    assert data.load("processbench", path).benchmark == "processbench"
    published = json.loads(path.read_text())
    part = write(tmp_path / f"{subset}.jsonl", published[5:25])
    assert data.load("processbench", part).benchmark == "processbench"
    bare = [{k: v for k, v in row.items() if k != "generator"} for row in published[5:25]]
    assert data.load("processbench", write(tmp_path / f"{subset}.jsonl", bare)).benchmark == "processbench"


@pytest.mark.parametrize(
    "change",
    [
        {"problem": "Another problem."},
        {"id": "gsm8k-399"},
        {"steps": ["Another step."] * 9},
        {"label": 1},
        {"final_answer_correct": None},
        {"subset": "mine"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_one_changed_trace_makes_them_the_users_own(change: dict[str, Any], shared_data: Path, tmp_path: Path) -> None:
    published = json.loads((shared_data / "processbench" / "gsm8k.json").read_text())[:5]
    changed = {**published[3], **change}
    if "label" in change:
        changed["label"] = -1 if published[3]["label"] != -1 else 0
    path = write(tmp_path / "gsm8k.jsonl", [*published[:3], changed, published[4]])
    assert data.load("processbench", path).benchmark == "gsm8k"
    assert data.load("processbench", write(path, published)).benchmark == "processbench"


def test_a_folder_is_published_only_if_all_of_its_files_that_are_used_are(shared_data: Path, tmp_path: Path) -> None:
    published = json.loads((shared_data / "processbench" / "gsm8k.json").read_text())[:5]
    write(tmp_path / "mix" / "gsm8k.jsonl", published)
    write(tmp_path / "mix" / "mine.jsonl", rows())
    assert data.load("processbench", tmp_path / "mix").benchmark == "mix"
    assert data.load("processbench", tmp_path / "mix", ["gsm8k"]).benchmark == "processbench"


def test_the_ids_of_omnimath_do_not_make_traces_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "omnimath.jsonl", rows("omnimath", processbench.OMNIMATH_FACTS["traces"]))
    with pytest.warns(Notice, match="unverified: omnimath has the ids of ProcessBench's, but 334 traces without"):
        assert data.load("processbench", path, limit=2).benchmark == "omnimath"


def test_a_run_has_one_id_under_every_name_and_is_filed_under_the_latest(tmp_path: Path) -> None:
    """What a file is called moves no score; the id is that of the time when all were called processbench."""
    path = write(tmp_path / "my.jsonl", rows())
    first = evaluated(tmp_path, "--data", path)
    second = evaluated(tmp_path, "--data", path, "--data-name", "algebra-v2")
    notice = call(*EVAL, "--data", path, "--data-name", "sums", "--out", tmp_path / "runs").stderr
    assert "The run's benchmark is 'sums', no longer 'algebra-v2': " in notice
    assert f"{first['run_id']}.json is written anew under the same name" in notice
    assert f"no score of {first['run_id']}.scores.jsonl.gz changes" in notice
    assert first["run_id"] == second["run_id"]
    second = evaluated(tmp_path, "--data", path, "--data-name", "algebra-v2")
    assert (first["benchmark"], second["benchmark"]) == ("my", "algebra-v2")
    (stored,) = (tmp_path / "runs").glob("*[0-9a-f].json")
    assert tasks.read_verified(stored).result.manifest.benchmark == "algebra-v2"
    assert "--data PATH/my.jsonl" in model_card.command(tasks.read_verified(stored).result.manifest)
    assert "--data-name algebra-v2" in model_card.command(tasks.read_verified(stored).result.manifest)


def test_the_name_is_for_every_benchmark(tmp_path: Path) -> None:
    rollouts = [
        {"prompt": f"P{n}?", "completion": f"{k}", "outcome": k, "group": f"g{n}"} for n in range(3) for k in range(2)
    ]
    path = write(tmp_path / "r.jsonl", rollouts)
    common = ("--data", path, "--benchmark", "best_of_n")
    assert evaluated(tmp_path, *common)["benchmark"] == "best_of_n"
    assert evaluated(tmp_path, *common, "--data-name", "mine")["benchmark"] == "mine"
    assert evaluated(tmp_path, *common, "--data-name", "best_of_n")["benchmark"] == "best_of_n"


def test_a_benchmark_of_ones_own_with_the_reader_of_another_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = data.Benchmark("algebra", 1, tasks.find_task("steps"), benchmarks.PROCESSBENCH)
    monkeypatch.setattr(data, "find_benchmark", lambda _: own)
    assert data.load("mine:ALGEBRA", write(tmp_path / "my.jsonl", rows())).benchmark == "algebra"


@pytest.mark.parametrize("name", ["processbench", "ProcessBench", "policy", "a b", "", "../x"])
def test_a_name_that_is_taken_or_none_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "my.jsonl", rows())
    assert "--data-name" in refused(*EVAL, "--data", path, "--out", tmp_path / "runs", "--data-name", name)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_own_data_and_published_ones_share_no_table(shared_data: Path, tmp_path: Path) -> None:
    """A board, a section of the page, a card and comparisons of their own."""
    published = json.loads((shared_data / "processbench" / "gsm8k.json").read_text())[:30]
    official = write(tmp_path / "gsm8k.jsonl", published)
    own = write(tmp_path / "my.jsonl", rows(count=12))
    ids = [evaluated(tmp_path, "--data", path)["run_id"] for path in (official, own)]
    first, second = (tmp_path / "runs" / f"{run_id}.json" for run_id in ids)
    with mock.patch("prmbench.report.load.refusal", return_value=""):  # they are of a working tree
        fine("report", "--results", tmp_path / "runs", "--out", tmp_path / "site")
    board, own_board = ((tmp_path / "site" / f"{name}.md").read_text() for name in ("processbench", "my"))
    assert ids[0] in board
    assert ids[1] not in board
    assert ids[1] in own_board
    assert "Published numbers" in board
    assert "Published numbers" not in own_board
    assert "| [my](my.md) | 1 |" in (tmp_path / "site" / "README.md").read_text()
    assert "the runs differ in benchmark (processbench and my)" in refused("compare", first, second)
    assert "ProcessBench" not in fine("card", second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "processbench"), "is a benchmark and no file here; leave --data out"),
        (("--data", "Qwen/ProcessBench"), "is a benchmark and no file here; leave --data out"),
        (("--data", "prmbench_preview"), "leave --data out and give --benchmark prmbench_preview"),
        (("--data", "gsm8k"), "is a subset and no file here; give --subset gsm8k in place of --data"),
        (("--data", "nowhere.jsonl"), "no such file or folder"),
    ],
)
def test_a_name_in_place_of_a_file_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(*EVAL, *arguments)
