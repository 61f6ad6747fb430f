"""The page in headless Chromium with 1,000 traces, and for everybody: keyboard, contrast, narrow windows, paper."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, launched, payload
from paths import SUPPORT
from report_runs import scores_of, traces, write

from prmbench.core.records import Trace
from prmbench.report import report
from prmbench.report.page import page
from prmbench.report.sheets import Sheet
from prmbench.tasks.table import Table, Value

pytestmark = pytest.mark.slow
Page = tuple[Path, list[Trace]]
VIEWS = ("overview", "board", "traces", "figures", "published", "help")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launched()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """1,000 traces of ProcessBench's length and four runs, in words that do not compress as one."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(8000)]

    def prose(n: int) -> str:
        return " ".join(rng.choices(vocabulary, k=n))

    items = [
        replace(t, prompt=f"{prose(40)} {t.prompt}", steps=tuple(f"{prose(45)} {s}" for s in t.steps + t.steps[:3]))
        for t in traces(334)
    ][:1000]
    root = tmp_path_factory.mktemp("large")
    facts: dict[str, dict[str, Any]] = {
        "prob": {},
        "verdict": {"backend": "critic"},
        "logratio": {"backend": "implicit"},
    }
    for i, kind in enumerate(("prob", "verdict", "logratio", "prob")):
        write(
            root / "in", scores_of(items, kind, i), run_id=f"{i}" * 12, model=f"org/{kind}{i}", kind=kind, **facts[kind]
        )
    report(root / "in", root / "out", data={t.id: t for t in items})
    return root / "out" / "report.html", items


def test_a_thousand_traces_stay_under_five_megabytes(large: Page) -> None:
    site, items = large
    assert len(site.read_bytes()) < 5_000_000
    section = payload(site)["benchmarks"][0]
    assert len(section["traces"]) == len(section["texts"]) == len(items) == section["total"] == 1000
    assert len(section["runs"]) == 4


def test_search_finds_one_trace_of_a_thousand(browser: Browser, large: Page) -> None:
    site, items = large
    browser.open(site, "#view=traces")
    assert len(browser.texts(".trace")) == 1000
    wanted = items[777]
    browser.write("#find", " ".join(wanted.steps[5].split()[:6]).upper())
    assert browser.texts(".trace .name") == [wanted.id]
    browser.write("#find", "missed")
    verdicts = browser.texts(".trace .what")
    assert set(verdicts) == {"missed"}
    counts = dict(re.fullmatch(r"([a-z ]+?)(\d+)", text).groups() for text in browser.texts("#chips button"))  # type: ignore[union-attr]
    assert int(counts["missed"]) == len(verdicts) == int(counts["all"])


def test_an_address_leads_back_to_a_trace(browser: Browser, large: Page) -> None:
    site, items = large
    wanted = items[500]
    browser.open(site, f"#trace={wanted.id}")
    assert browser.texts(".detail h2") == [wanted.id]
    assert browser.texts(".step .text") == list(wanted.steps)
    browser.choose("run", "3")
    browser.write("#find", wanted.id)
    browser.click(".trace")
    address = browser.js("return location.hash")
    browser.open(site, address)
    assert browser.texts(".detail h2") == [wanted.id]
    assert browser.js("return document.getElementById('run').selectedOptions[0].textContent").startswith("org/verdict1")
    browser.open(site, "#benchmark=mini&view=traces&trace=nowhere")
    assert "does not hold the trace nowhere" in browser.texts("#trace-words")[0]


def test_critiques_are_counted(browser: Browser, large: Page) -> None:
    site, _ = large
    section = payload(site)["benchmarks"][0]
    number = next(i for i, run in enumerate(section["runs"]) if run["votes"])
    browser.open(site, "#view=traces")
    browser.choose("run", str(number))
    for at in (0, 1, 2):
        votes = section["runs"][number]["votes"][at]
        browser.click(f".trace[data-index='{at}']")
        told = {"no answer" if v is None else "no error" if v < 0 else f"step {v + 1}": votes.count(v) for v in votes}
        lines = [re.fullmatch(r"(.+?)(\d) of 4", text) for text in browser.texts(".tally li")]
        assert {line[1]: int(line[2]) for line in lines if line} == told
        flags = {k + 1: votes.count(k) for k in votes if k is not None and k >= 0}
        assert browser.texts(".flag.votes") == [f"{n} of 4 votes" for _, n in sorted(flags.items())]


