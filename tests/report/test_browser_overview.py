"""The overview's table, best-of-N picks, critics' texts and formulas in headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import Browser, launched, payload
from paths import SUPPORT
from report_runs import completions, scores_of, task_scores, traces, write, write_task

from prmbench.report import report

pytestmark = pytest.mark.slow

HOSTILE = (
    r"\(\frac{1}{2}\) and $5 or $6",
    r"$\text{<script>window.hacked = 1</script>}$",
    r"$\href{javascript:window.hacked=2}{x}$ <img src=x onerror='window.hacked=3'>",
    r"\[ " + " + ".join(f"x_{{{i}}}" for i in range(60)) + r" \]",
)
CRITIQUES = [r"Step 1: $\sqrt{2}$ is wrong.", "<b onclick='window.hacked=4'>fine</b>", "?", "?"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launched()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on two benchmarks, another on one, and a critic with its texts."""
    root = tmp_path_factory.mktemp("site")
    items = traces(6, ("gsm8k", "math"))
    items = [replace(items[0], prompt=HOSTILE[0], steps=HOSTILE), *items[1:]]
    picks = completions(4, 4)
    write(root / "in", scores_of(items), run_id="a" * 12, model="org/both", rules=("calibrated",))
    write(root / "in", scores_of(items, "prob", 3), run_id="d" * 12, model="org/one", rules=("calibrated",))
    votes = {"kind": "verdict", "backend": "critic"}
    critic = write(root / "in", scores_of(items, "verdict", 1), run_id="b" * 12, model="org/critic", **votes)
    lines = [json.dumps({"id": t.id, "said": CRITIQUES}) + "\n" for t in items]
    critic.with_suffix(".critiques.jsonl").write_text("".join(lines))
    write_task(root / "in", "best_of_n", task_scores(picks), run_id="n" * 12, model="org/both")
    report(root / "in", root / "out", data={t.id: t for t in [*items, *picks]})
    return root / "out" / "report.html"


@pytest.fixture
def opened(browser: Browser, site: Path) -> Iterator[Browser]:
    """The page; at the end of each test: no word on the console, nothing fetched, no text run."""
    browser.open(site)
    yield browser
    assert browser.call("POST", "/se/log", {"type": "browser"}) == []
    assert browser.js("return performance.getEntriesByType('resource').length") == 0
    assert browser.js("return typeof window.hacked") == "undefined"


def test_models_stand_against_benchmarks_with_their_protocols(opened: Browser, site: Path) -> None:
    sections = [section for section in payload(site)["benchmarks"] if section["standing"]]
    assert [section["name"] for section in sections] == ["mini", "best_of_n"]
    assert opened.texts("#matrix thead code") == ["as_is/calibrated:gsm8k", "prefix_sum/last"]
    assert opened.texts("#matrix tbody.model th") == ["org/both", "org/one", "org/critic"]
    cells = opened.texts("#matrix tbody.model tr:first-child td")
    for text, section in zip(cells, sections, strict=True):
        cell = section["standing"]["cells"]["org/both"]
        assert (
            text
            == f"{cell['number']}{cell['interval']}{cell['difference']} {cell['difference_interval']}{cell['reading']}"
        )
        assert cell["difference_interval"].startswith("[")
    assert opened.texts("#matrix tbody.model tr:last-child td") == ["–only under vote/native; see the tables", "–"]
    bounds = [section["standing"]["bound"] for section in sections]
    assert opened.texts("#matrix .floor td") == [f"{b['number']}{b['name']}" for b in bounds]
    opened.click("#matrix [data-sort=standing-0]")
    values = [float(text) for text in opened.texts("#matrix tbody.model tr td:nth-child(2) .value")]
    assert values == sorted(values, reverse=True)
    opened.click("#matrix th:nth-child(3) [data-go=board]")
    assert opened.js("return document.getElementById('view-board').hidden") is False
    assert "benchmark=best_of_n" in opened.js("return location.hash")


