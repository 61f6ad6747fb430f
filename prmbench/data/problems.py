"""The problems of any file that we read, whatever its rows are, and the contamination report over such files.

What counts as the same problem is contamination.py's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from prmbench.config import ContaminationConfig, coerced
from prmbench.core import output_checks, result_files, writing
from prmbench.core.reading import normalise_line_ends
from prmbench.core.records import UserError
from prmbench.data import contamination, files, math_shepherd
from prmbench.data.contamination import Match, Text

SHARED_BY = 20
"""From so many problems on, paragraphs that all problems of a file begin or end with are instructions, and go."""
TEXTS = ("problem", "prompt", "original_question", "question")
CONVERSATIONS = ("conversation", "chosen", "prompt")
NAMES = ("id", "unique_id", "idx", "group")
SUBSETS = ("subset", "data_source", "classification", "task")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked, however many rows ask it."""

    id: str
    """Of the first row that asks it."""
    subset: str
    text: Text


@dataclass(frozen=True, slots=True)
class Counts:
    """A subset of a benchmark. All but `rows` count distinct problems."""

    benchmark: str
    subset: str
    rows: int
    problems: int
    repeated: int
    """In the benchmark once more: in another subset, or by n-gram overlap."""
    exact: int
    """In the training data with the same text."""
    overlap: int
    """In the training data with enough of its n-grams in one problem, and not with the same text."""
    too_short: int
    """Of too few words for an overlap: held against the same text only."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A match, by ids. `kind` begins with `repeat` when both problems are the benchmark's."""

    benchmark: str
    subset: str
    id: str
    other: str
    """Id of the training problem, or of the benchmark's other one."""
    other_subset: str
    kind: str
    share: float


@dataclass(frozen=True, slots=True)
class Report:
    """What `contamination` found."""

    data: str
    rows: int
    problems: int
    """Distinct problems of the training data."""
    ngram: int
    overlap: float
    counts: tuple[Counts, ...]
    pairs: tuple[Pair, ...]
    left_out: int = 0
    """Rows of the training data whose problem cannot be read."""


def report(config: ContaminationConfig) -> Report:
    """Holds every benchmark file or folder against the training data, and against itself; writes `--out` if given."""
    config = coerced(config)
    _check(config)
    assert config.data is not None  # _check
    faults: list[str] = []
    rows, training = distinct(read(config.data, faults), by_subset=False)
    files.warn_of_unreadable_rows(config.data, faults, rows + len(faults))
    texts = [p.text for p in training]
    counts: list[Counts] = []
    pairs: list[Pair] = []
    for name in config.against:
        label = Path(name).name
        found = read(Path(name))
        _, problems = distinct(found)
        own = [p.text for p in problems]
        inside = contamination.twins(own, config.ngram, config.overlap)
        outside = contamination.matches(own, texts, config.ngram, config.overlap)
        counts += _counts(label, found, problems, inside, outside, config.ngram)
        pairs += _pairs(label, problems, problems, inside, "repeat ") + _pairs(label, problems, training, outside, "")
    made = Report(
        config.data.name, rows, len(training), config.ngram, config.overlap, tuple(counts), tuple(pairs), len(faults)
    )
    if config.out is not None:
        writing.write_atomic(config.out, result_files.canonical_json(asdict(made)))
    return made


def _check(config: ContaminationConfig) -> None:
    if config.data is None:
        raise UserError("--data is missing: give the training file or folder")
    if not config.against:
        raise UserError("--against is missing: give a benchmark file or folder")
    if config.out is not None:
        output_checks.check([config.out], config, force=config.force)


def lines(made: Report) -> list[str]:
    """The counts as a table, 80 columns wide, and what they are of."""
    heads = ("rows", "problems", "repeated", "too short", "exact", "overlap", "found")
    table = [f"{'subset':<19.19}" + "".join(f"{head:>{len(head) + 2}}" for head in heads)]
    benchmark = None
    for c in made.counts:
        table += [c.benchmark] if c.benchmark != benchmark else []
        benchmark = c.benchmark
        hit = f"{100 * (c.exact + c.overlap) / c.problems:.1f}%"
        cells = (c.rows, c.problems, c.repeated, c.too_short, c.exact, c.overlap, hit)
        row = "".join(f"{cell:>{len(head) + 2}}" for head, cell in zip(heads, cells, strict=True))
        table.append(f"  {c.subset:<17.17}{row}")
    return [
        *table,
        f"training: {made.data}, {made.rows} rows, {made.problems} distinct problems"
        + (f", {made.left_out} rows left out" if made.left_out else ""),
        f"overlap: {made.overlap:g} of a problem's {made.ngram}-grams in one training problem",
        "all but rows count distinct problems; repeated: in the benchmark again, in",
        "another subset or in other words; too short: compared as whole texts only",
    ]


