"""Task format_shift: first-error F1 on the same traces in other formats, and how much each format lowers it.

Pure functions of stored scores. data/renderings.py makes the formats; here are only their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prmbench.core.records import (
    DEFAULT_READOUTS,
    EvalProtocol,
    MetricRow,
    RunManifest,
    RunResult,
    ScoredTrace,
    UserError,
)
from prmbench.core.result_files import Run
from prmbench.metrics import first_error
from prmbench.metrics.first_error import Floats, Sample
from prmbench.tasks import step_ranking, steps
from prmbench.tasks.blocks import Block, blocks, rows_of
from prmbench.tasks.metric_rows import (
    OUT_OF_FOLD,
    Cell,
    Judged,
    SubsetInfo,
    absent,
    average_name,
    resampled,
    share,
    traces_of_subset,
)
from prmbench.tasks.steps import Subset
from prmbench.tasks.table import (
    FRACTION,
    NOTED,
    PERCENT,
    POINTS,
    Code,
    Row,
    Table,
    TableCell,
    Unit,
    Value,
    cell_of,
    notes_of,
)
from prmbench.tasks.task import Leading, Task
from prmbench.tasks.wording import RULES as RULE_WORDS
from prmbench.tasks.wording import floors_under, members, rule_and_readout, run_name

PLAIN = "plain"
"""The unchanged traces, with which every rendering is compared."""
MERGED, PREFIX = "merged", "prefix"
"""Renderings with fewer steps and other labels than the plain traces."""
NAMES = (PLAIN, "headers", "markdown", "separators", MERGED, "split", "answerless", PREFIX)
"""Renderings in table order."""
METRICS = ("f1", "f1_base", "f1_drop")
"""F1 of a rendering, F1 of the plain verdicts on the same steps and labels, and the second minus the first."""
_PAIR = 2
"""Number of steps that become one under `merged`."""

SHIFTED = NAMES[1:]
"""Every rendering but the plain one."""
ALL_FORMATS = "all formats"
SHORT_NAMES = {
    "headers": "head",
    "markdown": "mark",
    "separators": "sep",
    "merged": "merg",
    "answerless": "answ",
    "prefix": "pref",
}
LEVEL, SIGNIFICANT = 0.05, "*"
MAX_DETAILED = 2
"""The terminal shows up to this many protocols with intervals, and only the drops of more."""
OUT_OF_FOLD_NOTE = "tuned on this subset, so judged out of fold; or an average with such a number"
QUESTION = (
    "The drop is the F1 of the plain verdicts minus that of the rendering, on the same traces, steps and labels (for "
    "prefixes and merged steps, too). Thresholds are tuned on plain traces alone, so a drop shows whether they "
    "transfer."
)
ORACLE = "The drop is the F1 on plain traces minus that of the rendering, each with its own best threshold."


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A base subset under one rendering."""

    subset: Subset
    base: str
    rendering: str
    plain: tuple[ScoredTrace, ...]
    """The plain traces of the same solutions, [n]."""
    is_complete: bool = True
    """Whether every plain trace has a counterpart."""


@dataclass(frozen=True, slots=True)
class _Thresholds:
    """The thresholds of one base subset, or the reason why there are none."""

    tuned: Floats | None = None
    """[b] or [1]; None: each rendering is tuned on itself (oracle), or see `by_fold`."""
    by_fold: Floats | None = None
    """[splits, folds]: for traces in each fold of each split, tuned on the others."""
    missing: str = ""
    note: str = ""


def rendered_name(name: str, rendering: str) -> str:
    """Returns the name of a base subset under a rendering: `math+headers`; plain subsets keep their name."""
    return name if rendering == PLAIN else f"{name}+{rendering}"


def base_and_rendering(subset: str) -> tuple[str, str]:
    """Splits a subset's name into base subset and rendering; the inverse of `rendered_name`."""
    base, plus, rendering = subset.rpartition("+")
    return (base, rendering) if plus and rendering in NAMES and rendering != PLAIN else (subset, PLAIN)


