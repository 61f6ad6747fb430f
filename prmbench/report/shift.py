"""Rows of format_shift runs -> tables, figure, and what the terminal shows. Lays out; computes no metric.

Percent and percentage points; a positive drop is F1 that a format takes away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from prmbench.core.records import MetricRow, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.report.blocks import NOTED, PERCENT, SIGNED, Block, blocks, remarks, rows_of, text
from prmbench.report.figures import MOST_RUNS, PALETTE, Plan, legend_label
from prmbench.report.frame import FLOORS, RULES, members, model_name, rule_and_readout, slug
from prmbench.report.tables import Grid
from prmbench.report.verdicts import headline
from prmbench.tasks import OUT_OF_FOLD
from prmbench.tasks.format_shift import NAMES, PLAIN, base_and_rendering, rendered_name
from prmbench.tasks.metric_rows import average_name

SHIFTED = NAMES[1:]
"""Every rendering but the plain one."""
EVERY = "all formats"
SHORT = {
    "headers": "head",
    "markdown": "mark",
    "separators": "sep",
    "merged": "merg",
    "answerless": "answ",
    "prefix": "pref",
}
LEVEL, STAR = 0.05, "*"
MOST_DETAILED = 2
"""Protocols that the terminal shows with intervals; of more it shows the drops alone."""
ASIDE = "tuned on this subset, so judged out of fold; or an average with such a number"
QUESTION = (
    "The drop is the F1 of the plain verdicts minus that of the rendering, on the same traces and the same question "
    "(the prefix's steps, merged steps). Thresholds are tuned on plain traces alone, so a drop says whether they "
    "travel."
)
ORACLE = "The drop is the F1 on plain traces minus that of the rendering, each with its own best threshold."


def asked(trace: ScoredTrace) -> object:
    """What makes two runs judge the same steps."""
    return trace.id, trace.steps, trace.label


def under(subset: str, rendering: str) -> str:
    """`math` or `avg[gsm8k,math]` under a rendering, as rows name it."""
    names = [rendered_name(name, rendering) for name in members(subset)]
    return average_name(names) if subset.startswith("avg[") else names[0]


def _every(subset: str, result: RunResult) -> str:
    """The average over all formats, where the subset stands for all base subsets; else empty."""
    pairs = [(name, *base_and_rendering(name)) for name in result.manifest.subsets]
    if {base for _, base, _ in pairs} != set(members(subset)):
        return ""
    return average_name([name for name, _, rendering in pairs if rendering != PLAIN])


# --- tables ---------------------------------------------------------------------------------------------------


def grids(runs: Sequence[Run]) -> tuple[Grid, ...]:
    """For each threshold rule what every format takes from F1, and F1 itself with its floors."""
    found = _base_blocks(runs)
    present = {rule_and_readout(row.protocol)[0] for run in runs for row in run.result.rows}
    return tuple(grid for rule in RULES if rule in present for grid in (_drops(rule, found), _levels(rule, found)))


def _base_blocks(runs: Sequence[Run]) -> list[Block]:
    """Runs on the same plain traces, of each base subset and of all."""
    return [b for b in blocks(runs, asked) if all(base_and_rendering(s)[1] == PLAIN for s in members(b.subset))]


def _drops(rule: str, found: Sequence[Block]) -> Grid:
    title, words = RULES[rule]
    return Grid(
        label=f"format_shift-{rule}-drop",
        title=f"{title}: what a format takes from F1",
        caption=f"{words} {ORACLE if rule == 'oracle' else QUESTION} Percentage points with 95% interval, paired and "
        f"resampled by problem; bold: p < {LEVEL}.",
        header=("Traces", "Model", "Readout", "F1, plain", *SHIFTED, EVERY),
        groups=tuple(_drop_group(rule, block) for block in found),
        notes=remarks(map(_plainly, _rows((rule,), found, ("f1", "f1_drop")))),
        text_columns=3,
    )


def _drop_group(rule: str, block: Block) -> tuple[tuple[str, ...], ...]:
    """Best on plain traces first, which is what the page's overview shows."""
    lines = []
    for run, key, readout in sorted(_lines(rule, block), key=lambda line: -_level(line[0], line[1], block.subset)):
        drops = [_drop(run.result, key, under(block.subset, rendering)) for rendering in SHIFTED]
        drops.append(_drop(run.result, key, _every(block.subset, run.result)))
        level = _row(run.result, key, block.subset, "f1")
        lines.append(
            (
                *(block.name, model_name(run.result.manifest), f"`{readout}`", text(level)),
                *(text(row, SIGNED, best=found) for row, found in drops),
            )
        )
    return tuple(lines)


def _level(run: Run, key: str, subset: str) -> float:
    row = _row(run.result, key, subset, "f1")
    return -1.0 if row is None or row.value is None else row.value


