"""Reads the problems in files of any supported format, and reports which of them two files share.

contamination.py decides when two problems match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from prmbench.config import ContaminationConfig, validate
from prmbench.core import output_checks, result_files, writing
from prmbench.core.reading import normalise_line_ends
from prmbench.core.records import UserError
from prmbench.data import contamination, files, math_shepherd
from prmbench.data.contamination import ComparisonText, Match

MIN_SHARING = 20
"""In files of at least this many different problems, paragraphs that all of them begin or end with are instructions,
and are removed."""
TEXT_FIELDS = ("problem", "prompt", "original_question", "question")
CONVERSATION_FIELDS = ("conversation", "chosen", "prompt")
ID_FIELDS = ("id", "unique_id", "idx", "group")
SUBSET_FIELDS = ("subset", "data_source", "classification", "task")


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a file."""

    id: str
    """Id of the first row with this problem."""
    subset: str
    text: ComparisonText


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of one subset of a benchmark; all but `rows` are of distinct problems."""

    benchmark: str
    subset: str
    rows: int
    problems: int
    repeated: int
    """Problems that occur in the benchmark again: in another subset, or by n-gram overlap."""
    exact: int
    """Problems that are in the training data with the same text."""
    overlap: int
    """Problems of which one training problem has enough n-grams, but not the same text."""
    too_short: int
    """Problems of too few words for an overlap, which are compared by equal text only."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A match, by ids; `kind` begins with `repeat` when both problems are in the benchmark."""

    benchmark: str
    subset: str
    id: str
    other: str
    """Id of the training problem or, for a repeat, of the benchmark's other problem."""
    other_subset: str
    kind: str
    share: float


@dataclass(frozen=True, slots=True)
class Report:
    """Result of the command `contamination`."""

    data: str
    rows: int
    problems: int
    """Number of distinct problems of the training data."""
    ngram: int
    overlap: float
    counts: tuple[Counts, ...]
    pairs: tuple[Pair, ...]
    left_out: int = 0
    """Rows of the training data whose problem cannot be read."""


def report_contamination(config: ContaminationConfig) -> Report:
    """Compare every benchmark with the training data and with itself, and write the report to `config.out` if given.

    Raises:
        UserError: An option is invalid, or a file has no problem that can be read.
    """
    config = validate(config)
    _check(config)
    assert config.data is not None  # checked just now; for mypy
    unreadable: list[str] = []
    rows, training = distinct(read(config.data, unreadable), by_subset=False)
    files.warn_of_unreadable_rows(config.data, unreadable, rows + len(unreadable))
    texts = [p.text for p in training]
    counts: list[Counts] = []
    pairs: list[Pair] = []
    for name in config.against:
        label = Path(name).name
        benchmark_rows = read(Path(name))
        _, problems = distinct(benchmark_rows)
        benchmark_texts = [p.text for p in problems]
        repeats = contamination.matches_within(benchmark_texts, config.ngram, config.overlap)
        matches = contamination.find_matches(benchmark_texts, texts, config.ngram, config.overlap)
        counts += _counts(label, benchmark_rows, problems, repeats, matches, config.ngram)
        pairs += _pairs(label, problems, problems, repeats, "repeat ") + _pairs(label, problems, training, matches, "")
    result = Report(
        config.data.name,
        rows,
        len(training),
        config.ngram,
        config.overlap,
        tuple(counts),
        tuple(pairs),
        len(unreadable),
    )
    if config.out is not None:
        writing.write_atomic(config.out, result_files.canonical_json(asdict(result)))
    return result


def _check(config: ContaminationConfig) -> None:
    if config.data is None:
        raise UserError("--data is missing: give the training file or folder")
    if not config.against:
        raise UserError("--against is missing: give a benchmark file or folder")
    if config.out is not None:
        output_checks.check_outputs([config.out], config, force=config.force)


def report_lines(result: Report) -> list[str]:
    """Return the counts as a text table, 80 columns wide, and the notes below it."""
    headers = ("rows", "problems", "repeated", "too short", "exact", "overlap", "found")
    table = [f"{'subset':<19.19}" + "".join(f"{head:>{len(head) + 2}}" for head in headers)]
    benchmark = None
    for c in result.counts:
        table += [c.benchmark] if c.benchmark != benchmark else []
        benchmark = c.benchmark
        matched_percentage = f"{100 * (c.exact + c.overlap) / c.problems:.1f}%"
        cells = (c.rows, c.problems, c.repeated, c.too_short, c.exact, c.overlap, matched_percentage)
        row = "".join(f"{cell:>{len(head) + 2}}" for head, cell in zip(headers, cells, strict=True))
        table.append(f"  {c.subset:<17.17}{row}")
    return [
        *table,
        f"training: {result.data}, {result.rows} rows, {result.problems} distinct problems"
        + (f", {result.left_out} rows left out" if result.left_out else ""),
        f"overlap: {result.overlap:g} of a problem's {result.ngram}-grams in one training problem",
        "all but rows count distinct problems; repeated: in the benchmark again, in",
        "another subset or in other words; too short: compared as whole texts only",
    ]