def rendered_id(name: str, rendering: str) -> str:
    """Returns the id of a trace under a rendering: `math-7@headers`."""
    return name if rendering == PLAIN else f"{name}@{rendering}"


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """Returns the protocol keys of step F1, without the rule `calibrated_in_sample`."""
    return tuple(p.key for p in steps.eval_protocols(manifest) if p.threshold != "calibrated_in_sample")


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Computes the floors of every rendering, then F1, plain F1 and their difference under every protocol."""
    parts = _parts(manifest, scores)
    bases = {part.base: part.subset for part in parts if part.rendering == PLAIN}
    requested = map(EvalProtocol.parse, (*protocols(manifest), *manifest.extra_protocols))
    resolved = [steps.resolve(manifest, protocol) for protocol in requested]
    # Only the oracle tunes on rendered traces; the other rules tune on plain ones, of which random scores know nothing.
    cells: dict[str, Mapping[str, Sequence[Cell]]] = {**steps.floor_cells([p.subset for p in parts], [], "")}
    for protocol in resolved:
        thresholds = _thresholds_by_base(bases, protocol)
        plain_f1 = {
            name: _f1(subset, first_error.sample(subset.traces, protocol), thresholds[name])
            for name, subset in bases.items()
        }
        cells[protocol.key] = {
            part.subset.name: _cells(part, protocol, thresholds[part.base], plain_f1[part.base]) for part in parts
        }
    infos = tuple(
        SubsetInfo(s.name, len(s.traces), s.unscored, steps.missing(s), s.problems)
        for s in (rendered.subset for rendered in parts)
    )
    return Judged(infos, cells, _averages(parts), mixed=True)


def _averages(parts: Sequence[_Rendered]) -> tuple[tuple[str, ...], ...]:
    """Groups to average: each rendering over the base subsets, then all renderings but plain together."""
    present = dict.fromkeys(part.rendering for part in parts)
    groups = [tuple(p.subset.name for p in parts if p.rendering == rendering) for rendering in present]
    groups.append(tuple(p.subset.name for p in parts if p.rendering != PLAIN))
    return tuple(dict.fromkeys(group for group in groups if len(group) > 1))


# --- the same traces in other formats ---------------------------------------------------------------------


def _parts(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> list[_Rendered]:
    """Every subset of the run with its plain traces; both are resampled with the same problems."""
    parts: list[_Rendered] = []
    for name in sorted(manifest.subsets, key=lambda name: base_and_rendering(name)[1] != PLAIN):
        base, rendering = base_and_rendering(name)
        if rendering == PLAIN:
            subset = _plain_subset(manifest, traces_of_subset(scores, name), name)
            parts.append(_Rendered(subset, name, PLAIN, subset.traces))
            continue
        plain = next((part.subset for part in parts if part.subset.name == base), None)
        if plain is None:
            raise UserError(f"subset {name}: the run has no subset {base}, which it is compared with; score both")
        parts.append(_align_with_plain(plain, traces_of_subset(scores, name), rendering))
    order = {name: i for i, name in enumerate(manifest.subsets)}
    return sorted(parts, key=lambda part: order[part.subset.name])


def _plain_subset(manifest: RunManifest, traces: tuple[ScoredTrace, ...], name: str) -> Subset:
    clusters = [t.cluster for t in traces]
    problem, draws = resampled(manifest, name, clusters)
    return Subset(name, traces, np.ascontiguousarray(draws[:, problem]), first_error.fold_splits(clusters))


def _align_with_plain(plain: Subset, traces: Sequence[ScoredTrace], rendering: str) -> _Rendered:
    """Orders rendered traces like the plain ones and gives them the same weights and folds."""
    name = rendered_name(plain.name, rendering)
    by_id = {t.id: t for t in traces}
    plain_indices = [i for i, t in enumerate(plain.traces) if rendered_id(t.id, rendering) in by_id]
    if len(plain_indices) != len(by_id):
        raise UserError(
            f"subset {name}: {len(by_id) - len(plain_indices)} of its traces have no plain one in {plain.name}"
        )
    ordered = tuple(by_id[rendered_id(plain.traces[i].id, rendering)] for i in plain_indices)
    weights = (
        plain.weights
        if len(plain_indices) == len(plain.traces)
        else np.ascontiguousarray(plain.weights[:, plain_indices])
    )
    subset = Subset(name, ordered, weights, plain.fold[:, plain_indices])
    is_complete = len(plain_indices) == len(plain.traces)
    return _Rendered(subset, plain.name, rendering, tuple(plain.traces[i] for i in plain_indices), is_complete)


# --- numbers ----------------------------------------------------------------------------------------------


def _cells(part: _Rendered, protocol: EvalProtocol, thresholds: _Thresholds, plain: Cell) -> list[Cell]:
    """F1, plain F1 and drop of one rendered subset; `plain` is the F1 on all plain traces."""
    if thresholds.missing:
        return absent(METRICS, thresholds.missing)
    same_question = part.rendering not in (MERGED, PREFIX) and part.is_complete
    base = plain if same_question else _f1(part.subset, _plain_sample(part, protocol), thresholds)
    f1 = base
    if part.rendering != PLAIN:
        f1 = _f1(part.subset, first_error.sample(part.subset.traces, protocol), thresholds)
    drop = np.subtract(*np.broadcast_arrays(base.values, f1.values))
    return [
        replace(f1, metric=METRICS[0]),
        replace(base, metric=METRICS[1]),
        Cell(METRICS[2], drop, thresholds.note, kind="share_difference"),
    ]


def _f1(subset: Subset, data: Sample, thresholds: _Thresholds) -> Cell:
    note = thresholds.note
    if thresholds.missing:
        return Cell("f1", np.array([np.nan]), note)
    if thresholds.tuned is not None and len(thresholds.tuned) > 1:
        is_right = data.matches(thresholds.tuned)
        return share("f1", first_error.harmonic(*first_error.accuracies(data, is_right, subset.weights)), note)
    is_oracle = thresholds.tuned is None and thresholds.by_fold is None
    if thresholds.by_fold is not None:
        threshold = np.take_along_axis(thresholds.by_fold, subset.fold, axis=1)
    elif thresholds.tuned is not None:
        threshold = thresholds.tuned[:, None]
    else:
        threshold = first_error.best_threshold(data, np.ones((1, len(data))))[:, None]
    rate = ((data.lo < threshold) & (threshold <= data.hi)).mean(axis=0)
    f1 = share("f1", first_error.f1_at_rates(data, rate, subset.weights)[0], note)
    return steps.centred(subset, data, [f1])[0] if is_oracle else f1


def _plain_sample(part: _Rendered, protocol: EvalProtocol) -> Sample:
    """The plain verdicts in the rendering's steps: a merged step is flagged if either of its two steps is."""
    plain_protocol = protocol if protocol.readout == "vote" else replace(protocol, readout="as_is", series="")
    return first_error.sample(
        [
            _with_rendered_labels(
                plain,
                rendered,
                part.rendering,
                first_error.readout(plain, protocol) if plain_protocol is not protocol else None,
            )
            for plain, rendered in zip(part.plain, part.subset.traces, strict=True)
        ],
        plain_protocol,
    )