def _levels(rule: str, found: Sequence[Block]) -> Grid:
    title, words = RULES[rule]
    return Grid(
        label=f"format_shift-{rule}-f1",
        title=f"{title}: F1 in every format",
        caption=f"{words} First-error F1 in percent with its 95% interval. Merged traces and prefixes have fewer steps "
        "and other labels, and so floors of their own.",
        header=("Traces", "Model", "Readout", *NAMES),
        groups=tuple(group for block in found if (group := _level_group(rule, block))),
        notes=remarks(map(_plainly, _rows((rule, "floor"), found, ("f1",)))),
        text_columns=3,
    )


def _level_group(rule: str, block: Block) -> tuple[tuple[str, ...], ...]:
    def cells(run: Run, key: str) -> list[str]:
        return [text(_row(run.result, key, under(block.subset, rendering), "f1")) for rendering in NAMES]

    lines = [
        (block.name, model_name(run.result.manifest), f"`{readout}`", *cells(run, key))
        for run, key, readout in _lines(rule, block)
    ]
    widest = max(block.runs, key=lambda run: len(run.result.manifest.subsets))
    floors = [(block.name, words, f"`{key}`", *cells(widest, key)) for key, words in FLOORS.items()]
    return (*lines, *floors) if lines else ()


def _lines(rule: str, block: Block) -> list[tuple[Run, str, str]]:
    """(run, protocol, readout) of one threshold rule, by model."""
    found = []
    for run in block.runs:
        for key in dict.fromkeys(row.protocol for row in run.result.rows if row.subset == block.subset):
            known, readout = rule_and_readout(key)
            if known == rule:
                found.append((run, key, readout))
    return sorted(found, key=lambda line: (model_name(line[0].result.manifest), line[2], line[1]))


def _rows(rules: Sequence[str], found: Sequence[Block], names: Sequence[str]) -> list[MetricRow]:
    """What a table shows, for its notes."""
    runs = {id(run): run for block in found for run in block.runs}
    shown = [row for run in runs.values() for row in run.result.rows if row.metric in names]
    return [row for row in shown if rule_and_readout(row.protocol)[0] in rules]


def _row(result: RunResult, key: str, subset: str, metric: str) -> MetricRow | None:
    return rows_of(result, subset).get((key, metric))


def _drop(result: RunResult, key: str, subset: str) -> tuple[MetricRow | None, bool]:
    """The drop, and whether it is told apart from none."""
    rows = rows_of(result, subset)
    p = rows.get((key, "p_value"))
    return rows.get((key, "f1_drop")), p is not None and p.value is not None and p.value < LEVEL


def _plainly(row: MetricRow) -> MetricRow:
    """Which subsets were judged out of fold is the same for every rendering, and said once."""
    return replace(row, note=ASIDE) if row.note.endswith(OUT_OF_FOLD) else row


# --- figure ---------------------------------------------------------------------------------------------------


