"""Readers: three file types that agree, every bad row named by file, row and field, and the real files' own facts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROWS
from hypothesis import given
from hypothesis import strategies as st

from prmbench import data
from prmbench.core import reading
from prmbench.core.provenance import content_hash
from prmbench.core.records import Notice, UserError, text_hash
from prmbench.data import files, hub, processbench, solutions

GOOD = ROWS[1]
Row = dict[str, Any]


def write(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def error(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- rows -> traces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_file_types_agree(tmp_path: Path, suffix: str) -> None:
    loaded = data.load("processbench", write(tmp_path / f"gsm8k{suffix}", ROWS[:12]))
    assert [t.id for t in loaded.traces] == [row["id"] for row in ROWS[:12]]
    for trace, row in zip(loaded.traces, ROWS, strict=False):
        assert (trace.prompt, list(trace.steps)) == (row["problem"], row["steps"])
        assert (trace.first_error, trace.outcome) == (row["label"], int(row["final_answer_correct"]))
        assert (trace.subset, trace.group) == ("gsm8k", text_hash(row["problem"]))
    assert (loaded.subsets, loaded.source, loaded.revision) == (("gsm8k",), f"gsm8k{suffix}", None)
    reference = data.load("processbench", write(tmp_path / "again.json", [{**r, "subset": "gsm8k"} for r in ROWS[:12]]))
    assert content_hash(loaded.traces) == content_hash(reference.traces)


def test_optional_fields(tmp_path: Path) -> None:
    rows = [{k: v for k, v in GOOD.items() if k != "final_answer_correct"}, {**GOOD, "id": "x", "subset": "own"}]
    first, second = data.load("processbench", write(tmp_path / "file.json", rows)).traces
    assert (first.subset, first.outcome) == ("file", None)
    assert (second.subset, second.outcome) == ("own", 0)


def test_folders_subsets_and_limits(benchmark_folder: Path) -> None:
    whole = data.load("processbench", benchmark_folder)
    assert (whole.subsets, len(whole.traces)) == (("gsm8k", "math"), 24)
    part = data.load("processbench", benchmark_folder, ["math"], 5)
    assert [t.id for t in part.traces] == [f"math-{n}" for n in (0, 2, 4, 7, 9)]
    assert part.subsets == ("math",)
    both = data.load("processbench", benchmark_folder, [], 2)
    assert [t.id for t in both.traces] == ["gsm8k-1", "gsm8k-6", "math-1", "math-6"]  # 0 and 6 are both all right
    assert "gsm8k, math" in error(lambda: data.load("processbench", benchmark_folder, ["omnimath"]))
    assert "--limit is 0" in error(lambda: data.load("processbench", benchmark_folder, [], 0))


def test_subsets_keep_the_benchmarks_order(tmp_path: Path) -> None:
    for n, name in enumerate(("zebra", "omnimath", "aardvark", "math", "gsm8k")):
        write(tmp_path / f"{name}.json", [{**GOOD, "id": str(n)}])
    wanted = ("gsm8k", "math", "omnimath", "aardvark", "zebra")
    loaded = data.load("processbench", tmp_path)
    assert loaded.subsets == tuple(dict.fromkeys(t.subset for t in loaded.traces)) == wanted


MISSING = object()
BAD_FIELDS = [
    ("id", MISSING, "'id' is missing"),
    ("id", 7, "'id' is 7"),
    ("id", " ", "'id' is ' '"),
    ("problem", MISSING, "'problem' is missing"),
    ("problem", "", "'problem' is ''"),
    ("problem", ["x"], "'problem' is ['x']"),
    ("problem", "half \ud835 a character", "valid Unicode"),
    ("steps", MISSING, "'steps' is missing"),
    ("steps", [], "'steps' is []"),
    ("steps", "one text", "'steps' is 'one text'"),
    ("steps", ["fine", " \n"], "step 1 is ' \\n'"),
    ("steps", ["fine", None], "step 1 is missing"),
    ("steps", ["\udc00", "fine"], "step 0 is '\\udc00'"),
    ("label", MISSING, "'label' is None"),
    ("label", 3, "'label' is 3; expected -1 or the index of one of 3 steps"),
    ("label", -2, "'label' is -2"),
    ("label", "1", "'label' is '1'"),
    ("label", 1.0, "'label' is 1.0"),
    ("label", True, "'label' is True"),
    ("label", float("nan"), "'label' is nan"),
    ("final_answer_correct", "yes", "'final_answer_correct' is 'yes'"),
    ("subset", 5, "'subset' is 5"),
    ("subset", ["a"], "'subset' is ['a']"),
]


@pytest.mark.parametrize(("field", "value", "says"), BAD_FIELDS)
def test_a_bad_field_is_named_with_its_row_and_file(tmp_path: Path, field: str, value: object, says: str) -> None:
    row = {k: v for k, v in {**GOOD, "id": "bad", field: value}.items() if v is not MISSING}
    path = write(tmp_path / "gsm8k.json", [*ROWS[:2], row])
    line = error(lambda: data.load("processbench", path))
    assert line.startswith(f"{path} row 3: ")
    assert says in line


@pytest.mark.parametrize("label", [-1, 0, 2])
def test_labels_at_the_ends_of_the_range(tmp_path: Path, label: int) -> None:
    path = write(tmp_path / "gsm8k.json", [{**GOOD, "label": label}])
    assert len(GOOD["steps"]) == 3
    assert data.load("processbench", path).traces[0].first_error == label


def test_ids_occur_once(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.json", [GOOD, {**GOOD, "id": "other"}])
    write(tmp_path / "math.json", [GOOD])
    assert "id 'gsm8k-1' occurs twice" in error(lambda: data.load("processbench", tmp_path))
    assert len(data.load("processbench", tmp_path, ["math"]).traces) == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b"[{]", "not valid JSON"),
        ("a.json", b"{}", "expected a list of objects"),
        ("a.json", b"[1]", "expected a list of objects"),
        ("a.json", b'["\xff"]', "not UTF-8 at byte 2"),
        ("a.json", "[]".encode("utf-16"), "not UTF-8 at byte 0, looks like UTF-16; save it as UTF-8"),
        ("a.json", b"[]", "holds no trace"),
        ("a.jsonl", b"", "holds no trace"),
        ("a.jsonl", json.dumps(GOOD).encode() + b"\n{", "line 2: not valid JSON"),
        ("a.jsonl", b"[]", "line 1: expected a JSON object"),
        ("a.jsonl", b'{"id": "\xe9"}', "not UTF-8 at byte 8"),
        ("a.parquet", b"PAR1 it is not", "not a parquet file"),
        ("a.parquet", b"", "not a parquet file"),
        ("a.csv", b"id,problem", "unknown file type '.csv'"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    line = error(lambda: data.load("processbench", path))
    assert says in line
    assert name in line


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert "no such file or folder" in error(lambda: data.load("processbench", tmp_path / "missing.json"))
    assert "holds no .json, .jsonl, .parquet file" in error(lambda: data.load("processbench", tmp_path))


def test_line_separators_inside_a_text_do_not_end_a_jsonl_row(tmp_path: Path) -> None:
    step = "one\u2028two\u0085three\u2029four"
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps({**GOOD, "steps": [step], "label": 0}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert data.load("processbench", path).traces[0].steps == (step,)


def test_the_hash_covers_what_the_numbers_are_about(tmp_path: Path) -> None:
    def hashed(**changed: object) -> str:
        return content_hash(processbench.from_files(write(tmp_path / "gsm8k.json", [{**GOOD, **changed}, ROWS[2]])))

    again = hashed()
    assert hashed() == again == hashed(generator="someone else")
    changes: list[Row] = [
        {"id": "x"},
        {"problem": "x"},
        {"steps": ["x", "y", "z"]},
        {"label": 0},
        {"final_answer_correct": True},
        {"subset": "x"},
    ]
    assert len({again, *(hashed(**change) for change in changes)}) == 1 + len(changes)
    backwards = content_hash(processbench.from_files(write(tmp_path / "gsm8k.json", [ROWS[2], GOOD])))
    assert backwards == again


# --- the hub --------------------------------------------------------------------------------------------------


def test_the_revision_is_read_off_the_addresses() -> None:
    sha = "0123456789abcdef0123456789abcdef01234567"
    assert hub.resolved_revision([f"hf://datasets/Qwen/ProcessBench@{sha}/gsm8k.json"]) == sha
    assert hub.resolved_revision(["x", f"hf://datasets/a/b@{sha}/c/d.json"]) == sha
    for address in ("hf://datasets/a/b@main/c", f"hf://datasets/a/b@{sha[:-1]}/c", f"hf://datasets/a/{sha}/c"):
        assert hub.resolved_revision([address]) is None
    assert hub.resolved_revision([]) is None


def test_rows_of_the_datasets_library(benchmark_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder in the place of the hub's: rows and subsets as from files, and no revision to be known."""
    splits = "".join(f"  - split: {f.stem}\n    path: {f.name}\n" for f in sorted(benchmark_folder.iterdir()))
    (benchmark_folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(benchmark_folder.parent / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", benchmark_folder.parent / "cache")
    monkeypatch.setattr(processbench, "HUB_ID", str(benchmark_folder))
    traces, revision = processbench.from_hub(("math", "gsm8k"), None)
    assert revision is None
    local = data.load("processbench", benchmark_folder).traces
    assert traces == [*local[12:], *local[:12]]


def test_without_network_the_hub_is_one_clear_line() -> None:
    line = error(lambda: data.load("processbench", None, ["gsm8k"]))
    assert "Qwen/ProcessBench" in line
    assert "--data" in line


def test_unknown_subsets_are_refused_before_the_hub_is_asked() -> None:
    assert "--subset algebra: Qwen/ProcessBench has gsm8k, math" in error(
        lambda: data.load("processbench", None, ["algebra"])
    )


# --- a user's own solutions -------------------------------------------------------------------------------------

TEXT = "Let us see.\n\nStep 1: add 1.5 and 2.\nThat is 3.5.\n  \n### Step 2: double it\n\n3. so 7\n**Step 4** done"


@pytest.mark.parametrize(
    ("split", "steps"),
    [
        (
            "paragraph",
            [
                "Let us see.",
                "Step 1: add 1.5 and 2.\nThat is 3.5.",
                "### Step 2: double it",
                "3. so 7\n**Step 4** done",
            ],
        ),
        (
            "line",
            [
                "Let us see.",
                "Step 1: add 1.5 and 2.",
                "That is 3.5.",
                "### Step 2: double it",
                "3. so 7",
                "**Step 4** done",
            ],
        ),
        (
            "numbered",
            [
                "Let us see.",
                "Step 1: add 1.5 and 2.\nThat is 3.5.",
                "### Step 2: double it",
                "3. so 7",
                "**Step 4** done",
            ],
        ),
    ],
)
def test_splitters(tmp_path: Path, split: str, steps: list[str]) -> None:
    path = write(tmp_path / "my.jsonl", [{"problem": "P", "solution": TEXT}])
    (trace,) = solutions.from_files(path, split)
    assert list(trace.steps) == steps
    assert (trace.id, trace.prompt, trace.first_error, trace.outcome) == ("my-0", "P", None, None)


def test_numbers_inside_a_line_head_no_step() -> None:
    assert len(solutions.by_number("We see 3.5 and\n2.5 more, see Step 3\n10 apples\nStepwise")) == 1
    assert solutions.by_number("1) a\n2) b") == ["", "1) a\n", "2) b"]
    assert solutions.by_number("STEP 1: a\nstep 2: b") == ["", "STEP 1: a\n", "step 2: b"]
    assert solutions.split_text("**1.** a\n**2)** b\n**3:** c", "numbered", True) == ("a", "b\n**3:** c")


@pytest.mark.parametrize("alone", ["30.", "30. ", "3)", "30", "(3)"])
def test_a_number_alone_on_its_line_heads_no_step(alone: str) -> None:
    assert solutions.by_number(f"So it is\n{alone}\nDone.") == [f"So it is\n{alone}\nDone."]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("split", "text"), [("paragraph", "First.\n\nSecond.\n \t\nThird."), ("line", "First.\nSecond.\n\nThird.")]
)
def test_line_ends_are_alike(split: str, text: str, ending: str) -> None:
    assert solutions.split_text(text.replace("\n", ending), split) == ("First.", "Second.", "Third.")
    headed = ending.join(("Step 1: First.", "Step 2: Second.", "more"))
    assert solutions.split_text(headed, "numbered") == ("Step 1: First.", "Step 2: Second.\nmore")


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_lines_end_at_lf_only(character: str) -> None:
    text = f"one{character}still one\ntwo{character}still two"
    assert solutions.split_text(text, "line") == (f"one{character}still one", f"two{character}still two")


@pytest.mark.parametrize("blank", ["\u3000", "\xa0", "\u2003 ", " \t"])
def test_a_line_of_blanks_of_any_kind_ends_a_paragraph(blank: str) -> None:
    assert solutions.split_text(f"one\n{blank}\ntwo", "paragraph") == ("one", "two")


TEXTS = st.text(st.sampled_from("ab3.) \t\n\r\u2028\x0c#*") | st.characters(codec="utf-8"), max_size=40)


@given(TEXTS, st.sampled_from(sorted(solutions.SPLITTERS)))
def test_steps_are_the_text_but_for_the_space_between_them(text: str, split: str) -> None:
    steps = solutions.split_text(text, split)
    assert "".join("".join(steps).split()) == "".join(text.split())
    assert all(step == step.strip() != "" and "\r" not in step for step in steps)
    assert steps == solutions.split_text(reading.normalise_line_ends(text).replace("\n", "\r\n"), split)


@given(TEXTS)
def test_lines_and_headed_pieces_join_to_the_text(text: str) -> None:
    assert "\n".join(solutions.by_line(text)) == "".join(solutions.by_number(text)) == text


@pytest.mark.parametrize(
    ("split", "texts", "others"),
    [
        ("paragraph", ["One.\nTwo.", "One.\nTwo.\nThree."], "--split line would cut 2, --split numbered would cut 0"),
        ("paragraph", ["One. Two."], "--split line would cut 0, --split numbered would cut 0"),
        ("line", ["One. Two.", "One."], "--split paragraph would cut 0, --split numbered would cut 0"),
        ("numbered", ["One.\n\nTwo.", "One.\nTwo."], "--split paragraph would cut 1, --split line would cut 2"),
        ("numbered", ["30.\n\n60."], "--split paragraph would cut 1, --split line would cut 1"),
    ],
)
def test_a_splitter_that_never_cuts_says_so(tmp_path: Path, split: str, texts: list[str], others: str) -> None:
    path = write(tmp_path / "my.jsonl", [{"problem": "P", "solution": text} for text in texts])
    with pytest.warns(Notice) as caught:
        traces = solutions.from_files(path, split)
    assert [len(t.steps) for t in traces] == [1] * len(texts)
    (line,) = [str(w.message) for w in caught]
    assert (
        line
        == f"my.jsonl: --split {split} finds no place to cut, so every text is one step (of {len(texts)}, {others})"
    )


def test_a_splitter_that_cuts_once_says_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    rows = [{"problem": "P", "solution": "One."}, {"problem": "P", "solution": "One.\n\nTwo."}]
    solutions.from_files(write(tmp_path / "my.jsonl", rows), "paragraph")
    solutions.from_files(write(tmp_path / "steps.jsonl", [{"problem": "P", "steps": ["One."]}]), "paragraph")
    assert not [w for w in recwarn if w.category is Notice]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_solutions_in_steps_need_no_splitter(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"id": "a", "prompt": "P", "steps": ["one\n\nstill one", "two"], "solution": None},
        {"id": None, "prompt": "Q", "steps": None, "solution": "one\n\ntwo\n\nthree"},
    ]
    first, second = solutions.from_files(write(tmp_path / f"my{suffix}", rows), "paragraph")
    assert (first.id, first.steps, first.prompt) == ("a", ("one\n\nstill one", "two"), "P")
    assert (second.id, second.steps) == ("my-1", ("one", "two", "three"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"solution": "x"}, "'problem' is missing"),
        ({"problem": "x"}, "'solution' is missing"),
        ({"problem": "x", "solution": " \n"}, "'solution' is"),
        ({"problem": "x", "steps": []}, "'steps' is []"),
        ({"problem": "x", "steps": ["a", ""]}, "step 1 is ''"),
    ],
)
def test_bad_solutions_are_named(tmp_path: Path, row: Row, says: str) -> None:
    path = write(tmp_path / "my.json", [{"problem": "P", "steps": ["s"]}, row])
    line = error(lambda: solutions.from_files(path, "line"))
    assert f"{path} row 2" in line
    assert says in line