def _with_rendered_labels(
    plain: ScoredTrace, rendered: ScoredTrace, rendering: str, step_scores: Floats | None
) -> ScoredTrace:
    """The plain trace with the rendering's label and steps; `step_scores` holds its readout, one per plain step."""
    verdicts = tuple(_map_verdict(v, plain.steps, rendered.steps, rendering) for v in plain.verdicts)
    if rendering == MERGED:
        step_scores = (
            None if step_scores is None else np.minimum.reduceat(step_scores, range(0, len(step_scores), _PAIR))
        )
    elif rendering == PREFIX:
        step_scores = None if step_scores is None else step_scores[: rendered.steps]
    values = () if step_scores is None else tuple(map(float, step_scores))
    return replace(plain, label=rendered.label, steps=rendered.steps, verdicts=verdicts, values=values)


def _map_verdict(verdict: int | None, plain_steps: int, rendered_steps: int, rendering: str) -> int | None:
    """Maps a verdict (a step index) on the plain steps to one on the rendered steps."""
    if verdict is None or verdict < 0:
        return verdict
    if verdict >= plain_steps:
        return rendered_steps  # an index beyond the plain steps stays wrong
    if rendering == MERGED:
        return verdict // _PAIR
    return verdict if verdict < rendered_steps else -1


# --- thresholds: tuned on plain traces, but for the oracle ------------------------------------------------