def test_keyboard_and_buttons_lead_to_the_next_trace(browser: Browser, large: Page) -> None:
    site, _ = large
    browser.open(site, "#view=traces")
    names = browser.texts(".trace .name")
    assert browser.js("return document.querySelectorAll('.trace:not([tabindex=\"-1\"])').length") == 1
    assert browser.js("return document.querySelector('[data-go=\"-1\"]').disabled")
    browser.click("#detail [data-go='1']")
    browser.js("document.querySelector('.trace[tabindex=\"0\"]').focus()")
    browser.press("ArrowDown", 40)
    assert browser.texts(".detail h2") == [names[2]]
    assert browser.js("return document.activeElement.querySelector('.name').textContent") == names[2]
    assert f"trace={names[2]}" in browser.js("return location.hash")


def test_overview_shows_the_best_honest_number(browser: Browser, large: Page) -> None:
    site, _ = large
    section = payload(site)["benchmarks"][0]
    browser.open(site)
    assert browser.js("return document.getElementById('view-overview').hidden") is False
    table = next(t for t in section["rule_tables"] if t["rule"] == "calibrated")
    line = table["rows"][0]
    best = max(x["cells"][table["columns"][-1]][0] for x in table["rows"] if x["group"] == "model")
    assert line["cells"][table["columns"][-1]][0] == best
    assert browser.texts(".card .lead")[0].startswith(f"{100 * best:.1f} [")
    assert line["model"] in browser.texts(".card dd")
    browser.click(".card [data-go=traces]")
    assert len(browser.texts(".trace")) == 1000


def test_printing_is_light_and_leaves_controls_out(browser: Browser, large: Page) -> None:
    site, _ = large
    browser.scheme("dark")
    browser.open(site, "#view=board&benchmark=mini")
    printed = base64.b64decode(browser.cdp("Page.printToPDF", landscape=True)["data"])
    assert printed.startswith(b"%PDF")
    assert browser.js("return document.documentElement.dataset.theme") == "dark"
    browser.cdp("Emulation.setEmulatedMedia", media="print")
    visible = "return [...document.querySelectorAll(arguments[0])].filter((n) => n.checkVisibility()).length"
    assert browser.js(visible, "nav, #theme, .filters") == 0
    assert browser.js(visible, "#board tbody tr") > 0
    browser.cdp("Emulation.setEmulatedMedia", media="")
    browser.scheme("light")


# --- tables ---


def test_columns_sort_as_numbers(browser: Browser, tmp_path: Path) -> None:
    """Bold, signs, thousands, bounds and marks are read; what is no number stands last either way."""
    column = [
        Value(0.10, "percent", 0.09, 0.11),
        Value(0.095, "percent", 0.01, 0.99, True, "†"),
        Value(None),
        Value(-0.03, "points"),
        Value(0.012, "points"),
        Value(1234, "count"),
        Value(0.0001, "p"),
        Value(0.001, "p"),
        "",
        "word",
    ]
    names = ["T2", "T11", "T1", "B", "a", "C", "d", "e", "f", "g"]
    grid = Table("g", "t", "c", ("Name", "Value"), (tuple(zip(names, column, strict=True)),), text_columns=1)
    sheet = Sheet("awkward", "w", (grid,), (), (), "none", {}, "", "")
    (tmp_path / "p.html").write_text(page((), (sheet,), ()))
    browser.open(tmp_path / "p.html", "#benchmark=awkward")
    rising = ["-3.0", "<0.001", "0.001", "+1.2", "9.5 [1.0, 99.0]†", "10.0 [9.0, 11.0]", "1,234", "word"]
    browser.click("#board [data-column='1']")
    assert browser.texts("#board td:last-child")[:8] == [*rising[:7][::-1], "word"]
    assert browser.js("return document.querySelectorAll('#board th')[1].getAttribute('aria-sort')") == "descending"
    browser.js("document.querySelector(\"#board [data-column='1']\").focus()")
    browser.press("Enter", 13, "\r")
    assert browser.texts("#board td:last-child")[:8] == rising
    assert browser.js("return document.querySelectorAll('#board th')[1].getAttribute('aria-sort')") == "ascending"
    browser.click("#board [data-column='0']")
    assert browser.texts("#board td:first-child") == ["a", "B", "C", "d", "e", "f", "g", "T1", "T2", "T11"]
    browser.write(".filter", "t1")
    assert browser.texts("#board tr:not([hidden]) td:first-child") == ["T1", "T11"]