# --- the real files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subset", "rows", "right", "steps", "most", "problems", "lucky"),
    [
        ("gsm8k", 400, 193, 2082, 16, 375, 7),
        ("math", 1000, 406, 6505, 32, 955, 94),
        ("olympiadbench", 1000, 339, 8819, 47, 561, 161),
    ],
)
def test_facts_of_processbench(
    shared_data: Path, subset: str, rows: int, right: int, steps: int, most: int, problems: int, lucky: int
) -> None:
    """`lucky`: a wrong step and yet the right final answer."""
    traces = data.load("processbench", shared_data / "processbench" / f"{subset}.json").traces
    assert len(traces) == rows
    assert sum(t.first_error == -1 for t in traces) == right
    assert sum(len(t.steps) for t in traces) == steps
    assert max(len(t.steps) for t in traces) == most
    assert len({t.group for t in traces}) == len({t.prompt for t in traces}) == problems
    assert sum(t.first_error != -1 and t.outcome == 1 for t in traces) == lucky
    assert not any(t.first_error == -1 and t.outcome == 0 for t in traces)
    assert not any("\n\n" in step or "<extra_0>" in step for t in traces for step in t.steps)
    assert {t.subset for t in traces} == {subset}


def test_the_real_folder_as_a_whole(shared_data: Path) -> None:
    loaded = data.load("processbench", shared_data / "processbench")
    assert loaded.subsets == ("gsm8k", "math", "olympiadbench")
    assert len(loaded.traces) == 2400
    files.check_unique_ids([t.id for t in loaded.traces], "all")


def test_a_limit_is_spread_evenly(tmp_path: Path) -> None:
    """ProcessBench lists its errors first, so the first traces would be of one sort."""
    rows = [{"id": str(n), "problem": "p", "steps": ["a"], "label": 0 if n < 6 else -1} for n in range(10)]
    file = tmp_path / "s.json"
    file.write_text(json.dumps(rows))
    assert [t.id for t in data.load("processbench", file, limit=4).traces] == ["0", "2", "5", "7"]
    assert len(data.load("processbench", file, limit=99).traces) == 10


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        data.load("processbench", pipe)