def _thresholds_by_base(bases: Mapping[str, Subset], protocol: EvalProtocol) -> dict[str, _Thresholds]:
    """The thresholds of each base subset."""
    if protocol.threshold == "oracle":
        return dict.fromkeys(bases, _Thresholds())
    if protocol.threshold == "cross_validated":
        return {name: _cross_validated(subset, protocol) for name, subset in bases.items()}
    if protocol.on is not None:
        return _calibrated(bases, protocol, protocol.on)
    number = 1.0 if protocol.readout == "vote" else protocol.at
    if number is None:
        raise ValueError(f"{protocol.key}: no number for its threshold")
    return dict.fromkeys(bases, _Thresholds(np.array([number])))


def _calibrated(bases: Mapping[str, Subset], protocol: EvalProtocol, on: str) -> dict[str, _Thresholds]:
    """Thresholds tuned on the calibration subset, which is itself judged out of fold."""
    calibration_subset = bases.get(on)
    missing = f"needs subset {on}, which this run does not have"
    if calibration_subset is not None and (reason := steps.missing(calibration_subset)):
        missing = f"{on} has {reason} to tune on"
    elif calibration_subset is not None:
        shared = _Thresholds(
            first_error.best_threshold(
                first_error.sample(calibration_subset.traces, protocol), calibration_subset.weights
            )
        )
        own_thresholds = (
            shared if protocol.threshold == "calibrated_in_sample" else _cross_validated(calibration_subset, protocol)
        )
        return dict.fromkeys(bases, shared) | {
            on: own_thresholds if own_thresholds is shared else replace(own_thresholds, note=OUT_OF_FOLD)
        }
    return dict.fromkeys(bases, _Thresholds(missing=missing))


def _cross_validated(plain: Subset, protocol: EvalProtocol) -> _Thresholds:
    """Thresholds for each fold, tuned on the plain traces of the other folds."""
    if plain.problems == 1:
        return _Thresholds(missing="cross-validation needs two problems")
    _, tuned = first_error.out_of_fold_rates(first_error.sample(plain.traces, protocol), plain.fold)
    return _Thresholds(by_fold=tuned.reshape(len(plain.fold), -1))


# --- names of subsets ----------------------------------------------------------------------------------------


def trace_identity(trace: ScoredTrace) -> object:
    """Fields in which two runs on the same labelled trace agree."""
    return trace.id, trace.steps, trace.label


def rendered_subset(subset: str, rendering: str) -> str:
    """Returns the subset or average (`math`, `avg[gsm8k,math]`) under a rendering, as rows name it."""
    names = [rendered_name(name, rendering) for name in members(subset)]
    return average_name(names) if subset.startswith("avg[") else names[0]


def _all_formats_average(subset: str, result: RunResult) -> str:
    """The name of the average over all formats if `subset` covers all base subsets; else empty."""
    pairs = [(name, *base_and_rendering(name)) for name in result.manifest.subsets]
    if {base for _, base, _ in pairs} != set(members(subset)):
        return ""
    return average_name([name for name, _, rendering in pairs if rendering != PLAIN])