def figures(name: str, runs: Sequence[Run]) -> list[Plan]:
    """The drop of every format with its interval, one colour a model, each under its headline protocol.

    Runs on the same traces: those of which there are most.
    """
    alike = [(b.name, [run for run in b.runs if _whole(run.result) == b.subset]) for b in _base_blocks(runs)]
    where, found = max(alike, key=lambda pair: len(pair[1]), default=("", []))
    chosen = [(run, protocol.key) for run in found if (protocol := headline(run)) is not None]
    drawn = [(run, key) for run, key in chosen if any(_points(run, key))][:MOST_RUNS]
    if not drawn:
        return []
    figure = Figure(figsize=(7.2, 1.3 + 0.5 * len(SHIFTED) + 0.2 * len(drawn)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="#8a8a8a", lw=0.9)
    for i, (run, key) in enumerate(drawn):
        shift = 0.7 * ((i + 0.5) / len(drawn) - 0.5)
        label = legend_label(f"{model_name(run.result.manifest)}  {key}")
        for y, row in enumerate(_points(run, key)):
            if row is None or row.value is None:
                continue
            if row.lo is not None and row.hi is not None:
                axis.plot([100 * row.lo, 100 * row.hi], [y + shift] * 2, color=PALETTE[i], lw=1.6)
            axis.plot([100 * row.value], [y + shift], "o", ms=4, color=PALETTE[i], label=label)
            label = ""
    axis.set_yticks(range(len(SHIFTED)), SHIFTED)
    axis.set(ylim=(len(SHIFTED) - 0.5, -0.5), xlabel="F1 lost, percentage points")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    caption = f"{where[0].upper()}{where[1:]}. {QUESTION} Bars: 95% interval, paired, resampled by problem."
    if len(drawn) < len(runs):
        caption += f" {len(drawn)} of {len(runs)} runs."
    return [(f"{slug(name)}-drop", "F1 lost to each format", caption, figure)]


def _points(run: Run, key: str) -> list[MetricRow | None]:
    """The drop under each rendering, over all base subsets."""
    whole = _whole(run.result)
    return [_row(run.result, key, under(whole, rendering), "f1_drop") for rendering in SHIFTED]


def _whole(result: RunResult) -> str:
    """The average over the base subsets, or the only one."""
    bases = [name for name in result.manifest.subsets if base_and_rendering(name)[1] == PLAIN]
    return average_name(bases) if len(bases) > 1 else bases[0]


# --- terminal -------------------------------------------------------------------------------------------------

Built = tuple[list[str], list[tuple[str, list[str], bool]], list[MetricRow]]
"""Headings; name, cells and whether it is a floor; the rows whose notes are told."""


def terminal(result: RunResult, kept: Sequence[str]) -> Built:
    """Of one or two protocols every format with its interval and chance; of more the drops alone, side by side."""
    return _detailed(result, kept) if len(kept) <= MOST_DETAILED else _side_by_side(result, kept)


def _detailed(result: RunResult, kept: Sequence[str]) -> Built:
    whole = _whole(result)
    lines: list[tuple[str, list[str], bool]] = []
    shown: list[MetricRow] = []
    for key in kept:
        lines.append((key, [""] * 5, False))
        for name in (*NAMES, EVERY):
            rows = rows_of(result, _every(whole, result) if name == EVERY else under(whole, name))
            if (key, "f1_drop") not in rows:
                continue
            level, base, drop = (_plainly(rows[key, metric]) for metric in ("f1", "f1_base", "f1_drop"))
            p = rows.get((key, "p_value"))
            told = "" if name == PLAIN else text(drop, SIGNED)
            odds = "" if name == PLAIN or p is None or p.value is None else f"{p.value:.3f}"
            cells = [text(level, interval=False), text(base, interval=False), told, odds]
            lines.append((f"  {name}", [*cells, text(rows.get(("floor/random", "f1")), interval=False)], False))
            shown.append(drop)
    return ["F1 by format, percent", "F1", "plain", "drop", "p", "chance"], lines, shown


def _side_by_side(result: RunResult, kept: Sequence[str]) -> Built:
    whole = _whole(result)
    present = [name for name in SHIFTED if rows_of(result, under(whole, name))]
    every = [_every(whole, result)] * (len(present) > 1)
    shown: list[MetricRow] = []
    sections: dict[str, list[tuple[str, list[str], bool]]] = {}
    for key in kept:
        level = _row(result, key, whole, "f1")
        drops = [_drop(result, key, subset) for subset in (*(under(whole, name) for name in present), *every)]
        shown += [_plainly(row) for row in (level, *(row for row, _ in drops)) if row is not None]
        cells = [_bare(level, PERCENT), *(_bare(row, SIGNED) + STAR * clear for row, clear in drops)]
        readout, _, rule = key.partition("/")
        noted = any(row is not None and row.value is not None and row.note for row in (level, *(d for d, _ in drops)))
        sections.setdefault(f"/{rule}{NOTED * noted}", []).append((f"  {readout}", cells, False))
    for key in FLOORS:
        floors = [_row(result, key, subset, "f1") for subset in (whole, *(under(whole, name) for name in present))]
        cells = [_bare(row, PERCENT) for row in floors] + [""] * len(every)
        name = key.removeprefix("floor/").partition("_")[0]
        sections.setdefault("F1 by chance", []).append((f"  {name}", cells, True))
    heads = [
        f"F1 lost ({STAR} p<{LEVEL})",
        "plain",
        *(SHORT.get(name, name) for name in present),
        *["all"] * len(every),
    ]
    blank = [""] * (len(heads) - 1)
    lines = [line for head, found in sections.items() for line in ((head, blank, found[0][2]), *found)]
    return heads, lines, shown


def _bare(row: MetricRow | None, style: str) -> str:
    """No interval and no mark, so that ten fit side by side; the mark stands behind their rule."""
    return text(None if row is None else replace(row, note=""), style, interval=False)


def places(subsets: Iterable[str], metric: str) -> dict[str, str]:
    """Subsets that a comparison shows, and what they are called there; of rendered traces the averages if there are."""
    found = list(subsets)
    rendered = {s: {base_and_rendering(name)[1] for name in members(s)} for s in found}
    if all(kinds == {PLAIN} for kinds in rendered.values()):
        return {s: "average" if s.startswith("avg[") else s for s in found}
    averaged = [s for s in found if s.startswith("avg[") and rendered[s] != {PLAIN}]
    several = any(len(rendered[s]) == 1 for s in averaged)  # base subsets
    kept = [s for s in found if (s.startswith("avg[") or not several) and (metric == "f1" or rendered[s] != {PLAIN})]
    return {s: EVERY if len(rendered[s]) > 1 else next(iter(rendered[s])) if several else s for s in kept}
