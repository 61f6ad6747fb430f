"""The page in headless Chromium, opened from a file: what it shows, filters and sorts, and that text stays text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, launched, payload
from report_runs import (
    completions,
    rows_taken_as_they_are,
    scores_of,
    task_scores,
    traces,
    write,
    write_study,
    write_task,
)

from prmbench.core.records import Trace
from prmbench.report import report
from prmbench.studies.reporting.sections import SECTIONS

pytestmark = pytest.mark.slow

NASTY = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script><!--",
    '<img src="x" onerror="window.hacked = 3">',
    "{{ 7 * 7 }} & \u2028 `${window.hacked = 4}`",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launched()


@pytest.fixture(scope="module")
def items() -> list[Trace]:
    plain = traces(20, ("gsm8k", "math"))
    return [replace(plain[0], prompt=" ".join(NASTY), steps=NASTY), *plain[1:]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, items: list[Trace]) -> Path:
    """Two listed runs, one with a nasty name, and one that may not be listed."""
    root = tmp_path_factory.mktemp("site")
    write(root / "in", scores_of(items), run_id="a" * 12, model='<img src=x onerror="window.hacked = 5">', native=0.5)
    votes = {"kind": "verdict", "backend": "critic", "signal": "none"}
    write(root / "in", scores_of(items, "verdict", 1), run_id="b" * 12, model="org/critic", **votes)
    write(root / "in", scores_of(items, "prob", 2), run_id="c" * 12, model="org/dirty", dirty=True)
    report(root / "in", root / "out", data={t.id: t for t in items})
    return root / "out" / "report.html"


@pytest.fixture
def opened(browser: Browser, site: Path) -> Iterator[Browser]:
    """The page on its trace view; at the end of each test: no word on the console, nothing fetched, no text run."""
    browser.open(site)
    browser.click("[data-view=traces]")
    yield browser
    assert browser.call("POST", "/se/log", {"type": "browser"}) == []
    assert browser.js("return performance.getEntriesByType('resource').length") == 0
    assert browser.js("return typeof window.hacked") == "undefined"


def test_wrong_only_filter_leaves_what_the_data_says(opened: Browser, site: Path) -> None:
    section = payload(site)["benchmarks"][0]
    counts = set()
    for number, run in enumerate(section["runs"]):
        opened.choose("run", str(number))
        for protocol in run["protocols"]:
            opened.choose("protocol", protocol["key"])
            opened.click("[data-kind=wrong]")
            pairs = zip(section["traces"], protocol["predicted"], strict=True)
            wrong = [t["id"] for t, predicted in pairs if predicted != t["label"]]
            assert opened.texts(".trace .name") == wrong
            counts.add(len(wrong))
    assert len(counts) > 1, "the protocols should not all agree"


def test_subset_and_search_filters(opened: Browser, items: list[Trace]) -> None:
    opened.click("[data-kind=all]")
    opened.choose("subset", "math")
    assert opened.texts(".trace .name") == [t.id for t in items if t.subset == "math"]
    opened.write("#find", "OF MATH-7")
    assert opened.texts(".trace .name") == ["math-7"]
    assert opened.texts(".step .text") == list(items[27].steps)
    opened.write("#find", "problem 3 math-7")  # words of the problem and of the id
    assert opened.texts(".trace .name") == ["math-7"]
    opened.write("#find", "no such words")
    assert opened.texts(".trace .name") == []
    assert opened.texts("#detail") == ["No trace matches."]


def test_nasty_text_is_shown_and_not_run(opened: Browser) -> None:
    opened.click(".trace")
    assert opened.texts(".step .text") == list(NASTY)
    assert opened.texts(".problem") == [" ".join(NASTY)]
    opened.click("[data-view=board]")
    assert any(text.startswith("<img src=x onerror=") for text in opened.texts("td.model"))
    assert opened.js("return document.querySelectorAll('main img:not([src^=\"data:image/svg+xml\"])').length") == 0


def test_flags_and_colours_follow_the_verdict(opened: Browser, site: Path) -> None:
    """Of every trace: the flags stand at the true and the predicted step, and colour changes side at the threshold."""
    section = payload(site)["benchmarks"][0]
    number = next(i for i, run in enumerate(section["runs"]) if run["readouts"])
    run = section["runs"][number]
    protocol = next(p for p in run["protocols"] if p["key"] == "as_is/native")
    opened.choose("run", str(number))
    opened.choose("protocol", protocol["key"])
    for i, trace in enumerate(section["traces"]):
        opened.click(f".trace[data-index='{i}']")
        flagged = opened.js(
            "return ['true', 'guess'].map((c) => [...document.querySelectorAll('.step')]"
            ".findIndex((s) => s.querySelector('.flag.' + c)))"
        )
        predicted = protocol["predicted"][i]
        assert flagged == [trace["label"], -1 if predicted is None else predicted]
        classes = opened.js("return [...document.querySelectorAll('.step')].map((n) => n.className)")
        scores = run["readouts"]["as_is"][i]
        sides = [None] * trace["k"] if scores is None else ["lv-n" if s < 0.5 else "lv-p" for s in scores]
        assert all(side is None or side in name for side, name in zip(sides, classes, strict=True))


def test_keys_move_through_the_list(opened: Browser) -> None:
    names = opened.texts(".trace .name")
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))"
    for key in ("j", "ArrowDown", "k"):
        opened.js(press, key)
    assert opened.texts(".detail h2") == [names[1]]


def test_tables_sort_both_ways(opened: Browser) -> None:
    opened.click("[data-view=board]")
    opened.click("[data-rule=native]")
    read = "tbody.model tr td:nth-child(4) .value"
    opened.click("[data-sort=gsm8k]")
    down = [float(v.strip("†‡")) for v in opened.texts(read)]
    opened.click("[data-sort=gsm8k]")
    up = [float(v.strip("†‡")) for v in opened.texts(read)]
    assert len(down) == 2
    assert down == sorted(down, reverse=True) == up[::-1] != up
    assert opened.texts("tbody.floor tr td:first-child code")[0] == "floor/random_flags"  # floors stay beneath


def test_unlisted_run_stands_apart_with_its_reason(opened: Browser) -> None:
    assert opened.js("return document.getElementById('unlisted').hidden")
    assert not any("org/dirty" in text for text in opened.texts("#run option"))
    names = opened.texts("#benchmark option")
    opened.choose("benchmark", str(names.index("mini (not listed)")))
    assert "scored from a dirty tree" in opened.texts("#unlisted")[0]
    assert any("org/dirty" in text for text in opened.texts("#run option"))
    assert len(opened.texts(".trace")) == 40


def test_published_numbers_are_on_the_page(opened: Browser) -> None:
    opened.choose("benchmark", str(opened.texts("#benchmark option").index("processbench")))
    opened.click("[data-view=published]")
    assert any(name.startswith("Qwen2.5-Math-PRM-72B") for name in opened.texts("#published td.model"))
    assert opened.texts("#published h2")[-1] == "Threshold rule not stated"


BACKGROUND = "return getComputedStyle(document.body).backgroundColor"


def test_light_and_dark_follow_the_system_until_one_is_chosen(opened: Browser, site: Path) -> None:
    seen = []
    for scheme in ("light", "dark"):
        opened.scheme(scheme)
        opened.open(site)
        seen.append(opened.js(BACKGROUND))
    light, dark = seen
    opened.click("#theme")
    assert light == opened.js(BACKGROUND) != dark
    opened.reload()
    assert opened.js(BACKGROUND) == light, "the choice is remembered"
    opened.click("#theme")
    opened.scheme("light")
    opened.until(f"{BACKGROUND} === '{light}'", "choosing what the system says is to follow it again")
    assert opened.js("return localStorage.length") == 0


def test_without_text_the_page_says_how_to_get_it(browser: Browser, tmp_path: Path, items: list[Trace]) -> None:
    write(tmp_path / "in", scores_of(items[:6]), native=0.5)
    report(tmp_path / "in", tmp_path / "out")
    browser.open(tmp_path / "out" / "report.html")
    browser.click("[data-view=traces]")
    assert "--data" in browser.texts("#trace-words")[0]
    assert browser.texts(".step .text") == [""] * 4
    assert len(browser.texts(".step .score .num")) == 4


def cell_text(cell: str | dict[str, Any], is_name: bool) -> str:
    """Returns the text that the page shows for a typed cell."""
    if isinstance(cell, str):
        return cell.strip()
    if "code" in cell:
        return str(cell["code"])
    return str(cell["number"]) if is_name else f"{cell['number']} {cell['interval']}".rstrip() + str(cell["marks"])


def test_other_tasks_and_studies_are_shown_sorted_and_silent(browser: Browser, tmp_path: Path) -> None:
    scores = task_scores(completions())
    for task in ("best_of_n", "calibration"):
        write_task(tmp_path / "in", task, scores, run_id=f"{task}-run", model=NASTY[2])
    write_study(tmp_path / "in", {"ipvrm": [0.5, 0.6], "dpo_rm": [0.3, 0.35], "q_rm": [0.2, 0.3]})
    with rows_taken_as_they_are():
        report(tmp_path / "in", tmp_path / "out", sections=SECTIONS)
    page = tmp_path / "out" / "report.html"
    browser.open(page)
    sections = [section for section in payload(page)["benchmarks"] if section["tables"]]
    assert {"best_of_n", "calibration", "miniature"} <= {section["name"] for section in sections}
    for section in sections:
        browser.choose("benchmark", str(browser.texts("#benchmark option").index(section["name"])))
        for table in section["tables"]:
            browser.click(f"[data-rule='{table['label']}']")
            rows = [row["cells"] for group in table["groups"] for row in group]
            texts = [cell_text(cell, i < table["text_columns"]) for cells in rows for i, cell in enumerate(cells)]
            assert browser.texts("#board td") == texts
        browser.click("[data-view=figures]")
        assert browser.texts("#figures figcaption b") == [figure["title"] for figure in section["figures"]]
        assert browser.js("return [...document.images].every((i) => i.complete && i.naturalWidth > 50)")
        browser.click("[data-view=traces]")
        has_picks = section["name"] == "best_of_n"
        assert ("no scored trace" in browser.texts("#detail")[0]) != has_picks
        browser.click("[data-view=board]")
    browser.choose("benchmark", str(browser.texts("#benchmark option").index("miniature")))
    browser.click("[data-rule=study-f1-calibrated]")
    read = "#board tbody:nth-of-type(1) td:first-child"
    browser.click("#board [data-column='3']")
    assert browser.texts(read) == ["ipvrm", "dpo_rm", "q_rm"]
    browser.click("#board [data-column='3']")
    assert browser.texts(read) == ["q_rm", "dpo_rm", "ipvrm"]
    browser.choose("benchmark", str(browser.texts("#benchmark option").index("best_of_n")))
    browser.click("#board [data-column='3']")
    browser.click("#board [data-column='3']")
    assert browser.texts("#board tbody:nth-of-type(1) tr:last-child td code")[-1].startswith("floor/")
    assert browser.call("POST", "/se/log", {"type": "browser"}) == []
    assert browser.js("return typeof window.hacked") == "undefined"
