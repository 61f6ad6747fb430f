"""Task format_shift: first-error F1 on the same traces in other formats, and what each format takes from it.

Pure functions of committed scores. What the formats look like is data/renderings.py's; here are only their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prmbench.core.records import EvalProtocol, MetricRow, RunManifest, RunResult, ScoredTrace, UserError
from prmbench.core.result_files import Run
from prmbench.metrics import first_error
from prmbench.metrics.first_error import Floats, Ints, Sample
from prmbench.tasks import steps
from prmbench.tasks.blocks import Block, blocks, rows_of
from prmbench.tasks.metric_rows import (
    OUT_OF_FOLD,
    Cell,
    Judged,
    SubsetInfo,
    absent,
    average_name,
    resampled,
    traces_of_subset,
)
from prmbench.tasks.steps import FOLDS, Subset
from prmbench.tasks.table import FRACTION, NOTED, PERCENT, POINTS, Code, Row, Table, Unit, Value, cell_of, notes_of
from prmbench.tasks.table import Cell as TableCell
from prmbench.tasks.task import Task
from prmbench.tasks.wording import FLOORS as FLOOR_WORDS
from prmbench.tasks.wording import RULES as RULE_WORDS
from prmbench.tasks.wording import members, model_name, rule_and_readout

PLAIN = "plain"
"""The traces as they are: what every rendering is compared with."""
MERGED, PREFIX = "merged", "prefix"
"""Renderings that ask another question than the plain traces: fewer steps, other labels."""
NAMES = (PLAIN, "headers", "markdown", "separators", MERGED, "split", "answerless", PREFIX)
"""Renderings in table order."""
METRICS = ("f1", "f1_base", "f1_drop")
"""F1 of a rendering, of the plain verdicts on the same question, and the second minus the first."""
_PAIR = 2
"""Steps that become one under `merged`."""

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


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A base subset under one rendering."""

    subset: Subset
    base: str
    rendering: str
    plain: tuple[ScoredTrace, ...]
    """[n]: the same solutions as they are."""
    whole: bool = True
    """False where some plain traces have no counterpart."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """Where thresholds come from in one base subset: a column each of `tuned` [b, folds or 1], or nothing and why."""

    tuned: Floats | None = None
    """None: each rendering has its own (oracle)."""
    lacking: str = ""
    note: str = ""


def rendered_name(name: str, rendering: str) -> str:
    """A base subset's name under a rendering: `math+headers`; plain ones keep theirs."""
    return name if rendering == PLAIN else f"{name}+{rendering}"


def base_and_rendering(subset: str) -> tuple[str, str]:
    """Inverse of `rendered_name`."""
    base, plus, rendering = subset.rpartition("+")
    return (base, rendering) if plus and rendering in NAMES and rendering != PLAIN else (subset, PLAIN)


def rendered_id(name: str, rendering: str) -> str:
    """A trace's id under a rendering: `math-7@headers`."""
    return name if rendering == PLAIN else f"{name}@{rendering}"


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """The protocols of step F1, without the one that is tuned and judged on the same traces of one subset only."""
    return tuple(p.key for p in steps.eval_protocols(manifest) if p.threshold != "calibrated_in_sample")


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Floors of every rendering, then every protocol's F1, that of the plain verdicts, and the drop between them."""
    parts = _parts(manifest, scores)
    bases = {part.base: part.subset for part in parts if part.rendering == PLAIN}
    cells: dict[str, Mapping[str, Sequence[Cell]]] = {
        f"floor/{name}": {part.subset.name: [steps.floor(name, part.subset)] for part in parts} for name in steps.FLOORS
    }
    for asked in map(EvalProtocol.parse, (*protocols(manifest), *manifest.extra_protocols)):
        protocol = steps.resolve(manifest, asked)
        rules = _rules(bases, protocol)
        plain = {
            name: _f1(subset, first_error.sample(subset.traces, protocol), rules[name])
            for name, subset in bases.items()
        }
        cells[protocol.key] = {
            part.subset.name: _cells(part, protocol, rules[part.base], plain[part.base]) for part in parts
        }
    told = tuple(
        SubsetInfo(s.name, len(s.traces), s.unscored, steps.missing(s)) for s in (rendered.subset for rendered in parts)
    )
    return Judged(told, cells, _averages(parts))