# --- for everybody ---


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_and_controls_have_names(browser: Browser, large: Page, scheme: str) -> None:
    checks = (SUPPORT / "page_checks.js").read_text()
    browser.scheme(scheme)
    browser.open(large[0])
    for view in VIEWS:
        browser.click(f"[data-view={view}]")
        for run in (0, 3) if view == "traces" else (0,):  # scores, then a critic's votes
            browser.choose("run", str(run))
            assert browser.js(f"{checks}; return faint()") == [], view
            assert browser.js(f"{checks}; return nameless()") == [], view
    browser.scheme("light")


def test_the_page_never_scrolls_sideways(browser: Browser, large: Page) -> None:
    browser.open(large[0])
    try:
        for width in (400, 820, 1400):
            browser.width(width)
            for view in VIEWS:
                browser.click(f"[data-view={view}]")
                wide, shown = browser.js("const d = document.documentElement; return [d.scrollWidth, d.clientWidth]")
                assert wide <= shown, (width, view)
    finally:
        browser.cdp("Emulation.clearDeviceMetricsOverride")


HIDDEN = "return document.getElementById('tip').hidden"
MIDDLE = "const r = document.querySelector(arguments[0]).getBoundingClientRect(); return [r.x + r.width / 2, r.y + 8]"


def test_words_show_on_hover_and_on_focus(browser: Browser, large: Page) -> None:
    browser.open(large[0], "#benchmark=mini&view=board&table=fixed")
    words = {
        "#board .key": "The threshold is ",
        "#board [data-sort=gsm8k]": "334 traces",
        "#board td.f1": "Exact on traces",
    }
    for selector, expected in words.items():
        browser.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
        assert browser.js(HIDDEN)
        x, y = browser.js(MIDDLE, selector)
        browser.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        assert not browser.js(HIDDEN)
        assert expected in browser.texts("#tip")[0]
    browser.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    for selector in ("#board .key", "#board [data-sort=gsm8k]"):
        browser.js("document.querySelector(arguments[0]).focus()", selector)
        assert not browser.js(HIDDEN)
        described = browser.js("return document.querySelector(arguments[0]).getAttribute('aria-description')", selector)
        assert described == browser.texts("#tip")[0].replace("\n", " ") != ""
    browser.press("Escape", 27)
    assert browser.js(HIDDEN)


def test_rows_are_filtered_by_all_words(browser: Browser, large: Page) -> None:
    browser.open(large[0], "#benchmark=processbench&view=published")
    rows = "#published .filters + .scroll tbody"
    first = f"document.querySelector('{rows}')"
    every = browser.js(f"return {first}.rows.length")
    browser.write("#published .filter", "critic qwen2.5")
    kept = browser.js(f"return [...{first}.rows].filter((r) => !r.hidden).map((r) => r.textContent.toLowerCase())")
    assert 0 < len(kept) < every
    assert all("critic" in text and "qwen2.5" in text for text in kept)
    assert browser.texts("#published .count")[0] == f"{len(kept)} of {every} rows"