# --- reading ------------------------------------------------------------------------------------------------


def read(path: Path, unreadable: list[str] | None = None) -> list[Problem]:
    """Return the problem of every row of a file, or of the data files in a folder.

    Args:
        path: A data file, or a folder of them.
        unreadable: Receives the reason for every row whose problem cannot be read, which is then left out.

    Raises:
        UserError: No row has a problem; where `unreadable` is None, also for the first row that has none.
    """
    problems: list[Problem] = []
    entries = files.read_each(path, _id_subset_text, None if unreadable is None else unreadable.append)
    for file, group in groupby(entries, key=lambda entry: entry[0]):
        rows = [(number, *read) for _, number, _, read in group]
        texts = without_shared([text for *_, text in rows])
        problems += [
            Problem(name or f"{file.stem}-{number}", subset or file.stem, contamination.prepare_text(text))
            for (number, name, subset, _), text in zip(rows, texts, strict=True)
        ]
    if not problems:
        first = f"; the first row without one is {unreadable[0]}" if unreadable else ""
        raise UserError(f"{path}: holds no problem{first}")
    return problems


def distinct(problems: Sequence[Problem], by_subset: bool = True) -> tuple[int, list[Problem]]:
    """Return the number of rows and the distinct problems; with `by_subset`, a problem in two subsets counts twice."""
    first_rows: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        first_rows.setdefault((problem.subset if by_subset else "", problem.text.key), problem)
    return len(problems), list(first_rows.values())


def without_shared(texts: Sequence[str]) -> list[str]:
    """Return texts without the paragraphs that all of them begin or end with, if at least MIN_SHARING differ."""
    parts = [normalise_line_ends(text).split("\n\n") for text in texts]
    if len(set(texts)) < MIN_SHARING:
        return list(texts)
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({part[end].strip() for part in parts}) == 1:
            for part in parts:
                part.pop(end)
    return ["\n\n".join(part).strip() for part in parts]


def _id_subset_text(row: Mapping[str, Any], location: str) -> tuple[str, str, str]:
    """Return a row's id and subset, each empty where the row has none, and its problem."""
    return (
        _first_field(row, ID_FIELDS, location),
        _first_field(row, SUBSET_FIELDS, location),
        _problem_text(row, location),
    )


def _problem_text(row: Mapping[str, Any], location: str) -> str:
    for name in CONVERSATION_FIELDS:
        turns = row.get(name)
        if isinstance(turns, list):
            users = [t for t in turns if isinstance(t, dict) and t.get("role") == "user"]
            return files.text_field(users[0] if users else {}, "content", f"{location}: {name}, user turn")
    question = row.get("question")
    if isinstance(question, dict):  # PRM800K
        return files.text_field(question, "problem", f"{location}: question")
    if row.get("input") is not None and row.get("label") is not None:
        return math_shepherd.problem(row, location)
    field = next((name for name in TEXT_FIELDS if row.get(name) is not None), None)
    if field is None:
        raise UserError(
            f"{location}: has no problem; expected one of "
            f"{', '.join((*TEXT_FIELDS, *CONVERSATION_FIELDS[:2], 'input'))}"
        )
    return files.text_field(row, field, location)


def _first_field(row: Mapping[str, Any], names: Sequence[str], location: str) -> str:
    field = next((name for name in names if isinstance(row.get(name), str | int) and row[name] != ""), None)
    return "" if field is None else files.checked_name(row[field], field, location)


# --- counting -----------------------------------------------------------------------------------------------


def _counts(
    benchmark: str,
    rows: Sequence[Problem],
    problems: Sequence[Problem],
    repeats: Sequence[Match],
    matches: Sequence[Match],
    ngram: int,
) -> list[Counts]:
    exact = {m.problem for m in matches if m.kind == "exact"}
    overlapping = {m.problem for m in matches} - exact
    repeated = {index for m in repeats for index in (m.problem, m.other)}
    short = {i for i, p in enumerate(problems) if contamination.too_short(p.text, ngram)}
    counts = []
    for subset in dict.fromkeys(p.subset for p in problems):
        members = {i for i, p in enumerate(problems) if p.subset == subset}
        sizes = [len(members & part) for part in (members, repeated, exact, overlapping, short)]
        counts.append(Counts(benchmark, subset, sum(r.subset == subset for r in rows), *sizes))
    return counts


def _pairs(
    benchmark: str, problems: Sequence[Problem], others: Sequence[Problem], matches: Sequence[Match], prefix: str
) -> list[Pair]:
    matched = [(problems[m.problem], others[m.other], m) for m in matches]
    return [Pair(benchmark, a.subset, a.id, b.id, b.subset, prefix + m.kind, m.share) for a, b, m in matched]