# --- reading ------------------------------------------------------------------------------------------------


def read(path: Path, faults: list[str] | None = None) -> list[Problem]:
    """The problem of every row of a file, or of the data files in a folder.

    Args:
        path: A data file, or a folder of them.
        faults: Takes the reason for every row without a problem that can be read, which is then left out.

    Raises:
        UserError: No row has a problem; where `faults` is None, also for the first row that has none.
    """
    found: list[Problem] = []
    entries = files.read_each(path, _name_subset_text, None if faults is None else faults.append)
    for file, group in groupby(entries, key=lambda entry: entry[0]):
        rows = [(number, *read) for _, number, _, read in group]
        texts = without_shared([text for *_, text in rows])
        found += [
            Problem(name or f"{file.stem}-{number}", subset or file.stem, contamination.text(text))
            for (number, name, subset, _), text in zip(rows, texts, strict=True)
        ]
    if not found:
        raise UserError(f"{path}: holds no problem{f'; the first row without one is {faults[0]}' if faults else ''}")
    return found


def distinct(problems: Sequence[Problem], by_subset: bool = True) -> tuple[int, list[Problem]]:
    """(rows, the first row of every problem); a problem in two subsets is two, unless told otherwise."""
    kept: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        kept.setdefault((problem.subset if by_subset else "", problem.text.key), problem)
    return len(problems), list(kept.values())


def without_shared(texts: Sequence[str]) -> list[str]:
    """The texts without the paragraphs that all begin or end with, when there are enough different ones to tell."""
    parts = [normalise_line_ends(text).split("\n\n") for text in texts]
    if len(set(texts)) < SHARED_BY:
        return list(texts)
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({part[end].strip() for part in parts}) == 1:
            for part in parts:
                part.pop(end)
    return ["\n\n".join(part).strip() for part in parts]


def _name_subset_text(row: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    """Id and subset as the row has them, empty where it has none, and its problem."""
    return _first(row, NAMES, where), _first(row, SUBSETS, where), _text(row, where)


def _text(row: Mapping[str, Any], where: str) -> str:
    for name in CONVERSATIONS:
        turns = row.get(name)
        if isinstance(turns, list):
            users = [t for t in turns if isinstance(t, dict) and t.get("role") == "user"]
            return files.text_field(users[0] if users else {}, "content", f"{where}: {name}, user turn")
    question = row.get("question")
    if isinstance(question, dict):  # PRM800K
        return files.text_field(question, "problem", f"{where}: question")
    if row.get("input") is not None and row.get("label") is not None:
        return math_shepherd.problem(row, where)
    field = next((name for name in TEXTS if row.get(name) is not None), None)
    if field is None:
        raise UserError(f"{where}: has no problem; expected one of {', '.join((*TEXTS, *CONVERSATIONS[:2], 'input'))}")
    return files.text_field(row, field, where)


def _first(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    found = next((name for name in names if isinstance(row.get(name), str | int) and row[name] != ""), None)
    return "" if found is None else files.checked_name(row[found], found, where)


# --- counting -----------------------------------------------------------------------------------------------


def _counts(
    benchmark: str,
    rows: Sequence[Problem],
    problems: Sequence[Problem],
    inside: Sequence[Match],
    outside: Sequence[Match],
    ngram: int,
) -> list[Counts]:
    same = {m.problem for m in outside if m.kind == "exact"}
    near = {m.problem for m in outside} - same
    again = {index for m in inside for index in (m.problem, m.other)}
    short = {i for i, p in enumerate(problems) if contamination.too_short(p.text, ngram)}
    found = []
    for subset in dict.fromkeys(p.subset for p in problems):
        mine = {i for i, p in enumerate(problems) if p.subset == subset}
        told = [len(mine & part) for part in (mine, again, same, near, short)]
        found.append(Counts(benchmark, subset, sum(r.subset == subset for r in rows), *told))
    return found


def _pairs(
    benchmark: str, problems: Sequence[Problem], others: Sequence[Problem], found: Sequence[Match], prefix: str
) -> list[Pair]:
    told = [(problems[m.problem], others[m.other], m) for m in found]
    return [Pair(benchmark, a.subset, a.id, b.id, b.subset, prefix + m.kind, m.share) for a, b, m in told]