def test_a_problem_shows_its_completions_and_who_picks_which(opened: Browser, site: Path) -> None:
    section = next(s for s in payload(site)["benchmarks"] if s["name"] == "best_of_n")
    opened.open(site, "#benchmark=best_of_n&view=traces")
    assert opened.texts(".trace .name") == [t["id"] for t in section["traces"]]
    run = section["runs"][0]
    for key in ("prefix_sum/last", "step_sum/min"):
        opened.choose("protocol", key)
        opened.click("[data-kind=all]")
        protocol = next(p for p in run["protocols"] if p["key"] == key)
        for at, problem in enumerate(section["traces"]):
            opened.click(f".trace[data-index='{at}']")
            picked = [problem["completions"][k] for k in protocol["picked"][at]]
            shown = opened.texts(".completion:has(.flag.true) b")
            assert shown == [c["id"] for c in picked]
            marks = opened.texts(".completion:has(.flag.true) .index")
            assert marks == ["✓" if c["right"] else "✗" for c in picked]
            ids = opened.texts(".completion b")
            ranked = sorted(range(problem["k"]), key=lambda k: -protocol["scores"][at][k])
            assert ids == [problem["completions"][k]["id"] for k in ranked]
        wrong = [t["id"] for t, k in zip(section["traces"], protocol["kind"], strict=True) if k == 8]
        opened.click("[data-kind=wrong]")
        assert opened.texts(".trace .name") == wrong
        opened.click("[data-kind=all]")
    assert opened.texts("#detail > div tbody code")[:5] == [
        f"step_sum/{a}" for a in ("last", "min", "mean", "prod", "sum")
    ]
    assert opened.texts(".completion .text")[:3] == ["a", "b", "c"]
    opened.write("#find", section["traces"][2]["id"])
    assert opened.texts(".trace .name") == [section["traces"][2]["id"]]


def test_formulas_are_drawn_and_hostile_ones_stay_text(opened: Browser, site: Path) -> None:
    opened.open(site, "#trace=gsm8k-0")
    assert opened.js("return document.querySelector('.problem math mfrac') !== null")
    assert opened.texts(".problem")[0].endswith(" and $5 or $6")
    steps = opened.texts(".step .text")
    assert steps[1] == "<script>window.hacked\u00a0=\u00a01</script>"  # \text{} as characters
    assert "<img src=x onerror=" in steps[2]
    foreign = "#detail :is(a, script, img), #detail math :is([href], [style], [class])"
    assert opened.js("return document.querySelectorAll(arguments[0]).length", foreign) == 0
    wide = "const f = [...document.querySelectorAll('.step .formula.wide')].at(-1);"
    assert opened.js(f"{wide} return [f.classList.contains('cut'), f.tabIndex]") == [True, 0]
    opened.js(f"{wide} f.scrollLeft = f.scrollWidth")
    opened.until(f"{wide} return !f.classList.contains('cut')", "the end of a formula stays faded")
    opened.write("#find", "frac{1}{2}")  # the search reads the source
    assert opened.texts(".trace .name") == ["gsm8k-0"]


def test_what_the_critic_wrote_is_beneath_the_steps(opened: Browser, site: Path) -> None:
    section = payload(site)["benchmarks"][0]
    number = next(i for i, run in enumerate(section["runs"]) if run["model"] == "org/critic")
    votes = section["runs"][number]["votes"][0]
    opened.open(site, "#trace=gsm8k-0")
    assert opened.texts(".critique") == []
    opened.choose("run", str(number))
    names = ["no answer" if v is None else "no error" if v < 0 else f"step {v + 1}" for v in votes]
    assert opened.texts(".critique summary") == [f"Critique {i + 1}: {name}" for i, name in enumerate(names)]
    assert opened.texts(".critique .problem")[1] == CRITIQUES[1]
    assert opened.js("return document.querySelector('.critique math msqrt') !== null")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_new_views_can_be_read_named_and_narrow(opened: Browser, site: Path, scheme: str) -> None:
    checks = (SUPPORT / "page_checks.js").read_text()
    addresses = ("", "#benchmark=best_of_n&view=traces", "#trace=gsm8k-0", "#benchmark=mini&view=figures")
    opened.scheme(scheme)
    try:
        for width in (390, 1400):
            opened.width(width)
            for address in addresses:
                opened.open(site, address)
                opened.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
                assert opened.js(f"{checks}; return faint()") == [], address
                assert opened.js(f"{checks}; return nameless()") == [], address
                wide, shown = opened.js("const d = document.documentElement; return [d.scrollWidth, d.clientWidth]")
                assert wide <= shown, (width, address)
    finally:
        opened.scheme("light")
        opened.cdp("Emulation.clearDeviceMetricsOverride")