def _averages(parts: Sequence[_Rendered]) -> tuple[tuple[str, ...], ...]:
    """Each rendering over the base subsets, then all renderings but plain over all of them."""
    present = dict.fromkeys(part.rendering for part in parts)
    groups = [tuple(p.subset.name for p in parts if p.rendering == rendering) for rendering in present]
    groups.append(tuple(p.subset.name for p in parts if p.rendering != PLAIN))
    return tuple(dict.fromkeys(group for group in groups if len(group) > 1))


# --- the same traces in other formats ---------------------------------------------------------------------


def _parts(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> list[_Rendered]:
    """Every subset of the run with its plain traces beside it, resampled with the same problems."""
    found: list[_Rendered] = []
    for name in sorted(manifest.subsets, key=lambda name: base_and_rendering(name)[1] != PLAIN):
        base, rendering = base_and_rendering(name)
        if rendering == PLAIN:
            subset = _plain(manifest, traces_of_subset(scores, name), name)
            found.append(_Rendered(subset, name, PLAIN, subset.traces))
            continue
        plain = next((part.subset for part in found if part.subset.name == base), None)
        if plain is None:
            raise UserError(f"subset {name}: the run has no subset {base}, which it is compared with; score both")
        found.append(_beside(plain, traces_of_subset(scores, name), rendering))
    order = {name: i for i, name in enumerate(manifest.subsets)}
    return sorted(found, key=lambda part: order[part.subset.name])


def _plain(manifest: RunManifest, traces: tuple[ScoredTrace, ...], name: str) -> Subset:
    clusters = [t.cluster for t in traces]
    problem, draws = resampled(manifest, name, clusters)
    return Subset(name, traces, np.ascontiguousarray(draws[:, problem]), first_error.folds(clusters, FOLDS))


def _beside(plain: Subset, traces: Sequence[ScoredTrace], rendering: str) -> _Rendered:
    """Traces in the order of the plain ones, with their weights and folds."""
    name = rendered_name(plain.name, rendering)
    by_id = {t.id: t for t in traces}
    there = [i for i, t in enumerate(plain.traces) if rendered_id(t.id, rendering) in by_id]
    if len(there) != len(by_id):
        raise UserError(f"subset {name}: {len(by_id) - len(there)} of its traces have no plain one in {plain.name}")
    ordered = tuple(by_id[rendered_id(plain.traces[i].id, rendering)] for i in there)
    weights = plain.weights if len(there) == len(plain.traces) else np.ascontiguousarray(plain.weights[:, there])
    subset = Subset(name, ordered, weights, plain.fold[there])
    whole = len(there) == len(plain.traces)
    return _Rendered(subset, plain.name, rendering, tuple(plain.traces[i] for i in there), whole)


# --- numbers ----------------------------------------------------------------------------------------------


def _cells(part: _Rendered, protocol: EvalProtocol, rule: _Rule, plain: Floats) -> list[Cell]:
    """`plain`: F1 on all plain traces, [b]."""
    if rule.lacking:
        return absent(METRICS, rule.lacking)
    same_question = part.rendering not in (MERGED, PREFIX) and part.whole
    base = plain if same_question else _f1(part.subset, _base(part, protocol), rule)
    f1 = base if part.rendering == PLAIN else _f1(part.subset, first_error.sample(part.subset.traces, protocol), rule)
    return [Cell(name, values, rule.note) for name, values in zip(METRICS, (f1, base, base - f1), strict=True)]


def _f1(subset: Subset, data: Sample, rule: _Rule) -> Floats:
    if rule.lacking:
        return np.array([np.nan])
    tuned = first_error.best_threshold(data, subset.weights)[:, None] if rule.tuned is None else rule.tuned
    threshold = tuned if tuned.shape[1] == 1 else tuned[:, subset.fold]
    right = (data.lo < threshold) & (threshold <= data.hi)
    return first_error.harmonic(*first_error.accuracies(data, right, subset.weights))


def _base(part: _Rendered, protocol: EvalProtocol) -> Sample:
    """What the plain verdicts say in the rendering's steps: a merged one is flagged where either of its two is."""
    told = protocol if protocol.readout == "vote" else EvalProtocol("as_is", protocol.threshold)
    return first_error.sample(
        [
            _told(plain, shown, part.rendering, first_error.readout(plain, protocol) if told is not protocol else None)
            for plain, shown in zip(part.plain, part.subset.traces, strict=True)
        ],
        told,
    )


def _told(plain: ScoredTrace, shown: ScoredTrace, rendering: str, read: Floats | None) -> ScoredTrace:
    """The plain trace with the rendering's label and number of steps; `read` is its readout, one per plain step."""
    verdicts = tuple(_moved(v, plain.steps, shown.steps, rendering) for v in plain.verdicts)
    if rendering == MERGED:
        read = None if read is None else np.minimum.reduceat(read, range(0, len(read), _PAIR))
    elif rendering == PREFIX:
        read = None if read is None else read[: shown.steps]
    values = () if read is None else tuple(map(float, read))
    return replace(plain, label=shown.label, steps=shown.steps, verdicts=verdicts, values=values)


def _moved(verdict: int | None, plain: int, shown: int, rendering: str) -> int | None:
    """A verdict among `plain` steps as one among `shown` steps."""
    if verdict is None or verdict < 0:
        return verdict
    if verdict >= plain:
        return shown  # a step that is not there: wrong, and not to become right by its number
    if rendering == MERGED:
        return verdict // _PAIR
    return verdict if verdict < shown else -1


# --- thresholds: tuned on plain traces, but for the oracle ------------------------------------------------


def _rules(bases: Mapping[str, Subset], protocol: EvalProtocol) -> dict[str, _Rule]:
    """One per base subset."""
    if protocol.threshold == "oracle":
        return dict.fromkeys(bases, _Rule())
    if protocol.threshold == "cross_validated":
        return {name: _cross_validated(subset, protocol) for name, subset in bases.items()}
    if protocol.on is not None:
        return _calibrated(bases, protocol, protocol.on)
    given = 1.0 if protocol.readout == "vote" else protocol.at
    if given is None:
        raise ValueError(f"{protocol.key}: no number for its threshold")
    return dict.fromkeys(bases, _Rule(np.array([[given]])))


def _calibrated(bases: Mapping[str, Subset], protocol: EvalProtocol, on: str) -> dict[str, _Rule]:
    """The calibration subset itself is judged out of fold."""
    tuning = bases.get(on)
    lacking = f"needs subset {on}, which this run does not have"
    if tuning is not None and (reason := steps.missing(tuning)):
        lacking = f"{on} has {reason} to tune on"
    elif tuning is not None:
        shared = _Rule(first_error.best_threshold(first_error.sample(tuning.traces, protocol), tuning.weights)[:, None])
        own = shared if protocol.threshold == "calibrated_in_sample" else _cross_validated(tuning, protocol)
        return dict.fromkeys(bases, shared) | {on: own if own is shared else replace(own, note=OUT_OF_FOLD)}
    return dict.fromkeys(bases, _Rule(lacking=lacking))


def _cross_validated(plain: Subset, protocol: EvalProtocol) -> _Rule:
    """Each fold by the plain traces of the others."""
    numbers: Ints = np.unique(plain.fold)
    if len(numbers) == 1:
        return _Rule(lacking="cross-validation needs two problems")
    data = first_error.sample(plain.traces, protocol)
    tuned = [first_error.best_threshold(data, plain.weights * (plain.fold != fold)) for fold in numbers]
    return _Rule(np.stack(tuned, axis=1))


# --- tables -------------------------------------------------------------------------------------------------


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


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """For each threshold rule what every format takes from F1, and F1 itself with its floors."""
    found = base_blocks(runs)
    present = {rule_and_readout(row.protocol)[0] for run in runs for row in run.result.rows}
    return tuple(grid for rule in RULE_WORDS if rule in present for grid in (_drops(rule, found), _levels(rule, found)))


def base_blocks(runs: Sequence[Run]) -> list[Block]:
    """Runs on the same plain traces, of each base subset and of all."""
    return [b for b in blocks(runs, asked) if all(base_and_rendering(s)[1] == PLAIN for s in members(b.subset))]


def _drops(rule: str, found: Sequence[Block]) -> Table:
    title, words = RULE_WORDS[rule]
    return Table(
        label=f"format_shift-{rule}-drop",
        title=f"{title}: what a format takes from F1",
        caption=f"{words} {ORACLE if rule == 'oracle' else QUESTION} Percentage points with 95% interval, paired and "
        f"resampled by problem; bold: p < {LEVEL}.",
        header=("Traces", "Model", "Readout", "F1, plain", *SHIFTED, EVERY),
        groups=tuple(_drop_group(rule, block) for block in found),
        notes=notes_of(map(_plainly, _rows((rule,), found, ("f1", "f1_drop")))),
        text_columns=3,
        lead="F1, plain",
    )


def _drop_group(rule: str, block: Block) -> tuple[Row, ...]:
    """Best on plain traces first, which is what the page's overview shows."""
    lines = []
    for run, key, readout in sorted(_lines(rule, block), key=lambda line: -_level(line[0], line[1], block.subset)):
        drops = [_drop(run.result, key, under(block.subset, rendering)) for rendering in SHIFTED]
        drops.append(_drop(run.result, key, _every(block.subset, run.result)))
        level = row_under(run.result, key, block.subset, "f1")
        lines.append(
            (
                *(block.name, model_name(run.result.manifest), Code(readout), cell_of(level)),
                *(cell_of(row, POINTS, best=found) for row, found in drops),
            )
        )
    return tuple(lines)


def _level(run: Run, key: str, subset: str) -> float:
    row = row_under(run.result, key, subset, "f1")
    return -1.0 if row is None or row.value is None else row.value


def _levels(rule: str, found: Sequence[Block]) -> Table:
    title, words = RULE_WORDS[rule]
    return Table(
        label=f"format_shift-{rule}-f1",
        title=f"{title}: F1 in every format",
        caption=f"{words} First-error F1 in percent with its 95% interval. Merged traces and prefixes have fewer steps "
        "and other labels, and so floors of their own.",
        header=("Traces", "Model", "Readout", *NAMES),
        groups=tuple(group for block in found if (group := _level_group(rule, block))),
        notes=notes_of(map(_plainly, _rows((rule, "floor"), found, ("f1",)))),
        text_columns=3,
    )


def _level_group(rule: str, block: Block) -> tuple[Row, ...]:
    def cells(run: Run, key: str) -> list[TableCell]:
        return [cell_of(row_under(run.result, key, under(block.subset, rendering), "f1")) for rendering in NAMES]

    lines = [
        (block.name, model_name(run.result.manifest), Code(readout), *cells(run, key))
        for run, key, readout in _lines(rule, block)
    ]
    widest = max(block.runs, key=lambda run: len(run.result.manifest.subsets))
    floors = [(block.name, words, Code(key), *cells(widest, key)) for key, words in FLOOR_WORDS.items()]
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


def row_under(result: RunResult, key: str, subset: str, metric: str) -> MetricRow | None:
    """Returns one row of a result, if it is there."""
    return rows_of(result, subset).get((key, metric))


def _drop(result: RunResult, key: str, subset: str) -> tuple[MetricRow | None, bool]:
    """The drop, and whether it is told apart from none."""
    rows = rows_of(result, subset)
    p = rows.get((key, "p_value"))
    return rows.get((key, "f1_drop")), p is not None and p.value is not None and p.value < LEVEL


def _plainly(row: MetricRow) -> MetricRow:
    """Which subsets were judged out of fold is the same for every rendering, and said once."""
    return replace(row, note=ASIDE) if row.note.endswith(OUT_OF_FOLD) else row


def base_average(result: RunResult) -> str:
    """The average over the base subsets, or the only one."""
    bases = [name for name in result.manifest.subsets if base_and_rendering(name)[1] == PLAIN]
    return average_name(bases) if len(bases) > 1 else bases[0]


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


# --- terminal -----------------------------------------------------------------------------------------------


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """One or two protocols with every format, its interval and chance; of more the drops alone, side by side."""
    return _detailed(result, keys) if len(keys) <= MOST_DETAILED else _side_by_side(result, keys)


def _detailed(result: RunResult, keys: Sequence[str]) -> Table:
    whole = base_average(result)
    lines: list[Row] = []
    shown: list[MetricRow] = []
    for key in keys:
        lines.append((Code(key), *[""] * 5))
        for name in (*NAMES, EVERY):
            rows = rows_of(result, _every(whole, result) if name == EVERY else under(whole, name))
            if (key, "f1_drop") not in rows:
                continue
            level, base, drop = (_plainly(rows[key, metric]) for metric in METRICS)
            p = rows.get((key, "p_value"))
            is_plain = name == PLAIN
            lines.append(
                (
                    f"  {name}",
                    cell_of(level, interval=False),
                    cell_of(base, interval=False),
                    "" if is_plain else cell_of(drop, POINTS),
                    "" if is_plain or p is None or p.value is None else Value(p.value, FRACTION),
                    cell_of(rows.get(("floor/random", "f1")), interval=False),
                )
            )
            shown.append(drop)
    header = ("F1 by format, percent", "F1", "plain", "drop", "p", "chance")
    return _terminal_table(header, (tuple(lines),), shown)


def _side_by_side(result: RunResult, keys: Sequence[str]) -> Table:
    whole = base_average(result)
    present = [name for name in SHIFTED if rows_of(result, under(whole, name))]
    every = [_every(whole, result)] * (len(present) > 1)
    heads = (
        f"F1 lost ({STAR} p<{LEVEL})",
        "plain",
        *(SHORT.get(name, name) for name in present),
        *["all"] * len(every),
    )
    blank = [""] * (len(heads) - 1)
    shown: list[MetricRow] = []
    by_rule: dict[str, list[Row]] = {}
    for key in keys:
        level = row_under(result, key, whole, "f1")
        drops = [_drop(result, key, subset) for subset in (*(under(whole, name) for name in present), *every)]
        rows = [row for row in (level, *(row for row, _ in drops)) if row is not None]
        shown += map(_plainly, rows)
        readout, _, rule = key.partition("/")
        noted = any(row.value is not None and row.note for row in rows)
        cells = [_bare(level, PERCENT), *(_bare(row, POINTS, STAR * clear) for row, clear in drops)]
        by_rule.setdefault(f"/{rule}{NOTED * noted}", []).append((f"  {readout}", *cells))
    lines = [line for head, found in by_rule.items() for line in ((head, *blank), *found)]
    floors: list[Row] = [("F1 by chance", *blank)]
    for key in FLOOR_WORDS:
        found = [row_under(result, key, subset, "f1") for subset in (whole, *(under(whole, n) for n in present))]
        name = key.removeprefix("floor/").partition("_")[0]
        floors.append((f"  {name}", *(_bare(row, PERCENT) for row in found), *[""] * len(every)))
    return _terminal_table(heads, (tuple(lines), tuple(floors)), shown)


def _terminal_table(header: tuple[str, ...], groups: tuple[tuple[Row, ...], ...], shown: Sequence[MetricRow]) -> Table:
    return Table(
        label="format_shift",
        title="",
        caption="",
        header=header,
        groups=groups,
        notes=notes_of(shown),
        text_columns=1,
        ends_with_floors=len(groups) > 1,
    )


def _bare(row: MetricRow | None, unit: Unit, marks: str = "") -> TableCell:
    """No interval and no mark of a note, so that ten fit side by side; that mark stands behind their rule."""
    cell = cell_of(row, unit, interval=False)
    return replace(cell, marks=marks) if isinstance(cell, Value) else cell


TASK = Task(
    name="format_shift",
    title="finding the first wrong step in other formats",
    description="The same solutions in other formats: how much first-error F1 a format takes from a model.",
    unscored="unscored, counted as wrong",
    protocols=protocols,
    judge=judge,
    tables=tables,
    summary=summary,
    has_threshold=True,
    resolve=steps.resolve_key,
    not_compared=("f1_base",),
    many_rows=True,
    check_trace=steps.check_trace,
)