# --- tables ---------------------------------------------------------------------------------------------------


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Returns one table of a row per model, then two per threshold rule: the drop in F1, and F1 with its floors."""
    trace_blocks = base_blocks(runs)
    present = {rule_and_readout(row.protocol)[0] for run in runs for row in run.result.rows}
    rules = [rule for rule in RULE_WORDS if rule in present]
    by_rule = [table for rule in rules for table in (_drop_table(rule, trace_blocks), _f1_table(rule, trace_blocks))]
    return tuple([_front_table(rule, trace_blocks) for rule in rules[:1]] + by_rule)


def _front_table(rule: str, trace_blocks: Sequence[Block]) -> Table:
    """The drops of the average over all plain subsets: a row per model with its headline readout, floors beneath."""
    block = next((block for block in trace_blocks if block.subset.startswith("avg[")), trace_blocks[0])
    whole = _drop_table(rule, [block])
    keys = {readout: key for _, key, readout in _protocols_of_rule(rule, block)}
    by_model: dict[str, Row] = {}
    for _, model, readout, *cells in whole.groups[0]:
        if isinstance(readout, Code) and readout.key in DEFAULT_READOUTS.values():
            by_model.setdefault(str(model), (model, Code(keys[readout.key]), *cells))
    widest = max(block.runs, key=lambda run: len(run.result.manifest.subsets))
    no_drops = [""] * (len(whole.header) - 4)
    floors = tuple(
        (words, Code(key), cell_of(find_row(widest.result, key, block.subset, "f1")), *no_drops)
        for key, words in floors_under("oracle").items()
    )
    return replace(
        whole,
        label="format_shift-front",
        title=f"Drop in F1 by format: a row per model, {RULE_WORDS[rule][0].lower()}",
        caption=f"{block.name[0].upper()}{block.name[1:]}; all subsets and readouts are below. {whole.caption}",
        header=("Model", "Protocol", *whole.header[3:]),
        groups=(tuple(by_model.values()), floors),
        text_columns=2,
        ends_with_floors=True,
    )


def base_blocks(runs: Sequence[Run]) -> list[Block]:
    """Returns runs grouped by their plain traces, for each base subset and for their average."""
    return [
        b for b in blocks(runs, trace_identity) if all(base_and_rendering(s)[1] == PLAIN for s in members(b.subset))
    ]


def _drop_table(rule: str, trace_blocks: Sequence[Block]) -> Table:
    title, text = RULE_WORDS[rule]
    return Table(
        label=f"format_shift-{rule}-drop",
        title=f"{title}: drop in F1 by format",
        caption=f"{text} {ORACLE if rule == 'oracle' else QUESTION} Percentage points with 95% interval, paired and "
        f"resampled by problem; bold: p < {LEVEL}.",
        header=("Traces", "Model", "Readout", "F1, plain", *SHIFTED, ALL_FORMATS),
        groups=tuple(_drop_rows(rule, block) for block in trace_blocks),
        notes=notes_of(map(_with_short_note, _rows_of_rules((rule,), trace_blocks, ("f1", "f1_drop")))),
        text_columns=3,
        lead="F1, plain",
    )


def _drop_rows(rule: str, block: Block) -> tuple[Row, ...]:
    """Rows of a block, best on plain traces first: the overview shows the first row."""
    table_rows = []
    for run, key, readout in sorted(
        _protocols_of_rule(rule, block),
        key=lambda protocol_row: -_plain_f1(protocol_row[0], protocol_row[1], block.subset),
    ):
        drops = [_find_drop(run.result, key, rendered_subset(block.subset, rendering)) for rendering in SHIFTED]
        drops.append(_find_drop(run.result, key, _all_formats_average(block.subset, run.result)))
        plain_f1 = find_row(run.result, key, block.subset, "f1")
        table_rows.append(
            (
                *(block.name, run_name(run), Code(readout), cell_of(plain_f1)),
                *(cell_of(row, POINTS, best=is_significant) for row, is_significant in drops),
            )
        )
    return tuple(table_rows)


def _plain_f1(run: Run, key: str, subset: str) -> float:
    row = find_row(run.result, key, subset, "f1")
    return -1.0 if row is None or row.value is None else row.value


def _f1_table(rule: str, trace_blocks: Sequence[Block]) -> Table:
    title, text = RULE_WORDS[rule]
    return Table(
        label=f"format_shift-{rule}-f1",
        title=f"{title}: F1 in every format",
        caption=f"{text} First-error F1 in percent with its 95% interval. Merged traces and prefixes have fewer steps "
        "and other labels, and so floors of their own.",
        header=("Traces", "Model", "Readout", *NAMES),
        groups=tuple(group for block in trace_blocks if (group := _f1_rows(rule, block))),
        notes=notes_of(map(_with_short_note, _rows_of_rules((rule, "floor"), trace_blocks, ("f1",)))),
        text_columns=3,
    )


def _f1_rows(rule: str, block: Block) -> tuple[Row, ...]:
    def cells(run: Run, key: str) -> list[TableCell]:
        return [
            cell_of(find_row(run.result, key, rendered_subset(block.subset, rendering), "f1")) for rendering in NAMES
        ]

    table_rows = [
        (block.name, run_name(run), Code(readout), *cells(run, key))
        for run, key, readout in _protocols_of_rule(rule, block)
    ]
    widest = max(block.runs, key=lambda run: len(run.result.manifest.subsets))
    floors = [(block.name, name, Code(key), *cells(widest, key)) for key, name in floors_under("oracle").items()]
    return (*table_rows, *floors) if table_rows else ()


def _protocols_of_rule(rule: str, block: Block) -> list[tuple[Run, str, str]]:
    """Every (run, protocol, readout) under one threshold rule, sorted by model."""
    protocols = []
    for run in block.runs:
        for key in dict.fromkeys(row.protocol for row in run.result.rows if row.subset == block.subset):
            key_rule, readout = rule_and_readout(key)
            if key_rule == rule:
                protocols.append((run, key, readout))
    return sorted(
        protocols,
        key=lambda protocol_row: (run_name(protocol_row[0]), protocol_row[2], protocol_row[1]),
    )


def _rows_of_rules(rules: Sequence[str], trace_blocks: Sequence[Block], names: Sequence[str]) -> list[MetricRow]:
    """The metric rows that a table shows, for its notes."""
    runs = {id(run): run for block in trace_blocks for run in block.runs}
    rows = [row for run in runs.values() for row in run.result.rows if row.metric in names]
    return [row for row in rows if rule_and_readout(row.protocol)[0] in rules]


def find_row(result: RunResult, key: str, subset: str, metric: str) -> MetricRow | None:
    """Returns one row of a result, or None."""
    return rows_of(result, subset).get((key, metric))


def _find_drop(result: RunResult, key: str, subset: str) -> tuple[MetricRow | None, bool]:
    """The drop, and whether it is significant."""
    rows = rows_of(result, subset)
    p = rows.get((key, "p_value"))
    return rows.get((key, "f1_drop")), p is not None and p.value is not None and p.value < LEVEL


def _with_short_note(row: MetricRow) -> MetricRow:
    """Replaces notes on out-of-fold subsets, which are the same for every rendering, by one common note."""
    return replace(row, note=OUT_OF_FOLD_NOTE) if row.note.endswith(OUT_OF_FOLD) else row


def base_average(result: RunResult) -> str:
    """Returns the name of the average over the base subsets, or the only base subset."""
    bases = [name for name in result.manifest.subsets if base_and_rendering(name)[1] == PLAIN]
    return average_name(bases) if len(bases) > 1 else bases[0]


def comparison_subsets(subsets: Iterable[str], metric: str) -> dict[str, str]:
    """Returns the subsets that a comparison shows, with display names; of rendered subsets only averages if any."""
    all_subsets = list(subsets)
    rendered = {s: {base_and_rendering(name)[1] for name in members(s)} for s in all_subsets}
    if all(renderings == {PLAIN} for renderings in rendered.values()):
        return {s: "average" if s.startswith("avg[") else s for s in all_subsets}
    rendered_averages = [s for s in all_subsets if s.startswith("avg[") and rendered[s] != {PLAIN}]
    has_base_averages = any(len(rendered[s]) == 1 for s in rendered_averages)  # base subsets
    shown_subsets = [
        s
        for s in all_subsets
        if (s.startswith("avg[") or not has_base_averages) and (metric == "f1" or rendered[s] != {PLAIN})
    ]
    return {
        s: ALL_FORMATS if len(rendered[s]) > 1 else next(iter(rendered[s])) if has_base_averages else s
        for s in shown_subsets
    }


def leading(result: RunResult) -> tuple[Leading, ...]:
    """Returns the F1 lost in other formats under the headline readout, by threshold rule, the recommended first."""
    return tuple(
        replace(
            number,
            metric="f1_drop",
            heading="F1 lost",
            unit=POINTS,
            lower_is_better=True,
            floors=(),
            has_baselines=False,  # a score that reads no text loses nothing
        )
        for number in steps.leading(result)
    )


# --- terminal -----------------------------------------------------------------------------------------------


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """Returns the terminal table: up to two protocols with intervals and chance, or only the drops of more."""
    return _detailed(result, keys) if len(keys) <= MAX_DETAILED else _side_by_side(result, keys)


def _detailed(result: RunResult, keys: Sequence[str]) -> Table:
    average = base_average(result)
    table_rows: list[Row] = []
    shown_rows: list[MetricRow] = []
    for key in keys:
        table_rows.append((Code(key), *[""] * 5))
        for name in (*NAMES, ALL_FORMATS):
            rows = rows_of(
                result, _all_formats_average(average, result) if name == ALL_FORMATS else rendered_subset(average, name)
            )
            if (key, "f1_drop") not in rows:
                continue
            f1, base, drop = (_with_short_note(rows[key, metric]) for metric in METRICS)
            p = rows.get((key, "p_value"))
            is_plain = name == PLAIN
            table_rows.append(
                (
                    f"  {name}",
                    cell_of(f1, interval=False),
                    cell_of(base, interval=False),
                    "" if is_plain else cell_of(drop, POINTS),
                    "" if is_plain or p is None or p.value is None else Value(p.value, FRACTION),
                    cell_of(rows.get(("floor/random", "f1")), interval=False),
                )
            )
            shown_rows.append(drop)
    header = ("F1 by format, percent", "F1", "plain", "drop", "p", "chance")
    return _terminal_table(header, (tuple(table_rows),), shown_rows)


def _side_by_side(result: RunResult, keys: Sequence[str]) -> Table:
    average = base_average(result)
    present = [name for name in SHIFTED if rows_of(result, rendered_subset(average, name))]
    over_all = [_all_formats_average(average, result)] * (len(present) > 1)
    headings = (
        f"F1 lost ({SIGNIFICANT} p<{LEVEL})",
        "plain",
        *(SHORT_NAMES.get(name, name) for name in present),
        *["all"] * len(over_all),
    )
    empty_cells = [""] * (len(headings) - 1)
    shown_rows: list[MetricRow] = []
    by_rule: dict[str, list[Row]] = {}
    for key in keys:
        level = find_row(result, key, average, "f1")
        drops = [
            _find_drop(result, key, subset)
            for subset in (*(rendered_subset(average, name) for name in present), *over_all)
        ]
        rows = [row for row in (level, *(row for row, _ in drops)) if row is not None]
        shown_rows += map(_with_short_note, rows)
        readout, _, rule = key.partition("/")
        has_note = any(row.value is not None and row.note for row in rows)
        cells = [
            _compact_cell(level, PERCENT),
            *(_compact_cell(row, POINTS, SIGNIFICANT * is_significant) for row, is_significant in drops),
        ]
        by_rule.setdefault(f"/{rule}{NOTED * has_note}", []).append((f"  {readout}", *cells))
    table_rows = [
        row for rule_heading, rule_rows in by_rule.items() for row in ((rule_heading, *empty_cells), *rule_rows)
    ]
    floors: list[Row] = [("F1 by chance", *empty_cells)]
    for key in floors_under("oracle"):
        rule_rows = [
            find_row(result, key, subset, "f1") for subset in (average, *(rendered_subset(average, n) for n in present))
        ]
        name = key.removeprefix("floor/").partition("_")[0]
        floors.append((f"  {name}", *(_compact_cell(row, PERCENT) for row in rule_rows), *[""] * len(over_all)))
    return _terminal_table(headings, (tuple(table_rows), tuple(floors)), shown_rows)


def _terminal_table(
    header: tuple[str, ...], groups: tuple[tuple[Row, ...], ...], shown_rows: Sequence[MetricRow]
) -> Table:
    return Table(
        label="format_shift",
        title="",
        caption="",
        header=header,
        groups=groups,
        notes=notes_of(shown_rows),
        text_columns=1,
        ends_with_floors=len(groups) > 1,
    )


def _compact_cell(row: MetricRow | None, unit: Unit, marks: str = "") -> TableCell:
    """A number without interval and note mark, so that ten fit in a row; the rule carries the mark instead."""
    cell = cell_of(row, unit, interval=False)
    return replace(cell, marks=marks) if isinstance(cell, Value) else cell


def _resolve_key(manifest: RunManifest, key: str) -> str:
    """Returns the key of a protocol as rows spell it. Raises UserError on one without a threshold rule."""
    if rule_and_readout(key)[0] == step_ranking.RULE:
        raise UserError(f"protocol {key!r}: {manifest.benchmark} compares F1; name a protocol with a threshold rule")
    return steps.resolve_key(manifest, key)


TASK = Task(
    name="format_shift",
    title="finding the first wrong step in other formats",
    description="The same solutions in other formats: how much each format lowers a model's first-error F1.",
    unscored="unscored, counted as wrong",
    protocols=protocols,
    judge=judge,
    tables=tables,
    summary=summary,
    leading=leading,
    lower_is_better=("f1_drop",),
    has_threshold=True,
    resolve=_resolve_key,
    not_compared=("f1_base",),
    many_rows=True,
    check_trace=steps.check_trace,
)
