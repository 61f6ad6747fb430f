"""The history of the benchmarks: what a run adds, and the page made from it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

RESULT = {
    "benchmark": "toy",
    "ratio": {"old": 1.25, "one": 2},
    "memory_ratio": 0.5,
    "matmul_share": 0.4,
    "ours": 3.0,
    "clock": "wall",
    "rounds": 5,
    "spread": [1, 2],
}


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("history")
    for name, path in {"FOLDER": "", "LINES": "history.jsonl", "PAGE": "HISTORY.md", "DOCS": "performance.md"}.items():
        monkeypatch.setattr(module, name, tmp_path / path)
    (tmp_path / "performance.md").write_text(f"{module.BEGIN}\n{module.END}\n", encoding="utf-8")
    return module


def test_the_committed_page_is_made_from_the_committed_lines(history: ModuleType) -> None:
    folder = ROOT / "benchmarks"
    page = history.page(history.read_lines(folder / "history.jsonl"))
    assert (folder / "HISTORY.md").read_text(encoding="utf-8") == page, "python benchmarks/history.py"
    docs = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert history.rewritten(docs, history.read_lines(folder / "history.jsonl")) == docs, "python benchmarks/history.py"


def test_a_run_adds_its_ratios_the_commit_and_the_machine(
    history: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = f"import sys\nprint('a line before')\nprint({json.dumps(json.dumps(RESULT))})\n"
    (tmp_path / "toy.py").write_text(script, encoding="utf-8")
    assert history.main(["toy", "--updates", "4"]) == 0
    assert history.main(["toy", "--updates", "4"]) == 0
    assert capfd.readouterr().out.splitlines() == ["a line before", json.dumps(RESULT)] * 2  # the result stays last
    first, second = history.read_lines(tmp_path / "history.jsonl")
    assert first["ratios"] == {"ratio.old": 1.25, "ratio.one": 2.0, "memory_ratio": 0.5, "matmul_share": 0.4}
    assert first["settings"] == {"clock": "wall", "rounds": 5}
    assert first["arguments"] == ["--updates", "4"]
    assert {"cpu", "cores", "memory_gib", "torch", "load"} <= first["machine"].keys()
    assert first["machine"]["cores"] >= 1
    assert first["commit"] == second["commit"]
    page = (tmp_path / "HISTORY.md").read_text(encoding="utf-8")
    assert page == history.page([first, second])
    assert "| old 1.250, one 2.000 |" in (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert page.count("| 1.250 | 2.000 | 0.500 | 0.400 |") == 2


def test_a_benchmark_that_fails_adds_nothing(history: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("import sys\nsys.exit('the two sides differ')\n", encoding="utf-8")
    assert history.main(["toy"]) == 1
    assert not (tmp_path / "history.jsonl").exists()
    assert "No run yet." in (tmp_path / "HISTORY.md").read_text(encoding="utf-8")
    assert history.main(["unknown"]) == 2


def test_the_page_has_a_table_for_each_benchmark_with_its_arguments(history: ModuleType) -> None:
    machine = {"cpu": "Some CPU", "cores": 2, "memory_gib": 7.5, "gpu": None, "torch": "2.13.0", "load": 0.25}
    shared = {"benchmark": "a", "date": "2026-01-02 03:04", "commit": "0123456789", "dirty": True, "machine": machine}
    lines = [
        {**shared, "arguments": [], "ratios": {"ratio": 1.5}},
        {**shared, "arguments": [], "ratios": {"ratio": 1.25, "memory_ratio": 0.5}, "dirty": False},
        {**shared, "arguments": ["--x", "1"], "ratios": {"ratio": 2.0}, "commit": None, "dirty": None},
    ]
    place = "2 cores, Some CPU, 7.5 GiB, torch 2.13.0 | 0.25 |"
    assert history.page(lines).removeprefix(history.HEAD).splitlines() == [
        "",
        "## a",
        "",
        "| date | commit | ratio | memory_ratio | machine | load |",
        "| --- | --- | ---: | ---: | --- | ---: |",
        f"| 2026-01-02 03:04 | 0123456+ | 1.500 |  | {place}",
        f"| 2026-01-02 03:04 | 0123456 | 1.250 | 0.500 | {place}",
        "",
        "## a --x 1",
        "",
        "| date | commit | ratio | machine | load |",
        "| --- | --- | ---: | --- | ---: |",
        f"| 2026-01-02 03:04 | unknown | 2.000 | {place}",
    ]


def test_the_docs_have_the_newest_run_of_each_benchmark(history: ModuleType) -> None:
    machine = {"cpu": "Some CPU", "cores": 2, "memory_gib": 7.5, "gpu": None, "torch": "2.13.0", "load": 0.25}
    shared = {"arguments": [], "commit": "0123456789", "dirty": False, "machine": machine}
    lines = [
        {**shared, "benchmark": "b", "date": "2026-01-02 03:04", "ratios": {"ratio": 1.5}},
        {**shared, "benchmark": "a", "date": "2026-01-03 03:04", "ratios": {"ratio.x": 1.0, "memory_ratio": 0.5}},
        {**shared, "benchmark": "b", "date": "2026-01-04 03:04", "ratios": {"ratio": 1.75}},
    ]
    text = history.rewritten(f"before\n{history.BEGIN}\nold\n{history.END}\nafter\n", lines)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split(" <!--")[0] for row in rows] == [
        "| `a` | x 1.000 | 2026-01-03 | 0123456 | 2 cores, Some CPU, 7.5 GiB, torch 2.13.0",
        "| `b` | 1.750 | 2026-01-04 | 0123456 | 2 cores, Some CPU, 7.5 GiB, torch 2.13.0",
    ]
    assert text.startswith(f"before\n{history.BEGIN}\n")
    assert text.endswith(f"{history.END}\nafter\n")
    assert history.rewritten(text, lines) == text


def test_a_processor_is_named_with_its_model(history: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel\t\t: 167\nmodel name\t: Intel Xeon\n\n", encoding="utf-8")
    assert history.cpu_name(tmp_path / "cpuinfo") == "Intel Xeon (model 167)"
    assert history.cpu_name(tmp_path / "absent")
